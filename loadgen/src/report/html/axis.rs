//! Scales of a chart: where a value stands, and what is written beside the lines.

/// Labels along an axis, about.
const LABELS: f64 = 5.0;
/// Steps of a time axis, in seconds.
const TIME_STEPS: [f64; 19] = [
    1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1_800.0, 3_600.0, 7_200.0,
    14_400.0, 21_600.0, 43_200.0, 86_400.0, 172_800.0,
];

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// A number, shortened by k, M and G.
    Count,
    PerSecond,
    /// Microseconds in, us to s out.
    Micros,
    Bytes,
    /// A share in, percent out.
    Percent,
    /// Seconds in, s to h out.
    Seconds,
    /// Percentile, as the logarithm of 1 over what is above it.
    Nines,
}

impl Unit {
    pub(super) fn text(self, value: f64) -> String {
        match self {
            Self::Count => shortened(value, ""),
            Self::PerSecond => shortened(value, "/s"),
            Self::Bytes => match value {
                v if v >= 1e9 => format!("{} GB", digits(v / 1e9)),
                v if v >= 1e6 => format!("{} MB", digits(v / 1e6)),
                v if v > 0.0 => format!("{} KB", digits(v / 1e3)),
                _ => "0".to_owned(),
            },
            Self::Micros => match value {
                v if v >= 1e6 => format!("{} s", digits(v / 1e6)),
                v if v >= 1e3 => format!("{} ms", digits(v / 1e3)),
                v => format!("{} us", digits(v)),
            },
            Self::Percent => format!("{} %", digits(value * 100.0)),
            Self::Seconds => match value.abs() {
                v if v >= 7_200.0 => format!("{} h", digits(value / 3_600.0)),
                v if v >= 300.0 => format!("{} min", digits(value / 60.0)),
                _ => format!("{} s", digits(value)),
            },
            Self::Nines => {
                let percentile = 100.0 - 100.0 / 10_f64.powf(value);
                // As many digits as there are nines.
                let places = (value.ceil() - 2.0).clamp(0.0, 9.0) as usize;
                let text = format!("{percentile:.places$}");
                format!("{text} %")
            }
        }
    }
}

fn shortened(value: f64, per: &str) -> String {
    match value {
        v if v >= 1e9 => format!("{}G{per}", digits(v / 1e9)),
        v if v >= 1e6 => format!("{}M{per}", digits(v / 1e6)),
        v if v >= 1e4 => format!("{}k{per}", digits(v / 1e3)),
        v => format!("{}{per}", digits(v)),
    }
}

/// Up to three digits, no zeros at the end.
fn digits(value: f64) -> String {
    let text = match value.abs() {
        v if v >= 100.0 => return format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    let text = text.trim_end_matches('0').trim_end_matches('.');
    match text {
        "-0" => "0".to_owned(),
        text => text.to_owned(),
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    pub unit: Unit,
    pub from: f64,
    pub to: f64,
    is_logarithmic: bool,
    /// Where lines are drawn and labelled.
    pub ticks: Vec<f64>,
}

impl Axis {
    /// From 0, or the least value below it, to a round number above all values.
    pub(super) fn linear(unit: Unit, values: impl Iterator<Item = f64>) -> Self {
        let max = values.fold(0.0, f64::max);
        let scale = if unit == Unit::Percent { 0.01 } else { 1.0 };
        // Something to see even if all is 0.
        let max = if max > 0.0 { max } else { scale };
        let step = round_step(max / LABELS);
        let count = (max / step - 1e-9).ceil().max(1.0);
        Self {
            unit,
            from: 0.0,
            to: step * count,
            is_logarithmic: false,
            ticks: (0..=count as u32).map(|n| f64::from(n) * step).collect(),
        }
    }

    /// Whole decades around all values, which are positive.
    pub(super) fn logarithmic(unit: Unit, values: impl Iterator<Item = f64>) -> Self {
        let (mut min, mut max) = (f64::INFINITY, 1.0_f64);
        for value in values.filter(|value| *value > 0.0) {
            (min, max) = (min.min(value), max.max(value));
        }
        let first = min.min(max).log10().floor();
        let last = max.log10().ceil().max(first + 1.0);
        let decades = (last - first) as i32;
        // Between few decades, their parts are marked too.
        let parts: &[f64] = if decades <= 2 {
            &[1.0, 2.0, 5.0]
        } else {
            &[1.0]
        };
        let ticks = (0..=decades)
            .flat_map(|n| {
                parts
                    .iter()
                    .map(move |part| part * 10_f64.powf(first + f64::from(n)))
            })
            .filter(|tick| *tick <= 10_f64.powf(last) * 1.000_001)
            .collect();
        Self {
            unit,
            from: 10_f64.powf(first),
            to: 10_f64.powf(last),
            is_logarithmic: true,
            ticks,
        }
    }

    /// Seconds, from the first value to the last.
    pub(super) fn time(values: impl Iterator<Item = f64>) -> Self {
        let (mut from, mut to) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            (from, to) = (from.min(value), to.max(value));
        }
        if from > to {
            (from, to) = (0.0, 1.0);
        }
        let to = to.max(from + 1.0);
        let wanted = (to - from) / LABELS;
        let step = TIME_STEPS.into_iter().find(|step| *step >= wanted);
        let step = step.unwrap_or_else(|| round_step(wanted));
        let first = (from / step).ceil() as i64;
        let last = (to / step).floor() as i64;
        Self {
            unit: Unit::Seconds,
            from,
            to,
            is_logarithmic: false,
            ticks: (first..=last).map(|n| n as f64 * step).collect(),
        }
    }

    /// Percentiles up to the one that a single one of so many samples is above.
    pub(super) fn nines(samples: f64) -> Self {
        let to = samples.max(10.0).log10();
        let mut ticks = vec![0.0, 2_f64.log10()];
        ticks.extend((1..=to.floor() as u32).map(f64::from));
        Self {
            unit: Unit::Nines,
            from: 0.0,
            to,
            is_logarithmic: false,
            ticks,
        }
    }

    /// Where a value stands between the ends, 0 to 1.
    pub(super) fn place(&self, value: f64) -> f64 {
        let place = if self.is_logarithmic {
            (value.max(self.from) / self.from).log10() / (self.to / self.from).log10()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        place.clamp(0.0, 1.0)
    }

    /// What is written at a tick.
    pub(super) fn label(&self, tick: f64) -> String {
        self.unit.text(tick)
    }
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * power >= step * 0.999_999);
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|tick| axis.label(*tick)).collect()
    }

    #[test]
    fn a_linear_axis_starts_at_0_and_has_round_steps() {
        let axis = Axis::linear(Unit::PerSecond, [3.0, 43_000.0].into_iter());
        assert_eq!(
            labels(&axis),
            ["0/s", "10k/s", "20k/s", "30k/s", "40k/s", "50k/s"]
        );
        assert_eq!(
            (axis.place(0.0), axis.place(25_000.0), axis.place(1e9)),
            (0.0, 0.5, 1.0)
        );
        let nothing = Axis::linear(Unit::Count, std::iter::empty());
        assert!(nothing.to >= 1.0 && nothing.ticks.len() > 1);
        let cpu = Axis::linear(Unit::Percent, [0.98].into_iter());
        assert_eq!(
            labels(&cpu),
            ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
        );
    }

    #[test]
    fn a_logarithmic_axis_has_whole_decades() {
        let axis = Axis::logarithmic(Unit::Micros, [90.0, 250_000.0, 0.0].into_iter());
        assert_eq!(
            labels(&axis),
            ["10 us", "100 us", "1 ms", "10 ms", "100 ms", "1 s"]
        );
        assert!((axis.place(10_000.0) - 0.6).abs() < 1e-9);
        assert_eq!(axis.place(0.0), 0.0);
        let narrow = Axis::logarithmic(Unit::Micros, [200.0, 300.0].into_iter());
        assert_eq!(labels(&narrow), ["100 us", "200 us", "500 us", "1 ms"]);
        let empty = Axis::logarithmic(Unit::Micros, std::iter::empty());
        assert!(empty.from > 0.0 && empty.to > empty.from);
    }

    #[test]
    fn a_time_axis_has_steps_that_people_count_in() {
        let axis = |from: f64, to: f64| labels(&Axis::time([from, to].into_iter()));
        assert_eq!(axis(0.0, 60.0), ["0 s", "15 s", "30 s", "45 s", "60 s"]);
        assert_eq!(axis(-0.5, 10.0), ["0 s", "5 s", "10 s"]);
        assert_eq!(
            axis(0.0, 3_600.0),
            ["0 s", "15 min", "30 min", "45 min", "60 min"]
        );
        assert!(axis(0.0, 604_800.0).len() >= 3);
        let one = Axis::time([5.0].into_iter());
        assert!(one.to > one.from);
        assert!(Axis::time(std::iter::empty()).to > 0.0);
    }

    #[test]
    fn percentiles_are_spread_by_their_nines() {
        let axis = Axis::nines(20_000.0);
        assert_eq!(
            labels(&axis),
            ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]
        );
        assert!(axis.place(4.0) < 1.0);
    }

    #[test]
    fn values_are_short_and_have_their_unit() {
        for (unit, value, text) in [
            (Unit::Count, 1_234.0, "1234"),
            (Unit::Count, 1_000_000.0, "1M"),
            (Unit::PerSecond, 19_999.0, "20k/s"),
            (Unit::Micros, 0.0, "0 us"),
            (Unit::Micros, 999.0, "999 us"),
            (Unit::Micros, 2_840.0, "2.84 ms"),
            (Unit::Bytes, 142_300_000.0, "142 MB"),
            (Unit::Bytes, 1_500.0, "1.5 KB"),
            (Unit::Percent, 0.983, "98.3 %"),
            (Unit::Seconds, -0.001, "0 s"),
            (Unit::Seconds, 90_000.0, "25 h"),
        ] {
            assert_eq!(unit.text(value), text);
        }
    }
}
