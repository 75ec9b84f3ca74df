//! What connections cost that say nothing.

use crate::harness::{Gateway, PATIENCE, Setup};
use portico_client::RawConnection;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{thread, time::Duration};

const CONNECTIONS: u64 = 1_000;
/// How long one look at the CPU time takes.
const QUIET: Duration = Duration::from_secs(3);
/// The process may use so much of it: 0.3 % of one core for all connections together.
const CPU_MAX: Duration = Duration::from_millis(10);
/// Looks until one is good: right after the logins there is something left to do.
const LOOKS: u32 = 5;
/// Descriptors that may appear while so many clients connect, for reasons of the store.
const DESCRIPTORS_SLACK: usize = 16;

fn allow_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, wanted).expect("the soft limit may reach the hard one");
}

fn crowd(gateway: &Gateway) -> Vec<RawConnection> {
    (1..=CONNECTIONS)
        .map(|user| {
            let mut conn = gateway.connect();
            conn.hello(&gateway.token(user, 1)).expect("WELCOME");
            conn
        })
        .collect()
}

#[test]
fn a_thousand_quiet_connections_cost_no_cpu_and_no_descriptors() {
    allow_open_files();
    // Its open files are shown to the user of the test.
    let gateway = Setup::new().set("server.core_dumps", "allowed").start();
    let process = gateway.process();
    gateway.still_serves();
    let descriptors = process.descriptors();
    let mut crowd = crowd(&gateway);
    gateway.await_metric("portico_connections", |count| count == CONNECTIONS);
    gateway.await_metric("portico_unsaved", |count| count == 0);

    // Clients' sockets are direct descriptors of the rings, not files of the process.
    let more = process.descriptors().saturating_sub(descriptors);
    assert!(more <= DESCRIPTORS_SLACK, "{more} descriptors more");

    let looks: Vec<_> = (0..LOOKS)
        .map(|_| {
            let before = process.cpu();
            thread::sleep(QUIET);
            process.cpu() - before
        })
        .scan(false, |done, used| {
            let go_on = !*done;
            *done = used <= CPU_MAX;
            go_on.then_some(used)
        })
        .collect();
    let last = looks.last().copied().unwrap_or_default();
    println!("CPU time in {QUIET:?} with {CONNECTIONS} connections: {looks:?}");
    assert!(last <= CPU_MAX, "{looks:?} in {QUIET:?} each");

    // The ring never handed work to kernel threads, and the connections were not asleep for good.
    assert!(
        process.cpu() > CPU_MAX,
        "the logins cost something, so this is the right process"
    );
    let workers: Vec<_> = process.threads();
    assert!(
        workers.iter().any(|name| name.starts_with("portico-shard")),
        "{workers:?}"
    );
    assert!(
        !workers.iter().any(|name| name.starts_with("iou-wrk")),
        "{workers:?}"
    );
    let mut sender = gateway.login(5_000, 1);
    for user in [1, CONNECTIONS / 2, CONNECTIONS] {
        sender.send(user, "wake up");
        let conn = &mut crowd[user as usize - 1];
        conn.expect_op(portico_wire::Op::Deliver, PATIENCE)
            .expect("a message");
    }
    drop(crowd);
    gateway.await_metric("portico_connections", |count| count == 1);
    let left = gateway.metrics().get("portico_sockets");
    assert!(left <= 1, "{left} slots are still taken");
}
