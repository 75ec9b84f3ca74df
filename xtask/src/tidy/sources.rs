//! Names that belong into some folders only, names that belong nowhere, and the length of files.

use super::{
    Finding,
    lexer::{code_only, has_word},
    tree::TextFile,
};

/// A name in code, and the only places where it may be. A place is a path or the start of one.
struct Confined {
    words: &'static [&'static str],
    places: &'static [&'static str],
    reason: &'static str,
}

const GENERATED: &str = "wire/src/generated/gateway_generated.rs";

const CONFINED: &[Confined] = &[
    Confined {
        words: &["glommio"],
        places: &["gateway/src/driver/"],
        reason: "it is frozen upstream and must be replaceable in one folder",
    },
    Confined {
        words: &["tokio", "axum"],
        places: &[
            "gateway/src/admin/",
            "gateway/src/admin.rs",
            "backend-adapters/src/runtime.rs",
            "backend-adapters/src/postgres/",
            "backend-adapters/src/cassandra/",
            "backend-adapters/src/redis/",
            "backend-adapters/src/kafka/",
            "backend-adapters/src/s3/",
            "backend-adapters/src/push/",
        ],
        reason: "it stays in the admin port and the server adapters",
    },
    Confined {
        words: &["unsafe"],
        places: &[
            "wire/src/generated/",
            "gateway/src/driver/ring/",
            "loadgen/src/hold/descriptors.rs",
            // The counting allocator, which the benches use too.
            "gateway/core/tests/allocation/counting.rs",
        ],
        reason: "unsafe code lives in few files that are read slowly",
    },
    Confined {
        words: &["flatbuffers"],
        places: &["wire/", "fuzz/"],
        reason: "only the wire crate knows bytes",
    },
    Confined {
        words: &["nested_flatbuffer"],
        places: &[],
        reason: "its accessor follows bytes that nothing verified",
    },
    Confined {
        words: &["root_unchecked", "size_prefixed_root_unchecked"],
        places: &[],
        reason: "bytes are verified before they are read",
    },
    Confined {
        words: &[
            "root_with_opts",
            "size_prefixed_root",
            "size_prefixed_root_with_opts",
        ],
        places: &["wire/src/verify.rs"],
        reason: "portico_wire::verify is the only door to a flatbuffer, because it sets our limits",
    },
];

/// Longest file without a stated reason.
const LINES_MAX: usize = 1_000;
const LONG_BECAUSE: &str = "// tidy: long because ";

/// Folders at the root of somebody's machine. Without slashes, so that this file passes.
const MACHINE_ROOTS: &[&str] = &["work", "tmp", "home", "root", "Users"];

pub(super) fn check(file: &TextFile) -> Vec<Finding> {
    let mut findings = machine_paths(file);
    let (is_rust, is_schema) = (file.has_extension("rs"), file.has_extension("fbs"));
    if file.path == GENERATED || !(is_rust || is_schema) {
        return findings;
    }
    // The comments of a schema look like those of Rust.
    let code = code_only(&file.text);
    findings.extend(confined(file, &code));
    if is_rust {
        findings.extend(length(file));
    }
    findings
}

fn confined(file: &TextFile, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for rule in CONFINED {
        if rule.places.iter().any(|place| file.path.starts_with(place)) {
            continue;
        }
        for (number, line) in code.lines().enumerate() {
            for word in rule.words.iter().filter(|word| has_word(line, word)) {
                let message = format!("`{word}` here: {}", rule.reason);
                findings.push(Finding::new(&file.path, number + 1, message));
            }
        }
    }
    // The generated shortcuts use the default limits, which are far too wide.
    for (number, line) in code.lines().enumerate() {
        let shortcut = line.contains("root_as_") && !line.contains("fn root_as_");
        if shortcut || line.contains("flatbuffers::root(") || line.contains("flatbuffers::root::<")
        {
            let message = "a flatbuffer opened without our limits: use portico_wire::verify";
            findings.push(Finding::new(&file.path, number + 1, message));
        }
    }
    findings
}

fn length(file: &TextFile) -> Option<Finding> {
    let lines = file.text.lines().count();
    let has_reason = file.text.lines().any(|line| {
        let reason = line.trim_start().strip_prefix(LONG_BECAUSE);
        reason.is_some_and(|reason| !reason.trim().is_empty())
    });
    (lines > LINES_MAX && !has_reason).then(|| {
        let message =
            format!("{lines} lines: split it, or say why not in a line `{LONG_BECAUSE}...`");
        Finding::new(&file.path, 0, message)
    })
}

/// Paths that exist on the author's machine only.
fn machine_paths(file: &TextFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        for root in MACHINE_ROOTS {
            let needle = format!("/{root}/");
            // Inside a longer path or an address it is somebody else's folder of that name.
            let starts_path = |at: usize| {
                let before = line[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || "_-.~}:/".contains(c))
            };
            if line.match_indices(&needle).any(|(at, _)| starts_path(at)) {
                let message = format!("the path {needle} belongs to one machine");
                findings.push(Finding::new(&file.path, number + 1, message));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn finds(path: &str, text: &str, expected: usize) {
        let findings = check(&TextFile::new(path, text));
        assert_eq!(findings.len(), expected, "{path}: {findings:?}");
    }

    #[test]
    fn the_executor_is_named_in_the_driver_only() {
        let text = "use glommio::Task;\n";
        finds("gateway/src/driver/executor.rs", text, 0);
        finds("gateway/src/config.rs", text, 1);
        finds("gateway/core/src/lib.rs", text, 1);
        finds("gateway/src/config.rs", "// glommio is not named here\n", 0);
    }

    #[test]
    fn async_runtimes_stay_in_admin_and_server_adapters() {
        for text in [
            "use tokio::net::TcpListener;\n",
            "fn f(r: axum::Router) {}\n",
        ] {
            finds("gateway/src/admin/mod.rs", text, 0);
            finds("backend-adapters/src/postgres/mod.rs", text, 0);
            finds("gateway/src/driver/mod.rs", text, 1);
            finds("backend-adapters/src/embedded/mod.rs", text, 1);
        }
    }

    #[test]
    fn unsafe_code_is_in_few_folders() {
        let text = "fn f() { unsafe { g() } }\n";
        finds("gateway/src/driver/ring/request.rs", text, 0);
        finds("gateway/core/tests/allocation/counting.rs", text, 0);
        finds("gateway/core/tests/allocation/main.rs", text, 1);
        finds("benches/benches/memory.rs", text, 1);
        finds("loadgen/src/hold/descriptors.rs", text, 0);
        finds("loadgen/src/hold/holder.rs", text, 1);
        finds("gateway/src/driver/send.rs", text, 1);
        finds("client/src/session.rs", text, 1);
        // The lints that forbid it are words of their own.
        finds(
            "client/src/lib.rs",
            "#![forbid(unsafe_code)]\n#![deny(unsafe_op_in_unsafe_fn)]\n",
            0,
        );
    }

    #[test]
    fn unverified_flatbuffers_are_nowhere() {
        finds(
            "wire/schema/x.fbs",
            "table A { b:[ubyte] (nested_flatbuffer: \"B\"); }\n",
            1,
        );
        finds("wire/schema/x.fbs", "// no nested_flatbuffer here\n", 0);
        finds(
            "wire/src/verify.rs",
            "let t = flatbuffers::root_unchecked::<T>(b);\n",
            1,
        );
    }

    #[test]
    fn flatbuffers_are_opened_with_our_limits_only() {
        let ours = "flatbuffers::root_with_opts::<T>(&o, b)\n";
        finds("wire/src/verify.rs", ours, 0);
        finds("wire/src/message.rs", ours, 1);
        finds("client/src/session.rs", "fb::root_as_message(b)\n", 1);
        finds(
            "wire/src/message.rs",
            "flatbuffers::root::<fb::Hello<'_>>(b)\n",
            1,
        );
        finds(
            "client/src/session.rs",
            "verify::root::<fb::Hello<'_>>(b, scope)\n",
            0,
        );
    }

    #[test]
    fn only_the_wire_crate_knows_flatbuffers() {
        let text = "use flatbuffers::FlatBufferBuilder;\n";
        finds("wire/src/encode.rs", text, 0);
        finds("fuzz/src/wire.rs", text, 0);
        finds("gateway/core/src/login.rs", text, 1);
        finds("client/src/session.rs", text, 1);
    }

    #[test]
    fn generated_code_is_left_alone() {
        finds(GENERATED, "unsafe { root_unchecked() }\n", 0);
    }

    #[test]
    fn long_files_give_a_reason() {
        let line = "fn f() {}\n";
        finds("client/src/a.rs", &line.repeat(LINES_MAX), 0);
        finds("client/src/a.rs", &line.repeat(LINES_MAX + 1), 1);
        let reason = format!("{LONG_BECAUSE}one table\n{}", line.repeat(LINES_MAX));
        finds("client/src/a.rs", &reason, 0);
        let empty = format!("{LONG_BECAUSE} \n{}", line.repeat(LINES_MAX));
        finds("client/src/a.rs", &empty, 1);
        finds("docs/LONG.md", &"text\n".repeat(LINES_MAX + 1), 0);
    }

    #[test]
    fn paths_of_one_machine_are_found_in_any_text() {
        for root in MACHINE_ROOTS {
            finds("docs/X.md", &format!("see /{root}/somebody/x\n"), 1);
            finds("a.rs", &format!("let p = \"/{root}/x\";\n"), 1);
            finds(
                "docs/X.md",
                &format!("see docs/{root}/x, https://example.org/{root}/x\n"),
                0,
            );
        }
    }
}
