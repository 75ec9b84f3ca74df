//! What happened, for people. A run says nothing unless it is asked to: a failed one is run again.

use std::{cell::RefCell, fmt::Write as _};

/// Who listens.
#[derive(Debug, Default)]
pub(crate) enum Story {
    #[default]
    Untold,
    /// Printed as it happens.
    Printed,
    Kept(RefCell<Vec<String>>),
}

impl Story {
    pub(crate) const fn is_told(&self) -> bool {
        !matches!(self, Self::Untold)
    }

    pub(crate) fn tell(&self, now_us: u64, text: &str) {
        let line = || format!("{:>12.6} {text}", now_us as f64 / 1e6);
        match self {
            Self::Untold => {}
            Self::Printed => println!("{}", line()),
            Self::Kept(lines) => lines.borrow_mut().push(line()),
        }
    }

    /// The last `most` lines that name one of these.
    pub(crate) fn about(&self, names: &[String], most: usize) -> String {
        let Self::Kept(lines) = self else {
            return String::new();
        };
        let lines = lines.borrow();
        let names_it = |line: &&String| {
            let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '.'));
            words.any(|word| names.iter().any(|name| name == word)) || line.contains("gateway:")
        };
        let mut last: Vec<&String> = lines.iter().rev().filter(names_it).take(most).collect();
        last.reverse();
        let mut text = String::new();
        for line in last {
            let _ = writeln!(text, "  {line}");
        }
        text
    }
}
