//! The report for people, in at most 100 columns.

use super::report::{Part, Report, Resource, Unit};
use crate::probe;
use std::fmt;

const KIB: u64 = 1 << 10;
/// Where figures end.
const FIGURES: usize = 54;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.machine(f)?;
        self.memory(f)?;
        self.bounds(f)?;
        match &self.needs {
            Some(_) => self.need(f)?,
            None => self.verdict(f)?,
        }
        self.advice(f)
    }
}

impl Report {
    fn machine(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ring = &self.ring;
        probe::opening(f, &self.kernel, self.kernel_recommended, &self.cpus)?;
        writeln!(
            f,
            "shards         {}, rings of {} submissions, {} completions, {} buffers",
            self.shards, ring.submissions, ring.completions, ring.buffers
        )?;
        match &self.shards_because {
            Some(because) => writeln!(f, "               {because}"),
            None => Ok(()),
        }
    }

    fn memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connection = &self.connection;
        writeln!(f, "\nAn idle connection, in bytes")?;
        for part in &connection.kernel {
            let source = if part.measured {
                part.cache
            } else {
                "documented"
            };
            figure(f, "kernel", part.name, part.bytes, source)?;
        }
        for Part { name, bytes } in &connection.gateway {
            figure(f, "gateway", name, *bytes, "")?;
        }
        let shares = format!(
            "{} in the kernel, {} in the gateway",
            grouped(connection.kernel_bytes),
            grouped(connection.gateway_bytes)
        );
        figure(f, "together", "", connection.bytes, &shares)?;
        if connection.kernel.iter().any(|part| part.measured) {
            writeln!(
                f,
                "  Named caches: measured, in /proc/slabinfo. Others: of Linux 6.18."
            )?;
        } else {
            writeln!(
                f,
                "  Kernel: figures of Linux 6.18 on x86-64; root sees those of this kernel."
            )?;
        }
        writeln!(f, "\nA shard, in bytes")?;
        for Part { name, bytes } in &self.shard.parts {
            figure(f, "", name, *bytes, "")?;
        }
        figure(f, "together", "", self.shard.bytes, "")?;
        for Part { name, bytes } in &self.thread {
            figure(f, "per CPU", name, *bytes, "")?;
        }
        let queues = self.shard.queue_bytes_max;
        figure(f, "queues", "and tables, at most", queues, "")?;
        let store = self.store_queue_bytes_max;
        figure(f, "store", "cache and queues, at most, once", store, "")
    }

    fn bounds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nConnections that each limit allows")?;
        for limit in &self.limits {
            let connections = limit.connections.map_or_else(|| "-".to_owned(), grouped);
            writeln!(f, "  {:<13}{connections:>13}  {}", limit.name, limit.detail)?;
        }
        for beside in &self.beside {
            writeln!(f, "  {:<13}{:>13}  {}", beside.name, "-", beside.detail)?;
        }
        Ok(())
    }

    fn verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nThis machine can hold {} with {}, bounded by {}.",
            connections(self.holds),
            shards(self.shards),
            self.bounded_by
        )
    }

    fn need(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(needs) = &self.needs else {
            return Ok(());
        };
        let title = format!(
            "{} with {} need",
            connections(needs.connections),
            shards(needs.shards)
        );
        writeln!(f, "\n{title:<52}{:>14}", "there is")?;
        for resource in &needs.resources {
            let Resource {
                name,
                unit,
                needed,
                available,
                enough,
                ..
            } = resource;
            let show = |number: u64| match unit {
                Unit::Count => grouped(number),
                Unit::Bytes => size(number),
            };
            let there = available.map_or_else(|| "no limit".to_owned(), show);
            let short = if *enough { "" } else { "  not enough" };
            let needed = show(*needed);
            writeln!(f, "  {name:<38}{needed:>12}{there:>14}{short}")?;
        }
        let verdict = if needs.enough {
            "This machine can hold them."
        } else {
            "This machine cannot hold them."
        };
        writeln!(f, "{verdict}")
    }

    fn advice(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.changes.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "{}",
            match &self.needs {
                Some(needs) if needs.enough => "Start it with",
                Some(_) => "What to change",
                None => "To hold more",
            }
        )?;
        let width = self.changes.iter().map(|change| change.set.len()).max();
        let width = width.unwrap_or(0);
        for change in &self.changes {
            writeln!(f, "  {:<width$}  {}", change.set, change.effect)?;
        }
        Ok(())
    }
}

fn figure(
    f: &mut fmt::Formatter<'_>,
    owner: &str,
    name: &str,
    bytes: u64,
    source: &str,
) -> fmt::Result {
    let label = format!("  {owner:<9}{name}");
    let number = grouped(bytes);
    let width = FIGURES.saturating_sub(label.chars().count());
    writeln!(
        f,
        "{}",
        format!("{label}{number:>width$}  {source}").trim_end()
    )
}

/// With a comma between thousands.
pub(crate) fn grouped(number: impl Into<u64>) -> String {
    let digits = number.into().to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A limit of the process.
pub(super) fn limit(limit: Option<u64>) -> String {
    limit.map_or_else(|| "no limit".to_owned(), grouped)
}

pub(super) fn connections(count: u64) -> String {
    match count {
        1 => "1 connection".to_owned(),
        _ => format!("{} connections", grouped(count)),
    }
}

pub(super) fn shards(count: u16) -> String {
    match count {
        1 => "1 shard".to_owned(),
        _ => format!("{count} shards"),
    }
}

/// In the largest unit of which there is one at least, with a digit after the point.
pub(super) fn size(bytes: u64) -> String {
    let units = [(KIB << 20, "GiB"), (KIB << 10, "MiB"), (KIB, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => {
            let tenths = (u128::from(bytes) * 10 + u128::from(unit) / 2) / u128::from(unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(grouped(0_u32), "0");
        assert_eq!(grouped(999_u32), "999");
        assert_eq!(grouped(1_000_u32), "1,000");
        assert_eq!(grouped(20_971_520_u32), "20,971,520");
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1_023), "1023 B");
        assert_eq!(size(1_536), "1.5 KiB");
        assert_eq!(size((1 << 20) - 1), "1024.0 KiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(1_253_376), "1.2 MiB");
        assert_eq!(size(u64::MAX), "17179869184.0 GiB");
    }
}
