//! One thread with a slice of the users: it connects them, keeps the schedule, hands every event
//! to its verifier and waits for what is still on its way.
//!
//! [`engine`] is the thread's loop, [`watch`] hears what happens, [`disturb`] says whom the plan
//! does something to and when, [`later`] keeps what is due after something happened, [`life`] does what
//! users do besides sending. None of them
//! sees a socket: [`crate::fleet`] does.
//!
//! # Invariants
//! - A worker shares nothing with others but [`Control`] and its [`Gauges`]; it verifies alone.
//! - It looks at its schedule at least once per turn of the driver, and a turn is bounded.

mod disturb;
mod engine;
mod later;
mod life;
mod watch;

use crate::{
    control::{Control, Gauges, Stage},
    figures::Figures,
    fleet::{self, Credentials, Opening},
    plan::{Flows, Plan},
    remote,
    report::printable,
    tls,
    verifier::Findings,
};
use anyhow::Context;
use engine::Worker;
use hdrhistogram::Histogram;
use portico_client::many::Clock;
use portico_client::{TlsClient, TlsError};
use portico_wire::CloseCode;
use rustix::thread::{CpuSet, sched_setaffinity, set_current_timer_slack};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU64,
    sync::atomic::Ordering,
};

/// A worker's share of the run.
#[derive(Debug)]
pub(crate) struct Assignment<'a> {
    pub plan: &'a Plan,
    pub run: u64,
    pub clock: Clock,
    pub target: SocketAddr,
    pub sources: Vec<IpAddr>,
    /// How users of Portico log in; other systems take everybody.
    pub login: Option<Credentials<'a>>,
    pub first_user: u64,
    pub users: u32,
    /// Of all workers' users, those before this slice: spreads the schedules of the workers.
    pub users_before: u32,
    pub cpu: Option<usize>,
    /// What is spoken beneath Portico's protocol.
    pub tls: Option<TlsClient>,
    /// Connections opened per second, at most.
    pub connects_per_s: u32,
    /// Seconds between two PINGs; 0: as the gateway proposes.
    pub heartbeat_s: u16,
}

impl<'a> Assignment<'a> {
    fn rate_per_s(&self) -> f64 {
        self.plan.rate_per_s * f64::from(self.users) / f64::from(self.plan.connections)
    }

    fn opening(&self, flows: &Flows) -> Opening<'a> {
        Opening {
            clock: self.clock,
            target: self.target,
            sources: self.sources.clone(),
            source_offset: self.users_before as usize,
            first_user: self.first_user,
            users: self.users,
            groups: flows.groups(),
            crowds: flows.crowds().cloned(),
            tls: self.tls.clone(),
            connects_per_s: self.connects_per_s,
            heartbeat_s: self.heartbeat_s,
            acks: self.plan.acks,
            burst: self.plan.burst,
            run: self.run,
            login: self.login,
        }
    }
}

/// What happened to connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transport {
    pub reconnects: u64,
    pub connect_failures: u64,
    /// Of those: this machine had no port or no file descriptor left.
    pub exhausted: u64,
    pub protocol_faults: u64,
    /// Text of one of the faults.
    pub fault: Option<String>,
    /// Ends of connections by close code.
    pub closes: BTreeMap<u16, u64>,
}

impl Transport {
    /// Ends and attempts that nobody here wanted, and faults.
    pub(crate) const fn errors(&self) -> u64 {
        self.reconnects + self.connect_failures + self.protocol_faults
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.reconnects += other.reconnects;
        self.connect_failures += other.connect_failures;
        self.exhausted += other.exhausted;
        self.protocol_faults += other.protocol_faults;
        self.fault = self.fault.take().or(other.fault);
        for (code, count) in other.closes {
            *self.closes.entry(code).or_default() += count;
        }
    }
}

/// What a worker found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub findings: Findings,
    pub figures: Figures,
    pub transport: Transport,
    /// How late messages were handed to the driver.
    #[serde(with = "remote::histogram")]
    pub slip_us: Histogram<u64>,
    /// Due, but the outbox of their sender was full of unanswered ones.
    pub not_queued: u64,
    /// Due, but the verifier's memory was full.
    pub withheld: u64,
    /// Due, but this worker was so late that it gave up.
    pub unsent: u64,
    /// CPU time of this thread while messages were sent.
    pub sending_cpu_us: u64,
    pub last_arrival_us: u64,
}

pub(crate) fn run(
    assignment: &Assignment<'_>,
    control: &Control,
    gauges: &Gauges,
) -> anyhow::Result<Outcome> {
    prepare_thread(assignment.cpu)?;
    let plan = assignment.plan;
    let flows = Flows::of(plan, assignment.first_user, assignment.users);
    let fleet = fleet::open(plan.protocol, &assignment.opening(&flows))?;
    let mut worker = Worker::new(assignment, control, gauges, fleet, flows);
    worker.connect()?;
    if !control.reached(Stage::Finishing) {
        worker.send_all()?;
        worker.drain()?;
    }
    gauges.done.store(true, Ordering::Relaxed);
    worker.stay()?;
    Ok(worker.finish())
}

fn prepare_thread(cpu: Option<usize>) -> anyhow::Result<()> {
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        set.set(cpu);
        sched_setaffinity(None, &set)
            .with_context(|| format!("cannot run on processor {cpu} (see --cpus)"))?;
    }
    // The kernel may delay a sleeper by 50 us to wake several at once; a schedule cannot have that.
    // Where it is refused the slip shows it.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    Ok(())
}

/// Why nobody of this run can log in; the connection was ended by the target, or by us for what it
/// said.
pub(crate) fn turned_away(code: CloseCode, detail: &str, by_peer: bool) -> String {
    let detail = printable(detail);
    // Other systems have words alone.
    let code_text = match code.0 {
        0 => String::new(),
        _ => format!("{code} "),
    };
    if !by_peer {
        return format!(
            "the target does not speak the protocol of this run ({code_text}{detail}); are --target \
             and --protocol right?"
        );
    }
    let hint = match code {
        CloseCode::AUTH_FAILED => "; is --data its data directory, or --key-file its key?",
        _ => "",
    };
    format!("the target turned a user away: {code_text}{detail}{hint}")
}

/// The target speaks TLS and this run does not: what to say then.
pub(crate) fn tls_is_wanted(error: &io::Error) -> Option<String> {
    let wanted = TlsError::within(error).filter(|error| **error == TlsError::TlsWanted);
    wanted.map(|error| format!("the target cannot be used: {}", tls::sentence(error)))
}

/// This machine ran out of something: the gateway is not to blame.
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse
    ) || exhausted
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests;
