//! Documents that have to move with the schema.

use super::{Finding, tree::TextFile};
use crate::{codegen::SCHEMA, digest::sha256};

const PROTOCOL: &str = "docs/PROTOCOL.md";
/// How the protocol document names the schema it was written for.
const LABEL: &str = "Schema SHA-256: `";

/// Hexadecimal digits of the hash that the document carries.
const DIGITS: usize = 16;

pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let text = |path: &str| {
        let file = files.iter().find(|file| file.path == path);
        file.map(|file| file.text.as_str())
    };
    match (text(SCHEMA), text(PROTOCOL)) {
        (Some(schema), Some(document)) => protocol(schema, document).into_iter().collect(),
        (None, _) => vec![Finding::new(SCHEMA, 0, "is absent")],
        (_, None) => vec![Finding::new(PROTOCOL, 0, "is absent")],
    }
}

/// The document carries the hash of the schema it describes.
fn protocol(schema: &str, document: &str) -> Option<Finding> {
    let hash = sha256(schema.as_bytes());
    let expected = hash.get(..DIGITS)?;
    let line = document.lines().position(|line| line.contains(LABEL));
    let Some(line) = line else {
        let message = format!("has no line \"{LABEL}{expected}`\"");
        return Some(Finding::new(PROTOCOL, 0, message));
    };
    let stated = document.lines().nth(line)?.split_once(LABEL)?.1;
    let stated = stated.split('`').next().unwrap_or_default();
    (stated != expected).then(|| {
        let message = format!(
            "describes schema {stated}, but {SCHEMA} is {expected} now: read the document over, \
             mend what changed, then write the new hash"
        );
        Finding::new(PROTOCOL, line + 1, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(schema: &str, document: &str) -> [TextFile; 2] {
        [
            TextFile::new(SCHEMA, schema),
            TextFile::new(PROTOCOL, document),
        ]
    }

    #[test]
    fn a_schema_that_moved_alone_is_found() {
        let hash = sha256(b"table A {}");
        let document = format!("# Protocol\n\n{LABEL}{}`\n", &hash[..DIGITS]);
        assert_eq!(check(&files("table A {}", &document)), []);
        let findings = check(&files("table B {}", &document));
        assert_eq!((findings.len(), findings[0].line), (1, 3), "{findings:?}");
        assert!(findings[0].message.contains("read the document over"));
    }

    #[test]
    fn a_document_without_a_hash_is_found() {
        assert_eq!(check(&files("table A {}", "# Protocol\n")).len(), 1);
        assert_eq!(check(&files("table A {}", LABEL)).len(), 1);
    }

    #[test]
    fn absent_files_are_found() {
        assert_eq!(check(&[]).len(), 1);
        assert_eq!(check(&files("a", "b")[..1]).len(), 1);
    }
}
