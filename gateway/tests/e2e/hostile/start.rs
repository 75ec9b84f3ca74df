//! What keeps a gateway from starting: one sentence and an exit code.

use crate::harness::{Child, Exit, Gateway, Setup};
use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt};

const BAD_USE: Option<i32> = Some(64);
const FAILED: Option<i32> = Some(1);

fn says(exit: &Exit, code: Option<i32>, parts: &[&str]) {
    assert_eq!(exit.code, code, "{}", exit.err);
    for part in parts {
        assert!(exit.err.contains(part), "{part:?} is not in: {}", exit.err);
    }
    let sentences = exit.err.lines().filter(|line| !line.is_empty()).count();
    assert!(sentences <= 2, "more than a sentence:\n{}", exit.err);
}

#[test]
fn a_data_directory_in_use_is_refused() {
    let setup = Setup::new();
    let first = setup.start();
    let data = setup.data().display().to_string();
    says(&setup.start_refused(), FAILED, &[&data, "in use"]);
    first.still_serves();
    // And afterwards it is free again.
    first.kill();
    setup.start().still_serves();
}

#[test]
fn a_port_in_use_is_refused() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it has one").to_string();
    for flag in ["--listen", "--admin"] {
        let exit = Setup::new().flag(flag, &address).start_refused();
        says(&exit, FAILED, &[&address, "in use"]);
    }
}

/// Two gateways on one port would share its clients without knowing of each other.
#[test]
fn the_port_of_another_gateway_is_refused() {
    let first = Gateway::start();
    for flag in ["--listen", "--admin"] {
        for address in [first.listen, first.admin] {
            let exit = Setup::new().flag(flag, address).start_refused();
            says(&exit, FAILED, &[&address.to_string(), "in use"]);
        }
    }
    first.still_serves();
}

#[test]
fn bad_settings_are_refused_by_name_value_and_range() {
    let exit = Setup::new().set("server.shards", 0).start_refused();
    says(
        &exit,
        BAD_USE,
        &["server.shards", "0", "1 to 256", "PORTICO_SHARDS"],
    );
    let exit = Setup::new().set("session.hartbeat_s", 60).start_refused();
    says(
        &exit,
        BAD_USE,
        &["PORTICO_SESSION_HARTBEAT_S", "PORTICO_SESSION_HEARTBEAT_S"],
    );
    let exit = Setup::new().flag("--backend", "tape").start_refused();
    says(&exit, BAD_USE, &["server.backend", "tape", "embedded"]);
    let exit = Setup::new().flag("--listen", "here").start_refused();
    says(&exit, BAD_USE, &["server.listen", "here"]);

    let setup = Setup::new();
    let file = setup.directory().join("bad.toml");
    let setup = setup.flag("--config", file.display());
    for (text, parts) in [
        (
            "[session]\nheartbeat_s = 0\n",
            ["session.heartbeat_s", "bad.toml"],
        ),
        ("[sesion]\nheartbeat_s = 60\n", ["sesion", "bad.toml"]),
        (
            "[session]\nheartbeat_s = \"often\"\n",
            ["session.heartbeat_s", "often"],
        ),
        ("[session\n", ["bad.toml", "TOML"]),
    ] {
        fs::write(&file, text).expect("a file");
        let exit = setup.start_refused();
        assert_eq!(exit.code, BAD_USE, "{}", exit.err);
        for part in parts {
            assert!(exit.err.contains(part), "{part:?} is not in: {}", exit.err);
        }
    }
    fs::remove_file(&file).expect("it is there");
    says(&setup.start_refused(), BAD_USE, &["bad.toml"]);
}

#[test]
fn bad_use_is_refused() {
    for arguments in [
        &["serve", "--no-such-flag"][..],
        &["no-such-command"],
        &["serve", "--listen"],
        &["token", "--user", "0"],
        &["chat", "--as", "1"],
        &["config", "--check", "no such file"],
    ] {
        let exit = Child::run(arguments, &[]);
        assert_eq!(exit.code, BAD_USE, "{arguments:?}: {}", exit.err);
        assert_eq!(exit.out, "", "{arguments:?}");
        assert!(!exit.err.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_data_directory_that_cannot_be_made_is_refused() {
    let setup = Setup::new();
    fs::write(setup.data(), "a file, not a directory").expect("a file");
    let data = setup.data().display().to_string();
    says(&setup.start_refused(), FAILED, &[&data]);
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let setup = Setup::new();
    setup.start().stop();
    let key = setup.data().join(portico_client::mint::KEY_FILE);
    let mode = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode));
    let found = fs::metadata(&key)
        .expect("it was made")
        .permissions()
        .mode();
    assert_eq!(found & 0o777, 0o600);
    let data = fs::metadata(setup.data()).expect("it was made");
    assert_eq!(data.permissions().mode() & 0o777, 0o700);
    mode(0o644).expect("it is ours");
    says(&setup.start_refused(), FAILED, &["auth-key.pem", "600"]);
    mode(0o600).expect("it is ours");
    setup.start().still_serves();
    fs::write(&key, "no key").expect("it is ours");
    says(&setup.start_refused(), FAILED, &["auth-key.pem"]);
}

#[test]
fn more_shards_than_locked_memory_allows_are_refused_or_work() {
    // Who may lock all memory (root, usually) gets them; others are told how many fit.
    let setup = Setup::new().flag("--shards", 256);
    let mut child = setup.spawn();
    let ready = child
        .out
        .find(|line| line.starts_with("ready ").then_some(()));
    if ready.is_none() {
        let exit = child.wait();
        says(&exit, FAILED, &["256 shards", "RLIMIT_MEMLOCK", "at most"]);
    }
}

#[test]
fn the_probe_reports_and_the_default_configuration_is_valid() {
    let exit = Child::run(&["probe"], &[]);
    assert_eq!(exit.code, Some(0), "{}", exit.err);
    assert!(exit.out.contains("io_uring"), "{}", exit.out);
    let printed = Child::run(&["config", "--print-default"], &[]);
    assert_eq!(printed.code, Some(0));
    let setup = Setup::new();
    let file = setup.directory().join("printed.toml");
    fs::write(&file, printed.out).expect("a file");
    let file = file.display().to_string();
    let exit = Child::run(&["config", "--check", &file], &[]);
    assert_eq!(exit.code, Some(0), "{}", exit.err);
    let exit = Child::run(&["version"], &[]);
    assert_eq!(exit.code, Some(0));
    assert!(exit.out.contains(env!("CARGO_PKG_VERSION")), "{}", exit.out);
}

/// Every metric on the page is in the table that `portico metrics` prints.
#[test]
fn the_table_of_metrics_is_complete() {
    let table = Child::run(&["metrics"], &[]);
    assert_eq!(table.code, Some(0), "{}", table.err);
    let gateway = Gateway::start();
    let page = gateway.get("/metrics").body;
    let names: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        assert!(table.out.contains(name), "{name} is not in the table");
    }
}
