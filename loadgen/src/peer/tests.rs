//! The driver against the floor, and against the real servers where they are installed: pairs and
//! a group, each message arrives once, at the right connection.

use super::{PeerOpening, System, open};
use crate::{
    fleet::{Audience, Fleet, Happened, MessageName, Outgoing},
    floor,
};
use portico_client::many::Clock;
use portico_wire::ids::UserId;
use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const FIRST_USER: u64 = 1 << 52;
const PATIENCE: Duration = Duration::from_secs(30);

fn opening(target: SocketAddr, users: u32, members: Option<u32>) -> PeerOpening {
    PeerOpening {
        clock: Clock::start(),
        target,
        users_before: 0,
        first_user: FIRST_USER,
        users,
        members,
        ports_per_source: 20_000,
        connects_per_s: 20_000,
        heartbeat_s: 1,
    }
}

/// What happened so far.
#[derive(Debug, Default)]
struct Seen {
    up: Vec<u32>,
    down: Vec<u32>,
    for_good: Option<String>,
    arrived: Vec<(u32, String)>,
    accepted: Vec<MessageName>,
    connect_failures: u64,
    faults: Vec<String>,
}

struct Drive {
    fleet: Box<dyn Fleet>,
    seen: Seen,
}

impl Drive {
    fn new(system: System, opening: &PeerOpening) -> Self {
        Self {
            fleet: open(system, opening).expect("epoll"),
            seen: Seen::default(),
        }
    }

    #[track_caller]
    fn until(&mut self, what: &str, done: impl Fn(&Seen) -> bool) {
        let begun = Instant::now();
        while !done(&self.seen) {
            assert!(begun.elapsed() < PATIENCE, "{what}: {:?}", self.seen);
            self.turn();
        }
    }

    fn turn(&mut self) {
        let seen = &mut self.seen;
        let turn = self.fleet.turn(20_000, &mut |_, conn, event| match event {
            Happened::Up { .. } => seen.up.push(conn),
            Happened::Down {
                detail, for_good, ..
            } => {
                seen.down.push(conn);
                if for_good {
                    seen.for_good = Some(detail.to_owned());
                }
            }
            Happened::Arrived { body, .. } => {
                let text = String::from_utf8_lossy(body).into_owned();
                seen.arrived.push((conn, text));
            }
            Happened::Accepted { name, .. } => seen.accepted.push(name),
            Happened::ConnectFailed(_) => seen.connect_failures += 1,
            Happened::Fault(fault) => seen.faults.push(fault.to_owned()),
            Happened::Refused { .. }
            | Happened::Receipt { .. }
            | Happened::ReadReceipt { .. }
            | Happened::AcceptedCopy { .. }
            | Happened::Repeated
            | Happened::Secured { .. }
            | Happened::GroupFailed { .. }
            | Happened::GroupChanged { .. }
            | Happened::ChangeAnswered { .. }
            | Happened::Watching { .. }
            | Happened::Presence { .. }
            | Happened::Signal { .. }
            | Happened::Page { .. }
            | Happened::Undecodable => panic!("no peer says {event:?}"),
        });
        turn.expect("epoll");
    }

    fn send(&mut self, conn: u32, counter: u32, to: Audience, body: &str) -> bool {
        let name = MessageName {
            flow: conn,
            counter,
        };
        let message = Outgoing {
            name,
            to,
            body: body.as_bytes(),
        };
        self.fleet.send(conn, &message).is_ok()
    }
}

fn user(conn: u32) -> Audience {
    Audience::User(UserId(FIRST_USER + u64::from(conn)))
}

/// Users write to their pairs, several messages in one write; one is cut, comes back, and is heard
/// again.
fn pairs_are_served(system: System, target: SocketAddr) {
    const USERS: u32 = 20;
    const EACH: u32 = 5;
    let mut drive = Drive::new(system, &opening(target, USERS, None));
    drive.until("logins", |seen| seen.up.len() == USERS as usize);
    for counter in 0..EACH {
        for conn in 0..USERS {
            assert!(drive.send(conn, counter, user(conn ^ 1), &format!("{conn}-{counter}")));
        }
    }
    let all = (USERS * EACH) as usize;
    drive.until("messages", |seen| seen.arrived.len() == all);
    if drive.fleet.promises().answers {
        drive.until("answers", |seen| seen.accepted.len() == all);
    }
    for conn in 0..USERS {
        let got = drive.seen.arrived.iter().filter(|(to, _)| *to == conn);
        let got: Vec<&str> = got.map(|(_, text)| text.as_str()).collect();
        let expected: Vec<String> = (0..EACH).map(|n| format!("{}-{n}", conn ^ 1)).collect();
        assert_eq!(got, expected, "of {conn}, in order");
        let counters = drive.seen.accepted.iter().filter(|name| name.flow == conn);
        let counters: Vec<u32> = counters.map(|name| name.counter).collect();
        let answered = if drive.fleet.promises().answers {
            EACH
        } else {
            0
        };
        assert_eq!(counters, (0..answered).collect::<Vec<_>>());
    }

    drive.fleet.cut(3, 100_000);
    assert!(!drive.send(3, EACH, user(2), "while away"));
    drive.until("its end", |seen| seen.down == [3]);
    drive.until("its return", |seen| seen.up.len() == USERS as usize + 1);
    assert!(drive.send(2, EACH, user(3), "back"));
    let back = (3, "back".to_owned());
    drive.until("a message to it", |seen| seen.arrived.contains(&back));

    drive.fleet.set_reading(3, false);
    assert!(drive.send(2, EACH + 1, user(3), "later"));
    for _ in 0..10 {
        drive.turn();
    }
    assert_eq!(drive.seen.arrived.last(), Some(&back));
    drive.fleet.set_reading(3, true);
    drive.until("what it left", |seen| {
        seen.arrived.last() == Some(&(3, "later".to_owned()))
    });

    // Longer than a heartbeat.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1_500) {
        drive.turn();
    }
    assert_eq!(drive.seen.down, [3], "{:?}", drive.seen);
    assert!(drive.seen.faults.is_empty(), "{:?}", drive.seen);
    drive.fleet.close_all();
}

/// Two groups of five: each member gets what its sender says, nobody else does.
fn groups_are_served(system: System, target: SocketAddr) {
    const MEMBERS: u32 = 5;
    let users = 2 * (MEMBERS + 1);
    let mut drive = Drive::new(system, &opening(target, users, Some(MEMBERS)));
    drive.until("logins", |seen| seen.up.len() == users as usize);
    for (group, text) in [(0, "red"), (1, "green")] {
        let sender = group * (MEMBERS + 1);
        assert!(drive.send(sender, 0, Audience::Group(group), text));
    }
    drive.until("messages", |seen| {
        seen.arrived.len() == 2 * MEMBERS as usize
    });
    drive.turn();
    let mut got = std::mem::take(&mut drive.seen.arrived);
    got.sort();
    let members = (1..=5).map(|conn| (conn, "red".to_owned()));
    let others = (7..=11).map(|conn| (conn, "green".to_owned()));
    assert_eq!(got, members.chain(others).collect::<Vec<_>>());
    drive.fleet.close_all();
}

fn all_is_served(system: System, target: SocketAddr) {
    pairs_are_served(system, target);
    groups_are_served(system, target);
}

#[test]
fn the_floor_serves() {
    let floor = floor::tests::Running::start();
    all_is_served(System::Relay, floor.address);
}

/// A server of another system, stopped when it is dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Server {
    /// `None`, and a word about it, when it is not installed.
    fn start(program: &str, args: impl Fn(u16, &std::path::Path) -> Vec<String>) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        let child = Command::new(program)
            .args(args(address.port(), folder.path()))
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
            assert!(begun.elapsed() < PATIENCE, "{program} does not listen");
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

#[test]
fn mosquitto_serves() {
    let server = Server::start("mosquitto", |port, folder| {
        let file = folder.join("mosquitto.conf");
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type none\n"
        );
        fs::write(&file, text).expect("written");
        vec!["-c".to_owned(), file.display().to_string()]
    });
    if let Some(server) = server {
        all_is_served(System::MqttQos0, server.address);
        all_is_served(System::MqttQos1, server.address);
    }
}

#[test]
fn nats_serves() {
    let server = Server::start("nats-server", |port, _| {
        let line = format!("-a 127.0.0.1 -p {port}");
        line.split(' ').map(str::to_owned).collect()
    });
    if let Some(server) = server {
        all_is_served(System::Nats, server.address);
    }
}

#[test]
fn redis_serves() {
    let server = Server::start("redis-server", |port, _| {
        let line = format!("--bind 127.0.0.1 --port {port} --appendonly no --save 900000 1");
        line.split(' ').map(str::to_owned).collect()
    });
    if let Some(server) = server {
        all_is_served(System::Redis, server.address);
    }
}

#[test]
fn a_refusal_at_login_is_final_and_says_why() {
    let server = Server::start("redis-server", |port, _| {
        let line = format!("--bind 127.0.0.1 --port {port} --requirepass secret");
        line.split(' ').map(str::to_owned).collect()
    });
    let Some(server) = server else { return };
    let mut drive = Drive::new(System::Redis, &opening(server.address, 2, None));
    drive.until("the refusals", |seen| seen.down.len() == 2);
    let why = drive.seen.for_good.as_deref();
    assert!(
        why.is_some_and(|why| why.contains("Authentication required")),
        "{why:?}"
    );
}

#[test]
fn a_server_of_another_protocol_is_a_fault_and_none_at_all_is_tried_again() {
    let floor = floor::tests::Running::start();
    let mut drive = Drive::new(System::Nats, &opening(floor.address, 2, None));
    // The floor waits for a greeting and NATS for INFO: both are silent until one gives up.
    for _ in 0..5 {
        drive.turn();
    }
    assert!(drive.seen.up.is_empty());

    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let mut drive = Drive::new(System::Relay, &opening(address, 2, None));
    drive.until("failures", |seen| seen.connect_failures >= 8);
}
