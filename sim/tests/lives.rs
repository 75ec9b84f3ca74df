//! Some hundred lives, those that failed once, and faults on purpose that must be found.
//!
//! `PORTICO_SIM_SEEDS=from..to` lives others; a failure names its own and the command that replays it.

use portico_sim::{Canary, Options, Outcome, Preset, run};
use std::{ops::Range, panic};

/// So many by default. Longer ones, and many more, are for the program.
const LIVES: Range<u64> = 0..200;
const STEPS: u64 = 600;
/// A canary is found within so many lives.
const CANARY_LIVES: u64 = 12;

/// Lives a life, and says which it was if that breaks down.
fn live(seed: u64, options: &Options) -> Outcome {
    panic::catch_unwind(|| run(seed, options)).unwrap_or_else(|panic| {
        eprintln!("seed {seed} broke down, {options:?}");
        panic::resume_unwind(panic)
    })
}

#[track_caller]
fn assert_well(seed: u64, options: &Options) {
    let outcome = live(seed, options);
    if let Some(failure) = outcome.failure {
        panic!(
            "seed {seed} failed: {failure}\n{}replay: cargo run --release -p portico-sim -- \
             --seed {seed} --steps {} --trace",
            failure.story, options.steps
        );
    }
}

#[test]
fn whatever_happens_every_promise_is_kept() {
    let seeds = match std::env::var("PORTICO_SIM_SEEDS") {
        Ok(text) => {
            let (from, to) = text.split_once("..").expect("from..to");
            let number = |text: &str| text.parse::<u64>().expect("a number");
            number(from)..number(to)
        }
        Err(_) => LIVES,
    };
    let options = Options {
        steps: STEPS,
        ..Options::default()
    };
    for seed in seeds {
        assert_well(seed, &options);
    }
}

#[test]
fn lives_that_failed_once_are_well() {
    let mut lives = 0;
    for line in include_str!("../seeds.txt").lines() {
        let (seed, _) = line.split_once('#').unwrap_or((line, ""));
        if let Ok(seed) = seed.trim().parse() {
            assert_well(seed, &Options::default());
            lives += 1;
        }
    }
    assert!(lives > 0, "the list has seeds");
}

#[test]
fn a_seed_gives_the_same_life_again() {
    let mut hashes = Vec::new();
    for preset in Preset::ALL {
        for seed in 0..3 {
            let options = Options {
                steps: STEPS,
                preset: Some(preset),
                canary: None,
            };
            let (first, second) = (live(seed, &options), live(seed, &options));
            assert_eq!(
                (first.hash, first.steps, first.time_us, first.messages),
                (second.hash, second.steps, second.time_us, second.messages),
                "seed {seed}, {preset:?}"
            );
            hashes.push(first.hash);
        }
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 4 * 3, "other seeds give other lives");
}

#[test]
fn every_canary_is_found() {
    for canary in Canary::ALL {
        let options = Options {
            canary: Some(canary),
            ..Options::default()
        };
        let found = (0..CANARY_LIVES).find_map(|seed| live(seed, &options).failure);
        let failure = found.unwrap_or_else(|| panic!("{} is not found", canary.name()));
        let may_be = canary.breaks();
        assert!(
            may_be.contains(&failure.promise),
            "{} breaks {may_be:?}, and what was found is: {failure}",
            canary.name()
        );
        assert!(!failure.what.is_empty());
    }
}
