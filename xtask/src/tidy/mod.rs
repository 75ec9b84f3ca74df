//! Rules that no compiler knows, over the text of the repository.
//!
//! - [`layers`]: which crate may depend on which.
//! - [`sources`]: where some names may appear, and how long a file may be.
//! - [`documents`]: what has to move together with the schema.
//!
//! A rule is a plain function from text to findings, so that each has a test that shows it catching
//! a violation.

mod documents;
mod layers;
mod lexer;
mod sources;
mod tree;

use anyhow::{Result, bail};
use std::{fmt, path::Path};

/// One thing to mend.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    file: String,
    /// Counted from 1; 0 = the file as a whole.
    line: usize,
    message: String,
}

impl Finding {
    fn new(file: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

pub(crate) fn run(root: &Path) -> Result<()> {
    let findings = findings(root)?;
    if findings.is_empty() {
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("{} findings", findings.len());
}

fn findings(root: &Path) -> Result<Vec<Finding>> {
    let files = tree::text_files(root)?;
    let mut findings = layers::check(&files);
    findings.extend(files.iter().flat_map(sources::check));
    findings.extend(documents::check(&files));
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules hold for the repository as it is, so `cargo test` alone finds a violation.
    #[test]
    fn this_repository_is_tidy() {
        let findings = findings(&crate::repository_root()).expect("the tree can be read");
        let lines: Vec<_> = findings.iter().map(Finding::to_string).collect();
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    }
}
