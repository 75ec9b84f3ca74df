//! Frames that announce more than there may be, or less, from as many clients as one can start.

use crate::{
    harness::{PATIENCE, Random},
    siege::{Ground, setup},
};
use portico_wire::{
    CloseCode,
    limits::{FRAME_BYTES_BEFORE_WELCOME_MAX, FRAME_BYTES_DEFAULT_MAX},
};

/// Lengths as they stand in the frame: without the four bytes themselves.
const TOO_SHORT: [u32; 3] = [0, 1, 11];
const TOO_LONG: [u32; 3] = [FRAME_BYTES_DEFAULT_MAX as u32 + 1 - 4, 1 << 31, u32::MAX];

#[test]
fn lengths_that_cannot_be_are_refused_at_their_fourth_byte() {
    let ground = Ground::new(&setup());
    let gateway = &ground.gateway;
    let process = gateway.process();
    gateway.still_serves();
    let before = process.resident_bytes();
    let mut random = Random::announced("lengths");
    let mut count = 0;
    ground.besiege(|siege| {
        let mut user = 1_000;
        while siege.goes_on() {
            user += 1;
            count += 1;
            let short = random.below(2) == 0;
            let lengths = if short { TOO_SHORT } else { TOO_LONG };
            let len = lengths[random.below(3) as usize];
            let mut conn = gateway.connect();
            if random.below(2) == 0 {
                conn.hello(&gateway.token(user, 1)).expect("WELCOME");
            }
            conn.write_bytes(&len.to_le_bytes()).expect("it reads");
            let expected = if short {
                CloseCode::PROTOCOL_ERROR
            } else {
                CloseCode::FRAME_TOO_LARGE
            };
            assert_eq!(
                conn.expect_close(PATIENCE).expect("CLOSE"),
                expected,
                "{len}"
            );
        }
    });
    // Nothing was set aside for what was announced.
    let grown = process.resident_bytes().saturating_sub(before);
    println!("{count} lengths, {} KiB more", grown >> 10);
    assert!(grown < 32 << 20, "{grown}");
    gateway.await_metric("portico_sockets", |count| count == 0);
    gateway.still_serves();
}

/// The largest that is allowed, all but its last byte, from many: the shard's budget for unfinished
/// frames decides, and those who exceed it are the ones who pay.
#[test]
fn frames_without_an_end_share_one_budget() {
    const BUDGET: u64 = 1 << 20;
    const CLIENTS: u64 = 40;
    let ground = Ground::new(&setup().set("limits.unread_bytes_max", BUDGET));
    let gateway = &ground.gateway;
    let shed = gateway.watch("portico_unread_shed_total");
    let mut first = FRAME_BYTES_BEFORE_WELCOME_MAX as u64;
    ground.besiege(|siege| {
        let mut frame = vec![0_u8; FRAME_BYTES_DEFAULT_MAX - 1];
        frame[..4].copy_from_slice(&(FRAME_BYTES_DEFAULT_MAX as u32 - 4).to_le_bytes());
        while siege.goes_on() {
            first += CLIENTS;
            let mut crowd: Vec<_> = (first..first + CLIENTS)
                .map(|user| {
                    let mut conn = gateway.connect();
                    conn.hello(&gateway.token(user, 1)).expect("WELCOME");
                    conn
                })
                .collect();
            for conn in &mut crowd {
                // Fails where the budget is used up.
                let _ = conn.write_bytes(&frame);
            }
            let held = gateway.metrics().get("portico_unread_bytes");
            assert!(held <= 2 * BUDGET, "{held} in two shards");
        }
    });
    shed.moves();
    gateway.await_metric("portico_unread_bytes", |bytes| bytes == 0);
    gateway.await_metric("portico_sockets", |count| count == 0);
    gateway.still_serves();
}
