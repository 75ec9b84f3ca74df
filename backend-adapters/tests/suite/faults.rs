//! The fault wrapper itself.

use crate::support::{mailbox, receive, requests, soon};
use portico_backend::fault::{Faulty, Plan};
use portico_backend::memory::Store;
use portico_backend::messages::{Cmd, Messages};
use portico_backend::{Backend, Health, Kind, Limits, Request};
use portico_wire::ids::{DeviceId, Seq, UserId};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn faulty(plan: Plan, seed: u64) -> Faulty<Messages> {
    let plain = Store::new().messages(Limits::default());
    Faulty::new(plain, plan, seed).expect("starts")
}

fn set(n: u64) -> Cmd {
    Cmd::SetCursors {
        cursors: vec![(UserId(n), DeviceId(1), Seq(n))],
    }
}

#[test]
fn a_store_that_is_away_refuses_and_says_so() {
    let backend = faulty(Plan::default(), 1);
    let (sink, answers) = mailbox();
    backend.set_down(true);
    let rejected = backend
        .submit(requests(1, [set(1)]), &sink)
        .expect_err("is away");
    assert_eq!(rejected.why.kind, Kind::Unavailable);
    assert_eq!(rejected.batch[0].token, 1);
    assert!(matches!(backend.health(), Health::Down(_)));
    backend.set_down(false);
    backend.submit(rejected.batch, &sink).expect("is back");
    assert!(receive(&answers, 1)[0].result.is_ok());
    assert_eq!(backend.health(), Health::Up);
}

#[test]
fn a_store_that_stands_still_takes_work_and_answers_later() {
    let backend = faulty(Plan::default(), 1);
    let (sink, answers) = mailbox();
    let pause = Duration::from_millis(100);
    let begun = Instant::now();
    backend.stall(pause);
    backend
        .submit(requests(1, [set(1), set(2)]), &sink)
        .expect("takes work");
    assert!(matches!(backend.health(), Health::Degraded(_)));
    receive(&answers, 2);
    assert!(begun.elapsed() >= pause);
    assert_eq!(backend.health(), Health::Up);
}

#[test]
fn answers_overtake_those_of_other_lanes_only() {
    let plan = Plan {
        delay: 500,
        delay_max: Duration::from_millis(5),
        ..Plan::default()
    };
    let backend = faulty(plan, 7);
    let (sink, answers) = mailbox();
    for n in 0..400_u64 {
        let request = Request {
            token: n,
            lane: (n % 4) as u32,
            deadline: soon(),
            cmd: set(n),
        };
        backend.submit(vec![request], &sink).expect("takes work");
    }
    let tokens: Vec<u64> = receive(&answers, 400).iter().map(|c| c.token).collect();
    for lane in 0..4 {
        let of_lane: Vec<u64> = tokens.iter().copied().filter(|n| n % 4 == lane).collect();
        assert!(of_lane.is_sorted(), "a lane keeps its order");
    }
    assert!(!tokens.is_sorted(), "lanes overtake each other");
}

/// What becomes of each command follows from the seed.
#[test]
fn equal_seeds_give_equal_faults() {
    let outcomes = |seed| {
        let backend = faulty(Plan::rough(), seed);
        let (sink, answers) = mailbox();
        let mut kinds = Vec::new();
        for n in 0..300 {
            match backend.submit(requests(n, [set(n)]), &sink) {
                Err(rejected) => kinds.push(Some(rejected.why.kind)),
                Ok(()) => {
                    let result = receive(&answers, 1).remove(0).result;
                    kinds.push(result.err().map(|error| error.kind));
                }
            }
        }
        kinds
    };
    let first = outcomes(3);
    assert_eq!(first, outcomes(3));
    assert_ne!(first, outcomes(4));
    for kind in [
        None,
        Some(Kind::Overloaded),
        Some(Kind::Unavailable),
        Some(Kind::Unknown),
    ] {
        assert!(first.contains(&kind), "{kind:?} happens");
    }
}

#[test]
fn dropping_the_wrapper_answers_what_is_late() {
    let plan = Plan {
        delay: 1_000,
        delay_max: Duration::from_secs(3_600),
        ..Plan::default()
    };
    let backend = Arc::new(faulty(plan, 1));
    let (sink, answers) = mailbox();
    backend
        .submit(requests(1, (0..50).map(set)), &sink)
        .expect("takes work");
    let closed = backend.close(Instant::now() + Duration::from_millis(50));
    assert_eq!(closed.expect_err("answers are late").kind, Kind::Unknown);
    drop(backend);
    receive(&answers, 50);
}
