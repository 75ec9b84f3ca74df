//! A disk that fills up under load: refused with a code, told to the operator, and nothing that was
//! acknowledged is lost.

use crate::harness::{Gateway, PATIENCE, Peer, Setup, eventually};
use portico_client::RawError;
use portico_wire::{ErrorCode, Op, message::ErrorReply};
use std::{
    env,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// A file system in memory, unmounted when dropped.
#[derive(Debug)]
struct SmallDisk {
    place: PathBuf,
}

impl SmallDisk {
    /// `None`, with the reason printed, where it cannot be had. Continuous integration runs as root
    /// and must not skip this.
    fn mount(place: &Path, megabytes: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can mount a small file system");
            return None;
        }
        let size = format!("size={megabytes}m,mode=700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "portico-e2e"]);
        let mounted = mount.arg(place).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self {
                place: place.to_owned(),
            }),
            other => {
                let in_ci = env::var_os("CI").is_some_and(|ci| ci == "true");
                assert!(!in_ci, "cannot mount: {other:?}");
                println!("skipped: cannot mount a small file system: {other:?}");
                None
            }
        }
    }

    /// Leaves so many bytes free.
    fn fill_up_to(&self, bytes_free: u64) -> PathBuf {
        let ballast = self.place.join("ballast");
        let mut file = File::create(&ballast).expect("there is room");
        let block = vec![0; 65_536];
        while free_bytes(&self.place) > bytes_free {
            file.write_all(&block).expect("there is room");
        }
        ballast
    }
}

fn free_bytes(place: &Path) -> u64 {
    let stat = rustix::fs::statvfs(place).expect("it is mounted");
    stat.f_bavail * stat.f_frsize
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that fails may leave files open.
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
    }
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Sent,
    Refused(ErrorCode),
    /// The connection ended first.
    Unknown,
}

fn fate(peer: &mut Peer, corr: u32) -> Fate {
    loop {
        match peer.conn.expect_frame(PATIENCE) {
            Ok(frame) if frame.corr != corr => {}
            Ok(frame) if frame.known_op() == Some(Op::Sent) => return Fate::Sent,
            Ok(frame) => {
                assert_eq!(frame.known_op(), Some(Op::Error), "{frame:?}");
                let reply = ErrorReply::decode(&frame.body).expect("an ErrorReply");
                return Fate::Refused(reply.code);
            }
            Err(RawError::Io(error)) if error.kind() == std::io::ErrorKind::TimedOut => {
                panic!("neither accepted nor refused");
            }
            Err(_) => return Fate::Unknown,
        }
    }
}

#[test]
fn a_full_disk_refuses_messages_and_loses_none() {
    let directory = TempDir::new().expect("a temporary directory");
    let Some(disk) = SmallDisk::mount(directory.path(), 256) else {
        return;
    };
    let setup = Setup::within(directory)
        .set("limits.store_timeout_ms", 5_000)
        .expect_log("store");
    let gateway = setup.start();
    let refused = gateway.watch(r#"portico_requests_refused_total{reason="store"}"#);
    let mut sender = gateway.login(1, 1);
    sender.send(2, "before");
    let ballast = disk.fill_up_to(4 << 20);

    let text = "z".repeat(50_000);
    let mut accepted = vec!["before".to_owned()];
    let mut open = Vec::new();
    for n in 0.. {
        assert!(n < 5_000, "the disk does not fill up");
        let text = format!("{n} {text}");
        let (corr, _) = sender.post(2, &text);
        match fate(&mut sender, corr) {
            Fate::Sent => accepted.push(text),
            fate => {
                // A code that says try again, with RETRY: nobody knows whether it is stored.
                let told = [ErrorCode::UNAVAILABLE, ErrorCode::TIMEOUT].map(Fate::Refused);
                assert!(told.contains(&fate), "{fate:?} after {n} messages");
                open.push(text);
                break;
            }
        }
    }
    println!(
        "{} messages were accepted before the disk was full",
        accepted.len()
    );
    refused.moves();

    // The operator is told, by a probe and by the log; the process lives and refuses on.
    let page = eventually("/readyz is red", || {
        Some(gateway.get("/readyz")).filter(|page| page.status == 503)
    });
    assert!(page.body.contains("store"), "{}", page.body);
    assert_eq!(gateway.get("/healthz").status, 200);
    assert_eq!(gateway.metrics().get("portico_store_up"), 0);
    let (corr, _) = sender.post(2, "while full");
    assert!(matches!(
        fate(&mut sender, corr),
        Fate::Refused(_) | Fate::Unknown
    ));
    open.push("while full".to_owned());
    kill_and_free(gateway, &ballast);

    // Space is back, and so is the gateway: everything that got SENT is there, in its order.
    // What was refused with "outcome unknown" may be there too.
    let gateway = setup.start();
    assert_eq!(gateway.get("/readyz").status, 200);
    let mut reader = gateway.login(2, 1);
    let mut arrived = Vec::new();
    gateway.login(1, 1).send(2, "after");
    while arrived.last().is_none_or(|text| text != "after") {
        arrived.push(reader.receive().text);
    }
    arrived.pop();
    arrived.retain(|text| !open.contains(text));
    let heads = |texts: &[String]| -> Vec<String> {
        texts
            .iter()
            .map(|text| text.chars().take(8).collect())
            .collect()
    };
    assert_eq!(heads(&arrived), heads(&accepted));
    assert!(arrived == accepted);
    gateway.still_serves();
    drop(gateway);
    drop(disk);
}

/// A store that cannot write is closed by force, as an operator would.
fn kill_and_free(gateway: Gateway, ballast: &Path) {
    gateway.kill();
    fs::remove_file(ballast).expect("it is there");
}
