//! The plan `hold` for people: what the other plans print about messages, and the connections.

use super::{
    figures::{Comeback, Figures, HoldReport, Logins},
    slab::{Kernel, Side},
};
use crate::report::{Percentiles, grouped};
use std::fmt::{self, Write};

/// A cache of the kernel that may have grown for other reasons is printed from here on.
const UNKNOWN_BYTES_MIN: f64 = 20.0;

impl HoldReport {
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.hold.write(&mut out);
        out.push('\n');
        out.push_str(&self.messages.table());
        out
    }
}

impl Figures {
    fn write(&self, out: &mut String) -> fmt::Result {
        let live = &self.live;
        writeln!(
            out,
            "{} connections asked for, {} of them active, on {} threads from {} address(es)",
            grouped(u64::from(self.asked)),
            grouped(u64::from(self.active)),
            self.threads,
            self.source_addresses,
        )?;
        let back = live
            .back
            .map_or_else(String::new, |back| format!(", all back {}", grouped(back)));
        writeln!(
            out,
            "live: after the ramp {}, settled {}{back}, after sending {}, at the end {}\n",
            grouped(live.ramp),
            grouped(live.settle),
            grouped(live.send),
            grouped(live.end),
        )?;
        write_logins(out, "ramp", &self.ramp)?;
        if let Some(comeback) = &self.comeback {
            write_comeback(out, comeback)?;
        }
        writeln!(
            out,
            "\n{:<24}{:>12}{:>12}{:>12}",
            "microseconds", "p50", "p99", "max"
        )?;
        self.write_times(out)?;
        writeln!(out)?;
        for (code, count) in &self.drops {
            writeln!(out, "{:<24}{:>12}  {code}", "dropped", grouped(*count))?;
        }
        for (name, count) in [
            ("heartbeats missed", self.heartbeats_missed),
            ("asked to leave", self.drains),
        ] {
            if count > 0 {
                writeln!(out, "{name:<24}{:>12}", grouped(count))?;
            }
        }
        self.write_costs(out)?;
        if let Some(kernel) = &self.kernel {
            write_kernel(out, kernel)?;
        }
        Ok(())
    }

    fn write_times(&self, out: &mut String) -> fmt::Result {
        let mut row = |name: &str, times: &Percentiles| {
            writeln!(
                out,
                "{name:<24}{:>12}{:>12}{:>12}",
                grouped(times.p50),
                grouped(times.p99),
                grouped(times.max)
            )
        };
        row("ramp: connected", &self.ramp.connect_us)?;
        if let Some(tls) = &self.ramp.tls {
            row("ramp: TLS handshake", &tls.handshake_us)?;
        }
        row("ramp: WELCOME", &self.ramp.login_us)?;
        if let Some(comeback) = &self.comeback {
            row("return: connected", &comeback.logins.connect_us)?;
            if let Some(tls) = &comeback.logins.tls {
                row("return: TLS handshake", &tls.handshake_us)?;
            }
            row("return: WELCOME", &comeback.logins.login_us)?;
            row("from the cut to live", &comeback.live_after_us)?;
            row("messages meanwhile", &comeback.latency_us)?;
        }
        Ok(())
    }

    fn write_costs(&self, out: &mut String) -> fmt::Result {
        if let Some(server) = &self.server {
            writeln!(
                out,
                "gateway    {} bytes resident per connection ({:.1} MB at rest, {:.1} MB settled)",
                server.rss_bytes_per_connection,
                server.rss_bytes_at_rest as f64 / 1e6,
                server.rss_bytes_settled as f64 / 1e6,
            )?;
            for (value, what) in [
                (self.ramp.server_cpu_us_per_login, "per login of the ramp"),
                (
                    server.cpu_us_per_connection_s,
                    "per quiet connection and second",
                ),
                (server.cpu_us_per_message, "per message"),
                (
                    server.cpu_us_per_message_less_idle,
                    "per message, without the quiet ones' part",
                ),
            ] {
                if let Some(us) = value {
                    writeln!(out, "           {us} us of CPU {what}")?;
                }
            }
        }
        if let Some(own) = &self.generator {
            let idle = own.cpu_us_per_connection_s.map_or_else(String::new, |us| {
                format!(", {us} per quiet connection and second")
            });
            writeln!(
                out,
                "loadgen    {} bytes resident per connection, {} us of CPU per login{idle}",
                own.rss_bytes_per_connection, own.cpu_us_per_login,
            )?;
        }
        Ok(())
    }
}

fn write_logins(out: &mut String, name: &str, logins: &Logins) -> fmt::Result {
    write!(
        out,
        "{name:<8}{} s, {} logins/s, {} put off",
        logins.seconds,
        grouped(logins.logins_per_s as u64),
        grouped(logins.deferred),
    )?;
    for (count, what) in [
        (logins.connect_failures, "connects failed"),
        (logins.broken_off, "logins broken off"),
    ] {
        if count > 0 {
            write!(out, ", {} {what}", grouped(count))?;
        }
    }
    for (code, count) in logins
        .refused
        .iter()
        .filter(|(code, _)| *code != "OVERLOADED")
    {
        write!(out, ", {} refused with {code}", grouped(*count))?;
    }
    if let Some(tls) = &logins.tls {
        write!(
            out,
            ", TLS {} full and {} resumed",
            grouped(tls.handshakes_full),
            grouped(tls.handshakes_resumed)
        )?;
    }
    writeln!(out)
}

fn write_comeback(out: &mut String, comeback: &Comeback) -> fmt::Result {
    match comeback.all_back_s {
        Some(seconds) => writeln!(
            out,
            "cut     {} connections at once, all back after {seconds} s",
            grouped(comeback.cut)
        )?,
        None => writeln!(
            out,
            "cut     {} connections at once, not all back when the sending ended",
            grouped(comeback.cut)
        )?,
    }
    write_logins(out, "return", &comeback.logins)?;
    if let Some(us) = comeback.logins.server_cpu_us_per_login {
        write!(out, "        {us} us of the gateway's CPU per login")?;
        if let Some(us) = comeback.server_cpu_us_per_login_less_messages {
            write!(out, ", {us} without the messages' part")?;
        }
        if let Some(us) = comeback.generator_cpu_us_per_login {
            write!(out, "; {us} of loadgen's")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn write_kernel(out: &mut String, kernel: &Kernel) -> fmt::Result {
    writeln!(
        out,
        "kernel     {} bytes per connection on the gateway's side: half of the {} that belong to \
         both ends,\n           and {} of its own. loadgen alone {}, told apart by nothing {}",
        kernel.gateway_bytes_per_connection,
        kernel.both_bytes_per_connection,
        kernel.gateway_only_bytes_per_connection,
        kernel.loadgen_only_bytes_per_connection,
        kernel.unknown_bytes_per_connection,
    )?;
    for growth in &kernel.caches {
        // The machine does other things too; all of it stands in the JSON file.
        if growth.side == Side::Unknown && growth.bytes_per_connection < UNKNOWN_BYTES_MIN {
            continue;
        }
        writeln!(
            out,
            "           {:>9} bytes {:>7} objects  {:<10} {}",
            growth.bytes_per_connection,
            growth.objects_per_connection,
            growth.side.name(),
            growth.cache,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::figures::{HoldReport, tests::with_good};

    #[test]
    fn the_table_says_what_was_asked_held_and_spent() {
        let table = with_good(|_| {}, HoldReport::new).table();
        for part in [
            "1,000 connections asked for",
            "settled 1,000, all back 1,000",
            "ramp    10 s, 100 logins/s, 0 put off",
            "cut     900 connections at once, all back after 5 s",
            "51.1 without the messages' part",
            "300 bytes resident per connection",
            "2 us of CPU per quiet connection and second",
            "PASS",
        ] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }
}
