//! Each fault that a gateway can have is injected here, and must be counted as that and as nothing
//! else.

mod counted;
mod crowds;
mod groups;

use super::*;
use portico_wire::ErrorCode;
use std::collections::BTreeMap;

const RUN: u64 = 77;
const FIRST_USER: u64 = 1_000;
/// Of a system that tells its clients everything.
const ALL: Promises = Promises {
    answers: true,
    receipts: true,
    places: true,
    stores: true,
};
/// Of one that only delivers.
const NONE: Promises = Promises {
    answers: false,
    receipts: false,
    places: false,
    stores: false,
};

fn pair() -> Flows {
    Flows::between_users(FIRST_USER, 2, 1, &[], 0)
}

/// Two users, one flow each way, and a gateway that does as it is told.
struct Bench {
    verifier: Verifier,
    place: u64,
    now_us: u64,
}

/// A message between the two, with what the gateway decided about it.
#[derive(Clone)]
struct Sent {
    payload: Payload,
    name: MessageName,
    place: ConvSeq,
    body: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        Self {
            verifier: Verifier::new(RUN, pair(), ALL),
            place: 5_000,
            now_us: 0,
        }
    }

    fn send(&mut self) -> Sent {
        self.now_us += 100;
        self.place += 1;
        let payload = self
            .verifier
            .next_message(0, self.now_us, self.now_us + 3)
            .expect("nothing is on its way");
        self.verifier.sent(&payload);
        let mut body = Vec::new();
        payload.encode(64, &mut body);
        Sent {
            name: MessageName {
                flow: payload.flow,
                counter: payload.counter,
            },
            place: ConvSeq(self.place),
            payload,
            body,
        }
    }

    fn accept(&mut self, sent: &Sent) {
        self.now_us += 10;
        self.verifier
            .accepted(sent.name, Some(sent.place), false, self.now_us);
    }

    fn deliver(&mut self, sent: &Sent) {
        self.deliver_to(1, sent.payload.sender, sent);
    }

    fn deliver_to(&mut self, recipient: u32, author: UserId, sent: &Sent) {
        self.now_us += 10;
        let said = Said {
            author: Some(author),
            place: Some(sent.place),
            crowd: None,
        };
        self.verifier
            .arrived(recipient, said, &sent.body, self.now_us);
    }

    fn read_up_to(&mut self, sent: &Sent) {
        let peer = sent.payload.recipient;
        self.verifier.receipt(0, peer, sent.place);
    }

    /// Everything that is not named in `expected` must be as in a run of `sent` good messages.
    fn check(self, sent: u64, expected: impl FnOnce(&mut Counts)) {
        let mut counts = Counts {
            sent,
            accepted: sent,
            delivered: sent,
            ..Counts::default()
        };
        expected(&mut counts);
        assert_eq!(self.verifier.finish().counts, counts);
    }
}

fn unsettled(verifier: &Verifier) -> (usize, usize) {
    match &verifier.ledger {
        Ledger::Answered(answered) => answered.unsettled(),
        Ledger::Counted(_) | Ledger::Groups(_) | Ledger::Crowds(_) => panic!("there are answers"),
    }
}

#[test]
fn a_good_run_counts_nothing_else() {
    let mut bench = Bench::new();
    for n in 0..10 {
        let sent = bench.send();
        // SENT and DELIVER race each other.
        if n % 2 == 0 {
            bench.accept(&sent);
            bench.deliver(&sent);
        } else {
            bench.deliver(&sent);
            bench.accept(&sent);
        }
        bench.read_up_to(&sent);
        assert!(bench.verifier.is_settled());
    }
    assert_eq!(unsettled(&bench.verifier).0, 0);
    bench.check(10, |_| {});
}

#[test]
fn latency_counts_from_the_intended_time() {
    let mut bench = Bench::new();
    let sent = bench.send();
    bench.now_us += 40_000;
    bench.accept(&sent);
    bench.deliver(&sent);
    let findings = bench.verifier.finish();
    assert!(
        findings
            .sent_latency_us
            .equivalent(findings.sent_latency_us.max(), 40_010)
    );
    assert!(
        findings
            .latency_us
            .equivalent(findings.latency_us.max(), 40_020)
    );
    assert_eq!(findings.latency_us.len(), 1);
    // It was handed over 3 us late.
    let service_us = findings.service_us.max();
    assert!(findings.service_us.equivalent(service_us, 40_017));
}

/// However late it arrives, and also when the end of the storm is known only later.
#[test]
fn what_was_due_in_a_storm_is_recorded_apart_as_well() {
    let mut bench = Bench::new();
    let deliver = |bench: &mut Bench, sent: &Sent| {
        bench.accept(sent);
        bench.deliver(sent);
    };
    let before = bench.send();
    bench.verifier.set_storm_us(bench.now_us + 1..u64::MAX);
    deliver(&mut bench, &before);
    let (during, late) = (bench.send(), bench.send());
    deliver(&mut bench, &during);
    bench
        .verifier
        .set_storm_us(before.payload.intended_us + 1..bench.now_us);
    bench.now_us += 5_000;
    deliver(&mut bench, &late);
    let after = bench.send();
    deliver(&mut bench, &after);
    let findings = bench.verifier.finish();
    assert_eq!(findings.latency_us.len(), 4);
    assert_eq!(findings.storm_latency_us.len(), 2);
    assert!(findings.storm_latency_us.max() >= 5_000);
}

/// Whoever was away or did not read while a message was due or on its way slows nobody else.
#[test]
fn what_concerns_the_absent_is_timed_apart() {
    let mut bench = Bench::new();
    let deliver = |bench: &mut Bench, sent: &Sent| {
        bench.accept(sent);
        bench.deliver(sent);
    };
    let on_its_way = bench.send();
    bench.verifier.touch(1);
    let meanwhile = bench.send();
    bench.now_us += 50_000;
    bench.verifier.calm(1, bench.now_us);
    deliver(&mut bench, &on_its_way);
    deliver(&mut bench, &meanwhile);
    let after = bench.send();
    deliver(&mut bench, &after);
    bench.read_up_to(&after);
    // The sender may be the one as well.
    bench.verifier.touch(0);
    let away = bench.send();
    bench.verifier.calm(0, bench.now_us + 1);
    deliver(&mut bench, &away);
    bench.read_up_to(&away);
    let findings = bench.verifier.finish();
    assert_eq!(findings.latency_us.len(), 1);
    assert_eq!(findings.affected_latency_us.len(), 3);
    assert!(findings.affected_latency_us.max() >= 50_000);
    assert_eq!((findings.counts.to_absent, findings.counts.lost), (1, 0));
    assert_eq!(findings.counts.delivered, 4);
}

#[test]
fn a_read_mark_must_reach_the_sender() {
    for told in [true, false] {
        let mut bench = Bench::new();
        bench.verifier = Verifier::new(RUN, pair(), ALL).with_reads();
        assert_eq!(bench.verifier.mark_read(0), None, "nothing to read");
        let (first, second) = (bench.send(), bench.send());
        for sent in [&first, &second] {
            bench.accept(sent);
            bench.deliver(sent);
        }
        bench.read_up_to(&second);
        assert_eq!(bench.verifier.mark_read(0), Some(second.place));
        assert_eq!(bench.verifier.mark_read(0), None, "marked already");
        let up_to = if told { second.place } else { first.place };
        let peer = UserId(FIRST_USER + 1);
        bench.verifier.read_receipt(0, peer, up_to);
        assert_eq!(bench.verifier.receipts_behind().count(), usize::from(!told));
        bench.check(2, |counts| counts.reads_missing = u64::from(!told));
    }
}

#[test]
fn rounds_are_not_timed() {
    let mut bench = Bench::new();
    bench.verifier = Verifier::new(RUN, pair(), ALL).without_times();
    let sent = bench.send();
    bench.accept(&sent);
    bench.deliver(&sent);
    let findings = bench.verifier.finish();
    assert_eq!(findings.counts.delivered, 1);
    for histogram in [
        &findings.latency_us,
        &findings.sent_latency_us,
        &findings.service_us,
    ] {
        assert!(histogram.is_empty());
    }
}

#[test]
fn a_dropped_message_is_lost_and_its_receipt_is_missing() {
    let mut bench = Bench::new();
    let sent = bench.send();
    bench.accept(&sent);
    assert!(!bench.verifier.is_settled());
    bench.check(1, |counts| {
        counts.delivered = 0;
        counts.lost = 1;
        counts.receipts_missing = 1;
    });
}

#[test]
fn a_message_without_an_answer_is_not_lost() {
    let mut bench = Bench::new();
    bench.send();
    bench.check(1, |counts| {
        counts.accepted = 0;
        counts.delivered = 0;
        counts.unanswered = 1;
    });
}

#[test]
fn a_second_delivery_is_a_duplicate_before_and_after_the_answer() {
    let mut bench = Bench::new();
    let sent = bench.send();
    bench.deliver(&sent);
    bench.deliver(&sent);
    bench.accept(&sent);
    bench.deliver(&sent);
    bench.read_up_to(&sent);
    bench.check(1, |counts| counts.duplicated = 2);
}

#[test]
fn swapped_arrivals_are_one_reordered_message() {
    let mut bench = Bench::new();
    let (first, second, third) = (bench.send(), bench.send(), bench.send());
    for sent in [&first, &second, &third] {
        bench.accept(sent);
    }
    for sent in [&second, &first, &third] {
        bench.deliver(sent);
    }
    bench.read_up_to(&third);
    bench.check(3, |counts| counts.reordered = 1);
}

#[test]
fn swapped_places_are_noticed_on_both_sides_and_counted_once() {
    let mut bench = Bench::new();
    let (mut first, mut second) = (bench.send(), bench.send());
    std::mem::swap(&mut first.place, &mut second.place);
    for sent in [&first, &second] {
        bench.accept(sent);
        bench.deliver(sent);
    }
    bench.read_up_to(&first);
    // The second was seen at SENT; its arrival shows the same fault again.
    bench.check(2, |counts| counts.reordered = 1);
}

#[test]
fn a_message_refused_for_the_time_being_may_be_overtaken() {
    let mut bench = Bench::new();
    let (mut first, second) = (bench.send(), bench.send());
    bench
        .verifier
        .refused(first.name, ErrorCode::OVERLOADED.0, true);
    bench.accept(&second);
    bench.deliver(&second);
    first.place = ConvSeq(second.place.0 + 1);
    bench.deliver(&first);
    bench.accept(&first);
    bench.read_up_to(&first);
    bench.check(2, |counts| {
        counts.overtaken = 1;
        counts.deferred = BTreeMap::from([(ErrorCode::OVERLOADED.0, 1)]);
    });
}

#[test]
fn a_refusal_for_good_settles_a_message_and_must_hold() {
    let mut bench = Bench::new();
    let (first, second) = (bench.send(), bench.send());
    for sent in [&first, &second] {
        bench
            .verifier
            .refused(sent.name, ErrorCode::FORBIDDEN.0, false);
    }
    assert!(bench.verifier.is_settled());
    bench.deliver(&second);
    bench.check(2, |counts| {
        counts.accepted = 0;
        counts.delivered = 1;
        counts.refused = BTreeMap::from([(ErrorCode::FORBIDDEN.0, 2)]);
        counts.refused_delivered = 1;
    });
}

#[test]
fn the_wrong_reader_and_the_wrong_author_are_misrouted() {
    let mut bench = Bench::new();
    let sent = bench.send();
    bench.accept(&sent);
    bench.deliver_to(0, sent.payload.sender, &sent);
    bench.deliver_to(1, UserId(9), &sent);
    bench.deliver(&sent);
    bench.read_up_to(&sent);
    bench.check(1, |counts| counts.misrouted = 2);
}

#[test]
fn damaged_and_invented_messages_are_corrupt() {
    let mut bench = Bench::new();
    let sent = bench.send();
    bench.accept(&sent);
    bench.deliver(&sent);
    bench.read_up_to(&sent);
    let mut damaged = sent.clone();
    damaged.body[60] ^= 1;
    bench.deliver(&damaged);
    for (flow, counter) in [(0, 1), (2, 0), (u32::MAX, 0)] {
        let mut invented = sent.clone();
        let payload = Payload {
            flow,
            counter,
            ..sent.payload
        };
        payload.encode(64, &mut invented.body);
        bench.deliver(&invented);
    }
    bench.check(1, |counts| counts.corrupt = 4);
}

#[test]
fn leftovers_of_another_run_are_set_apart() {
    let mut bench = Bench::new();
    let sent = bench.send();
    bench.accept(&sent);
    bench.deliver(&sent);
    bench.read_up_to(&sent);
    let mut foreign = sent.clone();
    let payload = Payload {
        run: RUN + 1,
        ..sent.payload
    };
    payload.encode(64, &mut foreign.body);
    bench.deliver(&foreign);
    bench.check(1, |counts| counts.foreign = 1);
}

#[test]
fn both_ends_must_be_told_the_same_place() {
    let mut bench = Bench::new();
    for accept_first in [true, false] {
        let sent = bench.send();
        let mut moved = sent.clone();
        bench.place += 1;
        moved.place = ConvSeq(bench.place);
        if accept_first {
            bench.accept(&sent);
            bench.deliver(&moved);
        } else {
            bench.deliver(&moved);
            bench.accept(&sent);
        }
        bench.read_up_to(&moved);
    }
    bench.check(2, |counts| counts.misnumbered = 2);
}

#[test]
fn a_receipt_must_reach_the_last_accepted_message() {
    let mut bench = Bench::new();
    let (first, second) = (bench.send(), bench.send());
    for sent in [&first, &second] {
        bench.accept(sent);
        bench.deliver(sent);
    }
    bench.read_up_to(&first);
    let behind: Vec<_> = bench.verifier.receipts_behind().collect();
    assert_eq!(behind, [(0, UserId(FIRST_USER + 1))]);
    bench.check(2, |counts| counts.receipts_missing = 1);
}

#[test]
fn answers_for_unknown_messages_change_nothing() {
    let mut bench = Bench::new();
    let sent = bench.send();
    bench.accept(&sent);
    bench.accept(&sent);
    bench.deliver(&sent);
    bench.read_up_to(&sent);
    bench.accept(&sent);
    bench
        .verifier
        .refused(sent.name, ErrorCode::TIMEOUT.0, true);
    let nobody = MessageName {
        flow: u32::MAX,
        counter: u32::MAX,
    };
    bench.verifier.accepted(nobody, Some(ConvSeq(1)), false, 1);
    bench.verifier.receipt(0, UserId(5), ConvSeq(u64::MAX));
    bench.check(1, |_| {});
}

#[test]
fn no_more_is_on_its_way_than_memory_was_planned_for() {
    let mut verifier = Verifier::new(RUN, pair(), ALL);
    while let Some(payload) = verifier.next_message(0, 1, 1) {
        verifier.sent(&payload);
    }
    let (messages, capacity) = unsettled(&verifier);
    assert_eq!(messages, UNSETTLED_MAX);
    assert!(capacity <= 1 << 20);
    // As the head of the module says.
    assert!(
        (30_000_000..45_000_000).contains(&verifier.bytes()),
        "{}",
        verifier.bytes()
    );
    let first = MessageName {
        flow: 0,
        counter: 0,
    };
    verifier.accepted(first, Some(ConvSeq(1)), false, 1);
    let next = verifier.next_message(0, 1, 1);
    assert!(next.is_none(), "not delivered yet");
}

#[test]
fn counts_of_workers_add_up() {
    let one = Counts {
        sent: 1,
        accepted: 2,
        accepted_before: 3,
        delivered: 4,
        lost: 5,
        unanswered: 6,
        duplicated: 7,
        repeated: 8,
        reordered: 9,
        overtaken: 10,
        misrouted: 11,
        corrupt: 12,
        misnumbered: 13,
        refused_delivered: 14,
        foreign: 15,
        receipts_missing: 16,
        to_absent: 19,
        answers: 20,
        reads_missing: 21,
        refused: BTreeMap::from([(1, 17)]),
        deferred: BTreeMap::from([(2, 18)]),
    };
    let mut sum = Counts::default();
    sum.add(&one);
    assert_eq!(sum, one);
    sum.add(&one);
    assert_eq!((sum.sent, sum.receipts_missing), (2, 32));
    assert_eq!((sum.refused_total(), sum.deferred[&2]), (34, 36));
}
