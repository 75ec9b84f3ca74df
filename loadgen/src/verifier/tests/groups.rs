//! Faults towards members of groups.

use super::*;

/// Two groups of three: connections 0 and 4 send.
struct GroupBench {
    verifier: Verifier,
    payloads: Vec<Payload>,
}

impl GroupBench {
    fn new(promises: Promises) -> Self {
        let mut plan = crate::plan::Plan::named("fanout").expect("built in");
        plan.fanout = Some(crate::plan::Fanout { members: 3 });
        let flows = Flows::of(&plan, FIRST_USER, 8);
        Self {
            verifier: Verifier::new(RUN, flows, promises),
            payloads: Vec::new(),
        }
    }

    /// To the first group; returns the number of the message here.
    fn send(&mut self) -> usize {
        let payload = self.verifier.next_message(0, 10, 10).expect("room");
        self.verifier.sent(&payload);
        self.payloads.push(payload);
        self.payloads.len() - 1
    }

    fn deliver(&mut self, message: usize, member: u32) {
        let mut body = Vec::new();
        self.payloads[message].encode(64, &mut body);
        self.verifier
            .arrived(member, by(Some(UserId(FIRST_USER))), &body, 20);
    }

    fn name(&self, message: usize) -> MessageName {
        MessageName {
            flow: 0,
            counter: self.payloads[message].counter,
        }
    }

    /// As [`Bench::check`], with `messages` to three members each.
    fn check(self, messages: u64, expected: impl FnOnce(&mut Counts)) {
        let copies = 3 * messages;
        let mut counts = Counts {
            sent: copies,
            accepted: copies,
            delivered: copies,
            ..Counts::default()
        };
        expected(&mut counts);
        assert_eq!(self.verifier.finish().counts, counts);
    }
}

#[test]
fn a_good_fan_out_counts_nothing_else() {
    for answers in [true, false] {
        let mut bench = GroupBench::new(Promises { answers, ..NONE });
        for _ in 0..40 {
            let message = bench.send();
            let name = bench.name(message);
            (1..=3).for_each(|member| bench.deliver(message, member));
            // One answer for all.
            bench.verifier.accepted(name, None, false, 15);
        }
        assert!(bench.verifier.is_settled());
        bench.check(40, |_| {});
    }
}

#[test]
fn each_member_of_a_group_is_accounted_for() {
    let all = |bench: &mut GroupBench, message| {
        (1..=3).for_each(|member| bench.deliver(message, member));
    };
    // Nobody told the second member of the first message.
    let mut bench = GroupBench::new(NONE);
    let (first, second) = (bench.send(), bench.send());
    bench.deliver(first, 1);
    bench.deliver(first, 3);
    all(&mut bench, second);
    assert!(!bench.verifier.is_settled());
    bench.check(2, |counts| (counts.delivered, counts.lost) = (5, 1));
    // Twice to one member, in the other order to another.
    let mut bench = GroupBench::new(NONE);
    let (first, second) = (bench.send(), bench.send());
    for (message, member) in [
        (0, 1),
        (0, 1),
        (1, 1),
        (1, 2),
        (0, 2),
        (0, 3),
        (1, 3),
        (0, 3),
    ] {
        bench.deliver([first, second][message], member);
    }
    bench.check(2, |counts| (counts.duplicated, counts.reordered) = (2, 1));
    // To its sender, to a member of the other group, under another name, never sent.
    let mut bench = GroupBench::new(NONE);
    let first = bench.send();
    all(&mut bench, first);
    bench.deliver(first, 0);
    bench.deliver(first, 6);
    let mut body = Vec::new();
    bench.payloads[first].encode(64, &mut body);
    let stranger = Some(UserId(FIRST_USER + 1));
    bench.verifier.arrived(2, by(stranger), &body, 20);
    for (flow, counter) in [(0, 1), (9, 0), (u32::MAX, 0)] {
        let invented = Payload {
            flow,
            counter,
            ..bench.payloads[first]
        };
        invented.encode(64, &mut body);
        bench.verifier.arrived(2, by(None), &body, 20);
    }
    bench.check(1, |counts| (counts.misrouted, counts.corrupt) = (3, 3));
}

#[test]
fn copies_of_a_group_may_be_answered_one_by_one() {
    let mut bench = GroupBench::new(Promises {
        answers: true,
        ..NONE
    });
    let first = bench.send();
    let name = bench.name(first);
    bench.verifier.accepted_copy(name, false, 15);
    bench.verifier.accepted_copy(name, true, 16);
    bench.deliver(first, 1);
    // The second was accepted and never came, the third was neither answered nor delivered.
    bench.check(1, |counts| {
        counts.accepted = 2;
        counts.accepted_before = 1;
        counts.delivered = 1;
        counts.lost = 1;
        counts.unanswered = 1;
    });
    let mut bench = GroupBench::new(Promises {
        answers: true,
        ..NONE
    });
    let first = bench.send();
    let name = bench.name(first);
    bench.verifier.refused(name, 8, false);
    for member in [1, 2] {
        bench.verifier.accepted_copy(name, false, 15);
        bench.deliver(first, member);
    }
    assert!(bench.verifier.is_settled());
    bench.check(1, |counts| {
        (counts.accepted, counts.delivered) = (2, 2);
        counts.refused = BTreeMap::from([(8, 1)]);
    });
}

fn by(author: Option<UserId>) -> Said {
    Said {
        author,
        ..Said::default()
    }
}
