//! What the machine did while a run was measured, and what that says about its result.
//!
//! A generator measures its own machine as well. Where that machine dropped packets, had its time
//! stolen or its clock set, the figures are not the gateway's. Two grades:
//!
//! - *invalid*: the figures are this machine's, or nobody's. Taken only for what cannot have been
//!   the gateway's doing.
//! - *warning*: to be known when the figures are read; it may be the gateway's doing, or is small.
//!
//! # Does not
//! Say which program a counter belongs to: the kernel does not. Where generator and gateway share a
//! machine, drops at sockets may be those of either, so they only warn; where the target is
//! elsewhere, they are those of the generator.

mod lookout;

pub(crate) use lookout::Lookout;

use crate::{
    process::kernel::{Counters, SOFTNET_DROPPED},
    report::grouped,
};
use serde::Serialize;
use std::time::Duration;

/// Dropped packets per message sent from which on they invalidate: each costs a retransmission
/// after 200 ms or more, and one in a thousand is what p99.9 is made of.
const DROPS_SHARE_MAX: f64 = 0.001;
/// Share of all processors' time that a host may give to others: a warning, and invalid. A quarter
/// is more than any figure per message or second can bear.
const STEAL_SHARE_WARN: f64 = 0.01;
const STEAL_SHARE_MAX: f64 = 0.25;
/// Share of the processors that this process may use; as for one worker (`verdict`).
const OWN_SHARE_MAX: f64 = 0.95;
/// Share of the time that threads of this process may wait for a processor.
const WAIT_SHARE_WARN: f64 = 0.05;
/// Below this nothing was left of the machine, and all its programs waited for each other.
const IDLE_SHARE_WARN: f64 = 0.02;
/// A clock that is steered gains half a millisecond per second; more at once was set.
const CLOCK_STEP_MAX: Duration = Duration::from_millis(100);
/// Between two looks of the coordinating thread, which sleeps for 10 ms.
const PAUSE_WARN: Duration = Duration::from_secs(1);
/// Share of the open files that may be taken without a word.
const FILES_SHARE_WARN: f64 = 0.95;

/// What a run had at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Means {
    /// Generator and gateway share this machine.
    pub target_is_local: bool,
    /// Local ports that one address has towards the target, and addresses that were used.
    pub ports_per_address: usize,
    pub addresses: usize,
    /// Files that this process may have open, and connections that were asked for.
    pub files: u64,
    pub connections: u64,
}

/// Of the time while messages were sent; the kernel's counters and clocks of the whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Environment {
    #[serde(flatten)]
    pub means: Means,
    /// Processors that this process may use.
    pub processors: usize,
    /// Of these, the share that this process used.
    pub own_share: f64,
    /// Time that threads of this process were ready and had no processor, as a share of the time.
    pub wait_share: f64,
    /// Times that one of them was taken off a processor.
    pub preempted: u64,
    /// Of all processors of the machine.
    pub steal_share: f64,
    pub idle_share: Option<f64>,
    /// Growth of the kernel's counters, under its names.
    pub kernel: Counters,
    /// The greatest step of the wall clock against the steady one, in milliseconds.
    pub clock_step_ms: i64,
    /// The machine slept.
    pub suspended_ms: u64,
    /// The longest time for which the coordinating thread did not run.
    pub pause_ms: u64,
}

/// Sentences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doubts {
    pub invalid: Vec<String>,
    pub warnings: Vec<String>,
}

impl Environment {
    /// What to doubt, in a run that sent so many messages, with workers that sleep or `spins`.
    pub(crate) fn doubts(&self, sent: u64, spins: bool) -> Doubts {
        let mut doubts = Doubts::default();
        self.doubt_processors(spins, &mut doubts);
        self.doubt_kernel(sent, &mut doubts);
        self.doubt_clocks(&mut doubts);
        let means = &self.means;
        if means.files > 0 && means.connections as f64 > means.files as f64 * FILES_SHARE_WARN {
            doubts.warnings.push(format!(
                "{} connections take nearly all of the {} files that this process may open \
                 (ulimit -Hn)",
                grouped(means.connections),
                grouped(means.files)
            ));
        }
        doubts
    }

    /// Why there may have been no port or file: what there was.
    pub(crate) fn means_at_hand(&self) -> String {
        let means = &self.means;
        if means.addresses == 0 {
            return String::new();
        }
        format!(
            " ({} ports on each of {} address(es), {} open files allowed)",
            grouped(means.ports_per_address as u64),
            grouped(means.addresses as u64),
            grouped(means.files)
        )
    }

    fn doubt_processors(&self, spins: bool, doubts: &mut Doubts) {
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        // One that never sleeps is always busy; its slip says whether it kept up.
        if self.own_share > OWN_SHARE_MAX && !spins {
            doubts.invalid.push(format!(
                "the generator used {} of the {} processor(s) that it may use; give it more, or \
                 ask for less",
                percent(self.own_share),
                self.processors
            ));
        }
        if self.steal_share > STEAL_SHARE_WARN {
            let sentence = format!(
                "the host gave {} of this machine's processors to others (steal)",
                percent(self.steal_share)
            );
            if self.steal_share > STEAL_SHARE_MAX {
                doubts.invalid.push(sentence);
            } else {
                doubts.warnings.push(sentence);
            }
        }
        // Only warnings: the schedule slip says whether it mattered, and latencies have it in them.
        if self.wait_share > WAIT_SHARE_WARN {
            doubts.warnings.push(format!(
                "the generator's threads waited for a processor for {} of the time, and were \
                 interrupted {} times: other programs share it (see --cpus)",
                percent(self.wait_share),
                grouped(self.preempted)
            ));
        }
        if self.idle_share.is_some_and(|idle| idle < IDLE_SHARE_WARN) && !spins {
            doubts.warnings.push(
                "the machine had no idle processor: its programs waited for each other".to_owned(),
            );
        }
    }

    fn doubt_kernel(&self, sent: u64, doubts: &mut Doubts) {
        let count = |name: &str| self.kernel.get(name).copied().unwrap_or(0);
        let many = |drops: u64| drops as f64 > sent as f64 * DROPS_SHARE_MAX;
        let mut note = |drops: u64, is_ours: bool, what: &str| {
            if drops == 0 {
                return;
            }
            let sentence = format!("{} {what}", grouped(drops));
            if is_ours && many(drops) {
                doubts.invalid.push(sentence);
            } else {
                doubts.warnings.push(sentence);
            }
        };
        // Before any socket saw them, whichever way they went: no program can prevent that, only
        // whoever sets up the machine.
        note(
            count(SOFTNET_DROPPED),
            true,
            "packets were dropped before a socket saw them (net.core.netdev_max_backlog)",
        );
        // At sockets whose program did not read in time. Of another machine's gateway they are
        // not, but here they may be.
        let is_ours = !self.means.target_is_local;
        note(
            count("TCPBacklogDrop") + count("RcvPruned") + count("TCPRcvQDrop"),
            is_ours,
            "packets were dropped at sockets of this machine that were not read in time \
             (net.ipv4.tcp_rmem)",
        );
        note(
            count("TCPAbortOnMemory"),
            is_ours,
            "connections were ended for want of memory for sockets (net.ipv4.tcp_mem)",
        );
        // The generator listens nowhere: these are the gateway's, or nobody's that we know.
        if self.means.target_is_local {
            note(
                count("ListenOverflows").max(count("ListenDrops")),
                false,
                "connection attempts were dropped at a full listen queue (net.core.somaxconn)",
            );
        }
        // Retransmission follows from any drop, at either end or between.
        let retransmitted = count("RetransSegs");
        if many(retransmitted) {
            note(
                retransmitted,
                false,
                "segments were sent again, each after some time of waiting",
            );
        }
    }

    fn doubt_clocks(&self, doubts: &mut Doubts) {
        // Times are taken from the steady clock; but message ids, tokens and the gateway's own
        // time stamps are not, and timers of both sides may have fired early or late.
        let step_max_ms = CLOCK_STEP_MAX.as_millis() as u64;
        if self.clock_step_ms.unsigned_abs() > step_max_ms {
            doubts.invalid.push(format!(
                "the clock of this machine was set by {} ms during the run",
                self.clock_step_ms
            ));
        }
        if self.suspended_ms > step_max_ms {
            doubts.invalid.push(format!(
                "this machine slept for {} ms during the run",
                grouped(self.suspended_ms)
            ));
        }
        if self.pause_ms > PAUSE_WARN.as_millis() as u64 {
            doubts.warnings.push(format!(
                "the coordinating thread once did not run for {} ms: the machine was overloaded, \
                 or stopped as a whole",
                grouped(self.pause_ms)
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubts(sent: u64, change: impl FnOnce(&mut Environment)) -> (usize, usize) {
        let mut environment = Environment {
            idle_share: Some(0.5),
            processors: 2,
            ..Environment::default()
        };
        environment.means.target_is_local = true;
        change(&mut environment);
        let doubts = environment.doubts(sent, false);
        for sentence in doubts.invalid.iter().chain(&doubts.warnings) {
            assert!(sentence.len() > 30, "{sentence}");
        }
        (doubts.invalid.len(), doubts.warnings.len())
    }

    fn dropped(name: &'static str, drops: u64, sent: u64, is_local: bool) -> (usize, usize) {
        doubts(sent, |environment| {
            environment.means.target_is_local = is_local;
            environment.kernel.insert(name, drops);
        })
    }

    const INVALID: (usize, usize) = (1, 0);
    const WARNING: (usize, usize) = (0, 1);
    const NOTHING: (usize, usize) = (0, 0);

    #[test]
    fn a_quiet_machine_is_not_doubted() {
        assert_eq!(doubts(1_000, |_| {}), NOTHING);
        assert_eq!(Environment::default().doubts(0, false), Doubts::default());
    }

    #[test]
    fn a_saturated_generator_is_invalid() {
        assert_eq!(doubts(1, |machine| machine.own_share = 0.96), INVALID);
        assert_eq!(doubts(1, |machine| machine.own_share = 0.94), NOTHING);
        let spinning = Environment {
            own_share: 1.0,
            ..Environment::default()
        };
        assert_eq!(spinning.doubts(1, true), Doubts::default());
    }

    #[test]
    fn waiting_for_a_processor_is_a_warning() {
        assert_eq!(doubts(1, |machine| machine.wait_share = 0.2), WARNING);
        assert_eq!(
            doubts(1, |machine| machine.idle_share = Some(0.01)),
            WARNING
        );
        assert_eq!(doubts(1, |machine| machine.idle_share = None), NOTHING);
    }

    #[test]
    fn stolen_time_is_a_warning_and_much_of_it_invalid() {
        assert_eq!(doubts(1, |machine| machine.steal_share = 0.005), NOTHING);
        assert_eq!(doubts(1, |machine| machine.steal_share = 0.02), WARNING);
        assert_eq!(doubts(1, |machine| machine.steal_share = 0.3), INVALID);
    }

    #[test]
    fn packets_that_no_socket_saw_invalidate_once_they_matter() {
        for is_local in [true, false] {
            assert_eq!(dropped(SOFTNET_DROPPED, 1, 100_000, is_local), WARNING);
            assert_eq!(dropped(SOFTNET_DROPPED, 101, 100_000, is_local), INVALID);
            assert_eq!(dropped(SOFTNET_DROPPED, 0, 100_000, is_local), NOTHING);
        }
    }

    #[test]
    fn drops_at_sockets_are_the_generators_only_where_the_gateway_is_elsewhere() {
        for name in [
            "TCPBacklogDrop",
            "RcvPruned",
            "TCPRcvQDrop",
            "TCPAbortOnMemory",
        ] {
            assert_eq!(dropped(name, 500, 1_000, true), WARNING, "{name}");
            assert_eq!(dropped(name, 500, 1_000, false), INVALID, "{name}");
            assert_eq!(dropped(name, 1, 1_000_000, false), WARNING, "{name}");
        }
    }

    #[test]
    fn a_full_listen_queue_warns_where_it_can_be_the_gateways() {
        assert_eq!(dropped("ListenOverflows", 5, 10, true), WARNING);
        assert_eq!(dropped("ListenDrops", 5, 10, true), WARNING);
        assert_eq!(dropped("ListenOverflows", 5, 10, false), NOTHING);
    }

    #[test]
    fn retransmissions_warn_when_there_are_many() {
        assert_eq!(dropped("RetransSegs", 2, 1_000, true), WARNING);
        assert_eq!(dropped("RetransSegs", 2, 10_000, false), NOTHING);
    }

    #[test]
    fn a_clock_that_was_set_and_a_machine_that_slept_are_invalid() {
        assert_eq!(doubts(1, |machine| machine.clock_step_ms = -200), INVALID);
        assert_eq!(doubts(1, |machine| machine.clock_step_ms = 20), NOTHING);
        assert_eq!(doubts(1, |machine| machine.suspended_ms = 5_000), INVALID);
        assert_eq!(doubts(1, |machine| machine.pause_ms = 5_000), WARNING);
    }

    #[test]
    fn few_files_left_are_a_warning_and_the_means_are_told() {
        let means = Means {
            target_is_local: true,
            ports_per_address: 28_232,
            addresses: 3,
            files: 20_000,
            connections: 19_900,
        };
        assert_eq!(doubts(1, |machine| machine.means = means), WARNING);
        let environment = Environment {
            means,
            ..Environment::default()
        };
        let told = environment.means_at_hand();
        assert_eq!(
            told,
            " (28,232 ports on each of 3 address(es), 20,000 open files allowed)"
        );
    }
}
