//! As a service is run: by a user without rights, within the limits that systems give one, and by a
//! service manager that wants to be told. Root starts it as nobody, others as themselves.

use crate::harness::{Exit, Gateway, PATIENCE, Setup};
use rustix::process::Signal;
use std::{
    fs,
    os::unix::{fs::MetadataExt, net::UnixDatagram},
};

/// The least that systems give: 8 MiB, and the hard limit of open files of old ones.
const USUAL: &str = "ulimit -l 8192; ulimit -n 4096";

fn of_process(gateway: &Gateway, name: &str) -> String {
    format!("/proc/{}/{name}", gateway.child.id())
}

/// A line of /proc/PID/status.
fn status(gateway: &Gateway, name: &str) -> String {
    let text = fs::read_to_string(of_process(gateway, "status")).expect("it lives");
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix(name));
    line.expect("every process has one").trim().to_owned()
}

#[test]
fn an_ordinary_user_serves_and_gives_up_what_it_does_not_need() {
    let gateway = Setup::new().ordinary_user(USUAL).start();
    gateway.still_serves();
    assert_eq!(status(&gateway, "CapEff:"), "0000000000000000");
    assert_eq!(status(&gateway, "NoNewPrivs:"), "1");
    // Other processes of its user may not look into its memory: the kernel gives such files to root.
    let memory = |gateway: &Gateway| {
        let file = fs::metadata(of_process(gateway, "mem"));
        file.expect("it lives").uid()
    };
    assert_eq!(memory(&gateway), 0);
    let limits = fs::read_to_string(of_process(&gateway, "limits")).expect("it lives");
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"));
    assert_eq!(
        line.and_then(|line| line.split_whitespace().next()),
        Some("0")
    );
    let exit = gateway.stop();
    assert!(exit.err.contains("drained and closed"), "{}", exit.err);

    let setup = Setup::new().set("server.core_dumps", "allowed");
    let open = setup.ordinary_user(USUAL).start();
    let own: u32 = status(&open, "Uid:")
        .split_whitespace()
        .next()
        .and_then(|uid| uid.parse().ok())
        .expect("a number");
    assert!(own != 0);
    assert_eq!(memory(&open), own);
    open.still_serves();
}

/// What it makes is its user's alone, whatever the mask it was started with.
#[test]
fn files_are_for_nobody_else() {
    let gateway = Setup::new()
        .ordinary_user("umask 0; mkdir \"$(dirname \"$0\")/data\"")
        .start();
    gateway.still_serves();
    let data = gateway.setup().data();
    let mut folders = vec![data.clone()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a directory").flatten() {
            let metadata = entry.metadata().expect("it is there");
            let mode = metadata.mode() & 0o777;
            assert_eq!(mode & 0o077, 0, "{} has {mode:o}", entry.path().display());
            seen += 1;
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    assert!(seen > 5, "{seen} files");
}

fn is_told(exit: &Exit, parts: &[&str]) {
    assert_eq!(exit.code, Some(1), "{}", exit.err);
    for part in parts {
        assert!(exit.err.contains(part), "{part:?} is not in: {}", exit.err);
    }
}

#[test]
fn limits_that_are_too_low_are_named_with_what_to_do() {
    let setup = || Setup::new().flag("--shards", 2);
    let exit = setup().ordinary_user("ulimit -l 256").start_refused();
    is_told(
        &exit,
        &["2 shards", "RLIMIT_MEMLOCK allows 262144", "LimitMEMLOCK="],
    );
    let exit = setup().ordinary_user("ulimit -n 512").start_refused();
    is_told(&exit, &["RLIMIT_NOFILE allows 512", "LimitNOFILE="]);
}

#[test]
fn a_directory_of_somebody_else_is_named() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root has directories that this user may not write to");
        return;
    }
    let setup = Setup::new();
    fs::create_dir(setup.data()).expect("a new one");
    let data = setup.data().display().to_string();
    let exit = setup.ordinary_user("").start_refused();
    is_told(&exit, &[&data, "Permission denied"]);
}

#[test]
fn a_port_for_the_privileged_is_named_with_what_to_do() {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first: u32 = first.map_or(1_024, |text| text.trim().parse().expect("a number"));
    if first <= 1 {
        println!("skipped: every port is for everybody here");
        return;
    }
    let setup = Setup::new().flag("--listen", "127.0.0.1:1");
    let exit = setup.ordinary_user(USUAL).start_refused();
    is_told(
        &exit,
        &["cannot listen on 127.0.0.1:1", "CAP_NET_BIND_SERVICE"],
    );
}

/// As systemd does with `Type=notify` and `WatchdogSec=`.
#[test]
fn a_service_manager_is_told() {
    let setup = Setup::new();
    let path = setup.directory().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a new name");
    socket.set_read_timeout(Some(PATIENCE)).expect("any socket");
    let hears = |wanted: &str| {
        let mut bytes = [0; 512];
        loop {
            let count = socket.recv(&mut bytes).expect("a word in time");
            let said = String::from_utf8_lossy(&bytes[..count]).into_owned();
            if said.lines().any(|line| line == wanted) {
                return;
            }
            // Signs of life may come at any time.
            assert_eq!(said, "WATCHDOG=1", "instead of {wanted}");
        }
    };
    let mut gateway = setup
        .variable("NOTIFY_SOCKET", path.display())
        .variable("WATCHDOG_USEC", 400_000)
        .start();
    hears("READY=1");
    for _ in 0..5 {
        hears("WATCHDOG=1");
    }
    gateway.still_serves();
    hears("WATCHDOG=1");
    // As `systemctl reload` does, also where there is nothing to read again.
    gateway.child.signal(Signal::HUP);
    hears("RELOADING=1");
    hears("READY=1");
    gateway.still_serves();
    gateway.child.signal(Signal::TERM);
    hears("STOPPING=1");
    let exit = gateway.child.wait();
    assert_eq!(exit.code, Some(0), "{}", exit.err);

    let exit = Setup::new()
        .variable("NOTIFY_SOCKET", "/nowhere/notify")
        .start_refused();
    is_told(&exit, &["NOTIFY_SOCKET", "No such file"]);
}
