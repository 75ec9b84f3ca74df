//! The built program where it runs more than once: searches for capacity, and several workers.
//!
//! Apart from the other tests, because threads of a fake gateway end here by the hundred: the CPU
//! time that is read of a process whose gateways are measured there would shrink.

mod capacity;
#[path = "../end_to_end/fake_gateway.rs"]
#[allow(dead_code)]
mod fake_gateway;
mod remote;

use portico_client::mint::SigningKey;
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output},
};
use tempfile::TempDir;

const USERS: u64 = 20;
const MESSAGES: u64 = 400;
/// What the fake gateway treats wrongly: 5 of each user's 20.
const CHOSEN: u64 = 100;

struct Setup {
    directory: TempDir,
}

impl Setup {
    fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let key = directory.path().join("auth-key.pem");
        fs::write(&key, SigningKey::generate_pem().expect("a key")).expect("written");
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&key, private).expect("own file");
        Self { directory }
    }

    fn json_file(&self) -> PathBuf {
        self.directory.path().join("result.json")
    }

    fn run(&self, target: &str, flags: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_portico-loadgen"))
            .args(flags.split_whitespace())
            .args(["--target", target])
            .arg("--data")
            .arg(self.directory.path())
            .arg("--json")
            .arg(self.json_file())
            .output()
            .expect("the program starts")
    }

    fn result(&self) -> Value {
        let json = fs::read(self.json_file()).expect("a result was written");
        serde_json::from_slice(&json).expect("valid JSON")
    }
}

#[track_caller]
fn fails_with(output: &Output, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` in: {text}");
    }
}
