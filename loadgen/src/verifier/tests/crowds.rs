//! Faults towards members of groups that the gateway keeps.

use super::*;
use crate::plan::{GroupPlan, Plan, WRITERS};

/// One group of five; its first flow is its owner's.
struct CrowdBench {
    verifier: Verifier,
    place: u64,
}

struct Message {
    name: MessageName,
    author: UserId,
    place: u64,
    body: Vec<u8>,
}

impl CrowdBench {
    fn new() -> Self {
        let mut plan = Plan::named("groups").expect("built in");
        plan.groups = Some(GroupPlan {
            sizes: vec![(5, 1.0)],
            per_user: 1,
            changes: 1.0,
        });
        let flows = Flows::of(&plan, FIRST_USER, 5);
        assert_eq!(flows.len(), WRITERS as usize);
        let promises = crate::fleet::promises_to(&plan);
        Self {
            verifier: Verifier::new(RUN, flows, promises),
            place: 1_000,
        }
    }

    fn members(&self) -> Vec<u32> {
        let crowds = self.verifier.flows().crowds().expect("groups");
        crowds.members(0).to_vec()
    }

    fn next_place(&mut self) -> u64 {
        self.place += 10;
        self.place
    }

    /// A message of flow 0 that the gateway has taken.
    fn say(&mut self) -> Message {
        let payload = self.verifier.next_message(0, 1, 2).expect("room");
        let mut body = Vec::new();
        payload.encode(64, &mut body);
        self.verifier.sent(&payload);
        let name = MessageName {
            flow: 0,
            counter: payload.counter,
        };
        let place = self.next_place();
        self.verifier
            .accepted(name, Some(ConvSeq(place)), false, 10);
        Message {
            name,
            author: payload.sender,
            place,
            body,
        }
    }

    fn hear(&mut self, member: u32, said: &Message) {
        self.hear_at(member, said, said.place);
    }

    fn hear_at(&mut self, member: u32, said: &Message, place: u64) {
        let of = Said {
            author: Some(said.author),
            place: Some(ConvSeq(place)),
            crowd: Some(said.name.flow / WRITERS),
        };
        self.verifier.arrived(member, of, &said.body, 20);
    }

    fn all_hear(&mut self, said: &Message, but: &[u32]) {
        for member in self.members().into_iter().skip(1) {
            if !but.contains(&member) {
                self.hear(member, said);
            }
        }
    }

    fn check(self, messages: u64, expected: impl FnOnce(&mut Counts)) {
        let copies = 4 * messages;
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
fn all_members_but_the_author_get_it() {
    let mut bench = CrowdBench::new();
    for _ in 0..3 {
        let said = bench.say();
        assert!(!bench.verifier.is_settled());
        bench.all_hear(&said, &[]);
        assert!(bench.verifier.is_settled());
    }
    bench.check(3, |_| {});
}

#[test]
fn who_lacks_one_is_seen_although_another_has_it_twice() {
    let mut bench = CrowdBench::new();
    let [.., one, other] = bench.members()[..] else {
        panic!("five members");
    };
    let said = bench.say();
    bench.all_hear(&said, &[one]);
    bench.hear(other, &said);
    bench.check(1, |counts| {
        counts.delivered = 3;
        counts.duplicated = 1;
        counts.lost = 1;
    });
}

#[test]
fn the_author_and_strangers_to_the_group_must_not_get_it() {
    let mut bench = CrowdBench::new();
    let owner = bench.members()[0];
    let said = bench.say();
    bench.all_hear(&said, &[]);
    bench.hear(owner, &said);
    // Said in another group than it was written to.
    let of = Said {
        author: Some(said.author),
        place: Some(ConvSeq(said.place)),
        crowd: None,
    };
    let member = bench.members()[1];
    bench.verifier.arrived(member, of, &said.body, 20);
    bench.check(1, |counts| counts.misrouted = 2);
}

#[test]
fn everybody_sees_one_order_and_one_place() {
    let mut bench = CrowdBench::new();
    let member = bench.members()[2];
    let (first, second) = (bench.say(), bench.say());
    bench.all_hear(&first, &[member]);
    bench.all_hear(&second, &[member]);
    bench.hear(member, &second);
    bench.hear_at(member, &first, first.place + 1);
    bench.check(2, |counts| {
        counts.reordered = 1;
        counts.misnumbered = 1;
    });
}

/// What is said while a member is outside is not its own; what is said before and after is.
#[test]
fn times_outside_are_judged_by_places() {
    let mut bench = CrowdBench::new();
    let member = *bench.members().last().expect("five");
    let before = bench.say();
    bench.all_hear(&before, &[]);
    bench.verifier.will_change(0, member);
    let removed = ConvSeq(bench.next_place());
    let outside = bench.say();
    bench.all_hear(&outside, &[member]);
    for _ in 0..3 {
        bench.verifier.group_changed(0, member, false, removed);
    }
    let added = ConvSeq(bench.next_place());
    bench.verifier.group_changed(0, member, true, added);
    let after = bench.say();
    bench.all_hear(&after, &[member]);
    assert!(!bench.verifier.is_settled());
    bench.hear(member, &after);
    assert!(bench.verifier.is_settled());
    // Eleven copies: one of the three messages was not for it.
    bench.check(3, |counts| {
        counts.sent = 11;
        counts.accepted = 11;
        counts.delivered = 11;
    });
}

#[test]
fn what_reaches_a_member_outside_is_at_the_wrong_user() {
    let mut bench = CrowdBench::new();
    let member = *bench.members().last().expect("five");
    bench.verifier.will_change(0, member);
    let removed = ConvSeq(bench.next_place());
    let outside = bench.say();
    // It comes before anybody has heard of the removal.
    bench.all_hear(&outside, &[]);
    bench.verifier.group_changed(0, member, false, removed);
    let findings = bench.verifier.finish();
    assert_eq!(findings.after_removal, 1);
    let counts = findings.counts;
    assert_eq!((counts.misrouted, counts.delivered, counts.lost), (1, 3, 0));
    assert_eq!(counts.sent, 3);
}
