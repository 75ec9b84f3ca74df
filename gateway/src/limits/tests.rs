//! The arithmetic, on machines of the tests' own. Figures are worked out here by hand, or checked
//! against what they promise: a change that is proposed is made, and the question asked again.

use super::*;
use crate::limits::report::Report;
use facts::{KernelPart, Memory, SystemFiles, TcpBuffers, Tracked};
use portico_gateway::Features;
use probe::Allowed;

const GIB: u64 = 1 << 30;

/// A small cloud machine: two CPUs, 24 GiB, 20,000 open files, not root.
fn small_machine() -> Facts {
    Facts {
        features: Features {
            kernel: "6.12.0".to_owned(),
            recommended: true,
        },
        cpus: vec![0, 1],
        parallel: 2,
        open_files: Allowed {
            soft: Some(1_024),
            now: Some(20_000),
        },
        open_files_ceiling: Some(1 << 20),
        locked_bytes_max: Some(8 << 20),
        system_files: Some(SystemFiles {
            used: 1_000,
            max: 2_466_177,
            exempt: false,
        }),
        memory: Some(Memory {
            total_bytes: 24 * GIB,
            available_bytes: 22 * GIB,
            of_cgroup: false,
        }),
        somaxconn: Some(4_096),
        tcp_buffers: Some(TcpBuffers { max_bytes: 2 * GIB }),
        tracked: Some(Tracked {
            used: 5,
            max: 262_144,
        }),
        kernel_parts: vec![KernelPart {
            name: "TCP socket",
            cache: "TCP",
            bytes: 4_000,
            measured: true,
        }],
    }
}

fn with(shards: Option<u16>) -> Settings {
    let mut settings = Settings::default();
    settings.server.shards = shards;
    settings
}

fn report(facts: &Facts, settings: &Settings, connections: Option<u64>) -> Report {
    Sizing::new(facts, settings).report(connections)
}

#[track_caller]
fn resource_of(report: &Report, kind: Kind) -> &Resource {
    let needs = report.needs.as_ref().unwrap();
    needs.resources.iter().find(|one| one.kind == kind).unwrap()
}

fn sets(report: &Report) -> Vec<&str> {
    let sets = report.changes.iter().map(|change| change.set.as_str());
    sets.collect()
}

#[test]
fn a_shard_gets_more_than_the_average() {
    // One shard gets exactly all.
    assert_eq!(average_max(20_000, 1), 20_000);
    for slots in [64, 1_000, 20_000, 1 << 20] {
        let accepted = f64::from(footprint::accepted_max(slots, 2));
        let average = average_max(slots, 2) as f64;
        let deviation = average.sqrt();
        assert!(average + 5.0 * deviation <= accepted, "{slots}: {average}");
        // And not much less than could be.
        let next = (deviation + 1.0).powi(2);
        assert!(next + 5.0 * next.sqrt() > accepted, "{slots}: {average}");
    }
    assert_eq!(average_max(0, 2), 0);
    assert_eq!(average_max(1, 2), 0, "the only slot is kept for adoptions");
}

#[test]
fn slots_are_found_for_an_average() {
    for shards in [1, 2, 54] {
        for average in [1, 17, 18_519, 500_000] {
            let slots = slots_for(average, shards).unwrap();
            let holds = |slots: u64| average_max(u32::try_from(slots).unwrap(), shards);
            assert!(holds(slots) >= average, "{average} on {shards}");
            assert!(holds(slots - 1) < average, "{average} on {shards}");
        }
    }
    assert_eq!(slots_for(1 << 20, 1), Some(1 << 20));
    assert_eq!(slots_for(1 << 20, 2), None, "no table is so large");
}

#[test]
fn open_files_bound_each_shard() {
    let facts = small_machine();
    let average = average_max(20_000, 2);
    for shards in [2, 8] {
        let report = report(&facts, &with(Some(shards)), None);
        assert_eq!(report.holds, u64::from(shards) * average);
        assert_eq!(report.bounded_by, "open files");
        assert_eq!(report.slots_per_shard, 20_000);
    }
    let automatic = report(&facts, &with(None), None);
    assert_eq!((automatic.shards, automatic.ring.completions), (2, 16_384));
    let many = report(&facts, &with(Some(54)), None);
    assert_eq!((many.shards, many.ring.completions), (54, 4_096));
    assert!(many.holds > 1_000_000, "{}", many.holds);
}

#[test]
fn a_setting_can_be_the_bound() {
    let facts = small_machine();
    let mut settings = with(None);
    settings.shard.connections_max = 1_000;
    let lower = report(&facts, &settings, None);
    assert_eq!(lower.bounded_by, "limits.connections_max");
    assert_eq!(lower.holds, 2 * average_max(1_000, 2));
    assert_eq!(sets(&lower), ["limits.connections_max = 0"]);
    settings.shard.connections_max = 50_000;
    let higher = report(&facts, &settings, None);
    assert_eq!(
        higher.bounded_by, "open files",
        "it allows less than was set"
    );
}

#[test]
fn memory_bounds_what_full_queues_leave() {
    let mut facts = small_machine();
    facts.open_files.now = Some(1 << 20);
    let settings = with(None);
    let small = report(&facts, &settings, None);
    assert_eq!(small.bounded_by, "open files");
    facts.memory = facts.memory.map(|memory| Memory {
        available_bytes: 2 * GIB,
        ..memory
    });
    let report = report(&facts, &settings, None);
    assert_eq!(report.bounded_by, "memory");
    let queues = 2 * report.shard.queue_bytes_max + report.store_queue_bytes_max;
    let threads = 2 * report.thread.iter().map(|part| part.bytes).sum::<u64>();
    let left = 2 * GIB - queues - threads - 2 * report.shard.bytes;
    assert_eq!(report.holds, left / report.connection.bytes);
    assert_eq!(sets(&report), ["more memory"]);
    facts.memory = facts.memory.map(|memory| Memory {
        available_bytes: 1 << 20,
        ..memory
    });
    let none = super::tests::report(&facts, &settings, None);
    assert_eq!((none.holds, none.bounded_by), (0, "memory"));
}

#[test]
fn files_of_the_whole_system_bound_all_but_administrators() {
    let mut facts = small_machine();
    let files = |used, exempt| {
        Some(SystemFiles {
            used,
            max: 100_000,
            exempt,
        })
    };
    let settings = with(Some(16));
    facts.system_files = files(10_000, false);
    let bounded = report(&facts, &settings, None);
    assert_eq!(bounded.bounded_by, "fs.file-max");
    let sizing = Sizing::new(&facts, &settings);
    assert_eq!(bounded.holds, 90_000 - sizing.process_files(16));
    // The change that is proposed is enough.
    let wanted = bounded.changes[0]
        .set
        .strip_prefix("sysctl -w fs.file-max=");
    let max = wanted.unwrap().parse().unwrap();
    let raised = Facts {
        system_files: files(10_000, false).map(|files| SystemFiles { max, ..files }),
        ..facts.clone()
    };
    assert_eq!(report(&raised, &settings, None).bounded_by, "open files");
    facts.system_files = files(10_000, true);
    assert_eq!(report(&facts, &settings, None).bounded_by, "open files");
    facts.system_files = files(200_000, false);
    assert_eq!(report(&facts, &settings, None).holds, 0);
}

#[test]
fn locked_memory_bounds_the_shards() {
    let facts = small_machine();
    let report = report(&facts, &with(Some(256)), None);
    assert_eq!(report.bounded_by, "locked memory");
    let because = report.shards_because.clone().unwrap();
    assert!(because.starts_with("256 shards need "), "{because}");
    assert!(because.contains(&format!("at most {} shards", report.shards)));
    assert_eq!(
        report.holds,
        u64::from(report.shards) * average_max(20_000, 2)
    );
    // The change that is proposed is enough, and no more than a MiB too much.
    let set = report.changes[0].set.clone();
    let mib = set.strip_prefix("LimitMEMLOCK=").unwrap();
    let mib: u64 = mib.strip_suffix('M').unwrap().parse().unwrap();
    let allowing = |bytes| Facts {
        locked_bytes_max: Some(bytes),
        ..facts.clone()
    };
    let settings = with(Some(256));
    let raised = super::tests::report(&allowing(mib << 20), &settings, None);
    assert_eq!((raised.shards, raised.shards_because), (256, None));
    let less = super::tests::report(&allowing((mib - 1) << 20), &settings, None);
    assert!(less.shards < 256);
    let none = super::tests::report(&allowing(1_000), &settings, None);
    assert_eq!((none.shards, none.holds), (0, 0));
    assert!(!none.to_string().is_empty());
}

#[test]
fn more_shards_are_proposed_with_what_they_hold() {
    let facts = small_machine();
    let before = report(&facts, &with(None), None);
    let shards = before.changes[0]
        .set
        .strip_prefix("portico serve --shards ");
    let shards: u16 = shards.unwrap().parse().unwrap();
    let unlimited = Facts {
        locked_bytes_max: None,
        ..facts.clone()
    };
    let after = report(&unlimited, &with(Some(shards)), None);
    assert!(after.holds > 1_900_000, "{}", after.holds);
    assert!(
        before.changes[0]
            .effect
            .contains(&text::grouped(after.holds))
    );
    let one_less = report(&unlimited, &with(Some(shards - 1)), None);
    assert!(one_less.holds < after.holds, "no shard too many");
    // So many lock more than is allowed: that is said, too.
    assert!(
        sets(&before)
            .iter()
            .any(|set| set.starts_with("LimitMEMLOCK="))
    );
    // The other way: more open files.
    let files = sets(&before)
        .into_iter()
        .find_map(|set| set.strip_prefix("LimitNOFILE="))
        .unwrap();
    let wider = Facts {
        open_files: Allowed {
            soft: None,
            now: files.parse().ok(),
        },
        ..facts.clone()
    };
    let wide = report(&wider, &with(None), None);
    let promised = text::grouped(wide.holds);
    let change = before
        .changes
        .iter()
        .find(|change| change.set.contains(files));
    assert!(
        change.unwrap().effect.contains(&promised),
        "{change:?} {promised}"
    );
}

#[test]
fn a_million_needs_more_shards_than_cpus() {
    let facts = small_machine();
    let report = report(&facts, &with(None), Some(1_000_000));
    let needs = report.needs.clone().unwrap();
    let least = 1_000_000_u64.div_ceil(average_max(20_000, 2));
    assert_eq!(u64::from(needs.shards), least);
    assert!(needs.enough, "{report}");
    let memory = resource_of(&report, Kind::Memory).needed;
    let connections = 1_000_000 * report.connection.bytes;
    assert_eq!(
        memory - connections,
        Sizing::new(&facts, &with(None)).fixed_bytes(needs.shards)
    );
    let ring = Sizing::new(&facts, &with(None)).ring(needs.shards);
    assert_eq!(
        resource_of(&report, Kind::Locked).needed,
        memlock_needed(usize::from(needs.shards), 2, &ring)
    );
    assert!(resource_of(&report, Kind::Slots).needed <= 20_000);
    assert!(resource_of(&report, Kind::FileMax).needed > 1_001_000);
    assert_eq!(sets(&report), [format!("portico serve --shards {least}")]);
    // As many as fit on the shards there are need no change.
    let few = super::tests::report(&facts, &with(None), Some(10_000));
    assert_eq!(few.needs.as_ref().unwrap().shards, 2);
    assert_eq!(sets(&few), [""; 0]);
}

#[test]
fn shards_that_were_asked_for_must_do() {
    let facts = small_machine();
    let report = report(&facts, &with(Some(4)), Some(1_000_000));
    assert!(!report.needs.as_ref().unwrap().enough);
    assert!(!resource_of(&report, Kind::Slots).enough);
    let enough = sets(&report)[0].strip_prefix("portico serve --shards ");
    let enough = enough.unwrap().parse().unwrap();
    let again = super::tests::report(&facts, &with(Some(enough)), Some(1_000_000));
    assert!(again.needs.unwrap().enough);
    let far = super::tests::report(&facts, &with(Some(2)), Some(10_000_000));
    assert_eq!(sets(&far)[0], "portico serve --shards 256");
    assert!(sets(&far).iter().any(|set| set.starts_with("LimitNOFILE=")));
    let too_far = super::tests::report(&facts, &with(Some(2)), Some(1_000_000_000));
    assert!(sets(&too_far).contains(&"more gateways"), "{too_far}");
    let ample = super::tests::report(&facts, &with(Some(70)), Some(1_000_000));
    let needs = ample.needs.unwrap();
    assert_eq!((needs.shards, needs.enough), (70, true));
}

#[test]
fn smaller_queues_are_proposed_where_they_are_enough() {
    let at = |available_bytes| {
        let mut facts = small_machine();
        facts.memory = Some(Memory {
            total_bytes: 24 * GIB,
            available_bytes,
            of_cgroup: false,
        });
        facts
    };
    let settings = with(Some(54));
    let ample = report(&at(22 * GIB), &settings, Some(1_000_000));
    let needed = resource_of(&ample, Kind::Memory).needed;
    // A GiB too little: 54 shards can spare it.
    let facts = at(needed - GIB);
    let short = report(&facts, &settings, Some(1_000_000));
    let sets = sets(&short);
    assert_eq!(sets[0], "1.0 GiB more memory");
    let unread = sets[1].strip_prefix("limits.unread_bytes_max = ").unwrap();
    let mut smaller = settings.clone();
    smaller.shard.unread_bytes_max = unread.parse().unwrap();
    let again = report(&facts, &smaller, Some(1_000_000));
    assert!(again.needs.unwrap().enough, "{unread}");
    // Four are more than they may give up.
    let facts = at(needed - 4 * GIB);
    let short = report(&facts, &settings, Some(1_000_000));
    assert_eq!(super::tests::sets(&short), ["4.0 GiB more memory"]);
}

#[test]
fn each_thing_that_lacks_is_named_with_what_to_set() {
    let facts = Facts {
        open_files: Allowed {
            soft: Some(1_024),
            now: Some(1_024),
        },
        open_files_ceiling: Some(2_000),
        locked_bytes_max: Some(1 << 20),
        system_files: Some(SystemFiles {
            used: 10_000,
            max: 100_000,
            exempt: false,
        }),
        memory: Some(Memory {
            total_bytes: GIB,
            available_bytes: GIB,
            of_cgroup: true,
        }),
        ..small_machine()
    };
    let report = report(&facts, &with(None), Some(1_000_000));
    let needs = report.needs.clone().unwrap();
    assert_eq!(needs.shards, SHARDS_MAX, "and even those are not enough");
    assert!(needs.resources.iter().all(|resource| !resource.enough));
    let sets = sets(&report);
    for part in [
        "sysctl -w fs.file-max=",
        "LimitMEMLOCK=",
        " more memory",
        "sysctl -w fs.nr_open=",
        "LimitNOFILE=",
    ] {
        assert!(
            sets.iter().any(|set| set.contains(part)),
            "{part}: {sets:?}"
        );
    }
    let files = resource_of(&report, Kind::Slots).needed;
    assert!(
        sets.contains(&format!("LimitNOFILE={files}").as_str()),
        "{sets:?}"
    );
}

#[test]
fn what_cannot_be_read_bounds_nothing_and_is_not_made_up() {
    let facts = Facts {
        open_files_ceiling: None,
        locked_bytes_max: None,
        system_files: None,
        memory: None,
        somaxconn: None,
        tcp_buffers: None,
        tracked: None,
        ..small_machine()
    };
    let report = report(&facts, &with(None), Some(1_000));
    assert!(report.needs.as_ref().unwrap().enough);
    assert_eq!(report.beside, []);
    let bounds: Vec<_> = report
        .limits
        .iter()
        .map(|limit| limit.connections)
        .collect();
    assert_eq!(bounds, [Some(2 * average_max(20_000, 2)), None, None, None]);
    assert!(report.to_string().contains("not readable"));
}

#[test]
fn what_may_bound_connections_beside_is_told() {
    let facts = Facts {
        somaxconn: Some(128),
        ..small_machine()
    };
    let beside = report(&facts, &with(None), None).beside;
    let detail = |name: &str| {
        let beside = beside.iter().find(|beside| beside.name == name).unwrap();
        beside.detail.as_str()
    };
    assert!(detail("backlog").ends_with("net.core.somaxconn is 128, set it to that"));
    assert!(detail("conntrack").starts_with("262,144 (nf_conntrack_max), 5 in use"));
    let each = text::size(2 * GIB / (2 * average_max(20_000, 2)));
    assert!(detail("TCP buffers").contains(&format!("; {each} each")));
    let fine = report(&small_machine(), &with(None), None).beside;
    assert!(fine[0].detail.ends_with("net.core.somaxconn is 4,096"));
}

#[test]
fn the_text_fits_a_terminal_and_says_the_verdict() {
    let facts = small_machine();
    let texts = [
        report(&facts, &with(None), None),
        report(&facts, &with(Some(256)), None),
        report(&facts, &with(None), Some(1_000_000)),
        report(&facts, &with(Some(2)), Some(100_000_000)),
    ]
    .map(|report| report.to_string());
    for text in &texts {
        for line in text.lines() {
            // The reason for fewer shards is the sentence of the refusal.
            let is_reason = line.contains("RLIMIT_MEMLOCK allows") && line.contains("raise");
            assert!(line.chars().count() <= 100 || is_reason, "{line}");
            assert_eq!(line, line.trim_end());
        }
    }
    let average = average_max(20_000, 2);
    let verdict = format!(
        "This machine can hold {} connections with 2 shards, bounded by open files.",
        text::grouped(2 * average)
    );
    assert!(texts[0].contains(&verdict), "{}", texts[0]);
    assert!(texts[0].starts_with("kernel         Linux 6.12.0\nio_uring "));
    assert!(texts[0].contains("20,000 per shard, raised from 1,024"));
    assert!(
        texts[2].contains("\n1,000,000 connections with "),
        "{}",
        texts[2]
    );
    assert!(texts[2].contains("\nThis machine can hold them.\n"));
    assert!(texts[3].contains("\nThis machine cannot hold them.\n"));
    assert!(texts[3].contains("  not enough\n"));
}

#[test]
fn json_has_the_same_figures() {
    let facts = small_machine();
    let report = report(&facts, &with(None), Some(1_000_000));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["connection"]["bytes"], report.connection.bytes);
    assert_eq!(json["connection"]["kernel"][0]["cache"], "TCP");
    assert_eq!(json["holds"], report.holds);
    assert_eq!(json["bounded_by"], "open files");
    assert_eq!(json["needs"]["enough"], true);
    let memory = &json["needs"]["resources"][4];
    assert_eq!(memory["name"], "memory");
    assert_eq!(memory["unit"], "bytes");
    assert_eq!(memory["needed"], resource_of(&report, Kind::Memory).needed);
    assert_eq!(memory["available"], 22 * GIB);
}

#[test]
fn connections_over_tls_are_counted_with_their_sessions() {
    let (facts, plain) = (small_machine(), with(None));
    let mut sealed = plain.clone();
    sealed.tls.listen = Some(std::net::SocketAddr::from(([0, 0, 0, 0], 7_443)));
    let bytes = |settings| Sizing::new(&facts, settings).connection_bytes();
    let more = bytes(&sealed) - bytes(&plain);
    assert!((1_000..1_500).contains(&more), "{more}");
}
