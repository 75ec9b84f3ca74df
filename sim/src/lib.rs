//! The whole service in one thread under virtual time, everything from one seed.
//!
//! ```text
//!   apps with disks            network                 gateway                     store
//!   real client sessions  <->  streams that tear  <->  real shards, a driver  <->  stage over the
//!   (`device`)                 (`network`)             that can die (`gateway`)    memory adapter (`store`)
//! ```
//! Real are the client session, the shards, the words between core and store, and the memory adapter.
//! Around them everything happens by the agenda of a virtual clock, with delays, losses and deaths
//! drawn from the seed (`plan`, `acts`). `checker` knows what must hold, after each step and at
//! the end, when the faults have stopped and all must have come to rest (`settle`).
//!
//! ```sh
//! cargo run --release -p portico-sim -- --seed 7              # one life
//! cargo run --release -p portico-sim -- --seed 7 --trace      # told as it happens
//! cargo run --release -p portico-sim -- --seeds 20000         # many; stops at the first that fails
//! ```
//!
//! # Invariants
//! - Equal seed and options give an equal run, to the last byte ([`Outcome::hash`]).
//! - Nothing here looks at a clock, a thread or a file.
//!
//! # Does not
//! Run the driver of sockets, the embedded store or more than one node: the tests of processes do.

mod acts;
mod agenda;
mod canary;
mod checker;
mod device;
mod event;
mod gateway;
mod network;
mod plan;
mod random;
mod settle;
mod slots;
mod store;
// The words between core and store are the gateway's own; the rest of the gateway, with its rings
// and threads, has no part here and need not be built.
#[path = "../../gateway/src/store_map.rs"]
mod store_map;
mod story;
mod world;

pub use canary::Canary;
pub use checker::Failure;
pub use plan::Preset;
pub use world::Outcome;

use story::Story;
use world::World;

/// What a run is to be like, beside its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Events before the faults stop.
    pub steps: u64,
    /// `None`: the seed chooses.
    pub preset: Option<Preset>,
    /// Something that is broken on purpose.
    pub canary: Option<Canary>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            steps: 1_500,
            preset: None,
            canary: None,
        }
    }
}

/// Lives a life. One that fails is lived again for its story.
#[must_use]
pub fn run(seed: u64, options: &Options) -> Outcome {
    let mut outcome = World::new(seed, options, Story::Untold).live(seed, options);
    if let Some(failure) = &mut outcome.failure {
        failure.story = tell(seed, options);
    }
    outcome
}

/// The same, printed as it happens.
#[must_use]
pub fn run_printed(seed: u64, options: &Options) -> Outcome {
    World::new(seed, options, Story::Printed).live(seed, options)
}

/// What happened last to those whom a failure is about.
fn tell(seed: u64, options: &Options) -> String {
    let mut world = World::new(seed, options, Story::Kept(Default::default()));
    let about = world.live_on(options).map(|failure| failure.about);
    world.story.about(&about.unwrap_or_default())
}
