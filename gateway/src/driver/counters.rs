//! What a shard's driver counts, and how the numbers leave the shard.
//!
//! A shard counts in plain integers and copies them to shared atomics from time to time
//! ([`Published`]); whoever scrapes reads those and never disturbs the shard.

use portico_core::{Counter, Counters, Gauges};
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! table {
    ($(#[$doc:meta])* $enum:ident: $($variant:ident, $name:literal, $labels:literal, $help:literal;)+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum $enum {
            $($variant,)+
        }

        impl $enum {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)+];
            pub(crate) const COUNT: usize = Self::ALL.len();

            /// Name, label and help.
            pub(crate) const fn describe(self) -> (&'static str, &'static str, &'static str) {
                match self { $(Self::$variant => ($name, $labels, $help),)+ }
            }
        }
    };
}

table! {
    /// Counts of the driver, beside those of the core.
    Tally:
    Accepted, "portico_sockets_accepted_total", "", "Sockets taken from the listener.";
    AcceptFailed, "portico_accept_errors_total", "", "Failed accepts; tried again at the next tick.";
    AcceptRefused, "portico_accept_refused_total", "", "Connections closed at once because their source had too many, or opened them too fast.";
    ProxyHeaders, "portico_proxy_headers_total", "result=\"taken\"", "Connections of balancers, by what they said first.";
    ProxyText, "portico_proxy_headers_total", "result=\"version_1\"", "Connections of balancers, by what they said first.";
    ProxyFaults, "portico_proxy_headers_total", "result=\"invalid\"", "Connections of balancers, by what they said first.";
    AcceptPaused, "portico_accept_paused_total", "", "Times accepting stopped because the table of descriptors was nearly full.";
    Adopted, "portico_sockets_adopted_total", "", "Sockets taken over from other shards.";
    HandedOver, "portico_sockets_handed_over_total", "result=\"moved\"", "Sockets given to other shards.";
    HandOverFailed, "portico_sockets_handed_over_total", "result=\"failed\"", "Sockets given to other shards.";
    Receives, "portico_receives_total", "", "Receives that brought bytes.";
    NoBuffers, "portico_receive_buffers_exhausted_total", "", "Receives that found no free buffer.";
    BulkBegun, "portico_bulk_begun_total", "", "Multishot receives given to connections that had filled several buffers in succession.";
    BulkQuiet, "portico_bulk_ended_total", "reason=\"quiet\"", "Ends of such receives: nothing large came for a while, reading had to pause, the kernel had no buffer, the connection closed.";
    BulkPaused, "portico_bulk_ended_total", "reason=\"paused\"", "Ends of such receives: nothing large came for a while, reading had to pause, the kernel had no buffer, the connection closed.";
    BulkCut, "portico_bulk_ended_total", "reason=\"cut\"", "Ends of such receives: nothing large came for a while, reading had to pause, the kernel had no buffer, the connection closed.";
    BulkClosed, "portico_bulk_ended_total", "reason=\"closed\"", "Ends of such receives: nothing large came for a while, reading had to pause, the kernel had no buffer, the connection closed.";
    UnreadShed, "portico_unread_shed_total", "", "Connections ended because incomplete frames used up the shard's budget.";
    Sends, "portico_sends_total", "", "Send requests.";
    SendFailed, "portico_send_errors_total", "", "Sends that failed: the connection is ended.";
    FarewellLost, "portico_farewells_lost_total", "", "Closing connections that did not take their last bytes in time.";
    Turns, "portico_shard_turns_total", "", "Turns of the shard's loop.";
    Parks, "portico_shard_parks_total", "", "Times the shard went to sleep.";
    Wakes, "portico_mesh_wakes_total", "", "Wakes sent to sleeping shards.";
    Letters, "portico_mesh_letters_total", "", "Letters sent to other shards.";
    MeshFull, "portico_mesh_full_total", "", "Letters that found the queue between two shards full and waited.";
    Congested, "portico_reads_paused_total", "", "Turns in which reading from clients stood still because the store or another shard was behind.";
    StoreBatches, "portico_store_batches_total", "", "Batches handed to the store.";
    StoreRejected, "portico_store_batches_rejected_total", "", "Batches the store gave back; they wait and are handed in again.";
    StoreExpired, "portico_store_requests_expired_total", "", "Storage requests whose deadline passed before the store took them.";
    TlsFull, "portico_tls_handshakes_total", "result=\"full\"", "TLS handshakes that came to an end: with certificates and signatures, or by a ticket.";
    TlsResumed, "portico_tls_handshakes_total", "result=\"resumed\"", "TLS handshakes that came to an end: with certificates and signatures, or by a ticket.";
    TlsFailedTimeout, "portico_tls_handshakes_failed_total", "reason=\"timeout\"", "TLS handshakes that did not come to an end, by reason: the client took too long, went away, gave up, distrusts our certificate; it offers nothing we speak, what it sent is no handshake, its certificate is not valid or names no user; the gateway went away, or failed.";
    TlsFailedGone, "portico_tls_handshakes_failed_total", "reason=\"gone\"", "TLS handshakes that did not come to an end, by reason: the client took too long, went away, gave up, distrusts our certificate; it offers nothing we speak, what it sent is no handshake, its certificate is not valid or names no user; the gateway went away, or failed.";
    TlsFailedAlert, "portico_tls_handshakes_failed_total", "reason=\"alert\"", "TLS handshakes that did not come to an end, by reason: the client took too long, went away, gave up, distrusts our certificate; it offers nothing we speak, what it sent is no handshake, its certificate is not valid or names no user; the gateway went away, or failed.";
    TlsFailedOurCertificate, "portico_tls_handshakes_failed_total", "reason=\"distrusted\"", "TLS handshakes that did not come to an end, by reason: the client took too long, went away, gave up, distrusts our certificate; it offers nothing we speak, what it sent is no handshake, its certificate is not valid or names no user; the gateway went away, or failed.";
    TlsFailedIncompatible, "portico_tls_handshakes_failed_total", "reason=\"incompatible\"", "TLS handshakes that did not come to an end, by reason: the client took too long, went away, gave up, distrusts our certificate; it offers nothing we speak, what it sent is no handshake, its certificate is not valid or names no user; the gateway went away, or failed.";
    TlsFailedMalformed, "portico_tls_handshakes_failed_total", "reason=\"malformed\"", "TLS handshakes that did not come to an end, by reason: the client took too long, went away, gave up, distrusts our certificate; it offers nothing we speak, what it sent is no handshake, its certificate is not valid or names no user; the gateway went away, or failed.";
    TlsFailedCertificate, "portico_tls_handshakes_failed_total", "reason=\"client_certificate\"", "TLS handshakes that did not come to an end, by reason: the client took too long, went away, gave up, distrusts our certificate; it offers nothing we speak, what it sent is no handshake, its certificate is not valid or names no user; the gateway went away, or failed.";
    TlsFailedUnknownClient, "portico_tls_handshakes_failed_total", "reason=\"unknown_client\"", "TLS handshakes that did not come to an end, by reason: the client took too long, went away, gave up, distrusts our certificate; it offers nothing we speak, what it sent is no handshake, its certificate is not valid or names no user; the gateway went away, or failed.";
    TlsFailedDrained, "portico_tls_handshakes_failed_total", "reason=\"drained\"", "TLS handshakes that did not come to an end, by reason: the client took too long, went away, gave up, distrusts our certificate; it offers nothing we speak, what it sent is no handshake, its certificate is not valid or names no user; the gateway went away, or failed.";
    TlsFailedInternal, "portico_tls_handshakes_failed_total", "reason=\"internal\"", "TLS handshakes that did not come to an end, by reason: the client took too long, went away, gave up, distrusts our certificate; it offers nothing we speak, what it sent is no handshake, its certificate is not valid or names no user; the gateway went away, or failed.";
    TlsEndedClosed, "portico_tls_sessions_ended_total", "reason=\"closed\"", "Open TLS sessions that ended, by reason: the client said so, or its stream ended without a word; it sent an alert; a record was forged or damaged; another fault.";
    TlsEndedCut, "portico_tls_sessions_ended_total", "reason=\"cut\"", "Open TLS sessions that ended, by reason: the client said so, or its stream ended without a word; it sent an alert; a record was forged or damaged; another fault.";
    TlsEndedAlert, "portico_tls_sessions_ended_total", "reason=\"alert\"", "Open TLS sessions that ended, by reason: the client said so, or its stream ended without a word; it sent an alert; a record was forged or damaged; another fault.";
    TlsEndedBadRecord, "portico_tls_sessions_ended_total", "reason=\"bad_record\"", "Open TLS sessions that ended, by reason: the client said so, or its stream ended without a word; it sent an alert; a record was forged or damaged; another fault.";
    TlsEndedOther, "portico_tls_sessions_ended_total", "reason=\"other\"", "Open TLS sessions that ended, by reason: the client said so, or its stream ended without a word; it sent an alert; a record was forged or damaged; another fault.";
    TlsAlertInClose, "portico_tls_alerts_total", "direction=\"received\",alert=\"close_notify\"", "TLS alerts, by direction and kind.";
    TlsAlertInCertificate, "portico_tls_alerts_total", "direction=\"received\",alert=\"certificate\"", "TLS alerts, by direction and kind.";
    TlsAlertInOther, "portico_tls_alerts_total", "direction=\"received\",alert=\"other\"", "TLS alerts, by direction and kind.";
    TlsAlertOutClose, "portico_tls_alerts_total", "direction=\"sent\",alert=\"close_notify\"", "TLS alerts, by direction and kind.";
    TlsAlertOutHandshake, "portico_tls_alerts_total", "direction=\"sent\",alert=\"handshake\"", "TLS alerts, by direction and kind.";
    TlsAlertOutBadRecord, "portico_tls_alerts_total", "direction=\"sent\",alert=\"bad_record_mac\"", "TLS alerts, by direction and kind.";
    TlsAlertOutUnexpected, "portico_tls_alerts_total", "direction=\"sent\",alert=\"unexpected_message\"", "TLS alerts, by direction and kind.";
    TlsAlertOutDecode, "portico_tls_alerts_total", "direction=\"sent\",alert=\"decode_error\"", "TLS alerts, by direction and kind.";
    TlsAlertOutDenied, "portico_tls_alerts_total", "direction=\"sent\",alert=\"access_denied\"", "TLS alerts, by direction and kind.";
    TlsAlertOutOther, "portico_tls_alerts_total", "direction=\"sent\",alert=\"other\"", "TLS alerts, by direction and kind.";
    TlsHeld, "portico_tls_accept_held_total", "", "Times the TLS door was held because many handshakes waited.";
    TlsHibernations, "portico_tls_hibernations_total", "", "Times a quiet TLS session gave its prepared keys back.";
    RingStale, "portico_ring_stale_completions_total", "", "Completions that belonged to nothing. Always 0.";
}

table! {
    /// What the driver holds right now.
    Level:
    Sockets, "portico_sockets", "", "Entries of the table of direct descriptors in use.";
    SocketsMax, "portico_sockets_max", "", "Size of that table.";
    UnreadBytes, "portico_unread_bytes", "", "Bytes of incomplete or waiting frames.";
    ReadsWaiting, "portico_reads_waiting", "", "Connections with bytes that are not read yet.";
    Bulk, "portico_bulk_connections", "", "Connections that send in bulk, through a multishot receive.";
    TlsHandshaking, "portico_tls_handshaking", "", "Connections whose TLS handshake is not over.";
    TlsSessions, "portico_tls_sessions", "", "Open TLS sessions.";
    TlsHibernated, "portico_tls_hibernated", "", "Of them, those without prepared keys.";
    StoreQueue, "portico_store_queue", "", "Storage requests the store has not taken yet.";
    MeshOutbox, "portico_mesh_outbox", "", "Letters that wait because another shard's queue is full.";
    MeshBytes, "portico_mesh_bytes", "", "Bytes of large letters from other shards that wait to be taken.";
}

/// The driver's counters of one shard.
#[derive(Debug)]
pub(super) struct Tallies {
    values: [u64; Tally::COUNT],
}

impl Tallies {
    pub(super) const fn new() -> Self {
        Self {
            values: [0; Tally::COUNT],
        }
    }

    pub(super) const fn bump(&mut self, tally: Tally) {
        self.add(tally, 1);
    }

    pub(super) const fn add(&mut self, tally: Tally, count: u64) {
        self.values[tally as usize] += count;
    }
}

/// Is it a count since the start, or a level?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
}

/// One number of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    /// As `key="value"`, or empty. The shard is not among them.
    pub labels: &'static str,
    pub help: &'static str,
    pub kind: MetricKind,
    pub value: u64,
}

/// The numbers of one shard as it last published them: within 50 ms while it works, and before each
/// sleep.
#[derive(Debug)]
pub(crate) struct Published {
    core: [AtomicU64; Counter::COUNT],
    gauges: [AtomicU64; Gauges::COUNT],
    tallies: [AtomicU64; Tally::COUNT],
    levels: [AtomicU64; Level::COUNT],
}

impl Default for Published {
    fn default() -> Self {
        Self {
            core: [const { AtomicU64::new(0) }; Counter::COUNT],
            gauges: [const { AtomicU64::new(0) }; Gauges::COUNT],
            tallies: [const { AtomicU64::new(0) }; Tally::COUNT],
            levels: [const { AtomicU64::new(0) }; Level::COUNT],
        }
    }
}

impl Published {
    pub(super) fn publish(
        &self,
        counters: &Counters,
        gauges: &Gauges,
        tallies: &Tallies,
        levels: &[u64; Level::COUNT],
    ) {
        // Relaxed: each number stands for itself.
        store(&self.core, counters.values().iter().copied());
        store(&self.gauges, gauges.entries().iter().map(|entry| entry.2));
        store(&self.tallies, tallies.values.iter().copied());
        store(&self.levels, levels.iter().copied());
    }

    pub(crate) fn turns(&self) -> u64 {
        self.tallies[Tally::Turns as usize].load(Ordering::Relaxed)
    }

    /// Every number, in a fixed order.
    pub(crate) fn read(&self) -> Vec<Metric> {
        let mut metrics =
            Vec::with_capacity(Counter::COUNT + Gauges::COUNT + Tally::COUNT + Level::COUNT);
        let mut push = |(name, labels, help), kind, value: &AtomicU64| {
            metrics.push(Metric {
                name,
                labels,
                help,
                kind,
                value: value.load(Ordering::Relaxed),
            });
        };
        for (counter, value) in Counter::ALL.iter().zip(&self.core) {
            let described = (counter.name(), counter.labels(), counter.help());
            push(described, MetricKind::Counter, value);
        }
        for (tally, value) in Tally::ALL.iter().zip(&self.tallies) {
            push(tally.describe(), MetricKind::Counter, value);
        }
        for ((name, help, _), value) in Gauges::default().entries().iter().zip(&self.gauges) {
            push((name, "", help), MetricKind::Gauge, value);
        }
        for (level, value) in Level::ALL.iter().zip(&self.levels) {
            push(level.describe(), MetricKind::Gauge, value);
        }
        metrics
    }
}

fn store(into: &[AtomicU64], values: impl Iterator<Item = u64>) {
    for (cell, value) in into.iter().zip(values) {
        cell.store(value, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_metric_names_and_differ() {
        let metrics = Published::default().read();
        let mut seen = HashSet::new();
        for metric in &metrics {
            assert!(seen.insert((metric.name, metric.labels)), "{}", metric.name);
            assert!(metric.name.starts_with("portico_"), "{}", metric.name);
            let total = metric.name.ends_with("_total");
            assert_eq!(total, metric.kind == MetricKind::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.help);
        }
    }

    #[test]
    fn what_is_published_is_read() {
        let published = Published::default();
        let mut tallies = Tallies::new();
        tallies.add(Tally::Sends, 41);
        tallies.bump(Tally::Sends);
        let gauges = Gauges {
            connections: 7,
            ..Gauges::default()
        };
        let mut levels = [0; Level::COUNT];
        levels[Level::MeshOutbox as usize] = 9;
        published.publish(&Counters::default(), &gauges, &tallies, &levels);
        let metrics = published.read();
        let value = |name| metrics.iter().find(|m| m.name == name).map(|m| m.value);
        assert_eq!(value("portico_sends_total"), Some(42));
        assert_eq!(value("portico_connections"), Some(7));
        assert_eq!(value("portico_mesh_outbox"), Some(9));
    }
}
