//! How far a run is: a line a second on standard error.

use crate::{
    observer::{Observer, Sample},
    report::grouped,
};
use std::io::{self, IsTerminal, Write};

#[derive(Debug)]
pub(crate) struct Progress {
    wanted: bool,
}

impl Progress {
    /// On a terminal always, elsewhere if `wanted`.
    pub(crate) fn new(wanted: bool) -> Self {
        let wanted = wanted || io::stderr().is_terminal();
        Self { wanted }
    }

    /// Another sample was taken.
    pub(crate) fn print(&self, stage: &str, observer: &Observer) {
        if !self.wanted {
            return;
        }
        if let Some((before, now)) = observer.samples().newest() {
            let latency_us = observer.series().newest_latency_us();
            say(&line(stage, before, now, latency_us));
        }
    }
}

/// A line on standard error. Whoever closed it does not want to know, and the run goes on.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn line(stage: &str, before: &Sample, now: &Sample, latency_us: Option<(u64, u64)>) -> String {
    let passed_us = now.at_us.saturating_sub(before.at_us).max(1);
    let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 * 1e6 / passed_us as f64;
    let mut line = format!(
        "{:>5}s {stage:<8}{:>7} up{:>7}/s out{:>7}/s in",
        now.at_us / 1_000_000,
        count(now.up as f64),
        count(rate(now.sent, before.sent)),
        count(rate(now.delivered, before.delivered)),
    );
    if let Some((p50_us, p99_us)) = latency_us.filter(|_| now.delivered > before.delivered) {
        line += &format!("  p50 {} p99 {}", short(p50_us), short(p99_us));
    }
    if let Some((before, now)) = before.server.zip(now.server) {
        let cpu_us = now.cpu_us.saturating_sub(before.cpu_us);
        line += &format!(" cpu {:.0}%", cpu_us as f64 * 100.0 / passed_us as f64);
    }
    line
}

/// Six letters at most.
fn count(number: f64) -> String {
    let rounded = number.round() as u64;
    match rounded {
        0..100_000 => grouped(rounded),
        100_000..10_000_000 => format!("{}k", rounded / 1_000),
        _ => format!("{}M", rounded / 1_000_000),
    }
}

/// Three digits and a unit.
fn short(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..10_000 => format!("{:.1}ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{}ms", us / 1_000),
        1_000_000..10_000_000 => format!("{:.1}s", us as f64 / 1e6),
        _ => format!("{}s", us / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Usage;

    #[test]
    fn a_line_says_what_the_last_second_was_like_and_fits_a_terminal() {
        let usage = |cpu_us| {
            let rss_bytes = 0;
            Some(Usage { cpu_us, rss_bytes })
        };
        let before = Sample {
            at_us: 3_600_000_000,
            sent: 1_000,
            delivered: 1_000,
            server: usage(0),
            ..Sample::default()
        };
        let now = Sample {
            at_us: 3_602_000_000,
            up: 1_000_000,
            sent: 2_001_000,
            delivered: 1_999_000,
            server: usage(1_960_000),
            ..before
        };
        let line = line("sending", &before, &now, Some((190, 12_345)));
        for part in [" 3602s sending", "1000k up", "1000k/s out", "999k/s in"] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(line.ends_with("p50 190us p99 12ms cpu 98%"), "{line}");
        let long = super::line("draining", &before, &now, Some((999_999, 999_999)));
        assert!(long.len() <= 80, "{}: {long}", long.len());
    }

    #[test]
    fn nothing_is_said_of_what_is_not_known() {
        let (before, now) = (Sample::default(), Sample::default());
        let line = line("connecting", &before, &now, Some((1, 2)));
        assert!(!line.contains("p50") && !line.contains("cpu"), "{line}");
    }

    #[test]
    fn times_are_short() {
        for (us, text) in [
            (0, "0us"),
            (999, "999us"),
            (1_000, "1.0ms"),
            (99_999, "99ms"),
            (2_500_000, "2.5s"),
            (60_000_000, "60s"),
        ] {
            assert_eq!(short(us), text);
        }
    }
}
