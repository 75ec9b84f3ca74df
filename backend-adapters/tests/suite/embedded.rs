//! The embedded adapter.

use crate::support::{OnDisk, mailbox, options, receive, requests, soon, under_seeds};
use portico_backend::conformance;
use portico_backend::embedded::{self, OpenError};
use portico_backend::fault::Plan;
use portico_backend::messages::{Cmd, Messages, Reply};
use portico_backend::{Backend, Health};
use portico_wire::ids::Seq;
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn embedded_conforms() {
    let harness = OnDisk::new(None);
    conformance::messages(&harness).expect("messages");
    conformance::records(&harness).expect("records");
    conformance::ordered_completions(&harness).expect("order");
}

#[test]
fn embedded_conforms_under_faults() {
    under_seeds(100..104, |seed| OnDisk::new(Some((Plan::rough(), seed))));
}

fn ask(backend: &dyn Backend<Messages>, cmd: Cmd) -> Reply {
    let (sink, answers) = mailbox();
    backend.submit(requests(0, [cmd]), &sink).expect("taken");
    receive(&answers, 1).remove(0).result.expect("succeeds")
}

#[test]
fn a_second_opener_is_told_that_the_store_is_in_use() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = embedded::open(options(dir.path())).expect("opens");
    let second = embedded::open(options(dir.path())).expect_err("is in use");
    assert!(matches!(second, OpenError::InUse { .. }), "{second}");
    let path = dir.path().join("store").display().to_string();
    assert!(
        second.to_string().contains(&path),
        "names the directory: {second}"
    );
    assert_eq!(store.messages.health(), Health::Up);
    store.close(soon()).expect("closes");
    let again = embedded::open(options(dir.path())).expect("is free again");
    assert_eq!(again.store_id(), store.store_id(), "a store keeps its id");
}

#[test]
fn the_directory_is_for_its_owner_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let _store = embedded::open(options(dir.path())).expect("opens");
    let mode = fs::metadata(dir.path().join("store"))
        .expect("exists")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_directory_with_other_things_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("store");
    fs::create_dir(&place).expect("creates");
    fs::write(place.join("thesis.txt"), "years of work").expect("writes");
    let error = embedded::open(options(dir.path())).expect_err("not a store");
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    let left = fs::read_dir(&place).expect("reads").count();
    assert_eq!(left, 1, "nothing was added");
}

#[test]
fn a_place_that_cannot_be_a_directory_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("store"), "a file").expect("writes");
    let error = embedded::open(options(dir.path())).expect_err("a file");
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
}

#[test]
fn a_new_store_has_no_ceiling_to_speak_of() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = embedded::open(options(dir.path())).expect("opens");
    assert_eq!(
        ask(store.messages.as_ref(), Cmd::Ceiling),
        Reply::Ceiling(Seq(0))
    );
    assert_eq!(store.rows_damaged(), 0);
}
