//! The result for people, on a terminal of 80 columns.

use super::{Percentiles, Report, grouped};
use std::fmt::{self, Write};

impl Report {
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> fmt::Result {
        let settings = &self.settings;
        writeln!(
            out,
            "{}: {} connections, {} of {} bytes for {} s,\nseed {}, target {}, {}",
            self.plan,
            grouped(self.connections),
            self.workload.pace_in_words(),
            grouped(settings.body_bytes as u64),
            settings.duration_s,
            self.seed,
            self.target,
            self.started,
        )?;
        writeln!(
            out,
            "{} x {}, Linux {}\n",
            self.machine.cpus, self.machine.model, self.machine.kernel
        )?;
        self.write_counts(out)?;
        self.write_times(out)?;
        self.write_costs(out)?;
        writeln!(out, "\n{}", self.verdict)?;
        if self.workload.unverified {
            let sentence = "deliveries were not checked (--unverified): this is about the tester, \
                            not about the target";
            write_sentence(out, "  ", sentence)?;
        }
        for reason in &self.reasons {
            write_sentence(out, "  ", reason)?;
        }
        for warning in &self.warnings {
            write_sentence(out, "  warning: ", warning)?;
        }
        Ok(())
    }

    fn write_counts(&self, out: &mut String) -> fmt::Result {
        for (name, count) in self.counts() {
            let instead = match name {
                "accepted" => "not promised",
                _ => "not checked",
            };
            if self.not_promised.contains(&name) {
                writeln!(out, "{name:<18}{instead:>14}")?;
                continue;
            }
            writeln!(out, "{name:<18}{:>14}", grouped(count))?;
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
        let rate = grouped(self.rate_per_s as u64);
        writeln!(out, "{:<18}{rate:>14}", "delivered/s")
    }

    fn write_times(&self, out: &mut String) -> fmt::Result {
        writeln!(
            out,
            "\n{:<18}{:>12}{:>12}{:>12}{:>12}{:>12}",
            "microseconds", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for (name, values) in self.times() {
            // Nothing was measured: zeros would look like figures.
            if values.samples == 0 {
                continue;
            }
            writeln!(
                out,
                "{name:<18}{:>12}{:>12}{:>12}{:>12}{:>12}",
                grouped(values.p50),
                grouped(values.p90),
                grouped(values.p99),
                grouped(values.p999),
                grouped(values.max)
            )?;
        }
        writeln!(out)
    }

    fn write_costs(&self, out: &mut String) -> fmt::Result {
        if let Some(server) = &self.server {
            writeln!(
                out,
                "server     {} ({}): {} us of CPU {}, {:.1} MB",
                server.name,
                server.pid,
                figure(server.cpu_us_per_message),
                self.cpu_per.words(),
                server.rss_bytes as f64 / 1e6
            )?;
        }
        writeln!(
            out,
            "generator  {} us of CPU {}, {} worker(s), busiest {:.0} % busy",
            figure(self.generator.cpu_us_per_message),
            self.cpu_per.words(),
            self.generator.workers,
            self.generator.busy * 100.0
        )?;
        for host in &self.hosts {
            writeln!(
                out,
                "worker     {}: {} users, clock known to {} us",
                host.name,
                grouped(u64::from(host.users)),
                grouped(host.clock.uncertainty_us)
            )?;
        }
        if !self.not_promised.is_empty() {
            let names = self.not_promised.join(", ");
            write_sentence(
                out,
                "not promised by this protocol, and not checked: ",
                &names,
            )?;
        }
        self.figures.write_notes(out)
    }

    /// The counts that are always shown, then those that are usually 0 and mean something only
    /// when they are not.
    pub(super) fn counts(&self) -> Vec<(&'static str, u64)> {
        let always = [
            ("sent", self.sent),
            ("accepted", self.accepted),
            ("delivered", self.delivered),
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("reordered", self.reordered),
            ("misrouted", self.misrouted),
            ("corrupt", self.corrupt),
        ];
        let sometimes = [
            ("misnumbered", self.misnumbered),
            ("refused, arrived", self.refused_delivered),
            ("unanswered", self.unanswered),
            ("receipts missing", self.receipts_missing),
            ("not queued", self.not_queued),
            ("withheld", self.withheld),
            ("never sent", self.unsent),
            ("accepted before", self.accepted_before),
            ("repeated", self.repeated),
            ("overtaken", self.overtaken),
            ("foreign", self.foreign),
            ("reconnects", self.reconnects),
            ("connect failures", self.connect_failures),
            ("protocol faults", self.protocol_faults),
        ];
        let shown = sometimes.into_iter().filter(|(_, count)| *count > 0);
        let figures = self.figures.counts();
        let of_plan = figures.into_iter().filter(|(_, count)| *count > 0);
        always.into_iter().chain(of_plan).chain(shown).collect()
    }

    /// The rows of times.
    pub(super) fn times(&self) -> Vec<(&'static str, &Percentiles)> {
        let common = [
            ("to delivery", &self.latency_us),
            ("to SENT", &self.sent_latency_us),
            ("schedule slip", &self.slip_us),
        ];
        let service = self.service_us.as_ref();
        let service = service.map(|values| ("service time", values)).into_iter();
        let common = common.into_iter().chain(service);
        common.chain(self.figures.times()).collect()
    }
}

/// A figure, if there is one.
pub(super) fn figure(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Broken between words, so that no line is longer than 80 columns; what follows is indented.
fn write_sentence(out: &mut String, lead: &str, sentence: &str) -> fmt::Result {
    const COLUMNS: usize = 80;
    let mut column = lead.chars().count();
    write!(out, "{lead}")?;
    for (at, word) in sentence.split(' ').enumerate() {
        let width = word.chars().count();
        if at > 0 && column + 1 + width > COLUMNS {
            write!(out, "\n    {word}")?;
            column = 4 + width;
        } else {
            let space = if at > 0 { " " } else { "" };
            write!(out, "{space}{word}")?;
            column += space.len() + width;
        }
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use crate::report::{Report, tests::good};

    #[test]
    fn no_line_is_longer_than_a_terminal() {
        let mut measured = good();
        let all = [&mut measured.slip_us, &mut measured.service_us];
        for values in all {
            values.record(600_000_000).expect("within bounds");
        }
        measured
            .latency_us
            .record(600_000_000)
            .expect("within bounds");
        measured.withheld = u64::from(u32::MAX);
        measured.machine.model = "AMD EPYC 9B14".to_owned();
        measured.observed.environment.steal_share = 0.05;
        measured.observed.environment.wait_share = 0.5;
        let table = Report::new(&measured).table();
        for line in table.lines() {
            assert!(line.chars().count() <= 80, "{}: {line}", line.len());
        }
        for part in ["service time", "warning: the host gave 5.0 %", "INVALID"] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }
}
