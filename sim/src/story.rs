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

    /// All lines that name one of these messages, and the last of those that name a device.
    pub(crate) fn about(&self, names: &[String]) -> String {
        const DEVICE_LINES_MAX: usize = 20;
        let Self::Kept(lines) = self else {
            return String::new();
        };
        let lines = lines.borrow();
        let is_message = |name: &&String| name.starts_with('m');
        let (messages, devices): (Vec<&String>, Vec<&String>) = names.iter().partition(is_message);
        let mut left = DEVICE_LINES_MAX;
        let mut told = Vec::new();
        for line in lines.iter().rev() {
            let names = |all: &[&String]| {
                let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '.'));
                words.any(|word| all.iter().any(|name| name.as_str() == word))
            };
            if names(&messages) || line.contains("gateway:") {
                told.push(line);
            } else if left > 0 && names(&devices) {
                left -= 1;
                told.push(line);
            }
        }
        let mut text = String::new();
        for line in told.iter().rev() {
            let _ = writeln!(text, "  {line}");
        }
        text
    }
}
