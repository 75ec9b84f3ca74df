//! The reader threads, and the delivery of answers.

use super::meter::{Amount, Meter, Side};
use super::{Piece, Reader};
use crate::{Completion, Error, Family, Kind, Request, Sink};
use crossbeam::channel::{Receiver, select};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Answers wait for the rest of their piece no longer than this.
const HOLD_MAX: Duration = Duration::from_millis(2);

pub(super) fn run<F: Family>(
    mut reader: impl Reader<F>,
    reads: &Receiver<Piece<F>>,
    scans: Option<&Receiver<Piece<F>>>,
    meter: &Meter,
) {
    while let Some(piece) = next(reads, scans) {
        let mut done = Vec::with_capacity(piece.requests.len());
        let mut amount = Amount::default();
        let (mut began, mut ok, mut failed, mut late) = (Instant::now(), 0, 0, 0);
        let mut now = began;
        for request in piece.requests {
            amount.commands += 1;
            amount.bytes += F::bytes(&request.cmd);
            let result = if request.deadline > now {
                read(&mut reader, &request, meter)
            } else {
                late += 1;
                Err(expired())
            };
            match &result {
                Ok(_) => ok += 1,
                Err(_) => failed += 1,
            }
            done.push(Completion {
                token: request.token,
                result,
            });
            now = Instant::now();
            if now - began > HOLD_MAX {
                meter.count_reads(ok, now - began);
                (began, ok) = (now, 0);
                let (batch, answered) = (std::mem::take(&mut done), std::mem::take(&mut amount));
                deliver(piece.sink.as_ref(), batch, Side::Read, answered, meter);
            }
        }
        meter.count_reads(ok, now - began);
        meter.count_failed(failed, late);
        deliver(piece.sink.as_ref(), done, Side::Read, amount, meter);
    }
}

/// From whichever queue has something; `None` when both have ended.
fn next<F: Family>(
    reads: &Receiver<Piece<F>>,
    scans: Option<&Receiver<Piece<F>>>,
) -> Option<Piece<F>> {
    let Some(scans) = scans else {
        return reads.recv().ok();
    };
    select! {
        recv(reads) -> piece => piece.or_else(|_| scans.recv()),
        recv(scans) -> piece => piece.or_else(|_| reads.recv()),
    }
    .ok()
}

fn read<F: Family>(
    reader: &mut impl Reader<F>,
    request: &Request<F>,
    meter: &Meter,
) -> Result<F::Reply, Error> {
    // Safe to unwind through: readers keep no state that a panic could break.
    let result = catch_unwind(AssertUnwindSafe(|| reader.read(&request.cmd)))
        .unwrap_or_else(|_| Err(Error::fatal("the engine panicked in a read")));
    if let Err(error) = &result
        && error.kind == Kind::Fatal
    {
        meter.note_read_fatal(error);
    }
    result
}

/// Answers what no thread will take.
pub(super) fn answer_all<F: Family>(piece: Piece<F>, error: &Error, meter: &Meter) {
    let mut amount = Amount::default();
    let mut side = Side::Read;
    let mut batch = Vec::with_capacity(piece.requests.len());
    for request in piece.requests {
        if !F::is_read(&request.cmd) {
            side = Side::Write;
        }
        amount.commands += 1;
        amount.bytes += F::bytes(&request.cmd);
        batch.push(Completion {
            token: request.token,
            result: Err(error.clone()),
        });
    }
    meter.count_failed(batch.len() as u64, 0);
    deliver(piece.sink.as_ref(), batch, side, amount, meter);
}

/// Gives the room back before the answer: whoever acts on the answer must find it.
pub(super) fn deliver<F: Family>(
    sink: &dyn Sink<F>,
    batch: Vec<Completion<F>>,
    side: Side,
    amount: Amount,
    meter: &Meter,
) {
    meter.release(side, amount);
    if batch.is_empty() {
        return;
    }
    // A sink must not panic. If one does, the others still get their answers.
    if catch_unwind(AssertUnwindSafe(|| sink.complete(batch))).is_err() {
        tracing::error!("a sink of completions panicked; its answers are lost");
    }
}

pub(crate) fn expired() -> Error {
    Error::unavailable("the deadline passed before the work began")
}
