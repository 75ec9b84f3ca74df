//! What is measured: a run of the tester per row, and the figures that are read from its result.

use super::servers::System;

/// A figure of the result.
#[derive(Debug)]
pub(super) struct Figure {
    /// What the table calls it, with its unit.
    pub name: &'static str,
    /// Where the tester's result has it.
    pub key: &'static str,
}

/// A run of the tester.
#[derive(Debug)]
pub(super) struct Row {
    pub name: &'static str,
    pub figures: &'static [Figure],
    /// The flags; the second for `--quick`.
    plan: [&'static str; 2],
    /// For systems that acknowledge each message to its sender and by its recipient.
    acknowledged: bool,
    /// What the messages of the run come to does not matter where none of them is measured.
    pub needs_pass: bool,
}

pub(super) const ROWS: &[Row] = &[
    // The first, because memory is counted from that of a fresh server.
    Row {
        name: "idle",
        figures: &[
            Figure {
                name: "login, us of CPU",
                key: "server.cpu_us_per_login",
            },
            Figure {
                name: "memory per idle connection, B",
                key: "server.rss_bytes_per_connection",
            },
        ],
        plan: [
            "fanout --groups 9 --members 999 --rate 1 --size 64",
            "fanout --groups 2 --members 99 --rate 1 --size 64",
        ],
        acknowledged: false,
        needs_pass: false,
    },
    Row {
        name: "direct",
        figures: &[Figure {
            name: "direct, one per segment, us per message",
            key: "server.cpu_us_per_message",
        }],
        plan: [
            "relay --connections 1000 --size 64 --pace rounds",
            "relay --connections 100 --size 64 --pace rounds",
        ],
        acknowledged: false,
        needs_pass: true,
    },
    Row {
        name: "by-ten",
        figures: &[Figure {
            name: "direct, bunched by ten, us per message",
            key: "server.cpu_us_per_message",
        }],
        plan: [
            "relay --connections 1000 --size 64 --pace rounds --burst 10",
            "relay --connections 100 --size 64 --pace rounds --burst 10",
        ],
        acknowledged: false,
        needs_pass: true,
    },
    Row {
        name: "full-life",
        figures: &[Figure {
            name: "direct, acknowledged on both sides, us per message",
            key: "server.cpu_us_per_message",
        }],
        plan: [
            "relay --connections 1000 --size 64 --pace rounds",
            "relay --connections 100 --size 64 --pace rounds",
        ],
        acknowledged: true,
        needs_pass: true,
    },
    Row {
        name: "fan-out",
        figures: &[Figure {
            name: "one to 1,000, us per delivery",
            key: "server.cpu_us_per_message",
        }],
        plan: [
            "fanout --groups 1 --members 1000 --size 64 --pace rounds",
            "fanout --groups 1 --members 100 --size 64 --pace rounds",
        ],
        acknowledged: false,
        needs_pass: true,
    },
    Row {
        name: "light",
        figures: &[
            Figure {
                name: "2,000/s: p50, us",
                key: "latency_us.p50",
            },
            Figure {
                name: "2,000/s: p99, us",
                key: "latency_us.p99",
            },
        ],
        plan: [
            "relay --connections 200 --rate 2000 --size 64 --spin --slip-max 100ms",
            "relay --connections 20 --rate 2000 --size 64 --spin --slip-max 100ms",
        ],
        acknowledged: false,
        needs_pass: true,
    },
];

impl Row {
    /// The tester's command line for a system, without what is the same in every run; `None` where
    /// the system has no such thing.
    pub(super) fn flags(&self, system: &System, seconds: u32, quick: bool) -> Option<Vec<String>> {
        let protocol = match self.acknowledged {
            true => system.acknowledged?,
            false => system.protocol,
        };
        let plan = self.plan[usize::from(quick)];
        let mut flags: Vec<String> = plan.split(' ').map(str::to_owned).collect();
        flags.extend(["--protocol", protocol, "--duration"].map(str::to_owned));
        flags.push(format!("{seconds}s"));
        if quick {
            // It shows that the comparison runs; its figures are nobody's.
            flags.push("--functional".to_owned());
        }
        if protocol == "portico" {
            let acks = if self.acknowledged { "full" } else { "minimal" };
            flags.extend(["--acks", acks].map(str::to_owned));
        }
        Some(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::servers::SYSTEMS, *};

    fn line(row: &str, system: &str) -> Option<String> {
        let row = ROWS.iter().find(|other| other.name == row).expect("listed");
        let system = SYSTEMS
            .iter()
            .find(|other| other.name == system)
            .expect("listed");
        row.flags(system, 5, false).map(|flags| flags.join(" "))
    }

    #[test]
    fn each_system_gets_its_protocol_and_its_way_of_answering() {
        let start = "relay --connections 1000 --size 64 --pace rounds";
        let direct = |system| line("direct", system);
        assert_eq!(
            direct("portico"),
            Some(format!(
                "{start} --protocol portico --duration 5s --acks minimal"
            ))
        );
        assert_eq!(
            direct("mosquitto"),
            Some(format!("{start} --protocol mqtt-qos0 --duration 5s"))
        );
        assert_eq!(
            line("full-life", "portico"),
            Some(format!(
                "{start} --protocol portico --duration 5s --acks full"
            ))
        );
        assert_eq!(
            line("full-life", "mosquitto"),
            Some(format!("{start} --protocol mqtt-qos1 --duration 5s"))
        );
        assert_eq!(line("full-life", "redis"), None);
    }

    #[test]
    fn memory_is_measured_on_a_fresh_server() {
        assert_eq!(ROWS[0].name, "idle");
    }
}
