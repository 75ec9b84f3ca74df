//! The loop of a worker over a fleet without sockets, in a time of its own: what is sent and done,
//! when, in which turn.

use super::*;
use crate::{
    fleet::{Audience, Fleet, Full, Happened, OnEvent, Outgoing, Promises},
    plan::{Pace, Protocol},
};
use portico_client::Now;
use portico_wire::ids::{ConvSeq, UserId};
use std::{cell::RefCell, rc::Rc, time::Duration};

const START_US: u64 = 10_000;
const FIRST_USER: u64 = 1_000;

/// What a worker did, with the time and the number of the turn before which it did it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Did {
    Send {
        conn: u32,
        to: Audience,
        bytes: usize,
    },
    Cut {
        conn: u32,
        back_after_us: u64,
    },
    Reading {
        conn: u32,
        reading: bool,
    },
    Read {
        conn: u32,
        peer: UserId,
        up_to: ConvSeq,
    },
}

#[derive(Debug, Default)]
struct Log {
    done: Vec<(u64, u64, Did)>,
    /// How long each turn was allowed to wait.
    waits_us: Vec<u64>,
}

/// Accepts everything, and delivers it so long after; time passes only in turns.
struct Script {
    now_us: u64,
    /// What a turn takes at least.
    turn_us: u64,
    delay_us: u64,
    /// Takes no more than so many messages of all together.
    room: usize,
    promises: Promises,
    users: u32,
    under_way: Vec<(u64, u32, UserId, Vec<u8>, crate::fleet::MessageName)>,
    back: Vec<(u64, u32)>,
    place: u64,
    log: Rc<RefCell<Log>>,
}

impl Script {
    fn note(&self, did: Did) {
        let mut log = self.log.borrow_mut();
        let turn = log.waits_us.len() as u64;
        log.done.push((self.now_us, turn, did));
    }

    fn time(&self) -> Now {
        Now {
            mono_us: self.now_us,
            wall_us: self.now_us,
        }
    }
}

impl Fleet for Script {
    fn promises(&self) -> Promises {
        self.promises
    }

    fn now(&self) -> Now {
        self.time()
    }

    fn turn(&mut self, wait_us: u64, on: &mut OnEvent<'_>) -> io::Result<()> {
        self.log.borrow_mut().waits_us.push(wait_us);
        let first = self.under_way.iter().map(|message| message.0);
        let first_us = first.chain(self.back.iter().map(|back| back.0)).min();
        let (soonest_us, until_us) = (self.now_us + self.turn_us, self.now_us + wait_us);
        let until_us = until_us.max(soonest_us);
        self.now_us = first_us.map_or(until_us, |at_us| at_us.clamp(soonest_us, until_us));
        let now = self.time();
        let due = |at_us: u64| at_us <= now.mono_us;
        let back: Vec<_> = self.back.extract_if(.., |back| due(back.0)).collect();
        for (_, conn) in back {
            on(now, conn, Happened::Up { after_us: 5 });
        }
        let messages: Vec<_> = self
            .under_way
            .extract_if(.., |message| due(message.0))
            .collect();
        for (_, sender, to, body, name) in messages {
            self.place += 1;
            let place = self.promises.places.then_some(ConvSeq(self.place));
            let conn = (to.0 - FIRST_USER) as u32;
            let author = Some(UserId(FIRST_USER + u64::from(sender)));
            let arrived = Happened::Arrived {
                body: &body,
                author,
                place,
                crowd: None,
            };
            on(now, conn, arrived);
            if self.promises.answers {
                let accepted = Happened::Accepted {
                    name,
                    place,
                    duplicate: false,
                };
                on(now, sender, accepted);
            }
        }
        Ok(())
    }

    fn send(&mut self, conn: u32, message: &Outgoing<'_>) -> Result<(), Full> {
        if self.under_way.len() >= self.room {
            return Err(Full);
        }
        let to = message.to;
        let bytes = message.body.len();
        self.note(Did::Send { conn, to, bytes });
        let at_us = self.now_us + self.delay_us;
        if let Audience::User(to) = to {
            let body = message.body.to_vec();
            self.under_way.push((at_us, conn, to, body, message.name));
        }
        Ok(())
    }

    fn cut(&mut self, conn: u32, back_after_us: u64) {
        self.note(Did::Cut {
            conn,
            back_after_us,
        });
        self.back.retain(|(_, other)| *other != conn);
        self.back.push((self.now_us + back_after_us, conn));
    }

    fn set_reading(&mut self, conn: u32, reading: bool) {
        self.note(Did::Reading { conn, reading });
    }

    fn read(&mut self, conn: u32, peer: UserId, up_to: ConvSeq) {
        self.note(Did::Read { conn, peer, up_to });
    }

    fn close_all(&mut self) {
        self.under_way = Vec::new();
    }
}

const ANSWERS: Promises = Promises {
    answers: true,
    receipts: false,
    places: true,
    stores: true,
};

fn plan(name: &str, change: impl FnOnce(&mut Plan)) -> Plan {
    let mut plan = Plan::named(name).expect("built in");
    plan.connections = 10;
    plan.rate_per_s = 100.0;
    plan.duration = Duration::from_secs(1);
    plan.drain = Duration::from_secs(5);
    change(&mut plan);
    plan
}

/// The plan on ten users whose messages take so long.
fn carry_out(plan: &Plan, promises: Promises, delay_us: u64, room: usize) -> (Outcome, Log) {
    carry_out_in_turns_of(1, plan, promises, delay_us, room)
}

fn carry_out_in_turns_of(
    turn_us: u64,
    plan: &Plan,
    promises: Promises,
    delay_us: u64,
    room: usize,
) -> (Outcome, Log) {
    let clock = Clock::start();
    let assignment = Assignment {
        plan,
        run: 7,
        clock,
        target: SocketAddr::from(([127, 0, 0, 1], 1)),
        sources: Vec::new(),
        tls: None,
        login: None,
        first_user: FIRST_USER,
        users: plan.connections,
        users_before: 0,
        cpu: None,
        connects_per_s: 1,
        heartbeat_s: 0,
    };
    let (control, gauges) = (Control::new(), Gauges::default());
    let flows = Flows::of(plan, FIRST_USER, plan.connections);
    let log = Rc::new(RefCell::new(Log::default()));
    let mut script = Script {
        now_us: 0,
        turn_us,
        delay_us,
        room,
        promises,
        users: plan.connections,
        under_way: Vec::new(),
        back: Vec::new(),
        place: 0,
        log: Rc::clone(&log),
    };
    script.back = (0..script.users).map(|conn| (0, conn)).collect();
    let mut worker = Worker::new(&assignment, &control, &gauges, Box::new(script), flows);
    control.start(START_US);
    worker.connect().expect("a script");
    worker.send_all().expect("a script");
    worker.drain().expect("a script");
    let outcome = worker.finish();
    (outcome, log.take())
}

fn sends(log: &Log) -> Vec<(u64, u64, u32)> {
    log.done
        .iter()
        .filter_map(|(at_us, turn, did)| match did {
            Did::Send { conn, .. } => Some((*at_us - START_US, *turn, *conn)),
            _ => None,
        })
        .collect()
}

/// A tenth of a second for 64 messages, of a million that are due within one.
#[test]
fn a_worker_that_is_far_behind_gives_up_and_says_how_much_is_unsent() {
    let plan = plan("relay", |plan| plan.rate_per_s = 1e6);
    let (outcome, _) = carry_out_in_turns_of(100_000, &plan, ANSWERS, 1_000, usize::MAX);
    let sent = outcome.findings.counts.sent;
    assert!((6_400..=7_200).contains(&sent), "{sent}");
    assert_eq!(sent + outcome.unsent, 1_000_000);
    assert_eq!((outcome.withheld, outcome.not_queued), (0, 0));
}

#[test]
fn messages_go_out_at_their_times() {
    let plan = plan("relay", |_| {});
    let (outcome, log) = carry_out(&plan, ANSWERS, 3_000, usize::MAX);
    let sends = sends(&log);
    assert_eq!(sends.len(), 100);
    for (number, (at_us, ..)) in sends.iter().enumerate() {
        assert_eq!(*at_us, number as u64 * 10_000);
    }
    let counts = &outcome.findings.counts;
    assert_eq!(
        (counts.sent, counts.accepted, counts.delivered),
        (100, 100, 100)
    );
    for times in [&outcome.findings.latency_us, &outcome.findings.service_us] {
        assert!(times.equivalent(times.max(), 3_000) && times.equivalent(times.min(), 3_000));
    }
    assert_eq!(outcome.slip_us.max(), 1);
    // All ten take their turns before anybody takes another.
    let mut first_round: Vec<u32> = sends[..10].iter().map(|send| send.2).collect();
    first_round.sort_unstable();
    assert_eq!(first_round, (0..10).collect::<Vec<_>>());
}

#[test]
fn a_burst_leaves_in_one_turn() {
    let plan = plan("relay", |plan| plan.burst = 5);
    let (_, log) = carry_out(&plan, ANSWERS, 3_000, usize::MAX);
    let sends = sends(&log);
    assert_eq!(sends.len(), 100);
    for (number, burst) in sends.chunks(5).enumerate() {
        let (at_us, turn, conn) = burst[0];
        assert_eq!(at_us, number as u64 * 50_000);
        assert!(burst.iter().all(|send| *send == (at_us, turn, conn)));
    }
}

#[test]
fn one_that_spins_never_sleeps_while_it_sends() {
    let plan = plan("relay", |plan| {
        plan.spin = true;
        plan.duration = Duration::from_millis(50);
    });
    let (_, log) = carry_out(&plan, ANSWERS, 10, usize::MAX);
    let (_, last_turn, _) = *sends(&log).last().expect("it has sent");
    let (_, first_turn, _) = sends(&log)[0];
    let while_sending = &log.waits_us[first_turn as usize..last_turn as usize];
    assert!(while_sending.len() > 1_000);
    assert!(while_sending.iter().all(|wait_us| *wait_us == 0));
}

#[test]
fn a_round_begins_when_the_one_before_has_arrived() {
    let plan = plan("relay", |plan| {
        (plan.pace, plan.burst) = (Pace::Rounds, 3);
        plan.duration = Duration::from_millis(20);
    });
    let (outcome, log) = carry_out(&plan, ANSWERS, 4_000, usize::MAX);
    let sends = sends(&log);
    // Every round takes 4 ms: five of them begin within 20.
    let begun: Vec<u64> = sends.chunks(30).map(|round| round[0].0).collect();
    assert_eq!(begun, [0, 4_000, 8_000, 12_000, 16_000]);
    for round in sends.chunks(30) {
        assert!(
            round
                .iter()
                .all(|send| (send.0, send.1) == (round[0].0, round[0].1))
        );
    }
    assert_eq!(outcome.findings.counts.delivered, 150);
    assert!(outcome.findings.latency_us.is_empty() && outcome.slip_us.is_empty());
    let first_turn = sends[0].1 as usize;
    let last_turn = sends[149].1 as usize;
    assert!(
        log.waits_us[first_turn..last_turn]
            .iter()
            .all(|wait_us| *wait_us == 0)
    );
}

#[test]
fn what_finds_no_room_is_counted_and_not_held_against_anybody_else() {
    let plan = plan("relay", |_| {});
    // Ten every 100 ms find room; a message takes 100 ms.
    let (outcome, _) = carry_out(&plan, ANSWERS, 100_000, 5);
    let counts = &outcome.findings.counts;
    assert_eq!(outcome.not_queued + counts.sent, 100);
    assert!((45..=55).contains(&counts.sent), "{}", counts.sent);
    assert_eq!((counts.lost, counts.unanswered), (0, 0));
}

#[test]
fn pairs_wait_for_each_other() {
    let plan = plan("pingpong", |plan| {
        plan.pingpong.iter_mut().for_each(|pingpong| {
            pingpong.think = Duration::from_millis(100);
        });
    });
    let (outcome, log) = carry_out(&plan, ANSWERS, 20_000, usize::MAX);
    let of_first: Vec<_> = sends(&log).into_iter().filter(|send| send.2 < 2).collect();
    // There and back takes 40 ms, the next follows 100 ms later.
    let expected = (0..8).flat_map(|n| [(n * 140_000, 0), (n * 140_000 + 20_000, 1)]);
    let got: Vec<_> = of_first
        .iter()
        .map(|(at_us, _, conn)| (*at_us, *conn))
        .collect();
    assert_eq!(got, expected.collect::<Vec<_>>());
    assert_eq!(
        outcome.findings.counts.answers * 2,
        outcome.findings.counts.sent
    );
}

#[test]
fn readers_mark_what_they_have_after_a_while() {
    let plan = plan("mixed", |plan| {
        plan.mixed.iter_mut().for_each(|mixed| {
            (mixed.answers, mixed.offline) = (0.0, 0.0);
            mixed.read_delay = Duration::from_millis(50);
        });
    });
    let (outcome, log) = carry_out(&plan, ANSWERS, 1_000, usize::MAX);
    let mut marks = 0;
    for (at_us, _, did) in &log.done {
        if let Did::Read { conn, peer, up_to } = did {
            marks += 1;
            assert_ne!(FIRST_USER + u64::from(*conn), peer.0);
            assert!(up_to.0 > 0 && *at_us >= START_US + 51_000);
        }
    }
    assert!(marks > 30, "{marks}");
    // Nobody tells the senders here.
    assert!(outcome.findings.counts.reads_missing > 0);
}

/// Who sends what to whom and when, who is cut and when: everything that a worker does.
#[test]
fn the_same_seed_does_the_same() {
    for name in [
        "smoke",
        "relay",
        "pingpong",
        "storm",
        "slow-readers",
        "flap",
        "mixed",
    ] {
        let done = |seed| {
            let plan = plan(name, |plan| {
                plan.seed = seed;
                if let Some(storm) = &mut plan.storm {
                    (storm.at, storm.share) = (Duration::from_millis(300), 0.5);
                }
                if let Some(slow) = &mut plan.slow_readers {
                    slow.at = Duration::from_millis(300);
                    (slow.lasts, slow.share) = (Duration::from_millis(300), 0.5);
                }
                if let Some(flap) = &mut plan.flap {
                    (flap.share, flap.away) = (0.5, Duration::from_millis(100));
                }
                if let Some(mixed) = &mut plan.mixed {
                    mixed.offline = 0.3;
                }
            });
            carry_out(&plan, ANSWERS, 2_000, usize::MAX).1.done
        };
        let first = done(1);
        assert_eq!(first, done(1), "{name}");
        if name != "pingpong" {
            assert_ne!(first, done(2), "{name}");
        }
        let deeds = first
            .iter()
            .filter(|(.., did)| matches!(did, Did::Cut { .. } | Did::Reading { .. }));
        let expected = match name {
            "storm" => 5..=5,
            "slow-readers" => 10..=10,
            "flap" => 4..=5,
            // Three are away from the beginning, and come.
            "mixed" => 6..=6,
            _ => 0..=0,
        };
        assert!(expected.contains(&deeds.count()), "{name}");
    }
}

#[test]
fn a_system_without_answers_is_not_waited_for() {
    let plan = plan("relay", |plan| plan.protocol = Protocol::Nats);
    let promises = Promises {
        answers: false,
        receipts: false,
        places: false,
        stores: false,
    };
    let (outcome, _) = carry_out(&plan, promises, 1_000, usize::MAX);
    let counts = &outcome.findings.counts;
    assert_eq!(
        (counts.sent, counts.accepted, counts.delivered),
        (100, 100, 100)
    );
    assert_eq!(counts.unanswered, 0);
    assert!(outcome.findings.sent_latency_us.is_empty());
}
