//! The reference adapter.

use crate::support::{InMemory, under_seeds};
use portico_backend::conformance;
use portico_backend::fault::Plan;
use portico_backend::memory::Store;

#[test]
fn memory_conforms() {
    let harness = InMemory {
        store: Store::new(),
        fault: None,
    };
    conformance::messages(&harness).expect("messages");
    conformance::records(&harness).expect("records");
    conformance::ordered_completions(&harness).expect("order");
}

#[test]
fn memory_conforms_under_faults() {
    under_seeds(0..12, |seed| InMemory {
        store: Store::new(),
        fault: Some((Plan::rough(), seed)),
    });
}
