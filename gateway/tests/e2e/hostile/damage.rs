//! Files of the store that are not as they were written: the gateway starts with everything that it
//! acknowledged, or says which file and which command come next; and that command helps.

use crate::harness::{Child, Exit, Setup};
use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const MESSAGES: usize = 60;

/// Messages that wait for somebody, and the bodies by which they are found in files.
fn texts() -> Vec<String> {
    (0..MESSAGES)
        .map(|n| format!("{n} wait for user 2"))
        .collect()
}

/// A data directory as `kill -9` leaves it.
fn killed() -> Setup {
    let setup = Setup::new();
    let gateway = setup.start();
    let mut sender = gateway.login(1, 1);
    for text in texts() {
        sender.send(2, &text);
    }
    gateway.kill();
    setup
}

fn all_arrive(setup: &Setup, expected: &[String]) {
    let gateway = setup.start();
    let mut reader = gateway.login(2, 1);
    for text in expected {
        assert_eq!(reader.message().text, *text);
    }
    reader.has_no(portico_wire::Op::Deliver);
    gateway.still_serves();
    gateway.kill();
}

fn store_tool(arguments: &[&str]) -> Exit {
    let exit = Child::run(&[&["store"], arguments].concat(), &[]);
    assert!(!exit.err.contains("panicked"), "{}", exit.err);
    exit
}

fn journal(setup: &Setup) -> PathBuf {
    setup.data().join("store/0.jnl")
}

/// Where the last occurrence of a text in a file begins.
fn find(file: &Path, text: &str) -> u64 {
    let bytes = fs::read(file).expect("it is there");
    let mut windows = bytes.windows(text.len());
    let at = windows.rposition(|window| window == text.as_bytes());
    at.expect("the text is in the file") as u64
}

/// Where the row begins in a journal that holds a text: kind, no compression, keyspace, a key of 20
/// bytes.
fn row_of(journal: &Path, text: &str) -> u64 {
    let end = find(journal, text) as usize;
    let bytes = fs::read(journal).expect("it is there");
    let mut heads = bytes[..end].windows(13);
    let at = heads.rposition(|head| head[..3] == [2, 0, 0] && head[11..] == [20, 0]);
    at.expect("a row begins before its text") as u64
}

fn flip(file: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(file);
    let file = file.expect("it is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it is that long");
    file.write_all_at(&[byte[0] ^ 0x10], at)
        .expect("it is ours");
}

#[test]
fn a_torn_commit_is_cut_off_and_nothing_else() {
    let setup = killed();
    let data = setup.data().display().to_string();
    let texts = texts();
    // In the middle of the last message: as if it had never been answered.
    let at = find(&journal(&setup), texts.last().expect("some"));
    let file = fs::File::options().write(true).open(journal(&setup));
    file.and_then(|file| file.set_len(at + 4))
        .expect("it is ours");
    let exit = store_tool(&["check", "--data", &data]);
    assert_eq!(exit.code, Some(1), "{}{}", exit.out, exit.err);
    assert!(exit.out.contains("torn by a crash"), "{}", exit.out);
    all_arrive(&setup, &texts[..MESSAGES - 1]);
}

#[test]
fn a_flipped_bit_in_the_journal_is_refused_and_the_rest_is_saved() {
    let setup = killed();
    let data = setup.data().display().to_string();
    let texts = texts();
    let path = journal(&setup);
    // The tag of a row: to the engine it looks like the end of what was written, and it would cut off
    // every message behind.
    flip(&path, row_of(&path, &texts[20]));
    let length = fs::metadata(&path).expect("it is there").len();
    for _ in 0..2 {
        let exit = setup.start_refused();
        assert_eq!(exit.code, Some(1), "{}", exit.err);
        let next = format!("portico store check --data {data}");
        for part in [path.display().to_string().as_str(), next.as_str()] {
            assert!(exit.err.contains(part), "{part} is not in: {}", exit.err);
        }
        let now = fs::metadata(&path).expect("it is there").len();
        assert_eq!(now, length, "a store that is refused is not changed");
    }
    let exit = store_tool(&["check", "--data", &data, "--json"]);
    assert_eq!(exit.code, Some(2), "{}{}", exit.out, exit.err);
    assert!(exit.out.contains(r#""verdict": "damaged""#), "{}", exit.out);
    assert!(exit.out.contains("0.jnl"), "{}", exit.out);

    let new = setup.directory().join("new").display().to_string();
    let exit = store_tool(&["salvage", "--data", &data, "--out", &new]);
    assert_eq!(exit.code, Some(2), "{}{}", exit.out, exit.err);
    assert!(exit.out.contains("Saved 59 entries"), "{}", exit.out);
    let exit = store_tool(&["check", "--data", &new]);
    assert_eq!(exit.code, Some(0), "{}{}", exit.out, exit.err);
    fs::rename(&data, setup.directory().join("old")).expect("it is ours");
    fs::rename(&new, &data).expect("it is ours");
    let rest: Vec<String> = [&texts[..20], &texts[21..]].concat();
    all_arrive(&setup, &rest);
}

#[test]
fn a_store_in_use_or_absent_is_not_checked() {
    let setup = Setup::new();
    let data = setup.data().display().to_string();
    let exit = store_tool(&["check", "--data", &data]);
    assert_eq!(exit.code, Some(3), "{}{}", exit.out, exit.err);
    assert!(exit.err.contains("no store is there"), "{}", exit.err);
    let gateway = setup.start();
    for command in [
        &["check", "--data", &data][..],
        &["salvage", "--data", &data, "--out", &format!("{data}-new")],
    ] {
        let exit = store_tool(command);
        assert_eq!(
            (exit.code, exit.out.as_str()),
            (Some(3), ""),
            "{}",
            exit.err
        );
        assert!(
            exit.err.contains("in use by another process"),
            "{}",
            exit.err
        );
    }
    gateway.still_serves();
    gateway.stop();
    let exit = store_tool(&["check", "--data", &data]);
    assert_eq!(exit.code, Some(0), "{}{}", exit.out, exit.err);
    assert!(exit.out.contains("is sound"), "{}", exit.out);
}

/// The names of files in these places stand for all of their kind.
#[test]
fn files_that_are_changed_or_gone_are_named() {
    let setup = killed();
    let store = setup.data().join("store");
    let current = store.join("keyspaces/0/current");
    let bytes = fs::read(&current).expect("it is there");
    flip(&current, 3);
    let exit = setup.start_refused();
    assert!(exit.err.contains("keyspaces/0"), "{}", exit.err);
    fs::write(&current, bytes).expect("it is ours");
    for name in ["0.jnl", "keyspaces/3", "version"] {
        let (path, aside) = (store.join(name), setup.directory().join("aside"));
        fs::rename(&path, &aside).expect("it is ours");
        let exit = setup.start_refused();
        assert_eq!(exit.code, Some(1), "{}", exit.err);
        assert!(exit.err.contains(name), "{name} is not in: {}", exit.err);
        fs::rename(&aside, &path).expect("it is ours");
    }
    all_arrive(&setup, &texts());
}
