//! Every source, their order, and every way a setting can be wrong.

use super::*;
use std::path::Path;

/// An environment of the test's own.
struct Variables(Vec<(&'static str, &'static str)>);

impl Env for Variables {
    fn variables(&self, prefix: &str) -> Vec<(String, String)> {
        self.0
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }
}

#[derive(Default)]
struct Given {
    file: &'static str,
    env: Vec<(&'static str, &'static str)>,
    flags: Vec<(&'static str, &'static str, &'static str)>,
}

impl Given {
    fn load(self) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("portico.toml");
        std::fs::write(&path, self.file).unwrap();
        let flags = self
            .flags
            .into_iter()
            .map(|(key, flag, value)| (key, flag, value.to_owned()))
            .collect();
        Config::load(Sources {
            file: Some(path),
            env: &Variables(self.env),
            flags,
        })
        // The folder's name is random.
        .map_err(|error| {
            error
                .to_string()
                .replace(&folder.path().display().to_string(), "DIR")
        })
    }
}

fn file(text: &'static str) -> Result<Config, String> {
    Given {
        file: text,
        ..Given::default()
    }
    .load()
}

#[track_caller]
fn refused(text: &'static str, expected: &str) {
    let message = file(text).unwrap_err();
    assert!(message.contains(expected), "{message}\n  lacks: {expected}");
}

#[test]
fn later_sources_win() {
    let listen = |given: Given| given.load().unwrap().server.listen.port();
    let text = "[server]\nlisten = \"127.0.0.1:1\"";
    let env = || vec![("PORTICO_LISTEN", "127.0.0.1:2")];
    let flags = vec![("server.listen", "listen", "127.0.0.1:3")];
    assert_eq!(listen(Given::default()), 7400);
    assert_eq!(
        listen(Given {
            file: text,
            ..Given::default()
        }),
        1
    );
    assert_eq!(
        listen(Given {
            file: text,
            env: env(),
            ..Given::default()
        }),
        2
    );
    assert_eq!(
        listen(Given {
            file: text,
            env: env(),
            flags
        }),
        3
    );
}

#[test]
fn sources_do_not_undo_each_other() {
    let config = Given {
        file: "[limits]\nrequests_max = 7\n[server]\nshards = 3",
        env: vec![("PORTICO_DRAIN_SPREAD_MS", "9"), ("OTHER", "x")],
        flags: vec![("server.cpus", "cpus", "1,0")],
    }
    .load()
    .unwrap();
    assert_eq!(config.limits.requests_max, 7);
    assert_eq!(config.server.shards, Some(3));
    assert_eq!(config.drain.spread_ms, 9);
    assert_eq!(config.server.cpus, [1, 0]);
    assert_eq!(config.server.listen, Settings::default().server.listen);
}

#[test]
fn the_environment_can_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    std::fs::write(&path, "[log]\nlevel = \"warn\"").unwrap();
    let name: &'static str = path.to_str().unwrap().to_owned().leak();
    let config = Config::load(Sources {
        file: None,
        env: &Variables(vec![("PORTICO_CONFIG", name)]),
        flags: Vec::new(),
    });
    assert_eq!(config.unwrap().log.level, LogLevel::Warn);
}

#[test]
fn the_printed_file_is_complete_and_says_what_is_the_default() {
    let text = default_file();
    let config = file(text.clone().leak()).unwrap();
    assert_eq!(*config, Settings::default());
    for knob in KNOBS {
        assert!(
            text.contains(&format!("\n{} = ", knob.name())),
            "{}",
            knob.key
        );
        assert!(!knob.about.is_empty());
    }
    assert!(text.lines().all(|line| line.len() <= 100));
}

#[test]
fn every_setting_can_be_set_by_file_and_by_environment() {
    for knob in KNOBS {
        let value = (knob.slot)(&mut Settings::default()).show();
        let text = format!("[{}]\n{} = {value}", knob.section(), knob.name());
        assert!(file(text.clone().leak()).is_ok(), "{text}");
        let plain = value.trim_matches(['"', '[', ']']).replace("\", \"", ",");
        let given = Given {
            env: vec![(knob.variable().leak(), plain.leak())],
            ..Given::default()
        };
        assert!(given.load().is_ok(), "{}", knob.variable());
    }
}

#[test]
fn no_two_settings_share_a_name() {
    for (index, knob) in KNOBS.iter().enumerate() {
        for other in &KNOBS[index + 1..] {
            assert_ne!(knob.key, other.key);
            assert_ne!(knob.variable(), other.variable());
        }
    }
}

#[test]
fn bounds_fit_the_types_and_hold_the_defaults() {
    use value::{Given::Typed, Slot};
    for knob in KNOBS {
        let mut settings = Settings::default();
        let numeric = matches!(
            (knob.slot)(&mut settings),
            Slot::U16(_)
                | Slot::U32(_)
                | Slot::U64(_)
                | Slot::Usize(_)
                | Slot::Power16(_)
                | Slot::Power32(_)
                | Slot::Count(_)
        );
        if !numeric {
            continue;
        }
        let mut set = |number: i128| {
            let number = toml::Value::Integer(i64::try_from(number).unwrap());
            (knob.slot)(&mut settings)
                .set(&Typed(&number), knob.bounds)
                .is_ok()
        };
        let (min, max) = (i128::from(knob.bounds.min), i128::from(knob.bounds.max));
        assert!(set(min) && set(max), "{}", knob.key);
        assert!(!set(min - 1) && !set(max + 1), "{}", knob.key);
    }
}

/// A limit that is added to the core and not to the table does not compile here.
#[test]
fn every_limit_of_the_core_can_be_set() {
    let Limits {
        frame_bytes_max: _,
        outbox_bytes_soft: _,
        outbox_bytes_max: _,
        outboxes_bytes_max: _,
        pages_max: _,
        stalled_ms: _,
        requests_max: _,
        receive_max: _,
        page_entries_max: _,
        page_bytes_max: _,
        store_requests_soft: _,
        store_bytes_soft: _,
        store_requests_max: _,
        store_bytes_max: _,
        store_timeout_ms: _,
        handshake_ms: _,
        gate_messages_max: _,
        flush_ms: _,
        unsaved_max: _,
        group_members_max: _,
        groups_bytes_max: _,
        group_ops_max: _,
        fan_outs_max: _,
        presence_grace_ms: _,
        presence_subs_max: _,
        presence_left_max: _,
        people_cache_bytes: _,
        people_reads_max: _,
        people_waiting_max: _,
        logins_per_s: _,
        sign_ins_max: _,
        login_reads_max: _,
        absent_max: _,
        rates:
            portico_gateway::Rates {
                exempt: _,
                frames: _,
                bytes: _,
                messages: _,
                presence: _,
                signals: _,
                user_logins: _,
                source_opens: _,
                source_greeting_max: _,
                source_logins: _,
                refusals_max: _,
                refusals_window_s: _,
                table_max: _,
            },
    } = Limits::default();
    let of_core = |knob: &&knobs::Knob| {
        let driver = ["limits.connections_max", "limits.unread_bytes_max"];
        knob.key == "session.handshake_ms"
            || (knob.section() == "limits" && !driver.contains(&knob.key))
    };
    assert_eq!(KNOBS.iter().filter(of_core).count(), 33);
    let rates = KNOBS.iter().filter(|knob| knob.section() == "rates");
    assert_eq!(rates.count(), 5 + 8 * 2, "eight have a burst");
}

#[test]
fn unknown_names_are_refused_with_the_nearest_known_one() {
    refused(
        "[server]\nlistn = \"x\"",
        "unknown setting server.listn (in DIR/portico.toml), did you mean server.listen?",
    );
    refused("[sever]\nlisten = \"x\"", "did you mean server.listen?");
    refused(
        "[session]\nrequests_max = 1",
        "did you mean limits.requests_max?",
    );
    refused("listen = \"127.0.0.1:1\"", "did you mean server.listen?");
    refused("[server.listen]\nport = 1", "server.listen = { port = 1 }");
    refused(
        "[limits.more]\ndeep = 1",
        "unknown setting limits.more.deep",
    );
    refused(
        "[colour]",
        "unknown setting colour (in DIR/portico.toml); `portico config",
    );
    let variable = |name, value| {
        Given {
            env: vec![(name, value)],
            ..Given::default()
        }
        .load()
    };
    assert_eq!(
        variable("PORTICO_SHARD", "2").unwrap_err(),
        "unknown setting PORTICO_SHARD (from the environment variable PORTICO_SHARD), \
         did you mean PORTICO_SHARDS?"
    );
    // Not ours: what an orchestrator says about a service of this name.
    assert!(variable("PORTICO_SERVICE_HOST", "10.0.0.1").is_ok());
    assert!(variable("PORTICO_PORT_7400_TCP_ADDR", "10.0.0.1").is_ok());
}

#[test]
fn bad_values_name_key_value_source_and_range() {
    refused(
        "[limits]\nrequests_max = 0",
        "limits.requests_max = 0 (in DIR/portico.toml): allowed is 1 to 65536 requests",
    );
    refused("[limits]\nrequests_max = -1", "limits.requests_max = -1");
    refused("[limits]\nrequests_max = 1.5", "limits.requests_max = 1.5");
    refused(
        "[limits]\nrequests_max = \"7\"",
        "limits.requests_max = \"7\"",
    );
    refused(
        "[ring]\nbuffers = 1000",
        "ring.buffers = 1000 (in DIR/portico.toml): allowed is a power of two from 8 to 32768 buffers, \
         or \"auto\"",
    );
    refused("[ring]\nbuffers = \"all\"", "ring.buffers = \"all\"");
    refused("[ring]\nbuffers = 4", "ring.buffers = 4");
    refused(
        "[limits]\nrequests_max = true",
        "limits.requests_max = true",
    );
    refused(
        "[server]\nshards = 257",
        "allowed is 1 to 256 shards, or \"auto\"",
    );
    refused("[server]\nshards = 0", "server.shards = 0");
    refused(
        "[server]\nlisten = \"localhost:7400\"",
        "an IP address and a port",
    );
    refused("[server]\nlisten = 7400", "server.listen = 7400");
    refused(
        "[server]\nbackend = \"fjall\"",
        "\"embedded\" or \"memory\"",
    );
    refused("[server]\ncpus = \"3-1\"", "server.cpus = \"3-1\"");
    refused("[server]\ndata = \"\"", "server.data = \"\"");
    refused("[auth]\nkeys = \"a.pem\"", "a list of paths");
    refused("[auth]\nkeys = [1]", "auth.keys = [1]");
    refused("[log]\nlevel = \"loud\"", "\"error\" or \"warn\" or");
    refused("[log]\nlevel = \"Info\"", "log.level");
    let flag = |value| {
        Given {
            flags: vec![("server.shards", "shards", value)],
            ..Given::default()
        }
        .load()
    };
    assert_eq!(
        flag("many").unwrap_err(),
        "server.shards = \"many\" (from --shards): allowed is 1 to 256 shards, or \"auto\""
    );
    for bad in ["", " 1", "+1", "0x1", "1.0", "99999999999999999999"] {
        assert!(flag(bad).is_err(), "{bad:?}");
    }
    assert_eq!(flag("auto").unwrap().server.shards, None);
    let env = Given {
        env: vec![("PORTICO_LOG_LEVEL", "x")],
        ..Given::default()
    };
    assert!(
        env.load()
            .unwrap_err()
            .contains("(from the environment variable PORTICO_LOG_LEVEL)")
    );
}

#[test]
fn bad_combinations_name_both_settings() {
    refused(
        "[session]\nheartbeat_s = 20",
        "session.heartbeat_min_s = 30 and session.heartbeat_s = 20 do not go together",
    );
    refused(
        "[session]\nheartbeat_max_s = 59",
        "session.heartbeat_max_s = 59",
    );
    refused(
        "[limits]\noutbox_bytes_soft = 200000",
        "limits.outbox_bytes_max = 262144",
    );
    refused(
        "[limits]\npage_bytes_max = 200000",
        "limits.outbox_bytes_soft = 65536",
    );
    refused(
        "[limits]\nstore_requests_max = 8191",
        "limits.store_requests_soft = 8192",
    );
    refused(
        "[limits]\nstore_bytes_max = 100000",
        "limits.store_bytes_soft = 16777216",
    );
    refused(
        "[ring]\nsubmissions = 32768\ncompletions = 16384",
        "ring.completions = 16384",
    );
    refused("[drain]\ndeadline_ms = 9999", "drain.spread_ms = 10000");
    refused("[server]\nadmin = \"127.0.0.1:7400\"", "two ports");
    let both_free = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"";
    assert!(file(both_free).is_ok());
}

#[test]
fn ring_sizes_are_left_to_the_gateway_by_a_word_or_by_0() {
    let ring = |text| file(text).unwrap().ring.clone();
    assert_eq!(ring(""), RingSizes::auto());
    assert_eq!(ring("[ring]\nbuffers = \"auto\""), RingSizes::auto());
    let set = ring("[ring]\nsubmissions = 32768\ncompletions = 0\nbuffers = 8");
    assert_eq!((set.submissions, set.buffers), (32_768, 8));
    assert_eq!(set.completions, RingSizes::AUTO);
    let by_environment = |value| {
        let given = Given {
            env: vec![("PORTICO_RING_COMPLETIONS", value)],
            ..Given::default()
        };
        given.load().map(|config| config.ring.completions)
    };
    assert_eq!(by_environment("auto"), Ok(RingSizes::AUTO));
    assert_eq!(by_environment("512"), Ok(512));
    assert!(by_environment("500").is_err());
}

#[test]
fn unreadable_files_are_named() {
    refused("[server", "DIR/portico.toml is not valid TOML");
    refused("a = 1\na = 2", "is not valid TOML");
    let absent = Config::load(Sources {
        file: Some(Path::new("/absent/portico.toml").to_owned()),
        env: &Variables(Vec::new()),
        flags: Vec::new(),
    });
    let message = absent.unwrap_err().to_string();
    assert!(message.contains("cannot read the configuration file /absent/portico.toml"));
}

#[test]
fn lists_come_from_file_and_environment() {
    let keys = |config: Config| config.auth.keys.clone();
    let expected = [PathBuf::from("a.pem"), PathBuf::from("b.pem")];
    assert_eq!(
        keys(file("[auth]\nkeys = [\"a.pem\", \"b.pem\"]").unwrap()),
        expected
    );
    let env = Given {
        env: vec![("PORTICO_AUTH_KEYS", "a.pem,b.pem")],
        ..Given::default()
    };
    assert_eq!(keys(env.load().unwrap()), expected);
}

/// The table of settings in docs/OPERATIONS.md is this one. `PORTICO_BLESS=1` writes it.
#[test]
fn the_manual_lists_every_setting() {
    const BEGIN: &str = "<!-- settings: written by a test, see docs/TESTING.md -->\n";
    const END: &str = "<!-- end of settings -->";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPERATIONS.md");
    let manual = std::fs::read_to_string(path).unwrap();
    let (before, rest) = manual.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    let expected = print::markdown_table();
    if std::env::var_os("PORTICO_BLESS").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
    } else {
        assert!(
            found == expected,
            "settings changed; run with PORTICO_BLESS=1 to update {path}"
        );
    }
}
