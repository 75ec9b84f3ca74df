//! What a run of the plan `hold` has measured, as numbers per connection, login and message.
//!
//! Costs are differences between two marks, divided by what happened between them. What could not
//! be read is absent; nothing is estimated.

use super::{
    held::{Held, Wave},
    lead::{Mark, Marks},
    needs::Needs,
    slab::Kernel,
    verdict::judge,
};
use crate::{
    plan::{Hold, Plan},
    process::Usage,
    report::{Measured, Percentiles, Report, close_name, named, round},
    tls::TlsReport,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// All that a run has seen.
#[derive(Debug)]
pub(super) struct Measurement<'a> {
    pub plan: &'a Plan,
    pub hold: Hold,
    pub needs: Needs,
    /// When the first login was due.
    pub begin_us: u64,
    pub marks: &'a Marks,
    /// The messages of the active ones.
    pub measured: &'a Measured,
    pub held: &'a Held,
    pub kernel: Option<Kernel>,
}

/// The JSON file: the keys of the other plans, for the messages, and `hold`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HoldReport {
    #[serde(flatten)]
    pub messages: Report,
    pub(super) hold: Figures,
}

/// Keys are only ever added.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    pub asked: u32,
    pub active: u32,
    pub ramp_per_s: u32,
    pub settle_s: f64,
    pub heartbeat_s: u16,
    /// Threads that hold, each with a table of descriptors.
    pub threads: u32,
    pub source_addresses: usize,
    pub live: Live,
    pub ramp: Logins,
    /// After the cut.
    #[serde(rename = "return")]
    pub comeback: Option<Comeback>,
    /// Ends of held connections that nobody here wanted.
    pub drops: BTreeMap<String, u64>,
    pub heartbeats_missed: u64,
    pub drains: u64,
    pub server: Option<Server>,
    pub kernel: Option<Kernel>,
    pub generator: Option<Generator>,
}

/// Live connections, held and active, at the end of each phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Live {
    pub ramp: u64,
    pub settle: u64,
    pub back: Option<u64>,
    pub send: u64,
    pub end: u64,
}

/// A wave of logins.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Logins {
    pub seconds: f64,
    pub logins_per_s: f64,
    /// From the first packet to an established connection, and to WELCOME; of held connections.
    pub connect_us: Percentiles,
    pub login_us: Percentiles,
    pub connect_failures: u64,
    /// Logins that ended before WELCOME without a word from the gateway.
    pub broken_off: u64,
    /// Logins that the gateway closed, by code; OVERLOADED: told when to come back.
    pub refused: BTreeMap<String, u64>,
    pub deferred: u64,
    /// CPU of the server in this time, per login.
    pub server_cpu_us_per_login: Option<f64>,
    /// Of held connections, with TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsReport>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Comeback {
    /// Connections that were cut.
    pub cut: u64,
    /// From the cut until every one was back; absent if they were not.
    pub all_back_s: Option<f64>,
    #[serde(flatten)]
    pub logins: Logins,
    /// The same without what the messages of this time cost, each as much as before the cut. The
    /// ends of the old connections are still in it.
    pub server_cpu_us_per_login_less_messages: Option<f64>,
    /// CPU of this process in this time, the messages and the cut itself included.
    pub generator_cpu_us_per_login: Option<f64>,
    /// From the cut until a connection was back.
    pub live_after_us: Percentiles,
    /// Messages of the active ones that were due in this time.
    pub latency_us: Percentiles,
}

/// The process under test.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Server {
    /// Resident memory: before the first connection, when all were quiet, at the end.
    pub rss_bytes_at_rest: u64,
    pub rss_bytes_settled: u64,
    pub rss_bytes_end: u64,
    pub rss_bytes_per_connection: f64,
    pub cpu_us_per_connection_s: Option<f64>,
    /// While messages were sent, before the cut if there is one.
    pub cpu_us_per_message: Option<f64>,
    /// The same without what the connections cost when they were quiet.
    pub cpu_us_per_message_less_idle: Option<f64>,
}

/// This process.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Generator {
    pub rss_bytes_per_connection: f64,
    pub cpu_us_per_login: f64,
    pub cpu_us_per_connection_s: Option<f64>,
}

/// Between two marks.
struct Span {
    seconds: f64,
    delivered: f64,
    server_cpu_us: Option<f64>,
    own_cpu_us: Option<f64>,
}

impl Span {
    fn between(from: &Mark, to: &Mark) -> Self {
        Self {
            seconds: to.at_us.saturating_sub(from.at_us) as f64 / 1e6,
            delivered: to.delivered.saturating_sub(from.delivered) as f64,
            server_cpu_us: cpu_us(from.server, to.server),
            own_cpu_us: cpu_us(from.own, to.own),
        }
    }
}

fn cpu_us(from: Option<Usage>, to: Option<Usage>) -> Option<f64> {
    Some(to?.cpu_us.saturating_sub(from?.cpu_us) as f64)
}

/// `None` when there is nothing to divide by: no message, no time.
fn per(sum: Option<f64>, count: f64) -> Option<f64> {
    sum.filter(|_| count > 0.0).map(|sum| sum / count)
}

fn rounded(value: Option<f64>, per_unit: f64) -> Option<f64> {
    value.map(|value| round(value, per_unit))
}

impl HoldReport {
    pub(super) fn new(measurement: &Measurement<'_>) -> Self {
        let hold = Figures::new(measurement);
        let mut messages = Report::new(measurement.measured);
        let of_messages = (messages.verdict, std::mem::take(&mut messages.reasons));
        (messages.verdict, messages.reasons) = judge(measurement, of_messages);
        // The messages' part knows the active ones only.
        messages.settings.connections = measurement.plan.connections;
        messages.connections = measurement.marks.ramped.live;
        if let Some(tls) = &mut messages.figures.tls {
            let mut all = measurement.measured.figures.handshakes.clone();
            all.add(&measurement.held.ramp.handshakes);
            all.add(&measurement.held.comeback.handshakes);
            *tls = TlsReport {
                generator_bytes_per_session: hold
                    .generator
                    .as_ref()
                    .map(|own| own.rss_bytes_per_connection),
                ..all.report()
            };
        }
        if let Some((all, of_messages)) = hold.server.as_ref().zip(messages.server.as_mut()) {
            of_messages.rss_bytes_per_connection = all.rss_bytes_per_connection;
            // It would have all the logins after the cut in it.
            if all.cpu_us_per_message.is_some() {
                of_messages.cpu_us_per_message = all.cpu_us_per_message;
            }
        }
        Self { messages, hold }
    }
}

impl Figures {
    fn new(measurement: &Measurement<'_>) -> Self {
        let Measurement {
            plan,
            hold,
            needs,
            marks,
            held,
            ..
        } = measurement;
        Self {
            asked: plan.connections,
            active: hold.active,
            ramp_per_s: hold.ramp_per_s,
            settle_s: hold.settle.as_secs_f64(),
            heartbeat_s: match held.heartbeat_s {
                0 => hold.heartbeat_s,
                allowed_s => allowed_s,
            },
            threads: needs.holders,
            source_addresses: needs.sources.max(1),
            live: Live {
                ramp: marks.ramped.live,
                settle: marks.settled.live,
                back: marks.back.map(|mark| mark.live),
                send: marks.sent.live,
                end: marks.end.live,
            },
            ramp: measurement.ramp(),
            comeback: measurement.comeback(),
            drops: named(&held.drops, close_name),
            heartbeats_missed: held.heartbeats_missed,
            drains: held.drains,
            server: measurement.server(),
            kernel: measurement.kernel.clone(),
            generator: measurement.generator(),
        }
    }
}

impl Measurement<'_> {
    fn ramp(&self) -> Logins {
        let marks = self.marks;
        let seconds = marks.ramped.at_us.saturating_sub(self.begin_us) as f64 / 1e6;
        let cpu_us = Span::between(&marks.start, &marks.ramped).server_cpu_us;
        self.logins(&self.held.ramp, seconds, marks.ramped.live as f64, cpu_us)
    }

    fn comeback(&self) -> Option<Comeback> {
        let (marks, wave) = (self.marks, &self.held.comeback);
        let cut = marks.cut.as_ref()?;
        let span = Span::between(cut, marks.back.as_ref().unwrap_or(&marks.sent));
        let cpu_us = span.server_cpu_us;
        // Without the quiet ones' part: they are not there to send heartbeats.
        let of_messages_us = self
            .cpu_us_per_message_less_idle()
            .map(|us| us * span.delivered);
        let rest_us = cpu_us.zip(of_messages_us).map(|(all, part)| all - part);
        Some(Comeback {
            cut: self.held.cut,
            all_back_s: marks.back.map(|_| round(span.seconds, 100.0)),
            logins: self.logins(wave, span.seconds, wave.logins as f64, cpu_us),
            server_cpu_us_per_login_less_messages: rounded(per(rest_us, wave.logins as f64), 10.0),
            generator_cpu_us_per_login: rounded(per(span.own_cpu_us, wave.logins as f64), 10.0),
            live_after_us: Percentiles::of(&wave.live_after_us),
            latency_us: Percentiles::of(&self.measured.storm_latency_us),
        })
    }

    fn logins(&self, wave: &Wave, seconds: f64, count: f64, cpu_us: Option<f64>) -> Logins {
        let overloaded = portico_wire::CloseCode::OVERLOADED.0;
        Logins {
            seconds: round(seconds, 100.0),
            logins_per_s: round(count / seconds.max(1e-6), 1.0),
            connect_us: Percentiles::of(&wave.connect_us),
            login_us: Percentiles::of(&wave.login_us),
            connect_failures: wave.connect_failures,
            broken_off: wave.broken_off,
            refused: named(&wave.refused, close_name),
            deferred: wave.refused.get(&overloaded).copied().unwrap_or(0),
            server_cpu_us_per_login: rounded(per(cpu_us, count), 10.0),
            tls: self.plan.tls.as_ref().map(|_| wave.handshakes.report()),
        }
    }

    /// While messages were sent and nothing else happened.
    fn steady(&self) -> Span {
        let marks = self.marks;
        Span::between(&marks.settled, marks.cut.as_ref().unwrap_or(&marks.sent))
    }

    fn settling(&self) -> Span {
        Span::between(&self.marks.rested, &self.marks.settled)
    }

    fn cpu_us_per_message(&self) -> Option<f64> {
        let steady = self.steady();
        per(steady.server_cpu_us, steady.delivered)
    }

    /// Of the gateway, for all connections together, while they only send heartbeats.
    fn idle_us_per_s(&self) -> Option<f64> {
        let settling = self.settling();
        per(settling.server_cpu_us, settling.seconds)
    }

    /// At its price while nothing else happens: beside messages, heartbeats share wakes and cost less,
    /// so this is the least that a message may have cost.
    fn cpu_us_per_message_less_idle(&self) -> Option<f64> {
        let steady = self.steady();
        let less_idle_us = steady
            .server_cpu_us
            .zip(self.idle_us_per_s())
            .map(|(all, idle)| (all - idle * steady.seconds).max(0.0));
        per(less_idle_us, steady.delivered)
    }

    fn server(&self) -> Option<Server> {
        let marks = self.marks;
        let (at_rest, settled) = (marks.start.server?, marks.settled.server?);
        let live = marks.settled.live as f64;
        Some(Server {
            rss_bytes_at_rest: at_rest.rss_bytes,
            rss_bytes_settled: settled.rss_bytes,
            rss_bytes_end: marks.end.server?.rss_bytes,
            rss_bytes_per_connection: grown(at_rest, settled, live),
            cpu_us_per_connection_s: rounded(per(self.idle_us_per_s(), live), 10_000.0),
            cpu_us_per_message: rounded(self.cpu_us_per_message(), 100.0),
            cpu_us_per_message_less_idle: rounded(self.cpu_us_per_message_less_idle(), 100.0),
        })
    }

    fn generator(&self) -> Option<Generator> {
        let marks = self.marks;
        let ramp_us = Span::between(&marks.start, &marks.ramped).own_cpu_us?;
        let settling = self.settling();
        let live = marks.settled.live as f64;
        let idle = per(settling.own_cpu_us, settling.seconds * live);
        Some(Generator {
            rss_bytes_per_connection: grown(marks.start.own?, marks.settled.own?, live),
            cpu_us_per_login: round(ramp_us / (marks.ramped.live as f64).max(1.0), 10.0),
            cpu_us_per_connection_s: rounded(idle, 10_000.0),
        })
    }
}

fn grown(from: Usage, to: Usage, connections: f64) -> f64 {
    let bytes = to.rss_bytes as f64 - from.rss_bytes as f64;
    round(bytes / connections.max(1.0), 1.0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::verdict::Verdict;

    /// Owns what a [`Measurement`] looks at.
    #[derive(Debug)]
    pub(crate) struct Parts {
        pub(crate) marks: Marks,
        pub(crate) measured: Measured,
        pub(crate) held: Held,
    }

    /// A thousand connections that are cut and come back, with round numbers.
    fn good() -> Parts {
        let mark = |second: u64, cpu_ms: u64, rss: u64, live: u64, delivered: u64| Mark {
            at_us: second * 1_000_000,
            live,
            delivered,
            own: Some(Usage {
                cpu_us: cpu_ms * 2_000,
                rss_bytes: 1_000_000 + rss * 2,
            }),
            server: Some(Usage {
                cpu_us: cpu_ms * 1_000,
                rss_bytes: 2_000_000 + rss,
            }),
        };
        let mut held = Held::new();
        held.cut = 900;
        held.comeback.logins = 900;
        held.ramp.login_us.record(400).expect("within bounds");
        let mut measured = crate::report::tests::good();
        measured.plan = Plan::named("hold").expect("built in");
        measured.plan.connections = measured.connections as u32;
        measured.server = None;
        Parts {
            marks: Marks {
                interrupted_us: None,
                start: mark(0, 0, 0, 0, 0),
                // 10 s, 50 us each.
                ramped: mark(10, 50, 300_000, 1_000, 0),
                rested: mark(12, 60, 300_000, 1_000, 0),
                // 2 us per connection and second.
                settled: mark(22, 80, 300_000, 1_000, 0),
                send_us: 22_000_000,
                // 10 s: 120 ms, of which 20 for being there; 10,000 messages.
                cut: Some(mark(32, 200, 300_000, 1_000, 10_000)),
                // 5 s: 5,000 messages at 10 us, and 900 logins at 50 us, and a little.
                back: Some(mark(37, 296, 400_000, 1_000, 15_000)),
                sent: mark(52, 500, 400_000, 1_000, 30_000),
                end: mark(53, 500, 400_000, 1_000, 30_000),
            },
            measured,
            held,
        }
    }

    pub(crate) fn with_good<T>(
        change: impl FnOnce(&mut Parts),
        look: impl FnOnce(&Measurement<'_>) -> T,
    ) -> T {
        let mut parts = good();
        change(&mut parts);
        let plan = Plan {
            connections: 1_000,
            ..Plan::named("hold").expect("built in")
        };
        look(&Measurement {
            hold: plan.hold.expect("it holds"),
            plan: &plan,
            needs: Needs {
                holders: 1,
                sources: 1,
                memory_bytes: 0,
            },
            begin_us: 0,
            marks: &parts.marks,
            measured: &parts.measured,
            held: &parts.held,
            kernel: None,
        })
    }

    #[test]
    fn costs_are_divided_by_what_happened_meanwhile() {
        let report = with_good(|_| {}, HoldReport::new);
        let hold = &report.hold;
        assert_eq!(hold.ramp.logins_per_s, 100.0);
        assert_eq!(hold.ramp.server_cpu_us_per_login, Some(50.0));
        assert_eq!(hold.ramp.login_us.max, 401);
        let expected = Server {
            rss_bytes_at_rest: 2_000_000,
            rss_bytes_settled: 2_300_000,
            rss_bytes_end: 2_400_000,
            rss_bytes_per_connection: 300.0,
            cpu_us_per_connection_s: Some(2.0),
            cpu_us_per_message: Some(12.0),
            cpu_us_per_message_less_idle: Some(10.0),
        };
        assert_eq!(hold.server, Some(expected));
        let comeback = hold.comeback.as_ref().expect("there was a cut");
        assert_eq!(comeback.all_back_s, Some(5.0));
        assert_eq!(comeback.logins.logins_per_s, 180.0);
        assert_eq!(comeback.logins.server_cpu_us_per_login, Some(106.7));
        assert_eq!(comeback.server_cpu_us_per_login_less_messages, Some(51.1));
        assert_eq!(comeback.generator_cpu_us_per_login, Some(213.3));
        let expected = Generator {
            rss_bytes_per_connection: 600.0,
            cpu_us_per_login: 100.0,
            cpu_us_per_connection_s: Some(4.0),
        };
        assert_eq!(hold.generator, Some(expected));
        assert_eq!(report.messages.verdict, Verdict::Pass);
        assert_eq!(report.messages.connections, 1_000);
    }

    #[test]
    fn without_a_cut_the_whole_sending_is_steady() {
        let report = with_good(
            |parts| (parts.marks.cut, parts.marks.back) = (None, None),
            HoldReport::new,
        );
        assert!(report.hold.comeback.is_none());
        let server = report.hold.server.expect("it was looked at");
        assert_eq!(server.cpu_us_per_message, Some(14.0));
    }

    #[test]
    fn what_cannot_be_read_is_absent() {
        let report = with_good(
            |parts| {
                parts.marks.settled.server = None;
                parts.marks.cut = None;
            },
            HoldReport::new,
        );
        assert_eq!(report.hold.server, None);
        let still = with_good(
            |parts| parts.marks.rested = parts.marks.settled,
            HoldReport::new,
        );
        let server = still.hold.server.expect("it was looked at");
        assert_eq!(server.cpu_us_per_connection_s, None);
        assert_eq!(server.cpu_us_per_message, Some(12.0));
        assert_eq!(server.cpu_us_per_message_less_idle, None);
    }
}
