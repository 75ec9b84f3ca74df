//! Faults of systems that do not answer.

use super::*;

/// Deliveries of a system without answers: each fault as that and as nothing else. Numbers are
/// counters of one flow; 9 are sent.
#[test]
fn without_answers_counters_show_every_fault() {
    let all = [0, 1, 2, 3, 4, 5, 6, 7, 8];
    check_counted(&all, |_| {});
    check_counted(&[0, 1, 2, 4, 5, 6, 7, 8], |counts| {
        counts.delivered = 8;
        counts.lost = 1;
    });
    check_counted(&[0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0], |counts| {
        counts.duplicated = 2;
    });
    check_counted(&[0, 2, 1, 3, 4, 8, 7, 5, 6], |counts| counts.reordered = 4);
    check_counted(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], |counts| counts.corrupt = 1);
    check_counted(&[], |counts| {
        counts.delivered = 0;
        counts.lost = 9;
    });
}

fn check_counted(arrivals: &[u32], expected: impl FnOnce(&mut Counts)) {
    let mut verifier = Verifier::new(RUN, pair(), NONE);
    let mut bodies = Vec::new();
    for _ in 0..9 {
        let payload = verifier.next_message(0, 10, 10).expect("always room");
        verifier.sent(&payload);
        bodies.push(payload);
    }
    bodies.push(Payload {
        counter: 9,
        ..bodies[0]
    });
    let mut body = Vec::new();
    for counter in arrivals {
        bodies[*counter as usize].encode(64, &mut body);
        verifier.arrived(1, Said::default(), &body, 20);
    }
    assert_eq!(verifier.receipts_behind().count(), 0);
    let mut counts = Counts {
        sent: 9,
        accepted: 9,
        delivered: 9,
        ..Counts::default()
    };
    expected(&mut counts);
    assert_eq!(verifier.is_settled(), counts.lost == 0);
    assert_eq!(verifier.finish().counts, counts, "{arrivals:?}");
}

#[test]
fn memory_without_answers_does_not_grow_with_messages() {
    let mut verifier = Verifier::new(RUN, pair(), NONE);
    let before = verifier.bytes();
    for _ in 0..100_000 {
        let payload = verifier.next_message(0, 1, 1).expect("always room");
        verifier.sent(&payload);
    }
    assert_eq!(verifier.bytes(), before);
}
