use super::*;
use crate::{capacity::overrun::Pressure, random::Random, watch::Sight};

const BOUNDS: Bounds = Bounds {
    min: 1_000.0,
    max: 1_000_000.0,
    precision: 0.05,
};
const P99_US: u64 = 100_000;
const LOOK_US: u64 = 10_000;

/// A queue in front of a server, in steps of 10 ms.
struct Gateway {
    capacity: f64,
    /// What is left of the capacity while more than this waits.
    knee: f64,
    past_knee: f64,
    /// Up to this share of the capacity is taken away by other programs, anew for each trial.
    noise: f64,
    /// Offered rates above this find the generator wanting.
    generator: f64,
    /// How much of its backlog it has got rid of before the next trial.
    recovers: f64,
    backlog: f64,
    random: Random,
}

const STEADY: Gateway = Gateway {
    capacity: 37_000.0,
    knee: f64::INFINITY,
    past_knee: 1.0,
    noise: 0.0,
    generator: f64::INFINITY,
    recovers: 1.0,
    backlog: 0.0,
    random: Random::new(5),
};

struct Ran {
    finding: Finding,
    /// The most that waited in the gateway, in seconds of its capacity.
    pressed_s: f64,
}

impl Gateway {
    fn run(&mut self, rate: f64, seconds: u64) -> Ran {
        let taken = f64::from(self.random.below(1_000)) / 1_000.0 * self.noise;
        let step_s = LOOK_US as f64 / 1e6;
        let total = rate * seconds as f64;
        let mut pressure = Pressure::new(P99_US, total, 0.0, 0);
        let (mut sent, mut delivered, mut late, mut pressed_s) = (0.0, -self.backlog, 0.0, 0.0_f64);
        let mut overrun = false;
        for look in 0..seconds * 1_000_000 / LOOK_US {
            let share = if self.backlog > self.knee {
                self.past_knee
            } else {
                1.0
            };
            let speed = self.capacity * (1.0 - taken) * share;
            sent += rate * step_s;
            self.backlog += rate * step_s;
            let done = self.backlog.min(speed * step_s);
            self.backlog -= done;
            delivered += done;
            let delay_s = self.backlog / speed;
            pressed_s = pressed_s.max(delay_s);
            if delay_s * 1e6 > P99_US as f64 {
                late += rate * step_s;
            }
            let arrived = delivered.max(0.0) as u64;
            let sight = Sight {
                passed_us: look * LOOK_US,
                sent: sent as u64,
                accepted: arrived,
                delivered: arrived,
            };
            if pressure.look(&sight).is_some() {
                overrun = true;
                break;
            }
        }
        self.backlog *= 1.0 - self.recovers;
        let finding = if rate > self.generator {
            Finding::Invalid
        } else if overrun || late > total / 100.0 {
            Finding::Failed
        } else {
            Finding::Held
        };
        Ran { finding, pressed_s }
    }
}

struct Searched {
    conclusion: Conclusion,
    trials: u32,
    confirms: u32,
    pressed_s: f64,
}

/// Searches to the end and checks on the way what the search promises.
fn search(bounds: Bounds, mut gateway: Gateway) -> Searched {
    let mut search = Search::new(bounds);
    let (mut trials, mut confirms, mut pressed_s) = (0, 0, 0.0_f64);
    let mut held = 0.0_f64;
    let mut failed: Vec<f64> = Vec::new();
    loop {
        let (rate, seconds) = match search.step() {
            Step::Try(rate) => (rate, 5),
            Step::Confirm(rate) => (rate, 30),
            Step::Done(conclusion) => {
                return Searched {
                    conclusion,
                    trials,
                    confirms,
                    pressed_s,
                };
            }
        };
        assert!((bounds.min..=bounds.max).contains(&rate), "{rate}");
        assert!(rate <= bounds.min.max(held * 2.0), "{rate} after {held}");
        assert!(
            failed.iter().all(|failed| rate <= *failed),
            "{rate} above {failed:?}"
        );
        let ran = gateway.run(rate, seconds);
        pressed_s = pressed_s.max(ran.pressed_s);
        match search.step() {
            Step::Confirm(_) => confirms += 1,
            _ => {
                trials += 1;
                if ran.finding == Finding::Held {
                    held = held.max(rate);
                    failed.retain(|failed| *failed > rate);
                } else {
                    failed.push(rate);
                }
            }
        }
        search.record(ran.finding);
    }
}

#[test]
fn the_knee_of_a_steady_gateway_is_found_within_the_precision() {
    for capacity in [1_300.0, 37_000.0, 64_000.0, 640_000.0] {
        let found = search(BOUNDS, Gateway { capacity, ..STEADY });
        let rate = found.conclusion.rate.expect("it holds something");
        // A trial of five seconds holds a little more than the capacity; thirty seconds tell, and
        // cost the tenth that the confirming goes down by.
        let range = capacity * 0.95 * 0.9..=capacity * 1.01;
        assert!(range.contains(&rate), "{rate} of {capacity}");
        assert_eq!(found.conclusion.limit, Limit::Gateway);
        let doublings = (capacity / BOUNDS.min).log2().ceil() as u32 + 1;
        assert!(found.trials <= doublings + 8, "{} trials", found.trials);
        assert!(found.confirms <= 2, "{} runs", found.confirms);
    }
}

#[test]
fn an_overrun_gateway_is_never_kept_under_pressure() {
    let found = search(BOUNDS, STEADY);
    // The bound, a hundredth of a trial at twice the capacity, and what it takes to notice.
    assert!(found.pressed_s < 0.5, "{} s", found.pressed_s);
}

#[test]
fn noise_does_not_hide_the_knee() {
    for seed in 0..50 {
        let found = search(
            BOUNDS,
            Gateway {
                noise: 0.15,
                random: Random::new(seed),
                ..STEADY
            },
        );
        let rate = found.conclusion.rate.expect("it holds something");
        assert!((25_000.0..=37_500.0).contains(&rate), "{rate}, seed {seed}");
        assert!(found.trials <= TRIALS_MAX / 2, "{} trials", found.trials);
    }
}

#[test]
fn one_hiccup_at_a_low_rate_is_asked_again() {
    let mut search = Search::new(BOUNDS);
    let mut tried = Vec::new();
    while let Step::Try(rate) = search.step() {
        let hiccup = rate == 4_000.0 && !tried.contains(&rate);
        tried.push(rate);
        search.record(match hiccup || rate > 37_000.0 {
            true => Finding::Failed,
            false => Finding::Held,
        });
    }
    let Step::Confirm(rate) = search.step() else {
        panic!("{search:?}");
    };
    assert!((37_000.0 / 1.05..=37_000.0).contains(&rate), "{rate}");
    assert_eq!(tried[..4], [1_000.0, 2_000.0, 4_000.0, 3_000.0]);
    assert!(tried.len() < 25, "{tried:?}");
}

#[test]
fn a_gateway_that_collapses_past_its_knee_is_found_below_it() {
    let gateway = Gateway {
        knee: 2_000.0,
        past_knee: 0.2,
        recovers: 1.0,
        ..STEADY
    };
    let found = search(BOUNDS, gateway);
    let rate = found.conclusion.rate.expect("it holds something");
    assert!((32_000.0..=37_400.0).contains(&rate), "{rate}");
}

#[test]
fn a_gateway_that_recovers_slowly_is_not_taken_for_a_slow_one() {
    // A third of its backlog is still there when the next trial begins.
    let found = search(
        BOUNDS,
        Gateway {
            recovers: 0.66,
            ..STEADY
        },
    );
    let rate = found.conclusion.rate.expect("it holds something");
    assert!((31_000.0..=37_400.0).contains(&rate), "{rate}");
    assert!(found.trials <= 24, "{} trials", found.trials);
}

#[test]
fn the_generator_as_the_limit_is_told_apart() {
    let found = search(
        BOUNDS,
        Gateway {
            generator: 20_000.0,
            ..STEADY
        },
    );
    let rate = found.conclusion.rate.expect("a lower bound");
    assert!((19_000.0..=20_000.0).contains(&rate), "{rate}");
    assert_eq!(found.conclusion.limit, Limit::Generator);
}

#[test]
fn the_maximum_ends_the_search() {
    let bounds = Bounds {
        max: 10_000.0,
        ..BOUNDS
    };
    let found = search(bounds, STEADY);
    assert_eq!(found.conclusion.rate, Some(10_000.0));
    assert_eq!(found.conclusion.limit, Limit::Maximum);
    assert_eq!((found.trials, found.confirms), (5, 1));
}

#[test]
fn a_minimum_that_fails_twice_is_the_answer() {
    let weak = Gateway {
        capacity: 500.0,
        ..STEADY
    };
    let found = search(BOUNDS, weak);
    assert_eq!(found.conclusion.rate, None);
    assert_eq!(found.conclusion.limit, Limit::Gateway);
    assert_eq!((found.trials, found.confirms), (2, 0));

    let blind = Gateway {
        generator: 500.0,
        ..STEADY
    };
    let found = search(BOUNDS, blind);
    assert_eq!(found.conclusion.limit, Limit::Generator);
    assert_eq!(found.conclusion.rate, None);
}

#[test]
fn a_rate_that_is_not_confirmed_goes_down_to_the_minimum_and_no_further() {
    let bounds = Bounds {
        max: 1_200.0,
        ..BOUNDS
    };
    let mut search = Search::new(bounds);
    let mut confirms = Vec::new();
    loop {
        match search.step() {
            Step::Try(_) => search.record(Finding::Held),
            Step::Confirm(rate) => {
                confirms.push(rate);
                search.record(Finding::Failed);
            }
            Step::Done(conclusion) => {
                assert_eq!(conclusion.rate, None);
                break;
            }
        }
    }
    assert_eq!(confirms, [1_200.0, 1_080.0, 1_000.0]);
}

#[test]
fn results_without_rhyme_or_reason_end_the_search_too() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut search = Search::new(BOUNDS);
        let mut steps = 0;
        while !matches!(search.step(), Step::Done(_)) {
            steps += 1;
            search.record(match random.below(3) {
                0 => Finding::Failed,
                1 => Finding::Invalid,
                _ => Finding::Held,
            });
        }
        assert!(steps <= TRIALS_MAX + CONFIRMS_MAX, "{steps}");
    }
}
