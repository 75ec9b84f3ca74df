//! Logging, and what the process knows about itself.

use crate::config::{LogFormat, LogLevel};
use rustix::time::{ClockId, clock_gettime};
use std::{fs, io::IsTerminal};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Starts logging to standard error. `RUST_LOG`, where it is set and valid, decides instead of
/// `level`; an invalid one is reported and ignored.
pub(crate) fn start_logging(level: LogLevel, format: LogFormat, rust_log: Option<&str>) {
    let fallback = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let (filter, complaint) = match rust_log.filter(|text| !text.is_empty()) {
        None => (EnvFilter::new(fallback), None),
        Some(text) => match EnvFilter::try_new(text) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(fallback), Some(error)),
        },
    };
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // A line that cannot be written is lost: complaining about it would go to the same place.
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .with_ansi(color);
    let registry = tracing_subscriber::registry().with(filter);
    // Fails if a logger is there already, which then serves as well.
    let _ = match format {
        LogFormat::Text => registry.with(lines).try_init(),
        LogFormat::Journal => registry.with(lines.without_time()).try_init(),
    };
    if let Some(error) = complaint {
        tracing::warn!(%error, "RUST_LOG is not valid and ignored");
    }
}

/// Resources of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Process {
    pub(crate) resident_bytes: u64,
    pub(crate) cpu_s: f64,
    pub(crate) open_files: u64,
    pub(crate) open_files_max: u64,
    pub(crate) threads: u64,
}

impl Process {
    /// What the kernel says now. What it does not say is 0.
    pub(crate) fn read() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Self {
            resident_bytes: resident_bytes().unwrap_or_default(),
            cpu_s: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            open_files: entries("/proc/self/fd"),
            // No limit is the greatest number.
            open_files_max: limit.current.unwrap_or(u64::MAX),
            threads: entries("/proc/self/task"),
        }
    }
}

fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

fn entries(folder: &str) -> u64 {
    fs::read_dir(folder).map_or(0, |all| all.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_sees_itself() {
        let before = Process::read();
        assert!(before.resident_bytes > 1 << 20 && before.threads >= 1);
        assert!(before.cpu_s > 0.0);
        assert!(before.open_files >= 3 && before.open_files <= before.open_files_max);
        let held: Vec<_> = (0..5).map(|_| fs::File::open("/dev/null")).collect();
        let after = Process::read();
        assert!(after.cpu_s >= before.cpu_s);
        assert!(after.open_files >= 5, "{after:?}");
        drop(held);
    }
}
