//! The command line: plans by name or file, flags that override them, and what is wrong with either.

mod overrides;

pub(crate) use overrides::Overrides;

use crate::{
    aside::Aside,
    capacity::CapacityArgs,
    outputs::Outputs,
    plan::{Plan, parse_duration},
    remote::{self, WorkerArgs},
    report::compare::CompareArgs,
};
use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use portico_client::{CERTIFICATE_FILE, mint::KEY_FILE};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Measures what a Portico gateway carries, and proves that every message arrived.
///
/// `portico-loadgen plan` lists the plans, `plan --print relay` shows one with all its fields, and a
/// file made from that can be given instead of a name. Flags override every field.
///
/// `hold` opens --connections at --ramp per second, waits for --settle, then has --active of them
/// exchange --rate messages per second for --duration while the others stay quiet, and says what a
/// connection costs. The default of 100,000 takes a gigabyte. A million on one machine takes about
/// ten, a gateway with enough descriptors (`portico limits --connections 1000000`), and for --cut a
/// --duration of several minutes. What this machine lacks is said before anything is opened. Memory
/// is counted from the gateway's at the start: start it anew for each run. The connections that only
/// wait yield to all other programs (nice 19), as the phones they stand for do.
///
/// Exit code: 0 when the run passed, 1 when the gateway failed it, 2 when nothing can be concluded
/// (bad arguments, no connection, or a generator that could not keep its own schedule).
#[derive(Debug, Parser)]
#[command(
    name = "portico-loadgen",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: Args,
}

/// What a run is made from.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which workload: the name of a built-in plan, or a file that ends in .toml
    #[arg(default_value = "smoke", value_name = "PLAN")]
    plan: String,
    /// A plan in a file, whatever its name
    #[arg(long = "plan", value_name = "FILE", conflicts_with = "plan")]
    plan_file: Option<PathBuf>,
    /// The target's address, HOST:PORT: the gateway's binary protocol; default: 127.0.0.1:7400, with
    /// --tls 127.0.0.1:7443
    #[arg(long, value_name = "ADDR")]
    target: Option<String>,
    /// Private key that signs the tokens of the test users (PEM)
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    key_file: Option<PathBuf>,
    /// Data directory of the gateway, where that key is found
    #[arg(long, value_name = "DIR", default_value = "./portico-data")]
    data: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// How late 99 of 100 messages may be sent before the result is invalid
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "10ms")]
    pub slip_max: Duration,
    /// Judge what became of the messages alone: that this machine was busy, or its time taken by its
    /// host, is a warning and the figures prove nothing (see also --slip-max)
    #[arg(long)]
    pub functional: bool,
    /// One worker thread pinned to each of these, e.g. 1 or 0,2-3; default: one thread, not pinned
    #[arg(long, value_name = "LIST", value_parser = parse_cpus)]
    pub cpus: Option<Cpus>,
    /// Device number of the test users
    #[arg(long, value_name = "D", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub device: u16,
    /// Process to account CPU and memory to; default: the local one that listens on the target
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    #[command(flatten)]
    pub outputs: Outputs,
    /// Say how far the run is on standard error even when that is no terminal
    #[arg(long)]
    pub progress: bool,
    #[command(flatten)]
    pub remote: remote::Flags,
}

/// What is done instead of a run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the plans, or print one as a file with all its fields
    Plan {
        /// The name of a built-in plan, or a file that ends in .toml
        #[arg(long, value_name = "PLAN")]
        print: Option<String>,
    },
    Capacity(Box<CapacityArgs>),
    Compare(CompareArgs),
    Worker(WorkerArgs),
    #[command(flatten)]
    Aside(Aside),
}

/// What the program was started with. Ends the process with what is wrong, or with help.
pub(crate) fn parse() -> CommandLine {
    let matches = command().get_matches();
    CommandLine::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// A search has another plan than a run when none is named, and sets two of its fields itself.
pub(crate) fn command() -> clap::Command {
    CommandLine::command().mut_subcommand("capacity", |capacity| {
        capacity
            .mut_arg("plan", |plan| plan.default_value("relay"))
            .mut_arg("rate", |rate| rate.hide(true))
            .mut_arg("duration", |duration| duration.hide(true))
    })
}

/// Why a command line cannot be run.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum BadUse {
    #[error(
        "there is no plan `{name}`; a file needs a name that ends in .toml, or --plan; the plans are\n{list}"
    )]
    UnknownPlan { name: String, list: String },
}

/// A built-in plan by its name, or one in a file.
pub(crate) fn find_plan(name: &str) -> anyhow::Result<Plan> {
    if Path::new(name).extension().is_some_and(|end| end == "toml") {
        return Plan::from_file(Path::new(name));
    }
    Plan::named(name).with_context(|| BadUse::UnknownPlan {
        name: name.to_owned(),
        list: Plan::list(),
    })
}

impl Args {
    /// The plan by its name, with the flags applied, checked.
    pub(crate) fn plan(&self) -> anyhow::Result<Plan> {
        let mut plan = match &self.plan_file {
            Some(file) => Plan::from_file(file)?,
            None => find_plan(&self.plan)?,
        };
        self.overrides.apply(&mut plan, self.workers())?;
        plan.check(self.workers())?;
        Ok(plan)
    }

    /// Where the plan is carried out, HOST:PORT.
    pub(crate) fn target(&self, plan: &Plan) -> String {
        let default = match plan.tls {
            None => "127.0.0.1:7400",
            Some(_) => "127.0.0.1:7443",
        };
        self.target.clone().unwrap_or_else(|| default.to_owned())
    }

    /// Where a gateway leaves the certificate that it has made itself.
    pub(crate) fn certificate_file(&self) -> PathBuf {
        self.data.join(CERTIFICATE_FILE)
    }

    /// The file with the signing key.
    pub(crate) fn key_file(&self) -> PathBuf {
        match &self.key_file {
            Some(file) => file.clone(),
            None => self.data.join(KEY_FILE),
        }
    }

    /// A flag of fields that a search sets itself, if one was given.
    pub(crate) fn rate_or_duration(&self) -> Option<&'static str> {
        self.overrides.rate_or_duration()
    }

    pub(crate) fn workers(&self) -> usize {
        self.cpus.as_ref().map_or(1, |cpus| cpus.0.len())
    }
}

/// Processors, each named once, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cpus(pub Vec<usize>);

/// The highest processor number that a CPU set can hold, plus one.
const CPUS_MAX: usize = 1_024;

pub(crate) fn parse_cpus(text: &str) -> Result<Cpus, String> {
    let number = |text: &str| match text.trim().parse::<usize>() {
        Ok(cpu) if cpu < CPUS_MAX => Ok(cpu),
        _ => Err(format!(
            "`{text}` is not a processor number below {CPUS_MAX}"
        )),
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let range = match part.split_once('-') {
            Some((first, last)) => number(first)?..=number(last)?,
            None => number(part)?..=number(part)?,
        };
        if range.is_empty() {
            return Err(format!("the range `{part}` ends before it starts"));
        }
        for cpu in range {
            if cpus.contains(&cpu) {
                return Err(format!("processor {cpu} is named twice"));
            }
            cpus.push(cpu);
        }
    }
    Ok(Cpus(cpus))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::{Acks, Hold, Pace, Protocol};

    pub(crate) fn parsed(line: &str) -> CommandLine {
        let args = std::iter::once("portico-loadgen").chain(line.split_whitespace());
        let matches = command().try_get_matches_from(args);
        matches
            .and_then(|matches| CommandLine::from_arg_matches(&matches))
            .unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn plan(line: &str) -> anyhow::Result<Plan> {
        parsed(line).run.plan()
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    /// One list of all that the program does.
    #[test]
    fn help_names_every_command() {
        let help = command().render_long_help().to_string();
        for name in ["plan", "capacity", "compare", "worker", "floor", "sink"] {
            assert!(help.contains(&format!("\n  {name} ")), "{name} in\n{help}");
        }
    }

    #[test]
    fn flags_override_the_plan() {
        let got = plan("relay --connections 64 --rate 500 --duration 90s --size 64 --drain 3");
        let expected = Plan {
            connections: 64,
            rate_per_s: 500.0,
            duration: Duration::from_secs(90),
            body_bytes: 64,
            drain: Duration::from_secs(3),
            ..Plan::named("relay").expect("built in")
        };
        assert_eq!(got.expect("valid"), expected);
        assert_eq!(plan("").expect("valid").name, "smoke");
    }

    #[test]
    fn tls_has_a_port_of_its_own_and_belongs_to_portico() {
        let target = |line: &str| {
            let line = parsed(line);
            line.run.target(&line.run.plan().expect("valid"))
        };
        assert_eq!(target("smoke"), "127.0.0.1:7400");
        assert_eq!(target("hold --tls"), "127.0.0.1:7443");
        assert_eq!(target("relay --tls --target a:1"), "a:1");
        let tls = plan("storm --tls --tls-ca c --tls-name n --tls-resume 0.5");
        let tls = tls.expect("valid").tls.expect("asked for");
        assert_eq!(tls.ca, Some("c".into()));
        assert_eq!((tls.name.as_deref(), tls.resume), (Some("n"), Some(0.5)));
        for (line, part) in [
            ("smoke --tls-ca c", "add --tls"),
            ("smoke --tls-resume 1", "add --tls"),
            ("relay --tls --protocol mqtt-qos0", "--tls is about Portico"),
            ("hold --tls --protocol nats", "--tls is about Portico"),
            ("smoke --tls --tls-resume 1.5", "--tls-resume"),
        ] {
            let error = plan(line).expect_err(line).to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn groups_presence_typing_and_history_have_flags_of_their_own() {
        let flags = "groups --connections 600 --group-sizes 8:0.6,256:0.4 --per-user 3 --changes 5";
        let groups = plan(flags).expect("valid").groups.expect("groups");
        assert_eq!(groups.sizes, [(8, 0.6), (256, 0.4)]);
        assert_eq!((groups.per_user, groups.changes), (3, 5.0));
        let presence = plan("presence-storm --contacts 500 --again 20s").expect("valid");
        assert_eq!(presence.presence.expect("presence").contacts, 500);
        let typing = plan("typing --signals 7").expect("valid");
        assert_eq!(typing.typing.expect("typing").signals, 7.0);
        let history = plan("history --pages 9 --limit 100").expect("valid");
        assert_eq!(history.history.expect("history").limit, 100);
        for (line, part) in [
            ("groups --connections 100", "--connections is 100"),
            ("groups --connections 400 --cpus 0,1", "at least 512"),
            ("groups --group-sizes 1:1", "--group-sizes is 1"),
            (
                "groups --connections 2000 --group-sizes 1025:1",
                "2 to 1024",
            ),
            ("groups --per-user 0", "--per-user"),
            ("groups --changes -1", "--changes"),
            ("groups --acks minimal", "--acks full"),
            ("groups --protocol nats", "--protocol portico"),
            ("groups --pace rounds", "--pace"),
            ("groups --partners 2", "plans without groups"),
            ("relay --per-user 2", "the plan `groups`"),
            ("presence-storm --contacts 501", "--contacts is 501"),
            ("presence-storm --again 5s", "--again is 5 s"),
            ("presence-storm --again 40s", "--again is 40 s"),
            ("typing --signals 0", "--signals"),
            ("history --limit 101", "--limit is 101"),
            ("history --pages nan", "--pages"),
            ("relay --pages 3", "the plan `history`"),
        ] {
            let error = plan(line).expect_err(line).to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn few_connections_have_fewer_active_ones() {
        let hold = |line: &str| plan(line).expect(line).hold.expect(line);
        assert_eq!(hold("hold").active, 1_000);
        assert_eq!(hold("hold --connections 500").active, 50);
        assert_eq!(hold("hold --connections 5").active, 2);
        let all = "hold --active 10 --ramp 7 --settle 0s --cut --heartbeat 30s";
        let expected = Hold {
            active: 10,
            ramp_per_s: 7,
            settle: Duration::ZERO,
            cut: true,
            heartbeat_s: 30,
        };
        assert_eq!(hold(all), expected);
    }

    #[test]
    fn values_out_of_range_name_the_flag() {
        for (line, flag) in [
            ("smoke --connections 1", "--connections"),
            ("smoke --connections 3 --cpus 0,1", "--connections"),
            ("smoke --connections 5000000", "--connections"),
            ("smoke --rate 0", "--rate"),
            ("smoke --rate nan", "--rate"),
            ("smoke --duration 0s", "--duration"),
            ("smoke --duration 200h", "--duration"),
            ("smoke --size 55", "--size"),
            ("smoke --size 64000", "--size"),
            ("hold --active 1", "--active"),
            ("hold --connections 50 --active 50", "--active"),
            ("hold --connections 2", "--active"),
            ("hold --ramp 0", "--ramp"),
            ("hold --settle 200h", "--settle"),
            ("hold --heartbeat 500ms", "--heartbeat"),
            ("hold --heartbeat 2h", "--heartbeat"),
            ("relay --cut", "--cut"),
            ("smoke --active 10", "--active"),
            ("relay --share 0.5", "--share"),
            ("relay --think 1s", "--think"),
            ("relay --members 5", "--members"),
            ("relay --groups 5", "--groups"),
            ("flap --lasts 5s", "--lasts"),
            ("flap --at 5s", "--at"),
            ("relay --away 5s", "--away"),
            ("pingpong --rate 5", "--rate"),
            ("pingpong --burst 5", "--burst"),
            ("relay --sizes 64:1", "--sizes"),
            ("relay --writers 1:1", "--writers"),
            ("relay --answers 0.5", "--answers"),
            ("relay --offline 0.5", "--offline"),
            ("relay --read-delay 1s", "--read-delay"),
            ("hold --burst 2", "--burst"),
            ("hold --spin", "--spin"),
            ("relay --burst 0", "--burst"),
            ("relay --burst 2000", "--burst"),
            ("relay --partners 0", "--partners"),
            ("relay --protocol nats --acks minimal", "--acks"),
            ("relay --pace rounds --spin", "--pace"),
            ("relay --pace rounds --rate 5", "--rate"),
            ("relay --rate -5", "--rate"),
            ("fanout --members 4294967295", "--connections"),
            ("relay --unverified", "--unverified"),
            ("relay --unverified --protocol redis", "--unverified"),
            (
                "mixed --unverified --acks minimal --read-delay 0s --offline 0",
                "--unverified",
            ),
        ] {
            let message = plan(line).expect_err(line).to_string();
            assert!(message.starts_with(flag), "{line}: {message}");
        }
    }

    /// Each of them changes what it says and nothing else.
    #[test]
    fn every_field_has_a_flag() {
        let changed = |line: &str, change: &dyn Fn(&mut Plan)| {
            let name = line.split(' ').next().unwrap_or_default();
            let mut expected = Plan::named(name).expect("built in");
            change(&mut expected);
            assert_eq!(plan(line).expect(line), expected, "{line}");
        };
        changed("relay --seed 7", &|plan| plan.seed = 7);
        changed("relay --protocol mqtt-qos0", &|plan| {
            plan.protocol = Protocol::MqttQos0;
        });
        changed("relay --acks minimal --burst 8 --spin", &|plan| {
            (plan.acks, plan.burst, plan.spin) = (Acks::Minimal, 8, true);
        });
        changed("relay --acks minimal --unverified", &|plan| {
            (plan.acks, plan.unverified) = (Acks::Minimal, true);
        });
        changed("relay --pace rounds", &|plan| plan.pace = Pace::Rounds);
        changed("smoke --partners 2", &|plan| plan.partners = 2);
        changed("pingpong --think 1s", &|plan| {
            let pingpong = plan.pingpong.as_mut().expect("pingpong");
            pingpong.think = Duration::from_secs(1);
        });
        changed("fanout --groups 3 --members 5", &|plan| {
            plan.connections = 18;
            plan.fanout.as_mut().expect("fanout").members = 5;
        });
        changed("storm --at 1s --share 0.5 --away 2s", &|plan| {
            let storm = plan.storm.as_mut().expect("storm");
            (storm.at, storm.share) = (Duration::from_secs(1), 0.5);
            storm.away = Duration::from_secs(2);
        });
        changed("slow-readers --at 1s --lasts 2s --share 0.5", &|plan| {
            let slow = plan.slow_readers.as_mut().expect("slow readers");
            (slow.at, slow.lasts) = (Duration::from_secs(1), Duration::from_secs(2));
            slow.share = 0.5;
        });
        changed("flap --share 0.5 --away 2s", &|plan| {
            let flap = plan.flap.as_mut().expect("flap");
            (flap.share, flap.away) = (0.5, Duration::from_secs(2));
        });
        let line = "mixed --sizes 64:1,100:0.5 --writers 0.5:2,0.5:1 --answers 0.1 --think 1s \
                    --offline 0.2 --read-delay 3s";
        changed(line, &|plan| {
            let mixed = plan.mixed.as_mut().expect("mixed");
            mixed.sizes = vec![(64, 1.0), (100, 0.5)];
            mixed.writers = vec![(0.5, 2), (0.5, 1)];
            (mixed.answers, mixed.offline) = (0.1, 0.2);
            mixed.think = Duration::from_secs(1);
            mixed.read_delay = Duration::from_secs(3);
        });
        changed("mixed --size 100", &|plan| {
            plan.body_bytes = 100;
            plan.mixed.as_mut().expect("mixed").sizes.clear();
        });
    }

    #[test]
    fn a_plan_may_be_a_file() {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let file = directory.path().join("own.toml");
        let own = "name = \"own\"\nconnections = 4\nrate = 10\nduration = \"1s\"\n";
        std::fs::write(&file, own).expect("written");
        let file = file.display();
        for line in [
            format!("{file} --rate 20"),
            format!("--plan {file} --rate 20"),
        ] {
            let got = plan(&line).expect("valid");
            assert_eq!((got.name.as_str(), got.rate_per_s), ("own", 20.0));
        }
        let missing = plan("no/such.toml").expect_err("not there").to_string();
        assert!(missing.contains("no/such.toml"), "{missing}");
    }

    #[test]
    fn plans_are_listed_and_printed() {
        let command = parsed("plan --print relay").command;
        assert!(matches!(command, Some(Command::Plan { print: Some(name) }) if name == "relay"));
        let command = parsed("plan").command;
        assert!(matches!(command, Some(Command::Plan { print: None })));
        assert!(parsed("relay --rate 5").command.is_none());
    }

    #[test]
    fn an_unknown_plan_is_answered_with_the_list() {
        let message = plan("rely").expect_err("no such plan").to_string();
        for part in ["`rely`", "smoke", "relay", "hold"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn processors_are_read() {
        assert_eq!(parse_cpus("1"), Ok(Cpus(vec![1])));
        assert_eq!(parse_cpus("4,0-2"), Ok(Cpus(vec![4, 0, 1, 2])));
        for text in ["", "a", "3-1", "1,1", "1024", "0-"] {
            assert!(parse_cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_key_is_named_or_found_in_the_data_directory() {
        let key_file = |line: &str| parsed(line).run.key_file();
        assert_eq!(key_file("--data d"), PathBuf::from("d/auth-key.pem"));
        assert_eq!(key_file("--key-file k"), PathBuf::from("k"));
        let both = ["portico-loadgen", "--key-file", "k", "--data", "d"];
        assert!(command().try_get_matches_from(both).is_err());
    }
}
