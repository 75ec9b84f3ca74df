//! Ctrl-C and SIGTERM end a run early, with the result of what was sent until then; a second one ends
//! the process at once.

use crate::NO_RESULT;
use anyhow::Context;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on the first signal is told by [`asked`] instead of ending the process.
pub(crate) fn catch() -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the handler that looks runs before the one that arms.
        flag::register_conditional_shutdown(signal, i32::from(NO_RESULT), Arc::clone(&ASKED))
            .and_then(|_| flag::register(signal, Arc::clone(&ASKED)))
            .context("cannot listen for signals")?;
    }
    Ok(())
}

/// Somebody wants this to end.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// What the result of an interrupted run says.
pub(crate) fn sentence(sent_us: u64, planned: Duration) -> String {
    format!(
        "interrupted after {:.1} s of {:.1} s: what was planned was not carried out",
        Duration::from_micros(sent_us).as_secs_f64(),
        planned.as_secs_f64()
    )
}
