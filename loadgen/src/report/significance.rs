//! Whether two lists of measurements differ by more than they vary.
//!
//! The test of Mann and Whitney: it asks whether values of one list tend to be greater than those
//! of the other, and assumes nothing about how they are distributed. Latencies need that: one slow
//! second would rule a mean. Neighbouring seconds of a run resemble each other, which makes them
//! count for fewer than they are; the test is weakened by as much (see [`weight`]).
//!
//! # Does not
//! Know how much runs differ from each other, only how seconds of a run do. A machine that drifts
//! between two runs makes a difference look real: repeat them, in turns.

/// Fewer values than this say nothing either way.
pub(super) const VALUES_MIN: usize = 8;
/// Neighbours that resemble each other more than this are taken to do so this much.
const CORRELATION_MAX: f64 = 0.9;

/// How likely such a difference, or a greater one, is when both lists are of the same kind. `None`
/// when there are too few values.
pub(super) fn probability(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() < VALUES_MIN || b.len() < VALUES_MIN {
        return None;
    }
    let (ranks_of_a, ties) = rank_sum(a, b);
    let (n_a, n_b) = (a.len() as f64, b.len() as f64);
    let n = n_a + n_b;
    let u = ranks_of_a - n_a * (n_a + 1.0) / 2.0;
    let variance = n_a * n_b / 12.0 * ((n + 1.0) - ties / (n * (n - 1.0)));
    if variance <= 0.0 {
        // All values are the same.
        return Some(1.0);
    }
    let distance = ((u - n_a * n_b / 2.0).abs() - 0.5).max(0.0);
    let weight = weight(a).min(weight(b)).sqrt();
    Some(two_sided(distance / variance.sqrt() * weight))
}

/// The sum of the ranks of `a` among both, and the correction for equal values.
fn rank_sum(a: &[f64], b: &[f64]) -> (f64, f64) {
    let of_a = a.iter().map(|value| (*value, true));
    let mut all: Vec<_> = of_a.chain(b.iter().map(|value| (*value, false))).collect();
    all.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (mut sum, mut ties, mut rank) = (0.0, 0.0, 0.0);
    for equal in all.chunk_by(|one, other| one.0 == other.0) {
        let count = equal.len() as f64;
        let of_a = equal.iter().filter(|(_, is_a)| *is_a).count() as f64;
        sum += of_a * (rank + (count + 1.0) / 2.0);
        ties += count * count * count - count;
        rank += count;
    }
    (sum, ties)
}

/// How much a value of a series is worth, 1 when neighbours have nothing in common: (1 - r) / (1 +
/// r), where r is their correlation, as far as it is more than so few values show by chance.
fn weight(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    if squares <= 0.0 {
        return 1.0;
    }
    let neighbours = values
        .windows(2)
        .map(|pair| (pair[0] - mean) * (pair[1] - mean));
    let by_chance = 1.0 / (values.len() as f64).sqrt();
    let correlation = neighbours.sum::<f64>() / squares - by_chance;
    let correlation = correlation.clamp(0.0, CORRELATION_MAX);
    (1.0 - correlation) / (1.0 + correlation)
}

/// How likely a normal variable is so far from its mean on either side, in deviations. An
/// approximation of Abramowitz and Stegun (7.1.26), good to seven digits.
fn two_sided(deviations: f64) -> f64 {
    let x = deviations / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let factors = [
        1.061_405_429,
        -1.453_152_027,
        1.421_413_741,
        -0.284_496_736,
        0.254_829_592,
    ];
    let sum = factors.iter().fold(0.0, |sum, factor| (sum + factor) * t);
    (sum * (-x * x).exp()).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn noise(seed: u64, count: usize, around: f64) -> Vec<f64> {
        let mut random = Random::new(seed);
        let mut value = || around + random.below(100) as f64 / 10.0;
        (0..count).map(|_| value()).collect()
    }

    #[test]
    fn the_normal_distribution_is_the_known_one() {
        for (deviations, expected) in [
            (0.0, 1.0),
            (1.0, 0.317_310_5),
            (1.96, 0.049_995_8),
            (3.0, 0.002_699_8),
        ] {
            let got = two_sided(deviations);
            assert!((got - expected).abs() < 1e-6, "{deviations}: {got}");
        }
    }

    /// By hand: a has the ranks 1 to 8 of 16, so U is 0 of 64; z = 31.5 / sqrt(64 * 17 / 12).
    #[test]
    fn lists_that_do_not_overlap_differ() {
        let a = [3.0, 1.0, 4.0, 2.0, 8.0, 5.0, 7.0, 6.0];
        let b: Vec<f64> = a.iter().map(|value| value + 10.0).collect();
        let (ranks, ties) = rank_sum(&a, &b);
        assert_eq!((ranks, ties), (36.0, 0.0));
        let z = 31.5 / (64.0_f64 * 17.0 / 12.0).sqrt() * weight(&a).sqrt();
        let p = probability(&a, &b).expect("enough");
        assert!((p - two_sided(z)).abs() < 1e-12);
        assert!(p < 0.05, "{p}");
    }

    #[test]
    fn a_shift_is_found_and_none_is_not() {
        let p = |a: &[f64], b: &[f64]| probability(a, b).expect("enough");
        assert!(p(&noise(1, 60, 100.0), &noise(2, 60, 106.0)) < 1e-4);
        let mut found = 0;
        for seed in 0..100 {
            found += u32::from(p(&noise(seed, 60, 100.0), &noise(seed + 1_000, 60, 100.0)) < 0.01);
        }
        assert!(found <= 4, "{found} of 100 that are the same");
        assert_eq!(p(&[5.0; 20], &[5.0; 20]), 1.0);
        assert_eq!(probability(&[1.0; 7], &[2.0; 70]), None);
    }

    #[test]
    fn seconds_that_resemble_each_other_count_less() {
        let drifting: Vec<f64> = (0..60).map(f64::from).collect();
        assert!(weight(&drifting) < 0.15);
        assert_eq!(weight(&noise(3, 200, 0.0)), 1.0);
        // Each second is mostly the one before.
        let slow = |seed| {
            let mut level = 0.0;
            let step = |value| {
                level = level * 0.7 + value;
                level
            };
            noise(seed, 120, 0.0)
                .into_iter()
                .map(step)
                .skip(60)
                .collect::<Vec<_>>()
        };
        let differ = |seed| probability(&slow(seed), &slow(seed + 1_000)) < Some(0.01);
        let found = (0..100).filter(|seed| differ(*seed)).count();
        assert!(found <= 6, "{found} of 100 that are the same");
    }
}
