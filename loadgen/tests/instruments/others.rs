//! Plans against the floor, and against other systems where they are installed: everything arrives,
//! and what a system does not promise is not missed.

use super::{run, serving};
use crate::support::alone;
use serde_json::Value;
use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Stopped when it is dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Server {
    /// `None`, and a word about it, when it is not installed.
    fn start(program: &str, arguments: impl Fn(u16, &Path) -> String) -> Option<Self> {
        let folder = TempDir::new().expect("a temporary directory");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        let child = Command::new(program)
            .args(arguments(address.port(), folder.path()).split_whitespace())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            let in_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
            assert!(!in_ci, "{program} is not installed, and CI skips nothing");
            eprintln!("skipped: {program} is not installed");
            return None;
        };
        let server = Self {
            child,
            address,
            _folder: folder,
        };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            let patience = Duration::from_secs(30);
            assert!(begun.elapsed() < patience, "{program} does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn passes(target: SocketAddr, line: &str) -> Value {
    let (output, result) = run(target, &format!("{line} --slip-max 1m"));
    assert_eq!(result["verdict"], "pass", "{line}: {result:#}");
    assert_eq!(output.status.code(), Some(0));
    for name in [
        "lost",
        "duplicated",
        "reordered",
        "misrouted",
        "corrupt",
        "not_queued",
    ] {
        assert_eq!(result[name], 0, "{line}, {name}: {result:#}");
    }
    result
}

fn every_plan_passes(protocol: &str, target: SocketAddr) {
    let plans = |line: &str| passes(target, &format!("{line} --protocol {protocol}"));
    let relay = plans("relay --connections 20 --rate 400 --duration 1s");
    assert_eq!(relay["delivered"], 400, "{relay:#}");
    assert_eq!(relay["connections"], 20);
    assert_eq!(relay["latency_us"]["samples"], 400);
    let burst = plans("relay --connections 20 --rate 400 --duration 1s --burst 10 --size 3000");
    assert_eq!(burst["delivered"], 400, "{burst:#}");
    let fanout = plans("fanout --groups 2 --members 5 --rate 40 --duration 1s");
    assert_eq!(fanout["delivered"], 200, "{fanout:#}");
    let rounds = plans("relay --connections 20 --duration 1s --pace rounds --burst 3");
    assert!(rounds["delivered"].as_u64() > Some(60), "{rounds:#}");
    assert_eq!(rounds["delivered"], rounds["sent"]);
    let pairs = plans("pingpong --connections 10 --duration 1s");
    assert!(pairs["delivered"].as_u64() > Some(10), "{pairs:#}");
    if protocol != "relay" {
        plans("smoke --connections 20 --rate 400 --duration 1s");
    }
    let held = plans(
        "hold --connections 50 --active 10 --ramp 500 --heartbeat 1s --settle 1500ms --rate 200 \
         --duration 1s",
    );
    assert_eq!(held["connections"], 50);
    assert_eq!(held["delivered"], 200, "{held:#}");
    plans("slow-readers --connections 20 --rate 400 --duration 1s --at 300ms --lasts 300ms");
}

#[test]
fn the_floor_passes_on_everything() {
    let floor = serving("floor");
    every_plan_passes("relay", floor.address);
}

#[test]
fn mosquitto_passes_on_everything() {
    let server = Server::start("mosquitto", |port, folder| {
        let file = folder.join("mosquitto.conf");
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type none\n\
             set_tcp_nodelay true\nmax_inflight_messages 0\nmax_queued_messages 0\n"
        );
        fs::write(&file, text).expect("written");
        format!("-c {}", file.display())
    });
    if let Some(server) = server {
        every_plan_passes("mqtt-qos0", server.address);
        every_plan_passes("mqtt-qos1", server.address);
    }
}

#[test]
fn nats_passes_on_everything() {
    let server = Server::start("nats-server", |port, _| format!("-a 127.0.0.1 -p {port}"));
    if let Some(server) = server {
        every_plan_passes("nats", server.address);
    }
}

#[test]
fn redis_passes_on_everything() {
    let server = Server::start("redis-server", |port, _| {
        format!("--bind 127.0.0.1 --port {port} --appendonly no --save 900000 1")
    });
    if let Some(server) = server {
        every_plan_passes("redis", server.address);
    }
}

/// At most once means that what was sent to somebody who is away is gone: such plans are refused
/// instead of reported as losses.
#[test]
fn plans_that_need_a_store_are_refused() {
    let output = alone("storm --protocol redis --target 127.0.0.1:1");
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("users who are away"), "{text}");
}
