//! The text files of the repository.

use anyhow::{Context, Result};
use std::{fs, path::Path};

/// A file, by its path from the root with `/` between the parts.
#[derive(Debug)]
pub(super) struct TextFile {
    pub(super) path: String,
    pub(super) text: String,
}

impl TextFile {
    #[cfg(test)]
    pub(super) fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    pub(super) fn has_extension(&self, extension: &str) -> bool {
        let found = self.path.rsplit_once('.').map(|(_, found)| found);
        found == Some(extension)
    }
}

/// Folders that hold no source: build output, version control, data of a running gateway, seeds.
const SKIPPED_FOLDERS: &[&str] = &["target", ".git", "portico-data", "artifacts", "corpus"];

/// What counts as text, by extension.
const EXTENSIONS: &[&str] = &[
    "rs", "toml", "md", "fbs", "txt", "yml", "yaml", "sh", "json", "py",
];

/// Every text file, in the order of their paths.
pub(super) fn text_files(root: &Path) -> Result<Vec<TextFile>> {
    let mut files = Vec::new();
    collect(root, "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<TextFile>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let path = format!("{prefix}{name}");
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !SKIPPED_FOLDERS.contains(&name) {
                collect(&entry.path(), &format!("{path}/"), files)?;
            }
        } else if kind.is_file() {
            let file = TextFile {
                path,
                text: String::new(),
            };
            if EXTENSIONS
                .iter()
                .any(|extension| file.has_extension(extension))
            {
                let text = fs::read_to_string(entry.path())
                    .with_context(|| format!("{} is not UTF-8 text", file.path))?;
                files.push(TextFile { text, ..file });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_found_and_build_output_is_not() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let root = folder.path();
        for path in [
            "b/src/lib.rs",
            "a.md",
            "target/x.rs",
            "b/target/y.rs",
            "picture.png",
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("made");
            fs::write(path, "text").expect("written");
        }
        let files = text_files(root).expect("readable");
        let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["a.md", "b/src/lib.rs"]);
    }
}
