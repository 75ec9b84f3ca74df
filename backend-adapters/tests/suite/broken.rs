//! Adapters that break one rule each. The suite must catch them, and by that rule: this is the
//! proof that its nets hold.

use crate::support::tight;
use portico_backend::conformance::{self, Harness, Violation};
use portico_backend::memory::Store;
use portico_backend::messages::{Cmd, Messages, Reply};
use portico_backend::{
    Backend, Caps, Completion, Error, GroupCommit, Health, Kind, Reader, Rejected, Request, Sink,
    Writer,
};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// What one broken adapter does with a batch of writes, and with a read.
trait Break: Clone + Send + Sync + 'static {
    fn apply(&self, store: &mut Store, batch: &[Request<Messages>]) -> Vec<Result<Reply, Error>> {
        plainly(store, batch)
    }

    fn read(&self, store: &mut Store, cmd: &Cmd) -> Result<Reply, Error> {
        Reader::<Messages>::read(store, cmd)
    }

    fn keeps_data(&self) -> bool {
        true
    }
}

fn plainly(store: &mut Store, batch: &[Request<Messages>]) -> Vec<Result<Reply, Error>> {
    let mut results = Vec::new();
    Writer::<Messages>::apply(store, batch, &mut results);
    results
}

struct Broken<B>(Store, B);

impl<B: Break> Writer<Messages> for Broken<B> {
    fn apply(&mut self, batch: &[Request<Messages>], results: &mut Vec<Result<Reply, Error>>) {
        results.extend(self.1.apply(&mut self.0, batch));
    }
}

impl<B: Break> Reader<Messages> for Broken<B> {
    fn read(&mut self, cmd: &Cmd) -> Result<Reply, Error> {
        self.1.read(&mut self.0, cmd)
    }
}

struct BrokenHarness<B>(Store, B);

impl<B: Break> Harness<Messages> for BrokenHarness<B> {
    fn open(&self) -> Result<Arc<dyn Backend<Messages>>, String> {
        let store = if self.1.keeps_data() {
            self.0.clone()
        } else {
            Store::new()
        };
        let half = || Broken(store.clone(), self.1.clone());
        let started = GroupCommit::start(Store::caps(), tight(), half(), vec![half()]);
        Ok(Arc::new(started.map_err(|error| error.to_string())?))
    }
}

fn verdict<B: Break>(broken: B) -> Violation {
    let outcome = conformance::messages(&BrokenHarness(Store::new(), broken));
    outcome.expect_err("a broken adapter must not pass")
}

#[track_caller]
fn assert_caught(violation: &Violation, rule: &str) {
    assert!(
        violation.rule.contains(rule),
        "caught by another rule: {violation}"
    );
}

/// Makes the newest command of a commit visible first.
#[derive(Clone)]
struct Reorders;

impl Break for Reorders {
    fn apply(&self, store: &mut Store, batch: &[Request<Messages>]) -> Vec<Result<Reply, Error>> {
        let mut results = Vec::new();
        for request in batch.iter().rev() {
            thread::sleep(Duration::from_micros(200));
            results.extend(plainly(store, std::slice::from_ref(request)));
        }
        results.reverse();
        results
    }
}

#[test]
fn an_adapter_that_reorders_a_lane_is_caught() {
    let violation = verdict(Reorders);
    assert_caught(&violation, "become visible in their order");
}

/// Says that a write is done, and drops every tenth.
#[derive(Clone)]
struct Forgets;

impl Break for Forgets {
    fn apply(&self, store: &mut Store, batch: &[Request<Messages>]) -> Vec<Result<Reply, Error>> {
        let mut results = Vec::new();
        for request in batch {
            results.extend(match &request.cmd {
                Cmd::Append { .. } if request.token % 10 == 9 => vec![Ok(Reply::Done)],
                _ => plainly(store, std::slice::from_ref(request)),
            });
        }
        results
    }
}

#[test]
fn an_adapter_that_forgets_is_caught() {
    assert_caught(&verdict(Forgets), "a replay gives all");
}

/// Does not raise the ceiling for references.
#[derive(Clone)]
struct LowCeiling;

impl Break for LowCeiling {
    fn read(&self, store: &mut Store, cmd: &Cmd) -> Result<Reply, Error> {
        match cmd {
            Cmd::Ceiling => Ok(Reply::Ceiling(portico_wire::ids::Seq(
                1_800_000_000_000_000,
            ))),
            other => Reader::<Messages>::read(store, other),
        }
    }
}

#[test]
fn an_adapter_with_a_low_ceiling_is_caught() {
    assert_caught(&verdict(LowCeiling), "above every number stored");
}

/// Ignores registrations at 0.
#[derive(Clone)]
struct NoRegistration;

impl Break for NoRegistration {
    fn read(&self, store: &mut Store, cmd: &Cmd) -> Result<Reply, Error> {
        Reader::<Messages>::read(store, cmd).map(|reply| match reply {
            Reply::Cursors(mut cursors) => {
                cursors.retain(|(_, seq)| seq.0 > 0);
                Reply::Cursors(cursors)
            }
            other => other,
        })
    }
}

#[test]
fn an_adapter_that_drops_registrations_is_caught() {
    assert_caught(&verdict(NoRegistration), "registers its device");
}

/// Claims that a failed write was not applied, though it was.
#[derive(Clone)]
struct Lies;

impl Break for Lies {
    fn apply(&self, store: &mut Store, batch: &[Request<Messages>]) -> Vec<Result<Reply, Error>> {
        let results = plainly(store, batch);
        let lie = |(i, result)| match result {
            Ok(_) if i % 7 == 6 => Err(Error::new(Kind::Unavailable, "a lie")),
            other => other,
        };
        results.into_iter().enumerate().map(lie).collect()
    }
}

#[test]
fn an_adapter_that_lies_about_failures_is_caught() {
    assert_caught(&verdict(Lies), "promises that nothing was applied");
}

/// Finds an empty store after a restart.
#[derive(Clone)]
struct Amnesia;

impl Break for Amnesia {
    fn keeps_data(&self) -> bool {
        false
    }
}

#[test]
fn an_adapter_that_starts_empty_is_caught() {
    let violation = verdict(Amnesia);
    assert_eq!(violation.check, "restart");
    assert_caught(&violation, "what was answered is still there");
}

/// A backend that answers in a wrong way.
#[derive(Clone, Copy)]
enum Answers {
    /// The first token of each call again.
    Twice,
    /// All but the last token of each call.
    NotAll,
    /// Backwards.
    Backwards,
}

struct Misanswering(Arc<dyn Backend<Messages>>, Answers);

struct MisansweringSink(Arc<dyn Sink<Messages>>, Answers);

impl Sink<Messages> for MisansweringSink {
    fn complete(&self, mut batch: Vec<Completion<Messages>>) {
        match self.1 {
            Answers::Twice => {
                let again = batch[0].clone();
                self.0.complete(batch);
                self.0.complete(vec![again]);
            }
            Answers::NotAll => {
                if batch.len() > 1 {
                    batch.pop();
                }
                self.0.complete(batch);
            }
            Answers::Backwards => {
                batch.reverse();
                self.0.complete(batch);
            }
        }
    }
}

impl Backend<Messages> for Misanswering {
    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn submit(
        &self,
        batch: Vec<Request<Messages>>,
        sink: &Arc<dyn Sink<Messages>>,
    ) -> Result<(), Rejected<Messages>> {
        let between: Arc<dyn Sink<Messages>> = Arc::new(MisansweringSink(Arc::clone(sink), self.1));
        self.0.submit(batch, &between)
    }

    fn health(&self) -> Health {
        self.0.health()
    }

    fn close(&self, deadline: Instant) -> Result<(), Error> {
        self.0.close(deadline)
    }
}

struct MisansweringHarness(Store, Answers);

impl Harness<Messages> for MisansweringHarness {
    fn open(&self) -> Result<Arc<dyn Backend<Messages>>, String> {
        let plain = self.0.messages(tight());
        Ok(Arc::new(Misanswering(plain, self.1)))
    }
}

#[test]
fn an_adapter_that_answers_twice_is_caught() {
    let harness = MisansweringHarness(Store::new(), Answers::Twice);
    let violation = conformance::messages(&harness).expect_err("must not pass");
    assert_caught(&violation, "a token is answered once");
}

#[test]
fn an_adapter_that_leaves_a_token_unanswered_is_caught() {
    let harness = MisansweringHarness(Store::new(), Answers::NotAll);
    let violation = conformance::messages(&harness).expect_err("must not pass");
    assert_caught(&violation, "every token is answered");
}

#[test]
fn an_adapter_that_answers_out_of_order_is_caught_where_it_promises_order() {
    let harness = MisansweringHarness(Store::new(), Answers::Backwards);
    conformance::messages(&harness).expect("the contract does not ask for this order");
    let violation = conformance::ordered_completions(&harness).expect_err("must not pass");
    assert_caught(&violation, "answered in their order");
}
