//! The JSON file: all that was found, for programs. docs/LOADGEN.md says what each key means.

use super::{Measured, Percentiles, named, round, seconds::Seconds, time::utc};
use crate::{
    environment::Environment,
    figures::FiguresReport,
    fleet::Promises,
    plan::Plan,
    process::Machine,
    remote::Host,
    verdict::{Verdict, judge},
};
use hdrhistogram::Histogram;
use portico_wire::{CloseCode, ErrorCode};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};
use std::{collections::BTreeMap, io};

/// Points of the curve per halving of the distance to 100 %.
const CURVE_TICKS: u32 = 5;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Server {
    pub pid: u32,
    pub name: String,
    /// None where there was no message.
    pub cpu_us_per_message: Option<f64>,
    /// From the first connection until the first message, all were up by then.
    pub cpu_us_per_login: f64,
    pub rss_bytes: u64,
    pub rss_bytes_at_rest: u64,
    pub rss_bytes_per_connection: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Generator {
    pub version: &'static str,
    pub workers: usize,
    pub cpu_us_per_message: Option<f64>,
    pub busy: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    pub connections: u32,
    pub rate_per_s: f64,
    pub duration_s: f64,
    pub drain_s: f64,
    pub body_bytes: usize,
    pub partners: u32,
    /// The figures were not judged, and prove nothing.
    pub functional: bool,
}

/// What CPU time is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CpuPer {
    Delivered,
    /// Nothing was delivered.
    Sent,
}

impl CpuPer {
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Delivered => "per message",
            Self::Sent => "per message sent",
        }
    }
}

/// The JSON file. Keys are only ever added.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub verdict: Verdict,
    pub reasons: Vec<String>,
    pub plan: String,
    pub seed: u64,
    pub run: String,
    pub target: String,
    pub settings: Settings,
    pub connections: u64,
    pub sent: u64,
    pub accepted: u64,
    pub accepted_before: u64,
    pub delivered: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub misrouted: u64,
    pub corrupt: u64,
    pub misnumbered: u64,
    pub refused_delivered: u64,
    pub unanswered: u64,
    pub receipts_missing: u64,
    pub not_queued: u64,
    pub withheld: u64,
    pub unsent: u64,
    pub repeated: u64,
    pub overtaken: u64,
    pub foreign: u64,
    pub refused: BTreeMap<String, u64>,
    pub deferred: BTreeMap<String, u64>,
    pub reconnects: u64,
    pub connect_failures: u64,
    pub protocol_faults: u64,
    pub closes: BTreeMap<String, u64>,
    pub rate_per_s: f64,
    /// Which messages `cpu_us_per_message` is about.
    pub cpu_per: CpuPer,
    pub latency_us: Percentiles,
    pub sent_latency_us: Percentiles,
    pub slip_us: Percentiles,
    pub server: Option<Server>,
    pub generator: Generator,
    /// Of runs with `--workers`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
    pub machine: Machine,
    /// To be known when the figures are read; nothing that the verdict counts.
    pub warnings: Vec<String>,
    pub version: &'static str,
    /// Kinds of counts that mean nothing, because the target does not promise them.
    pub not_promised: Vec<&'static str>,
    /// The plan with all its fields.
    pub workload: Plan,
    /// From being handed to the driver to arrival.
    pub service_us: Option<Percentiles>,
    /// When the run began and when its first message was due, UTC.
    pub started: String,
    pub sending_started: String,
    #[serde(flatten)]
    pub figures: FiguresReport,
    pub curve_us: Curve,
    pub environment: Environment,
    pub series: Seconds,
}

impl Report {
    pub(crate) fn new(measured: &Measured) -> Self {
        let (verdict, reasons) = judge(measured);
        let observed = &measured.observed;
        let doubts = measured.doubts_of_the_machine();
        let warnings = [measured.warnings.clone(), doubts.warnings].concat();
        let Measured {
            plan,
            counts,
            transport,
            ..
        } = measured;
        let delivered = counts.delivered as f64;
        let (cpu_per, messages) = match counts.delivered {
            0 => (CpuPer::Sent, counts.sent),
            delivered => (CpuPer::Delivered, delivered),
        };
        let per_message =
            |us: u64| (messages > 0).then(|| round(us as f64 / messages as f64, 100.0));
        let server = measured.server.as_ref().map(|server| {
            let cpu_us = server.end.cpu_us.saturating_sub(server.connected.cpu_us);
            let connected = server.connected;
            let login_us = connected.cpu_us.saturating_sub(server.at_rest.cpu_us);
            let connections = (measured.connections as f64).max(1.0);
            let grown = server.connected.rss_bytes as f64 - server.at_rest.rss_bytes as f64;
            Server {
                pid: server.pid,
                name: server.name.clone(),
                cpu_us_per_message: per_message(cpu_us),
                cpu_us_per_login: round(login_us as f64 / connections, 100.0),
                rss_bytes: server.end.rss_bytes,
                rss_bytes_at_rest: server.at_rest.rss_bytes,
                rss_bytes_per_connection: round(grown / connections, 1.0),
            }
        });
        let mut figures =
            FiguresReport::new(&measured.figures, plan, counts, &measured.storm_latency_us);
        if let Some(tls) = &mut figures.tls {
            tls.generator_bytes_per_session = measured.own_bytes_per_connection;
        }
        Self {
            verdict,
            reasons,
            plan: plan.name.clone(),
            seed: measured.seed,
            run: format!("{:016x}", measured.run),
            target: measured.target.clone(),
            settings: Settings {
                connections: plan.connections,
                rate_per_s: plan.rate_per_s,
                duration_s: plan.duration.as_secs_f64(),
                drain_s: plan.drain.as_secs_f64(),
                body_bytes: plan.body_bytes,
                partners: plan.partners,
                functional: measured.functional,
            },
            connections: measured.connections,
            sent: counts.sent,
            accepted: counts.accepted,
            accepted_before: counts.accepted_before,
            delivered: counts.delivered,
            lost: counts.lost,
            duplicated: counts.duplicated,
            reordered: counts.reordered,
            misrouted: counts.misrouted,
            corrupt: counts.corrupt,
            misnumbered: counts.misnumbered,
            refused_delivered: counts.refused_delivered,
            unanswered: counts.unanswered,
            receipts_missing: counts.receipts_missing,
            not_queued: measured.not_queued,
            withheld: measured.withheld,
            unsent: measured.unsent,
            repeated: counts.repeated,
            overtaken: counts.overtaken,
            foreign: counts.foreign,
            refused: named(&counts.refused, error_name),
            deferred: named(&counts.deferred, error_name),
            reconnects: transport.reconnects,
            connect_failures: transport.connect_failures,
            protocol_faults: transport.protocol_faults,
            closes: named(&transport.closes, close_name),
            rate_per_s: round(delivered * 1e6 / measured.window_us.max(1) as f64, 10.0),
            cpu_per,
            latency_us: Percentiles::of(&measured.latency_us),
            sent_latency_us: Percentiles::of(&measured.sent_latency_us),
            slip_us: Percentiles::of(&measured.slip_us),
            server,
            generator: Generator {
                version: env!("CARGO_PKG_VERSION"),
                workers: measured.workers,
                cpu_us_per_message: per_message(measured.generator_cpu_us),
                busy: round(measured.generator_busy, 1_000.0),
            },
            hosts: measured.hosts.clone(),
            machine: measured.machine.clone(),
            warnings,
            version: env!("CARGO_PKG_VERSION"),
            not_promised: not_promised(measured.promises, plan.unverified),
            workload: plan.clone(),
            service_us: (!measured.service_us.is_empty())
                .then(|| Percentiles::of(&measured.service_us)),
            started: utc(observed.began_unix_us),
            sending_started: utc(observed.start_unix_us),
            figures,
            curve_us: Curve::of(&measured.latency_us),
            environment: observed.environment.clone(),
            series: Seconds::of(observed),
        }
    }
}

/// Latency by percentile, ever denser towards 100 %, where the outliers are.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Curve {
    pub percentile: Vec<f64>,
    pub us: Vec<u64>,
}

impl Curve {
    fn of(histogram: &Histogram<u64>) -> Self {
        let mut curve = Self::default();
        if histogram.is_empty() {
            return curve;
        }
        for step in histogram.iter_quantiles(CURVE_TICKS) {
            curve
                .percentile
                .push(round(step.quantile_iterated_to() * 100.0, 1e7));
            curve.us.push(step.value_iterated_to());
        }
        curve
    }
}

fn not_promised(promises: Promises, unverified: bool) -> Vec<&'static str> {
    [
        ("lost", !unverified),
        ("accepted", promises.answers),
        ("receipts_missing", promises.receipts),
        ("misnumbered", promises.places),
        ("stored", promises.stores),
    ]
    .into_iter()
    .filter_map(|(name, is_promised)| (!is_promised).then_some(name))
    .collect()
}

fn error_name(code: u16) -> String {
    let name = ErrorCode(code).name();
    name.map_or_else(|| code.to_string(), str::to_owned)
}

pub(crate) fn close_name(code: u16) -> String {
    let name = CloseCode(code).name();
    name.map_or_else(|| code.to_string(), str::to_owned)
}

/// Indented, but for arrays, which stand on one line: a series has thousands of numbers.
pub(crate) fn to_json<T: Serialize>(value: &T) -> serde_json::Result<String> {
    let mut json = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut json, Lines::default()))?;
    String::from_utf8(json).map_err(serde::ser::Error::custom)
}

#[derive(Default)]
struct Lines {
    objects: PrettyFormatter<'static>,
    /// Arrays that are open.
    arrays: u32,
}

impl Formatter for Lines {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.arrays += 1;
        CompactFormatter.begin_array(writer)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.arrays = self.arrays.saturating_sub(1);
        CompactFormatter.end_array(writer)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match self.arrays {
            0 => self.objects.begin_object(writer),
            _ => CompactFormatter.begin_object(writer),
        }
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match self.arrays {
            0 => self.objects.end_object(writer),
            _ => CompactFormatter.end_object(writer),
        }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        match self.arrays {
            0 => self.objects.begin_object_key(writer, first),
            _ => CompactFormatter.begin_object_key(writer, first),
        }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.objects.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match self.arrays {
            0 => self.objects.end_object_value(writer),
            _ => CompactFormatter.end_object_value(writer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        process::Usage,
        report::{MeasuredServer, tests::good},
    };

    #[test]
    fn figures_are_per_delivered_message() {
        let mut measured = good();
        let usage = |cpu_us, rss_bytes| Usage { cpu_us, rss_bytes };
        measured.server = Some(MeasuredServer {
            pid: 1,
            name: "portico".to_owned(),
            at_rest: usage(0, 1_000_000),
            connected: usage(5_000, 1_400_000),
            end: usage(6_000, 2_000_000),
        });
        let report = Report::new(&measured);
        let server = report.server.as_ref().expect("given");
        assert_eq!(server.cpu_us_per_message, Some(10.0));
        assert_eq!(server.cpu_us_per_login, 5.0);
        assert_eq!(server.rss_bytes_per_connection, 400.0);
        assert_eq!(report.generator.cpu_us_per_message, Some(3.0));
        assert_eq!(report.cpu_per, CpuPer::Delivered);
        assert_eq!(report.rate_per_s, 2_000.0);
        let table = report.table();
        for part in ["delivered                    100", "10 us of CPU", "PASS"] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }

    #[test]
    fn where_nothing_was_delivered_figures_are_per_message_sent() {
        let mut measured = good();
        measured.counts.delivered = 0;
        let report = Report::new(&measured);
        assert_eq!(report.cpu_per, CpuPer::Sent);
        assert_eq!(report.generator.cpu_us_per_message, Some(3.0));
        let table = report.table();
        assert!(table.contains("3 us of CPU per message sent"), "{table}");
        measured.counts.sent = 0;
        let report = Report::new(&measured);
        assert_eq!(report.generator.cpu_us_per_message, None);
    }

    #[test]
    fn a_run_that_expects_nothing_says_so() {
        let mut measured = good();
        measured.plan.unverified = true;
        measured.counts.delivered = 0;
        let report = Report::new(&measured);
        assert_eq!(report.verdict, Verdict::Pass);
        assert_eq!(report.not_promised, ["lost"]);
        let table = report.table();
        assert!(table.contains("deliveries were not checked"), "{table}");
    }

    #[test]
    fn the_curve_ends_at_the_greatest_value() {
        let mut measured = good();
        for us in 1..=10_000 {
            measured.latency_us.record(us).expect("within bounds");
        }
        let curve = Curve::of(&measured.latency_us);
        assert_eq!(curve.percentile.len(), curve.us.len());
        assert_eq!(curve.percentile.last(), Some(&100.0));
        let last = *curve.us.last().expect("not empty");
        assert!(measured.latency_us.equivalent(last, 10_000));
        assert!(curve.percentile.is_sorted() && curve.us.is_sorted());
        assert!((30..500).contains(&curve.us.len()), "{}", curve.us.len());
        let empty = Curve::of(&measured.sent_latency_us);
        assert_eq!(empty, Curve::default());
    }

    #[test]
    fn what_a_protocol_does_not_promise_is_named() {
        let mut measured = good();
        assert!(Report::new(&measured).not_promised.is_empty());
        measured.promises.receipts = false;
        measured.promises.places = false;
        let report = Report::new(&measured);
        assert_eq!(report.not_promised, ["receipts_missing", "misnumbered"]);
        let table = report.table();
        assert!(table.contains("not promised by this protocol"), "{table}");
    }

    #[test]
    fn arrays_stand_on_one_line_and_nothing_is_lost() {
        let value = serde_json::json!({
            "numbers": [1, 2, 3],
            "none": [],
            "empty": {},
            "deep": {"of": [{"a": [1], "b": {"c": null}}]},
        });
        let text = to_json(&value).expect("JSON");
        assert!(text.contains("\n  \"numbers\": [1,2,3]"), "{text}");
        let back: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(back, value);
        let report = to_json(&Report::new(&good())).expect("JSON");
        assert!(report.lines().all(|line| line.len() < 200_000));
        let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
        for key in [
            "warnings",
            "version",
            "started",
            "workload",
            "curve_us",
            "environment",
            "series",
        ] {
            assert!(!report[key].is_null(), "{key}");
        }
    }
}
