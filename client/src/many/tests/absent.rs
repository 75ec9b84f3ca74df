//! Connections that their owner keeps away for a time, or keeps from reading.

use super::*;

/// A server that welcomes every connection and keeps it.
fn hospitable(listener: TcpListener, connections: usize) -> thread::JoinHandle<Vec<Server>> {
    thread::spawn(move || {
        (0..connections)
            .map(|_| {
                let mut end = Server::accept(&listener);
                end.welcome(1);
                end
            })
            .collect()
    })
}

#[test]
fn one_that_is_cut_for_a_time_comes_back_after_it() {
    const AWAY_US: u64 = 300_000;
    let (listener, target) = listener();
    let server = hospitable(listener, 2);
    let mut many = many(target, |_| {});
    let conn = many.add(session(1));
    turn_until(&mut many, |many, _| all_live(many));
    let cut_us = many.now().mono_us;
    many.cut_for(conn, AWAY_US);
    // The last word counts, also before the session has heard of the first.
    many.cut_for(conn, 2 * AWAY_US);
    many.cut_for(conn, AWAY_US);
    let events = turn_until(&mut many, |many, events| {
        !events.is_empty() && all_live(many)
    });
    let away_us = many.now().mono_us - cut_us;
    assert_eq!(events, ["0: closed 4004", "0: Welcome", "0: Synced"]);
    // The session's own back-off would nearly always be another time.
    assert!(
        (AWAY_US..AWAY_US + 5_000_000).contains(&away_us),
        "{away_us}"
    );
    assert_eq!((many.connecting, many.queue.len()), (0, 0));
    drop(server.join().expect("the script ran"));
}

#[test]
fn one_may_be_kept_away_from_the_beginning_and_called() {
    let (listener, target) = listener();
    let server = hospitable(listener, 2);
    let mut many = many(target, |_| {});
    add_users(&mut many, 1);
    let absent = many.add(session(1));
    many.cut_for(absent, 3_600_000_000);
    turn_until(&mut many, |many, _| {
        many.session(ConnIndex(0)).phase() == Phase::Live
    });
    for _ in 0..20 {
        many.turn(1_000, &mut |_, _, _| {}).expect("epoll");
    }
    assert_eq!(many.session(absent).phase(), Phase::Offline);
    many.cut_for(absent, 0);
    turn_until(&mut many, |many, _| all_live(many));
    assert_eq!(many.connecting, 0);
    drop(server.join().expect("the script ran"));
}

/// What came meanwhile has had its edge; it must be read all the same.
#[test]
fn one_that_does_not_read_misses_nothing() {
    let (listener, target) = listener();
    let (told, wait) = std::sync::mpsc::channel::<()>();
    let server = thread::spawn(move || {
        let mut end = Server::accept(&listener);
        end.welcome(1);
        wait.recv().expect("the test goes on");
        let mut out = Vec::new();
        for seq in 1..=3 {
            deliver(&mut out, seq, &[7; 10]);
        }
        end.write(&out);
        end
    });
    let mut many = many(target, |_| {});
    let conn = many.add(session(1));
    turn_until(&mut many, |many, _| all_live(many));
    many.set_reading(conn, false);
    told.send(()).expect("the server waits");
    let end = server.join().expect("the script ran");
    let mut heard = 0;
    for _ in 0..50 {
        many.turn(1_000, &mut |_, _, _| heard += 1).expect("epoll");
    }
    assert_eq!(heard, 0);
    many.set_reading(conn, true);
    let events = turn_until(&mut many, |_, events| events.len() == 3);
    assert_eq!(events, ["0: message of 10 bytes"; 3]);
    drop(end);
}

#[test]
fn messages_without_an_answer_leave_in_one_write() {
    let (listener, target) = listener();
    let server = hospitable(listener, 1);
    let mut many = many(target, |_| {});
    let conn = many.add(session(1));
    turn_until(&mut many, |many, _| all_live(many));
    let mut end = server.join().expect("the script ran").remove(0);
    let body = crate::plain_envelope("x");
    let now = many.now();
    for _ in 0..10 {
        many.send_unanswered(now, conn, PEER, &body, SendOptions::default())
            .expect("room");
    }
    many.turn(0, &mut |_, _, _| {}).expect("epoll");
    let (op, frame) = end.frame().expect("a message");
    assert_eq!((op, corr_of(&frame)), (Op::Send, 0));
    // All others came in the same read.
    assert_eq!(end.input.len(), 9 * frame.len());
}
