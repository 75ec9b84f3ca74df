//! The result of a run: what was measured, as JSON for programs and as a table for people.

use crate::{
    cli::Args,
    figures::{Figures, FiguresReport},
    fleet::{Promises, promises_to},
    plan::Plan,
    process::{Machine, Usage},
    verdict::{Verdict, judge},
    verifier::{Counts, histogram},
    worker::Transport,
};
use hdrhistogram::Histogram;
use portico_wire::{CloseCode, ErrorCode};
use serde::Serialize;
use std::{collections::BTreeMap, fmt, fmt::Write};

/// Everything that was measured, added up over the workers.
#[derive(Debug)]
pub(crate) struct Measured {
    pub plan: Plan,
    pub seed: u64,
    pub run: u64,
    pub target: String,
    pub machine: Machine,
    /// Connections that were up when sending began.
    pub connections: u64,
    pub counts: Counts,
    pub transport: Transport,
    pub latency_us: Histogram<u64>,
    pub sent_latency_us: Histogram<u64>,
    /// From being handed to the driver to arrival.
    pub service_us: Histogram<u64>,
    /// From the cut until all are back (plan `hold`); part of `latency_us`.
    pub storm_latency_us: Histogram<u64>,
    pub slip_us: Histogram<u64>,
    /// Bound of its 99th percentile.
    pub slip_max_us: u64,
    pub not_queued: u64,
    pub withheld: u64,
    /// What some plans measure besides.
    pub figures: Figures,
    /// From the first message's time to the last arrival, at least the plan's duration.
    pub window_us: u64,
    /// While messages were sent.
    pub generator_cpu_us: u64,
    /// Of the busiest worker, while messages were sent.
    pub generator_busy: f64,
    pub workers: usize,
    pub server: Option<MeasuredServer>,
    /// What the target tells its clients, and so what was checked.
    pub promises: Promises,
}

impl Measured {
    /// Of a run that is over, before the workers' findings are added.
    pub(crate) fn new(
        args: &Args,
        plan: &Plan,
        run: u64,
        connections: u64,
        server: Option<MeasuredServer>,
    ) -> Self {
        Self {
            plan: plan.clone(),
            seed: plan.seed,
            run,
            target: args.target.clone(),
            machine: Machine::read(),
            connections,
            counts: Counts::default(),
            transport: Transport::default(),
            latency_us: histogram(),
            sent_latency_us: histogram(),
            service_us: histogram(),
            storm_latency_us: histogram(),
            slip_us: histogram(),
            slip_max_us: args.slip_max.as_micros() as u64,
            not_queued: 0,
            withheld: 0,
            figures: Figures::new(),
            window_us: plan.duration.as_micros() as u64,
            generator_cpu_us: 0,
            generator_busy: 0.0,
            workers: 0,
            server,
            promises: promises_to(plan),
        }
    }
}

/// The process under test, before the first connection, before the first message, at the end.
#[derive(Clone, Debug)]
pub(crate) struct MeasuredServer {
    pub pid: u32,
    pub name: String,
    pub at_rest: Usage,
    pub connected: Usage,
    pub end: Usage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
    pub mean: f64,
    pub samples: u64,
}

impl Percentiles {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
            mean: (histogram.mean() * 10.0).round() / 10.0,
            samples: histogram.len(),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Server {
    pub pid: u32,
    pub name: String,
    pub cpu_us_per_message: f64,
    /// From the first connection until all were up.
    pub cpu_us_per_login: f64,
    pub rss_bytes: u64,
    pub rss_bytes_at_rest: u64,
    pub rss_bytes_per_connection: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Generator {
    pub version: &'static str,
    pub workers: usize,
    pub cpu_us_per_message: f64,
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
    pub latency_us: Percentiles,
    pub sent_latency_us: Percentiles,
    pub slip_us: Percentiles,
    pub server: Option<Server>,
    pub generator: Generator,
    pub machine: Machine,
    /// Kinds of counts that mean nothing, because the target does not promise them.
    pub not_promised: Vec<&'static str>,
    /// The plan with all its fields.
    pub workload: Plan,
    pub service_us: Option<Percentiles>,
    #[serde(flatten)]
    pub figures: FiguresReport,
}

impl Report {
    pub(crate) fn new(measured: &Measured) -> Self {
        let (verdict, reasons) = judge(measured);
        let Measured {
            plan,
            counts,
            transport,
            ..
        } = measured;
        let delivered = counts.delivered as f64;
        let per_message = |us: u64| round(us as f64 / delivered.max(1.0), 100.0);
        let server = measured.server.as_ref().map(|server| {
            let cpu_us = server.end.cpu_us.saturating_sub(server.connected.cpu_us);
            let login_us = server
                .connected
                .cpu_us
                .saturating_sub(server.at_rest.cpu_us);
            let grown = server.connected.rss_bytes as f64 - server.at_rest.rss_bytes as f64;
            Server {
                pid: server.pid,
                name: server.name.clone(),
                cpu_us_per_message: per_message(cpu_us),
                cpu_us_per_login: round(
                    login_us as f64 / (measured.connections as f64).max(1.0),
                    100.0,
                ),
                rss_bytes: server.end.rss_bytes,
                rss_bytes_at_rest: server.at_rest.rss_bytes,
                rss_bytes_per_connection: round(
                    grown / (measured.connections as f64).max(1.0),
                    1.0,
                ),
            }
        });
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
            machine: measured.machine.clone(),
            not_promised: not_promised(measured.promises),
            workload: plan.clone(),
            service_us: (!measured.service_us.is_empty())
                .then(|| Percentiles::of(&measured.service_us)),
            figures: FiguresReport::new(
                &measured.figures,
                plan,
                counts,
                &measured.storm_latency_us,
            ),
        }
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let settings = &self.settings;
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut out, settings);
        out
    }

    fn write_table(&self, out: &mut String, settings: &Settings) -> fmt::Result {
        writeln!(
            out,
            "{}: {} connections, {} messages/s of {} bytes for {} s, seed {}, target {}",
            self.plan,
            grouped(self.connections),
            grouped(settings.rate_per_s as u64),
            grouped(settings.body_bytes as u64),
            settings.duration_s,
            self.seed,
            self.target,
        )?;
        writeln!(
            out,
            "{} x {}, Linux {}\n",
            self.machine.cpus, self.machine.model, self.machine.kernel
        )?;
        for (name, count) in [
            ("sent", self.sent),
            ("accepted", self.accepted),
            ("delivered", self.delivered),
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("reordered", self.reordered),
            ("misrouted", self.misrouted),
            ("corrupt", self.corrupt),
        ] {
            if name == "accepted" && self.not_promised.contains(&"accepted") {
                writeln!(out, "{name:<18}{:>14}", "not promised")?;
                continue;
            }
            writeln!(out, "{name:<18}{:>14}", grouped(count))?;
        }
        for (name, count) in self.figures.counts() {
            if count > 0 {
                writeln!(out, "{name:<18}{:>14}", grouped(count))?;
            }
        }
        // What is usually 0 and means something only when it is not.
        for (name, count) in [
            ("misnumbered", self.misnumbered),
            ("refused, arrived", self.refused_delivered),
            ("unanswered", self.unanswered),
            ("receipts missing", self.receipts_missing),
            ("not queued", self.not_queued),
            ("withheld", self.withheld),
            ("accepted before", self.accepted_before),
            ("repeated", self.repeated),
            ("overtaken", self.overtaken),
            ("foreign", self.foreign),
            ("reconnects", self.reconnects),
            ("connect failures", self.connect_failures),
            ("protocol faults", self.protocol_faults),
        ] {
            if count > 0 {
                writeln!(out, "{name:<18}{:>14}", grouped(count))?;
            }
        }
        for (title, codes) in [
            ("refused", &self.refused),
            ("deferred", &self.deferred),
            ("closed", &self.closes),
        ] {
            for (code, count) in codes {
                writeln!(out, "{title:<18}{:>14}  {code}", grouped(*count))?;
            }
        }
        writeln!(
            out,
            "{:<18}{:>14}",
            "delivered/s",
            grouped(self.rate_per_s as u64)
        )?;
        writeln!(
            out,
            "\n{:<18}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "microseconds", "p50", "p90", "p99", "p99.9", "max"
        )?;
        let common = [
            ("to delivery", &self.latency_us),
            ("to SENT", &self.sent_latency_us),
            ("schedule slip", &self.slip_us),
        ];
        let service = self
            .service_us
            .as_ref()
            .map(|values| ("service time", values));
        let more = service.into_iter().chain(self.figures.times());
        for (name, values) in common.into_iter().chain(more) {
            // Nothing was measured: zeros would look like figures.
            if values.samples == 0 {
                continue;
            }
            writeln!(
                out,
                "{name:<18}{:>10}{:>10}{:>10}{:>10}{:>10}",
                grouped(values.p50),
                grouped(values.p90),
                grouped(values.p99),
                grouped(values.p999),
                grouped(values.max)
            )?;
        }
        writeln!(out)?;
        if let Some(server) = &self.server {
            writeln!(
                out,
                "server     {} ({}): {} us of CPU per message, {:.1} MB resident",
                server.name,
                server.pid,
                server.cpu_us_per_message,
                server.rss_bytes as f64 / 1e6
            )?;
        }
        writeln!(
            out,
            "generator  {} us of CPU per message, {} worker(s), busiest {:.0} % busy",
            self.generator.cpu_us_per_message,
            self.generator.workers,
            self.generator.busy * 100.0
        )?;
        if !self.not_promised.is_empty() {
            let names = self.not_promised.join(", ");
            writeln!(
                out,
                "not promised by this protocol, and not checked: {names}"
            )?;
        }
        self.figures.write_notes(out)?;
        writeln!(out, "\n{}", self.verdict)?;
        for reason in &self.reasons {
            writeln!(out, "  {reason}")?;
        }
        Ok(())
    }
}

pub(crate) fn named(counts: &BTreeMap<u16, u64>, name: fn(u16) -> String) -> BTreeMap<String, u64> {
    counts
        .iter()
        .map(|(code, count)| (name(*code), *count))
        .collect()
}

fn not_promised(promises: Promises) -> Vec<&'static str> {
    [
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

/// 1234567 as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

pub(crate) fn round(value: f64, per_unit: f64) -> f64 {
    (value * per_unit).round() / per_unit
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of a run without fault.
    pub(crate) fn good() -> Measured {
        let plan = Plan::named("smoke").expect("built in");
        let mut slip_us = histogram();
        slip_us.record(50).expect("within bounds");
        Measured {
            connections: u64::from(plan.connections),
            promises: promises_to(&plan),
            plan,
            seed: 1,
            run: 2,
            target: "127.0.0.1:7400".to_owned(),
            machine: Machine::read(),
            counts: Counts {
                sent: 100,
                accepted: 100,
                delivered: 100,
                ..Counts::default()
            },
            transport: Transport::default(),
            latency_us: histogram(),
            sent_latency_us: histogram(),
            service_us: histogram(),
            storm_latency_us: histogram(),
            slip_us,
            slip_max_us: 10_000,
            not_queued: 0,
            withheld: 0,
            figures: Figures::new(),
            window_us: 50_000,
            generator_cpu_us: 300,
            generator_busy: 0.1,
            workers: 1,
            server: None,
        }
    }

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
        assert_eq!(server.cpu_us_per_message, 10.0);
        assert_eq!(server.cpu_us_per_login, 5.0);
        assert_eq!(server.rss_bytes_per_connection, 400.0);
        assert_eq!(report.generator.cpu_us_per_message, 3.0);
        assert_eq!(report.rate_per_s, 2_000.0);
        let table = report.table();
        for part in ["delivered                    100", "10 us of CPU", "PASS"] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (12_345_678, "12,345,678"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
