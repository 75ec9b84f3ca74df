//! What every adapter must pass.
//!
//! Implement [`Harness`] and call [`messages`], [`records`] and, if the adapter promises it,
//! [`ordered_completions`] from a test. No test framework is needed: a broken rule comes back as a
//! [`Violation`] that names the check and the rule.
//!
//! The suite repeats whatever the contract calls retryable, so the same checks run over a backend
//! wrapped in [`crate::fault::Faulty`]. Each check makes users, conversations and keys of its own,
//! so a store that other tests share will do.

mod client;
mod history;
mod ids;
mod limits;
mod messages;
mod order;
mod records;
mod restart;
mod state;

pub use client::Client;
pub use messages::messages;
pub use order::ordered_completions;
pub use records::records;

use crate::{Backend, Family};
use std::sync::Arc;

/// How the suite gets at the backend under test.
pub trait Harness<F: Family>: Sync {
    /// Opens the store. Called again after the backend before was closed or crashed, and must
    /// then find the same data.
    ///
    /// # Errors
    /// With a text for the reader of the test.
    fn open(&self) -> Result<Arc<dyn Backend<F>>, String>;

    /// Stops a backend without closing it, as roughly as the harness can. The suite holds no
    /// other handle to it.
    fn crash(&self, backend: Arc<dyn Backend<F>>) {
        drop(backend);
    }

    /// False if each `open` finds an empty store.
    fn keeps_data(&self) -> bool {
        true
    }
}

/// A rule of the contract that the adapter broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the check `{check}` found a broken rule: {rule}")]
pub struct Violation {
    pub check: &'static str,
    pub rule: String,
}

/// What a check returns: the broken rule as a sentence.
type Outcome = Result<(), String>;

/// A check by its name, over an open backend.
type Check<F> = (&'static str, fn(&Arc<dyn Backend<F>>) -> Outcome);

fn run<T>(check: &'static str, outcome: Result<T, String>) -> Result<T, Violation> {
    outcome.map_err(|rule| Violation { check, rule })
}

/// Ends a check with a rule unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($rule:tt)+) => {
        if !$condition {
            return Err(format!($($rule)+));
        }
    };
}
use ensure;

/// Ends a check with a rule unless two values are equal, and shows both.
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $($rule:tt)+) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            let rule = format!($($rule)+);
            return Err(format!("{rule} (found {left:?}, expected {right:?})"));
        }
    }};
}
use ensure_eq;
