//! The commit thread.

use super::meter::{Amount, Committed, Meter, Side};
use super::reading::{deliver, expired};
use super::{Limits, Piece, Writer};
use crate::{Completion, Error, Family, Kind, Request, Sink};
use crossbeam::channel::Receiver;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;
use std::vec;

/// What is left of a piece of which the last commit took the head.
struct Rest<F: Family> {
    requests: vec::IntoIter<Request<F>>,
    sink: Arc<dyn Sink<F>>,
}

/// Where the answer to one command goes, in the order of submission.
struct Route {
    token: u64,
    /// Index into `sinks`.
    sink: usize,
    amount: Amount,
    weight: usize,
    /// False: its deadline had passed, it is not in the batch.
    live: bool,
}

pub(super) struct Committer<F: Family, W> {
    writer: W,
    queue: Receiver<Piece<F>>,
    meter: Arc<Meter>,
    messages_max: usize,
    rest: Option<Rest<F>>,
    // One commit. Kept between commits for their memory.
    batch: Vec<Request<F>>,
    results: Vec<Result<F::Reply, Error>>,
    routes: Vec<Route>,
    sinks: Vec<Arc<dyn Sink<F>>>,
}

impl<F: Family, W: Writer<F>> Committer<F, W> {
    pub(super) fn new(
        writer: W,
        queue: Receiver<Piece<F>>,
        meter: Arc<Meter>,
        limits: Limits,
    ) -> Self {
        Self {
            writer,
            queue,
            meter,
            messages_max: limits.commit_messages_max.max(1),
            rest: None,
            batch: Vec::new(),
            results: Vec::new(),
            routes: Vec::new(),
            sinks: Vec::new(),
        }
    }

    pub(super) fn run(mut self) {
        while self.gather() {
            self.commit();
            self.answer();
        }
    }

    /// Waits for work and takes what is there, up to the size of one commit. False at the end.
    fn gather(&mut self) -> bool {
        let mut next = self.rest.take();
        if next.is_none() {
            next = self.queue.recv().ok().map(Rest::from);
        }
        let mut weight = 0;
        while let Some(mut rest) = next.take() {
            if self.take(&mut rest, &mut weight) {
                next = self.queue.try_recv().ok().map(Rest::from);
            } else {
                self.rest = Some(rest);
            }
        }
        !self.routes.is_empty()
    }

    /// Moves requests into the commit. False if the commit is full before the piece is empty.
    fn take(&mut self, rest: &mut Rest<F>, weight: &mut usize) -> bool {
        let now = Instant::now();
        let sink = self.sink_index(&rest.sink);
        while let Some(request) = rest.requests.as_slice().first() {
            let route = Route {
                token: request.token,
                sink,
                amount: Amount {
                    commands: 1,
                    bytes: F::bytes(&request.cmd),
                },
                weight: F::weight(&request.cmd).max(1),
                live: request.deadline > now,
            };
            if route.live {
                // A command heavier than a commit gets one of its own.
                if *weight > 0 && *weight + route.weight > self.messages_max {
                    return false;
                }
                *weight += route.weight;
            }
            let live = route.live;
            self.routes.push(route);
            let request = rest.requests.next();
            if live {
                self.batch.extend(request);
            }
        }
        true
    }

    /// Few sinks take part in a commit (one per core), so a search beats a map.
    fn sink_index(&mut self, sink: &Arc<dyn Sink<F>>) -> usize {
        let known = self.sinks.iter().position(|s| Arc::ptr_eq(s, sink));
        known.unwrap_or_else(|| {
            self.sinks.push(Arc::clone(sink));
            self.sinks.len() - 1
        })
    }

    fn commit(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if let Some(fatal) = self.meter.fatal() {
            self.results.resize(self.batch.len(), Err(fatal.clone()));
            return;
        }
        let began = self.meter.commit_begins();
        let (writer, batch, results) = (&mut self.writer, &self.batch, &mut self.results);
        // Safe to unwind through: after a panic the writer is not called again.
        let applied = catch_unwind(AssertUnwindSafe(|| writer.apply(batch, results)));
        if applied.is_err() {
            self.results.clear();
            let error = Error::fatal("the engine panicked in a commit; restart the gateway");
            self.results.resize(self.batch.len(), Err(error));
        } else if self.results.len() != self.batch.len() {
            // Which answer belongs to which command is anybody's guess.
            self.results.clear();
            let error = Error::fatal("the engine gave another number of results than commands");
            self.results.resize(self.batch.len(), Err(error));
        }
        let mut committed = Committed::default();
        let live = self.routes.iter().filter(|route| route.live);
        for (route, result) in live.zip(&self.results) {
            match result {
                Ok(_) => {
                    committed.writes += 1;
                    committed.messages += route.weight as u64;
                    committed.bytes += route.amount.bytes as u64;
                }
                Err(error) if error.kind == Kind::Fatal => self.meter.poison(error),
                Err(_) => {}
            }
        }
        self.meter.commit_ends(began, committed);
    }

    /// Answers all in the order of submission, one call per sink.
    fn answer(&mut self) {
        self.batch.clear();
        let mut boxes: Vec<(Vec<Completion<F>>, Amount)> = Vec::with_capacity(self.sinks.len());
        boxes.resize_with(self.sinks.len(), Default::default);
        if let [(only, _)] = boxes.as_mut_slice() {
            only.reserve_exact(self.routes.len());
        }
        let mut results = self.results.drain(..);
        let (mut failed, mut late) = (0, 0);
        for route in self.routes.drain(..) {
            let result = if route.live {
                let lost = || Err(Error::fatal("the result of a commit is missing"));
                results.next().unwrap_or_else(lost)
            } else {
                late += 1;
                Err(expired())
            };
            failed += u64::from(result.is_err());
            if let Some((outbox, amount)) = boxes.get_mut(route.sink) {
                amount.commands += route.amount.commands;
                amount.bytes += route.amount.bytes;
                outbox.push(Completion {
                    token: route.token,
                    result,
                });
            }
        }
        drop(results);
        self.meter.count_failed(failed, late);
        for (sink, (outbox, amount)) in self.sinks.drain(..).zip(boxes) {
            deliver(sink.as_ref(), outbox, Side::Write, amount, &self.meter);
        }
    }
}

impl<F: Family> From<Piece<F>> for Rest<F> {
    fn from(piece: Piece<F>) -> Self {
        Self {
            requests: piece.requests.into_iter(),
            sink: piece.sink,
        }
    }
}
