//! What holders found, for one of them or all.

use crate::tls::Handshakes;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Longest time that is told apart.
const TIME_MAX_US: u64 = 600_000_000;

/// Two digits: there are four of these per thread, and a percent is enough.
pub(super) fn coarse_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, TIME_MAX_US, 2).expect("the bounds are valid")
}

/// All logins of the ramp, or of the way back after the cut.
#[derive(Debug)]
pub(super) struct Wave {
    /// From the first packet until the kernel has a connection, and until WELCOME.
    pub connect_us: Histogram<u64>,
    pub login_us: Histogram<u64>,
    /// From the wave's beginning until a connection was live.
    pub live_after_us: Histogram<u64>,
    pub handshakes: Handshakes,
    pub logins: u64,
    /// Logins that the gateway closed, by code.
    pub refused: BTreeMap<u16, u64>,
    /// Logins that ended before WELCOME without a word from the gateway.
    pub broken_off: u64,
    pub connect_failures: u64,
    /// Of those: this machine had no port or no file descriptor left.
    pub exhausted: u64,
}

impl Wave {
    pub(super) fn new() -> Self {
        Self {
            connect_us: coarse_histogram(),
            login_us: coarse_histogram(),
            live_after_us: coarse_histogram(),
            handshakes: Handshakes::new(),
            logins: 0,
            refused: BTreeMap::new(),
            broken_off: 0,
            connect_failures: 0,
            exhausted: 0,
        }
    }

    fn add(&mut self, other: &Self) {
        for (sum, part) in [
            (&mut self.connect_us, &other.connect_us),
            (&mut self.login_us, &other.login_us),
            (&mut self.live_after_us, &other.live_after_us),
        ] {
            sum.add(part).expect("histograms of the same bounds");
        }
        self.handshakes.add(&other.handshakes);
        self.logins += other.logins;
        self.broken_off += other.broken_off;
        self.connect_failures += other.connect_failures;
        self.exhausted += other.exhausted;
        add_codes(&mut self.refused, &other.refused);
    }
}

/// What a holder found; those of several are added up.
#[derive(Debug)]
pub(super) struct Held {
    pub ramp: Wave,
    pub comeback: Wave,
    /// How many were live when they were cut.
    pub cut: u64,
    /// Ends of live connections that nobody here wanted, by code.
    pub drops: BTreeMap<u16, u64>,
    /// Of those: a PING was not answered in time.
    pub heartbeats_missed: u64,
    /// The gateway asked to leave.
    pub drains: u64,
    /// Messages for users to whom nobody writes.
    pub strays: u64,
    pub protocol_faults: u64,
    /// Text of one of the faults.
    pub fault: Option<String>,
    /// The interval that the gateway allowed; 0: nobody got in.
    pub heartbeat_s: u16,
}

impl Held {
    pub(super) fn new() -> Self {
        Self {
            ramp: Wave::new(),
            comeback: Wave::new(),
            cut: 0,
            drops: BTreeMap::new(),
            heartbeats_missed: 0,
            drains: 0,
            strays: 0,
            protocol_faults: 0,
            fault: None,
            heartbeat_s: 0,
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.ramp.add(&other.ramp);
        self.comeback.add(&other.comeback);
        self.cut += other.cut;
        add_codes(&mut self.drops, &other.drops);
        self.heartbeats_missed += other.heartbeats_missed;
        self.drains += other.drains;
        self.strays += other.strays;
        self.protocol_faults += other.protocol_faults;
        self.fault = self.fault.take().or(other.fault);
        self.heartbeat_s = self.heartbeat_s.max(other.heartbeat_s);
    }
}

fn add_codes(sum: &mut BTreeMap<u16, u64>, part: &BTreeMap<u16, u64>) {
    for (code, count) in part {
        *sum.entry(*code).or_default() += count;
    }
}
