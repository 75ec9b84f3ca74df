//! How far a run is: one line that is rewritten on a terminal, a line now and then elsewhere.

use crate::report::grouped;
use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// Between two lines on a terminal, and elsewhere.
const REFRESH: Duration = Duration::from_secs(1);
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What a line says, counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub live: u64,
    pub logins: u64,
    pub refused: u64,
    pub delivered: u64,
}

#[derive(Debug)]
pub(super) struct Progress {
    wanted: bool,
    is_terminal: bool,
    begun: Instant,
    printed: Instant,
    last: Totals,
}

impl Progress {
    pub(super) fn new(wanted: bool) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let begun = Instant::now();
        Self {
            wanted: wanted || is_terminal,
            is_terminal,
            begun,
            printed: begun,
            last: Totals::default(),
        }
    }

    /// Something that is said once.
    pub(super) fn note(&self, text: &str) {
        if self.wanted {
            self.print(text, true);
        }
    }

    /// Called often; prints when it is time.
    pub(super) fn tick(&mut self, stage: &str, totals: Totals) {
        let passed = self.printed.elapsed();
        let every = if self.is_terminal {
            REFRESH
        } else {
            LINE_EVERY
        };
        if !self.wanted || passed < every {
            return;
        }
        let text = line(self.begun.elapsed(), stage, totals, self.last, passed);
        self.print(&text, !self.is_terminal);
        self.printed = Instant::now();
        self.last = totals;
    }

    /// Leaves the last line standing.
    pub(super) fn finish(&self) {
        if self.wanted && self.is_terminal {
            self.print("", true);
        }
    }

    fn print(&self, text: &str, is_last: bool) {
        let mut out = io::stderr().lock();
        let (start, end) = match (self.is_terminal, is_last) {
            // Back to the first column, and nothing left of the line before.
            (true, false) => ("\r\x1b[K", ""),
            (true, true) if text.is_empty() => ("", "\n"),
            (true, true) => ("\r\x1b[K", "\n"),
            (false, _) => ("", "\n"),
        };
        // Whoever closed it does not want to know.
        let _ = write!(out, "{start}{text}{end}");
        let _ = out.flush();
    }
}

fn line(begun: Duration, stage: &str, now: Totals, last: Totals, passed: Duration) -> String {
    let rate = |now: u64, last: u64| {
        let rate = now.saturating_sub(last) as f64 / passed.as_secs_f64();
        grouped(rate.round() as u64)
    };
    format!(
        "{:>5.0} s {stage:<7}{:>10} live{:>8} logins/s{:>8} refused{:>8} msg/s",
        begun.as_secs_f64(),
        grouped(now.live),
        rate(now.logins, last.logins),
        grouped(now.refused),
        rate(now.delivered, last.delivered),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_totals_and_rates_of_the_time_since_the_last() {
        let last = Totals {
            live: 100,
            logins: 1_000,
            refused: 2,
            delivered: 50,
        };
        let now = Totals {
            live: 51_100,
            logins: 51_000,
            refused: 3,
            delivered: 20_050,
        };
        let (begun, passed) = (Duration::from_secs(12), Duration::from_secs(5));
        let text = line(begun, "ramp", now, last, passed);
        for part in [
            "12 s",
            "ramp",
            "51,100 live",
            "10,000 logins/s",
            "3 refused",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(text.contains("4,000 msg/s"), "{text}");
        assert!(text.len() <= 80, "it fits a terminal: {}", text.len());
    }
}
