//! What clients may do in a second: what exceeds is refused with a time to come back, has had no
//! effect, and is taken at that time; who does not heed it is closed. Sources without a name, and
//! exempt ones, have no limit.

use crate::support::{assert_idle, error, ops, sent, texts, world};
use portico_core::{
    Counter, Denial, Limits, Policy, Rate, Rates, Verdict,
    testing::{Got, World},
};
use portico_wire::{
    CloseCode, ErrorCode, Op,
    encode::put_ping,
    ids::{ConvSeq, Seq, UserId},
};
use std::net::IpAddr;

const fn rate(per_s: u32, burst: u32) -> Rate {
    Rate { per_s, burst }
}

const OFF: Rate = rate(0, 0);

/// Nothing is bounded.
fn open_rates() -> Rates {
    Rates {
        frames: OFF,
        bytes: OFF,
        messages: OFF,
        user_logins: OFF,
        source_opens: OFF,
        source_greeting_max: 0,
        source_logins: OFF,
        refusals_max: 0,
        ..Rates::default()
    }
}

fn limited(shards: u16, rates: Rates) -> World {
    let limits = Limits {
        rates,
        logins_per_s: 0,
        ..Limits::default()
    };
    let mut world = World::new(shards, limits);
    world.source = ip("192.0.2.1");
    world
}

fn ip(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

fn retry_after_ms(got: &[Got], corr: u32) -> u32 {
    let reply = got.iter().find(|got| got.corr() == corr);
    let reply = reply.expect("F4: a reply");
    let error = reply.error_reply().expect("it was refused");
    error.retry_after_ms
}

#[test]
fn messages_above_the_rate_are_refused_and_taken_when_they_come_back_as_told() {
    let mut world = limited(
        2,
        Rates {
            messages: rate(50, 10),
            ..open_rates()
        },
    );
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.take(alice);
    let messages: Vec<_> = (0..30)
        .map(|number| world.say(alice, 2, &format!("{number}")))
        .collect();
    let got = world.run_and_take(alice);
    let mut told = Vec::new();
    for (number, message) in messages.iter().enumerate() {
        if number < 10 {
            assert_ne!(sent(&got, message.corr).0, ConvSeq(0));
        } else {
            assert_eq!(error(&got, message.corr), ErrorCode::RATE_LIMITED);
            told.push((retry_after_ms(&got, message.corr), message));
        }
    }
    assert_eq!(texts(world.got(bob)).len(), 10, "the others had no effect");
    assert_eq!(world.count(Counter::LimitedMessages), 20);
    let mut passed_ms = 0;
    for (after_ms, message) in told {
        assert!(after_ms > passed_ms, "each has a time of its own");
        world.advance(u64::from(after_ms - passed_ms));
        passed_ms = after_ms;
        // RETRY may be left off: it was certainly not accepted.
        world.post(alice, message);
        let got = world.run_and_take(alice);
        assert!(!sent(&got, message.corr).1);
    }
    assert_eq!(passed_ms, 400, "20 messages at 50 a second");
    let expected: Vec<String> = (0..30).map(|number| number.to_string()).collect();
    assert_eq!(texts(world.got(bob)), expected);
    world.advance(2_000);
    assert_idle(&world);
}

#[test]
fn who_goes_on_all_the_same_is_closed_and_what_it_owes_waits_for_its_return() {
    let mut world = limited(
        1,
        Rates {
            messages: rate(1, 2),
            refusals_max: 5,
            ..open_rates()
        },
    );
    let alice = world.login(1, 1);
    for number in 0..20 {
        world.say(alice, 2, &format!("{number}"));
    }
    world.run();
    assert_eq!(world.close_code(alice), Some(CloseCode::RATE_LIMITED));
    let close = world.got(alice).last().and_then(Got::close);
    assert_eq!(close.map(|close| close.retry_after_ms), Some(10_000));
    assert_eq!(world.count(Counter::Accepted), 2);
    assert_eq!(world.count(Counter::ClosedLimited), 1);
    // Another connection of the same user begins where the last one ended.
    let again = world.login(1, 1);
    world.take(again);
    let message = world.say(again, 2, "once more");
    let got = world.run_and_take(again);
    assert_eq!(error(&got, message.corr), ErrorCode::RATE_LIMITED);
    world.advance(5_000);
    let message = world.say(again, 2, "later");
    let got = world.run_and_take(again);
    sent(&got, message.corr);
}

#[test]
fn acknowledgements_and_heartbeats_are_never_dropped() {
    let mut world = limited(
        1,
        Rates {
            frames: rate(10, 20),
            refusals_max: 100,
            ..open_rates()
        },
    );
    let (alice, bob) = (world.login(1, 1), world.login(2, 1));
    world.source = None;
    let carol = world.login(3, 1);
    world.take(alice);
    let mut pings = Vec::new();
    for corr in 1..=60 {
        put_ping(&mut pings, 1_000 + corr, 60);
    }
    world.write(alice, &pings);
    let got = world.run_and_take(alice);
    assert_eq!(ops(&got), vec![Op::Pong; 60]);
    assert_eq!(world.count(Counter::LimitedFrames), 40);
    // A hundred that nobody limits, each acknowledged by one who is.
    for number in 0..100 {
        world.say(carol, 2, &format!("{number}"));
        world.run();
    }
    assert_eq!(texts(world.got(bob)).len(), 100);
    assert_eq!(world.count(Counter::Acknowledged), 100);
    // But too many are too many.
    for _ in 0..5 {
        world.write(alice, &pings);
        world.run();
    }
    assert_eq!(world.close_code(alice), Some(CloseCode::RATE_LIMITED));
    assert_eq!(world.close_code(bob), None);
}

#[test]
fn a_source_may_open_so_many_connections_before_it_logs_in() {
    let mut world = limited(
        1,
        Rates {
            source_greeting_max: 20,
            ..open_rates()
        },
    );
    let waiting: Vec<usize> = (0..50).map(|_| world.connect(0)).collect();
    let open = |world: &World| waiting.iter().filter(|at| world.is_connected(**at)).count();
    assert_eq!(open(&world), 20);
    assert_eq!(world.count(Counter::LimitedSourceGreeting), 30);
    // Another one is not concerned, be it as near as the next network.
    world.source = ip("192.0.2.2");
    let bob = world.login(2, 1);
    assert!(world.is_connected(bob));
    world.source = ip("2001:db8:0:1::1");
    for _ in 0..20 {
        world.connect(0);
    }
    world.source = ip("2001:db8:0:1:ffff::2");
    let same = world.connect(0);
    assert!(!world.is_connected(same), "one /64 is one source");
    world.source = ip("2001:db8:0:2::1");
    let carol = world.login(3, 1);
    assert!(world.is_connected(carol));
    // Those who give up, or log in, make room.
    world.source = ip("::ffff:192.0.2.1");
    let full = world.connect(0);
    assert!(!world.is_connected(full), "as the address it stands for");
    world.cut(waiting[0]);
    let alice = world.login(1, 1);
    assert!(world.is_connected(alice));
    let next = world.connect(0);
    assert!(world.is_connected(next));
    // So do those whose time is over.
    world.advance(20_000);
    assert_eq!(open(&world), 0);
    assert_eq!(world.residue_of_sources(), 0);
    world.check_invariants();
}

#[test]
fn a_source_opens_and_logs_in_at_its_rate() {
    let mut world = limited(
        1,
        Rates {
            source_opens: rate(10, 100),
            source_logins: rate(10, 30),
            ..open_rates()
        },
    );
    let clients: Vec<usize> = (1..=150)
        .map(|user| world.open(0, user, 1, |_| {}))
        .collect();
    world.run();
    assert_eq!(world.count(Counter::LimitedSourceOpens), 50);
    assert_eq!(world.count(Counter::LoggedIn), 30);
    assert_eq!(world.count(Counter::LimitedSourceLogins), 70);
    let closed = |at: &&usize| world.close_code(**at) == Some(CloseCode::RATE_LIMITED);
    let told = clients.iter().filter(closed).map(|at| {
        let close = world.got(*at).last().and_then(Got::close);
        close.map_or(0, |close| close.retry_after_ms)
    });
    let told: Vec<u32> = told.collect();
    let expected: Vec<u32> = (1..=70).map(|place| place * 100).collect();
    assert_eq!(told, expected);
    world.source = ip("203.0.113.7");
    let other = world.login(1_000, 1);
    assert!(world.is_connected(other));
}

#[test]
fn one_user_logs_in_at_a_rate_and_others_do_not_mind() {
    for shards in 1..=2 {
        let mut world = limited(
            shards,
            Rates {
                user_logins: rate(1, 3),
                ..open_rates()
            },
        );
        for number in 0..6 {
            let client = world.login(1, number % 2 + 1);
            assert_eq!(world.is_connected(client), number < 3, "{number}");
        }
        assert_eq!(world.count(Counter::LimitedUserLogins), 3);
        let other = world.login(2, 1);
        assert!(world.is_connected(other));
        world.advance(3_500);
        let back = world.login(1, 1);
        assert!(world.is_connected(back));
    }
}

#[test]
fn exempt_sources_and_nameless_ones_have_no_limit() {
    for source in [None, ip("127.0.0.1"), ip("::1")] {
        let mut world = limited(
            1,
            Rates {
                messages: rate(1, 1),
                frames: rate(1, 1),
                source_greeting_max: 1,
                source_opens: rate(1, 1),
                source_logins: rate(1, 1),
                user_logins: rate(1, 1),
                ..Rates::default()
            },
        );
        world.source = source;
        for user in 1..=50 {
            let client = world.login(user, 1);
            assert!(world.is_connected(client));
            for _ in 0..5 {
                world.say(client, 99, "x");
            }
        }
        world.run();
        assert_eq!(world.count(Counter::Accepted), 250);
    }
}

/// Everybody may write to 2, 3 does not exist, and 4 is full.
#[derive(Clone, Debug)]
struct Rules;

impl Policy for Rules {
    fn may_message(&mut self, from: UserId, to: UserId) -> Verdict {
        match (from.0, to.0) {
            (7, _) => Verdict::Deny(Denial::Forbidden),
            (_, 3) => Verdict::Deny(Denial::NotFound),
            (_, 4) => Verdict::Deny(Denial::Quota),
            _ => Verdict::Allow,
        }
    }
}

#[test]
fn a_policy_decides_who_may_write_to_whom() {
    let mut world = world(2);
    world.set_policy(&|| Box::new(Rules));
    let (alice, seven, bob) = (world.login(1, 1), world.login(7, 1), world.login(2, 1));
    let mut ask = |client, to| {
        world.take(client);
        let message = world.say(client, to, "may I?");
        let got = world.run_and_take(client);
        let reply = got.iter().find(|got| got.corr() == message.corr);
        reply.and_then(Got::error)
    };
    assert_eq!(ask(alice, 2), None);
    assert_eq!(ask(alice, 3), Some(ErrorCode::NOT_FOUND));
    assert_eq!(ask(alice, 4), Some(ErrorCode::QUOTA));
    assert_eq!(ask(seven, 2), Some(ErrorCode::FORBIDDEN));
    assert_eq!(texts(world.got(bob)), ["may I?"]);
    assert_eq!(world.count(Counter::RefusedDenied), 3);
    world.ack(bob, Seq(u64::MAX >> 11), 8);
    world.advance(2_000);
    assert_idle(&world);
}
