//! Bytes that mean nothing, from clients that have shown who they are.

use crate::{
    harness::{PATIENCE, Random, eventually},
    siege::{Ground, setup},
};
use portico_client::RawError;
use portico_wire::{Flags, Op, encode::put_body};
use std::net::Shutdown;

/// Noise, noise in frames of operations that exist, and good frames with single bits turned over.
#[test]
fn garbage_after_the_handshake_harms_nobody() {
    let ground = Ground::new(&setup().set("server.core_dumps", "allowed"));
    let gateway = &ground.gateway;
    let process = gateway.process();
    gateway.still_serves();
    let (memory, files) = (process.resident_bytes(), process.descriptors());
    let mut random = Random::announced("garbage");
    let mut round = 0_u64;
    ground.besiege(|siege| {
        while siege.goes_on() {
            round += 1;
            let mut conn = gateway.connect();
            conn.hello(&gateway.token(1_000 + round % 50, 1))
                .expect("WELCOME");
            let count = 1 + random.below(4_000) as usize;
            let mut bytes = random.bytes(count);
            if !round.is_multiple_of(3) {
                let op = Op::ALL[random.below(Op::ALL.len() as u64) as usize];
                let flags = Flags(random.next() as u8);
                let mut framed = Vec::new();
                let corr = random.next() as u32;
                put_body(&mut framed, op as u8, flags, corr, 0, &bytes);
                if round % 3 == 2 {
                    let at = 4 + random.below(framed.len() as u64 - 4) as usize;
                    framed[at] ^= 1 << random.below(8);
                }
                bytes = framed;
            }
            // The gateway may have closed while this was written.
            let _ = conn.write_bytes(&bytes);
            let _ = conn.stream().shutdown(Shutdown::Write);
            match conn.expect_end(PATIENCE) {
                Ok(()) | Err(RawError::Io(_)) => {}
                Err(error) => panic!("round {round}: {error}"),
            }
        }
    });
    println!("{round} clients");
    gateway.await_metric("portico_sockets", |count| count == 0);
    gateway.await_metric("portico_sessions", |count| count == 0);
    gateway.await_metric("portico_unread_bytes", |bytes| bytes == 0);
    eventually("as many descriptors as before", || {
        (process.descriptors() <= files).then_some(())
    });
    let grown = process.resident_bytes().saturating_sub(memory);
    assert!(grown < 64 << 20, "{grown} bytes more");
    gateway.still_serves();
}
