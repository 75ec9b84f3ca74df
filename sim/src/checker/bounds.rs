//! Promise 6: a shard holds no more than its limits say. (That every ephemeral frame is accounted for
//! is looked after in `crate::settle`, where nothing else changes the counts.)

use super::Checker;
use crate::plan::Plan;
use portico_core::Shard;
use portico_wire::limits::{ENVELOPE_BYTES_MAX, RECEIPTS_GET_MAX};

/// Storage requests that a connection may add beyond the common bound: a page and its cursor.
const READS_PER_CONNECTION: u64 = 2;
/// Queues without a gauge are looked at after so many turns: that walks over the connections.
const LOOK_CLOSELY_EVERY: u64 = 16;
/// What a request weighs beside its bodies, at most.
const REQUEST_BYTES_MAX: u64 = 160 + 256 * 64;

impl Checker {
    /// After each turn of a shard.
    pub(crate) fn at_rest(&mut self, shard: &Shard, plan: &Plan) {
        let limits = &plan.limits;
        let gauges = shard.gauges();
        let most = limits.store_requests_max as u64;
        // Those that carry messages, copies of them and searches are bounded by the limit each; then
        // what connections read, and what they ask for in one frame.
        let requests = 3 * most
            + gauges.connections * READS_PER_CONNECTION
            + gauges.sessions * (RECEIPTS_GET_MAX as u64);
        let bytes = limits.store_bytes_max as u64
            + ENVELOPE_BYTES_MAX as u64
            + gauges.store_requests * REQUEST_BYTES_MAX;
        for (name, value, most) in [
            ("requests to the store", gauges.store_requests, requests),
            ("bytes for the store", gauges.store_bytes, bytes),
            ("messages in flight", gauges.messages_in_flight, most),
        ] {
            self.within(name, value, most);
        }
        self.turns += 1;
        if !self.turns.is_multiple_of(LOOK_CLOSELY_EVERY) {
            return;
        }
        for (name, value) in shard.residue() {
            let most = match name {
                "lane" => 3 * most,
                "send_deadlines" => 2 * most + 1,
                "attempts" => most,
                "outgoing_bytes" => (limits.store_bytes_max + ENVELOPE_BYTES_MAX) as u64,
                "output_bytes" => gauges.connections * limits.outbox_bytes_max as u64,
                "windows" => gauges.connections,
                // Those of connections that have ended stay until their half second is over.
                "page_retries" => gauges.connections + u64::from(limits.logins_per_s) / 2,
                _ => continue,
            };
            self.within(name, value, most);
        }
    }

    fn within(&mut self, name: &str, value: u64, most: u64) {
        if value > most {
            let what = format!("a shard holds {value} {name}, more than {most}");
            self.fail::<&str>(6, what, &[]);
        }
    }
}
