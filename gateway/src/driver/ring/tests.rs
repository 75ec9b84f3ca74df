//! The ring against the real kernel, over socket pairs.

use super::*;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

const SIZES: RingSizes = RingSizes {
    submissions: 8,
    completions: 16,
    buffers: 2,
    buffer_bytes: 64,
};
const PATIENCE: Duration = Duration::from_secs(10);

fn ring(slots: u32) -> Ring {
    Ring::new(&SIZES, slots).unwrap()
}

/// A socket in slot `slot`, and the peer's end.
fn connect(ring: &mut Ring, slot: u32) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ring.insert(ours.as_raw_fd(), Slot(slot)).unwrap();
    theirs
}

fn key(index: u32) -> Key {
    Key::new(index, 7)
}

/// Completions, until one is `wanted`.
fn until<T>(ring: &mut Ring, mut wanted: impl FnMut(Completion) -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        ring.submit_and_reap().unwrap();
        while let Some(completion) = ring.next_completion() {
            if let Some(found) = wanted(completion) {
                return found;
            }
        }
        thread::sleep(Duration::from_micros(100));
    }
    panic!("the completion did not come");
}

fn receive(ring: &mut Ring) -> (Result<usize, Errno>, Option<Lent>) {
    until(ring, |completion| match completion {
        Completion::Received { result, lent, .. } => Some((result, lent)),
        _ => None,
    })
}

#[test]
fn more_completions_than_the_queue_holds_are_kept() {
    let mut ring = ring(4);
    let _peer = connect(&mut ring, 0);
    // Twelve times what fits the submission queue, six times what fits the other.
    for index in 0..96 {
        ring.recv(key(index), Slot(0), ReadMode::AtOnce);
    }
    assert_eq!(ring.in_flight, 96);
    let mut next = 0;
    until(&mut ring, |completion| {
        let Completion::Received { key, result, .. } = completion else {
            panic!("{completion:?}");
        };
        assert_eq!((key.index, key.generation), (next, 7), "in order");
        assert_eq!(result, Err(Errno::AGAIN));
        next += 1;
        (next == 96).then_some(())
    });
    assert_eq!(ring.in_flight, 0);
}

#[test]
fn a_multishot_request_that_an_overflow_ends_says_so() {
    let mut ring = ring(4);
    let mut peer = connect(&mut ring, 0);
    ring.poll(key(0), Slot(0));
    ring.submit_and_reap().unwrap();
    let _idle = connect(&mut ring, 1);
    let mut polled = true;
    // Whatever ends the POLL, each byte is either reported or the end of the POLL is.
    for round in 0..20 {
        if !polled {
            ring.poll(key(0), Slot(0));
            polled = true;
        }
        for index in 1..40 {
            ring.recv(key(index), Slot(1), ReadMode::AtOnce);
        }
        peer.write_all(b"x").unwrap();
        let (mut others, mut seen) = (0, false);
        until(&mut ring, |completion| {
            match completion {
                Completion::Polled { last, result, .. } => {
                    assert!(result.is_ok());
                    polled &= !last;
                    seen = true;
                }
                Completion::Received { .. } => others += 1,
                other => panic!("{other:?}"),
            }
            (seen && others == 39).then_some(())
        });
        ring.recv(key(0), Slot(0), ReadMode::AtOnce);
        let lent = until(&mut ring, |completion| match completion {
            Completion::Received { result, lent, .. } => {
                assert_eq!(result, Ok(1), "round {round}");
                lent
            }
            Completion::Polled { last, .. } => {
                polled &= !last;
                None
            }
            other => panic!("{other:?}"),
        });
        ring.give_back(lent);
        ring.publish_buffers();
    }
}

#[test]
fn without_buffers_a_receive_says_so_and_loses_nothing() {
    let mut ring = ring(1);
    let mut peer = connect(&mut ring, 0);
    let sent: Vec<u8> = (0..=191).collect();
    peer.write_all(&sent).unwrap();
    let mut got = Vec::new();
    let mut held = Vec::new();
    for _ in 0..2 {
        ring.recv(key(0), Slot(0), ReadMode::AtOnce);
        let (result, lent) = receive(&mut ring);
        let lent = lent.unwrap();
        assert_eq!(result, Ok(64));
        got.extend_from_slice(ring.bytes(&lent));
        held.push(lent);
    }
    ring.recv(key(0), Slot(0), ReadMode::AtOnce);
    let (result, lent) = receive(&mut ring);
    assert_eq!(result, Err(Errno::NOBUFS));
    assert!(lent.is_none());
    held.into_iter().for_each(|lent| ring.give_back(lent));
    ring.publish_buffers();
    ring.recv(key(0), Slot(0), ReadMode::AtOnce);
    let (result, lent) = receive(&mut ring);
    assert_eq!(result, Ok(64));
    got.extend_from_slice(ring.bytes(&lent.unwrap()));
    assert_eq!(got, sent);
}

#[test]
fn a_receive_that_waits_gets_bytes_and_the_end() {
    let mut ring = ring(1);
    let mut peer = connect(&mut ring, 0);
    ring.recv(key(3), Slot(0), ReadMode::Waiting);
    ring.submit_and_reap().unwrap();
    assert!(!ring.has_completions());
    peer.write_all(b"hello").unwrap();
    let (result, lent) = receive(&mut ring);
    assert_eq!(result, Ok(5));
    let lent = lent.unwrap();
    assert_eq!(ring.bytes(&lent), b"hello");
    ring.give_back(lent);
    // The table holds the last reference to our end, the peer the only one to its own.
    drop(peer);
    ring.recv(key(3), Slot(0), ReadMode::Waiting);
    assert_eq!(receive(&mut ring).0, Ok(0));
}

/// The next completion of a receive: result, bytes, and whether it was the last.
fn receive_copy(ring: &mut Ring) -> (Result<usize, Errno>, Vec<u8>, bool) {
    let (result, lent, last) = until(ring, |completion| match completion {
        Completion::Received {
            result, lent, last, ..
        } => Some((result, lent, last)),
        _ => None,
    });
    let mut copy = Vec::new();
    if let Some(lent) = lent {
        copy.extend_from_slice(ring.bytes(&lent));
        ring.give_back(lent);
        ring.publish_buffers();
    }
    (result, copy, last)
}

#[test]
fn a_multishot_receive_goes_on_until_the_stream_ends() {
    let mut ring = ring(1);
    let mut peer = connect(&mut ring, 0);
    ring.recv(key(0), Slot(0), ReadMode::Multishot);
    for round in 0..10_u8 {
        // More than a buffer holds, and less.
        let sent = [round; 70];
        peer.write_all(&sent).unwrap();
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let (result, bytes, last) = receive_copy(&mut ring);
            assert_eq!((result, last), (Ok(bytes.len()), false), "round {round}");
            got.extend(bytes);
        }
        assert_eq!(got, sent);
        assert_eq!(ring.in_flight, 1, "one request for all of it");
    }
    drop(peer);
    assert_eq!(receive_copy(&mut ring), (Ok(0), Vec::new(), true));
    assert_eq!(ring.in_flight, 0);
}

#[test]
fn a_multishot_receive_without_buffers_ends_and_loses_nothing() {
    let mut ring = ring(1);
    let mut peer = connect(&mut ring, 0);
    let sent: Vec<u8> = (0..=255).collect();
    ring.recv(key(0), Slot(0), ReadMode::Multishot);
    peer.write_all(&sent).unwrap();
    let (mut got, mut held) = (Vec::new(), Vec::new());
    let ended = until(&mut ring, |completion| match completion {
        Completion::Received {
            result, lent, last, ..
        } => {
            held.extend(lent);
            last.then_some(result)
        }
        _ => None,
    });
    assert_eq!((ended, held.len()), (Err(Errno::NOBUFS), 2));
    assert_eq!(ring.in_flight, 0);
    for lent in held {
        got.extend_from_slice(ring.bytes(&lent));
        ring.give_back(lent);
    }
    ring.publish_buffers();
    while got.len() < sent.len() {
        ring.recv(key(0), Slot(0), ReadMode::AtOnce);
        got.extend(receive_copy(&mut ring).1);
    }
    assert_eq!(got, sent, "in order");
}

#[test]
fn a_cancelled_multishot_receive_leaves_the_bytes_in_the_socket() {
    let mut ring = ring(1);
    let mut peer = connect(&mut ring, 0);
    for round in 0..50_u8 {
        ring.recv(key(0), Slot(0), ReadMode::Multishot);
        ring.submit_and_reap().unwrap();
        // The bytes come before, with or after the cancel.
        if round % 3 == 0 {
            peer.write_all(&[round]).unwrap();
        }
        ring.cancel(Op::Recv, key(0));
        if round % 3 == 1 {
            peer.write_all(&[round]).unwrap();
        }
        let mut got = Vec::new();
        loop {
            let (result, bytes, last) = receive_copy(&mut ring);
            got.extend(bytes);
            if last {
                assert_eq!(result, Err(Errno::CANCELED), "round {round}");
                break;
            }
        }
        if round % 3 == 2 {
            peer.write_all(&[round]).unwrap();
        }
        if got.is_empty() {
            ring.recv(key(0), Slot(0), ReadMode::AtOnce);
            got.extend(receive_copy(&mut ring).1);
        }
        assert_eq!(got, [round]);
    }
    assert_eq!(ring.in_flight, 0);
}

#[test]
fn completions_of_nobody_are_ignored() {
    let (mut ours, mut theirs) = (ring(1), ring(1));
    let handle = ours.handle().unwrap();
    // No request of ours carries this.
    let foreign =
        io_uring::opcode::MsgRingData::new(types::Fd(handle.0.as_raw_fd()), 1, u64::MAX, None);
    // SAFETY: the request points to no memory.
    unsafe { theirs.io.submission().push(&foreign.build()) }.unwrap();
    theirs.submit_and_reap().unwrap();
    until(&mut ours, |completion| {
        matches!(completion, Completion::Nothing).then_some(())
    });
    assert_eq!(ours.in_flight, 0);
    // A wake, on the other hand, is understood, and owed by nobody.
    theirs.wake(&handle);
    theirs.submit_and_reap().unwrap();
    until(&mut ours, |completion| {
        matches!(completion, Completion::Woken).then_some(())
    });
    assert_eq!((ours.in_flight, theirs.in_flight), (0, 0));
}

#[test]
fn a_socket_moves_to_another_ring_or_stays() {
    let (mut source, mut target) = (ring(2), ring(1));
    let handle = target.handle().unwrap();
    let mut first = connect(&mut source, 0);
    let mut second = connect(&mut source, 1);
    let hand_over = |source: &mut Ring, slot| {
        source.hand_over(key(slot), Slot(slot), &handle);
        until(source, |completion| match completion {
            Completion::HandedOver { key, result } => {
                assert_eq!(key.index, slot);
                Some(result)
            }
            _ => None,
        })
    };
    let arrived = hand_over(&mut source, 0).unwrap();
    assert_eq!(
        hand_over(&mut source, 1),
        Err(Errno(libc::ENFILE)),
        "the target's table has one slot"
    );
    // The moved one lives on through the target alone.
    source.close(key(0), Slot(0));
    until(&mut source, |completion| {
        matches!(completion, Completion::Closed { .. }).then_some(())
    });
    first.write_all(b"moved").unwrap();
    target.recv(key(9), arrived, ReadMode::Waiting);
    let lent = receive(&mut target).1.unwrap();
    assert_eq!(target.bytes(&lent), b"moved");
    target.give_back(lent);
    // The other one is where it was.
    second.write_all(b"stayed").unwrap();
    source.recv(key(1), Slot(1), ReadMode::Waiting);
    let lent = receive(&mut source).1.unwrap();
    assert_eq!(source.bytes(&lent), b"stayed");
    source.give_back(lent);
}

#[test]
fn a_send_gives_its_buffer_back_whatever_happens() {
    let mut ring = ring(3);
    let sent = |ring: &mut Ring| {
        until(ring, |completion| match completion {
            Completion::Sent { result, buffer, .. } => Some((result, buffer)),
            _ => None,
        })
    };
    // Taken, in two parts.
    let mut peer = connect(&mut ring, 0);
    ring.send(key(0), Slot(0), b"one two".to_vec(), 0, 4);
    let (result, buffer) = sent(&mut ring);
    assert_eq!(result, Ok(4));
    ring.send(key(0), Slot(0), buffer, 4, 100);
    assert_eq!(sent(&mut ring), (Ok(3), b"one two".to_vec()));
    let mut read = [0; 7];
    peer.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"one two");
    // Stuck and cancelled: the peer never reads.
    let _silent = connect(&mut ring, 1);
    let large = vec![1; 16 << 20];
    ring.send(key(1), Slot(1), large.clone(), 0, usize::MAX);
    ring.submit_and_reap().unwrap();
    ring.cancel(Op::Send, key(1));
    let (result, buffer) = sent(&mut ring);
    assert!(result.is_err() || result.is_ok_and(|bytes| bytes < large.len()));
    assert_eq!(buffer, large);
    // The peer of a cancelled one gets exactly what was reported.
    let mut slow = connect(&mut ring, 2);
    let large: Vec<u8> = (0..16_u32 << 20).map(|at| (at / 251) as u8).collect();
    ring.send(key(2), Slot(2), large.clone(), 0, usize::MAX);
    ring.submit_and_reap().unwrap();
    ring.cancel(Op::Send, key(2));
    let (result, buffer) = sent(&mut ring);
    let taken = result.expect("the socket had room for some");
    assert!(taken < large.len());
    let mut read = vec![0; taken];
    slow.read_exact(&mut read).unwrap();
    assert!(read == large[..taken]);
    ring.send(key(2), Slot(2), buffer, taken, 1_000);
    assert_eq!(sent(&mut ring).0, Ok(1_000), "and goes on from there");
    let mut read = [0; 1_000];
    slow.read_exact(&mut read).unwrap();
    assert!(read == large[taken..taken + 1_000]);
    // Refused: the peer is gone.
    drop(peer);
    ring.send(key(0), Slot(0), b"anyone?".to_vec(), 0, 100);
    assert_eq!(
        sent(&mut ring),
        (Err(Errno(libc::EPIPE)), b"anyone?".to_vec())
    );
    assert_eq!(ring.in_flight, 0);
}

#[test]
fn a_ring_ends_with_everything_in_flight() {
    let mut ring = ring(4);
    let bell = Bell::new().unwrap();
    let peers: Vec<UnixStream> = (0..3).map(|slot| connect(&mut ring, slot)).collect();
    ring.watch(&bell);
    ring.poll(key(0), Slot(0));
    ring.recv(key(1), Slot(1), ReadMode::Waiting);
    ring.send(key(2), Slot(2), vec![0; 16 << 20], 0, usize::MAX);
    ring.arm_tick(Duration::from_millis(1));
    ring.arm_deadline(u64::MAX / 4_000);
    ring.submit_and_reap().unwrap();
    assert!(ring.in_flight >= 6);
    assert!(ring.quiesce(PATIENCE));
    assert_eq!(ring.in_flight, 0);
    assert!(ring.memory.sends.is_empty());
    // And once more, by dropping it; its sockets close although a handle keeps the ring alive.
    ring.poll(key(0), Slot(0));
    let _handle = ring.handle().unwrap();
    drop(ring);
    for mut peer in peers {
        let mut rest = Vec::new();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.read_to_end(&mut rest).unwrap();
    }
}

#[test]
fn deadlines_come_at_the_earliest_time_asked_for() {
    let mut ring = ring(1);
    let now_us = crate::driver::now().mono_us;
    ring.arm_deadline(now_us + 60_000_000);
    ring.submit_and_reap().unwrap();
    ring.arm_deadline(now_us + 20_000);
    ring.arm_deadline(now_us + 90_000_000);
    until(&mut ring, |completion| {
        matches!(completion, Completion::Deadline).then_some(())
    });
    let after_us = crate::driver::now().mono_us - now_us;
    assert!((20_000..5_000_000).contains(&after_us), "{after_us} us");
    assert_eq!(ring.in_flight, 0);
    // A time that is over comes at once.
    ring.arm_deadline(1);
    until(&mut ring, |completion| {
        matches!(completion, Completion::Deadline).then_some(())
    });
}

#[test]
fn a_tick_repeats_until_it_is_taken_away() {
    let mut ring = ring(1);
    for _ in 0..2 {
        ring.arm_tick(Duration::from_millis(1));
        ring.arm_tick(Duration::from_millis(1));
        for _ in 0..3 {
            until(&mut ring, |completion| match completion {
                Completion::Tick { last } => (!last).then_some(()),
                _ => None,
            });
        }
        ring.disarm_tick();
        until(&mut ring, |completion| match completion {
            Completion::Tick { last } => last.then_some(()),
            _ => None,
        });
        assert_eq!(ring.in_flight, 0);
    }
}

#[test]
fn a_bell_rings_whether_or_not_it_was_quieted() {
    let mut ring = ring(1);
    let bell = Bell::new().unwrap();
    ring.watch(&bell);
    ring.submit_and_reap().unwrap();
    for round in 0..6 {
        bell.ring();
        until(&mut ring, |completion| match completion {
            Completion::Rung { last } => (!last).then_some(()),
            _ => None,
        });
        ring.submit_and_reap().unwrap();
        assert!(!ring.has_completions(), "once per ringing");
        if round % 2 == 0 {
            bell.quiet();
        }
    }
}

/// Fault: with an eventfd as the bell the kernel passed its first ring on to the doorbell and
/// dropped all later ones, so a sleeping shard never saw what storage threads had left for it.
#[test]
fn every_ring_of_the_bell_ends_a_sleep() {
    let executor = glommio::LocalExecutorBuilder::default().make().unwrap();
    executor.run(async {
        let mut ring = ring(1);
        let doorbell = Doorbell::new().unwrap();
        doorbell.install(&mut ring).unwrap();
        let bell = std::sync::Arc::new(Bell::new().unwrap());
        ring.watch(&bell);
        ring.submit_and_reap().unwrap();
        for _ in 0..10 {
            doorbell.forget();
            ring.set_ringing(true);
            let hand = bell.clone();
            let ringer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                hand.ring();
            });
            let woken = glommio::timer::timeout(PATIENCE, async { Ok(doorbell.wait().await) });
            woken.await.expect("the ring was not heard").unwrap();
            ring.set_ringing(false);
            until(&mut ring, |completion| {
                matches!(completion, Completion::Rung { last: false }).then_some(())
            });
            bell.quiet();
            ringer.join().unwrap();
        }
    });
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let with = |change: fn(&mut RingSizes)| {
        let mut sizes = SIZES;
        change(&mut sizes);
        Ring::new(&sizes, 1).map(drop)
    };
    assert!(with(|_| {}).is_ok());
    for refused in [
        with(|sizes| sizes.submissions = 0),
        with(|sizes| sizes.completions = 4),
        with(|sizes| sizes.buffers = 3),
        with(|sizes| sizes.buffers = 0),
        with(|sizes| sizes.buffer_bytes = 0),
    ] {
        assert!(matches!(refused, Err(RingError::BadSize(_))), "{refused:?}");
    }
    let too_many = Ring::new(&SIZES, 1 << 19).map(drop);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current.is_some_and(|files| files < 1 << 19) {
        assert!(
            matches!(too_many, Err(RingError::Slots { .. })),
            "{too_many:?}"
        );
    }
}
