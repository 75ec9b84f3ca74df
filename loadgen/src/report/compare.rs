//! `portico-loadgen compare A B`: two JSON files side by side.
//!
//! A difference is called meaningful when the seconds of the two runs differ by the test in
//! [`significance`](super::significance) with less than one chance in a hundred of being alike, and
//! the runs' own figures by at least 2 %. Of the seconds, the first and those after the last message
//! was due are left out.

mod metric;
mod recorded;

use super::{
    html,
    significance::{VALUES_MIN, probability},
};
use anyhow::{Context, bail};
use metric::{METRICS, Metric};
use recorded::Run;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

/// Chance below which a difference is not one.
const CHANCE_MAX: f64 = 0.01;
/// Ratio of the figures below which a difference does not matter, however certain it is.
const CHANGE_MIN: f64 = 0.02;

/// Puts the results of two runs side by side, and says which differences are more than noise.
///
/// Neighbouring seconds of one run are compared with those of the other (Mann-Whitney test). That
/// does not see how a machine drifts between runs: repeat them in turns before believing a few
/// percent.
///
/// Exit code: 0; 1 with --worse-than when B is worse by more than that; 2 when a file cannot be
/// read, or with --worse-than when a run is invalid or has nothing to compare.
#[derive(Debug, clap::Args)]
pub(crate) struct CompareArgs {
    /// JSON file of the run that is the measure
    a: PathBuf,
    /// JSON file of the run that is judged
    b: PathBuf,
    /// Exit code 1 if p99 or the server's CPU per message of B is above that of A by more, e.g. 5%
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    worse_than: Option<f64>,
    /// Write the comparison to FILE as a page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl CompareArgs {
    /// Prints the comparison; the exit code.
    pub(crate) fn run(&self) -> anyhow::Result<u8> {
        let (a, b) = (Run::read(&self.a)?, Run::read(&self.b)?);
        let comparison = Comparison::new(&a, &b);
        print(&comparison.text())?;
        if let Some(file) = &self.html {
            let page = comparison.page();
            fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let Some(worse_than) = self.worse_than else {
            return Ok(0);
        };
        let worse = comparison.worse_by_more_than(worse_than)?;
        for sentence in &worse {
            print(&format!("worse: {sentence}\n"))?;
        }
        Ok(u8::from(!worse.is_empty()))
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .context("cannot print the comparison")
}

fn parse_share(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim_end();
    match number.parse::<f64>() {
        Ok(percent) if percent.is_finite() && percent >= 0.0 => Ok(percent / 100.0),
        _ => Err(format!("`{text}` is not a share such as 5%")),
    }
}

/// What is known about a difference.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meaning {
    /// There are no values by the second.
    Unknown,
    /// There are too few.
    TooShort,
    Noise,
    /// More than noise, and small.
    Small,
    Real,
}

impl Meaning {
    fn of(a: &[f64], b: &[f64], ratio: Option<f64>) -> Self {
        if a.is_empty() || b.is_empty() {
            return Self::Unknown;
        }
        let changed = ratio.is_none_or(|ratio| (ratio - 1.0).abs() >= CHANGE_MIN);
        match probability(a, b) {
            None => Self::TooShort,
            Some(chance) if chance >= CHANCE_MAX => Self::Noise,
            Some(_) if changed => Self::Real,
            Some(_) => Self::Small,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::TooShort => "too short to tell",
            Self::Noise => "no",
            Self::Small => "no, below 2 %",
            Self::Real => "yes",
        }
    }
}

#[derive(Debug)]
struct Row {
    metric: Metric,
    a: Option<f64>,
    b: Option<f64>,
    ratio: Option<f64>,
    meaning: Meaning,
}

#[derive(Debug)]
struct Comparison {
    names: [String; 2],
    verdicts: [String; 2],
    rows: Vec<Row>,
    /// What differs in what was asked for and where.
    different: Vec<String>,
}

impl Comparison {
    fn new(a: &Run, b: &Run) -> Self {
        let rows = METRICS.iter().filter_map(|metric| {
            let (value_a, value_b) = (a.number(metric.pointer), b.number(metric.pointer));
            value_a.or(value_b)?;
            let pair = value_a.zip(value_b);
            let ratio = pair.and_then(|(a, b)| (a > 0.0).then_some(b / a));
            let (seconds_a, seconds_b) = (a.seconds(&metric.source), b.seconds(&metric.source));
            Some(Row {
                metric: *metric,
                a: value_a,
                b: value_b,
                ratio,
                meaning: Meaning::of(&seconds_a, &seconds_b, ratio),
            })
        });
        Self {
            names: [a.name.clone(), b.name.clone()],
            verdicts: [a.verdict().to_owned(), b.verdict().to_owned()],
            rows: rows.collect(),
            different: different(a, b),
        }
    }

    /// Sentences; an error if that cannot be said.
    fn worse_by_more_than(&self, share: f64) -> anyhow::Result<Vec<String>> {
        for (name, verdict) in self.names.iter().zip(&self.verdicts) {
            if verdict == "invalid" {
                bail!("{name} is invalid and proves nothing; measure it again");
            }
        }
        let judged: Vec<_> = self
            .rows
            .iter()
            .filter(|row| row.metric.is_judged)
            .filter_map(|row| Some((row, row.ratio?)))
            .collect();
        if judged.is_empty() {
            bail!("neither p99 nor CPU per message is in both files");
        }
        let worse = judged.iter().filter(|(_, ratio)| *ratio > 1.0 + share);
        Ok(worse
            .map(|(row, ratio)| {
                format!(
                    "{} is {:.1} % above that of A, allowed {:.1} %",
                    row.metric.name,
                    (ratio - 1.0) * 100.0,
                    share * 100.0
                )
            })
            .collect())
    }

    fn cells(row: &Row) -> [String; 5] {
        [
            row.metric.name.to_owned(),
            number(row.a),
            number(row.b),
            row.ratio
                .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}")),
            row.meaning.text().to_owned(),
        ]
    }

    fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut out);
        out
    }

    fn write_text(&self, out: &mut String) -> fmt::Result {
        for (letter, (name, verdict)) in
            ["A", "B"].iter().zip(self.names.iter().zip(&self.verdicts))
        {
            writeln!(out, "{letter}  {name}  {}", verdict.to_uppercase())?;
        }
        writeln!(
            out,
            "\n{:<20}{:>14}{:>14}{:>9}  more than noise",
            "", "A", "B", "B/A"
        )?;
        for row in &self.rows {
            let [name, a, b, ratio, meaning] = Self::cells(row);
            let line = format!("{name:<20}{a:>14}{b:>14}{ratio:>9}  {meaning}");
            writeln!(out, "{}", line.trim_end())?;
        }
        writeln!(
            out,
            "\nMore than noise: Mann-Whitney over the seconds of each run (at least {VALUES_MIN}), \
             fewer than\n1 in 100 by chance, and 2 % apart. It does not see drift between runs."
        )?;
        if !self.different.is_empty() {
            writeln!(out, "\nnot like for like:")?;
            for line in &self.different {
                writeln!(out, "  {line}")?;
            }
        }
        Ok(())
    }

    fn page(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_page(&mut out);
        out
    }

    fn write_page(&self, out: &mut String) -> fmt::Result {
        html::write_head(out, "Two runs of portico-loadgen")?;
        writeln!(out, "<h1>Two runs of portico-loadgen</h1>")?;
        for (letter, (name, verdict)) in
            ["A", "B"].iter().zip(self.names.iter().zip(&self.verdicts))
        {
            writeln!(
                out,
                "<p class=\"about\">{letter}: {} <span class=\"{}\">{}</span></p>",
                html::escaped(name),
                html::escaped(verdict),
                html::escaped(&verdict.to_uppercase())
            )?;
        }
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| Self::cells(row).to_vec())
            .collect();
        html::write_table(out, &["", "A", "B", "B/A", "more than noise"], &rows)?;
        writeln!(
            out,
            "<p class=\"about\">More than noise: Mann-Whitney over the seconds of each run, fewer \
             than 1 in 100 by chance, and 2 % apart. It does not see drift between runs.</p>"
        )?;
        if !self.different.is_empty() {
            writeln!(out, "<h2>Not like for like</h2>\n<ul>")?;
            for line in &self.different {
                writeln!(out, "<li>{}</li>", html::escaped(line))?;
            }
            writeln!(out, "</ul>")?;
        }
        writeln!(out, "</body>\n</html>")
    }
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.fract() == 0.0 && value >= 0.0 => super::grouped(value as u64),
        Some(value) => format!("{value}"),
    }
}

/// What was asked for, and where it ran. Not the target's address or the length of the file names:
/// two builds are compared at two ports.
fn different(a: &Run, b: &Run) -> Vec<String> {
    let mut lines = Vec::new();
    for pointer in [
        "/plan",
        "/workload",
        "/settings",
        "/seed",
        "/machine",
        "/generator/workers",
        "/version",
        "/server/name",
        "/not_promised",
        "/environment/target_is_local",
    ] {
        let (mut of_a, mut of_b) = (BTreeMap::new(), BTreeMap::new());
        let name = pointer.trim_start_matches('/').replace('/', ".");
        flatten(&name, a.json.pointer(pointer), &mut of_a);
        flatten(&name, b.json.pointer(pointer), &mut of_b);
        // A file of an older version lacks parts; that is no difference of the runs.
        for (key, value) in &of_a {
            if let Some(other) = of_b.get(key).filter(|other| *other != value) {
                lines.push(format!("{key}: {value} in A, {other} in B"));
            }
        }
    }
    lines
}

fn flatten(name: &str, value: Option<&Value>, leaves: &mut BTreeMap<String, String>) {
    match value {
        None => {}
        Some(Value::Object(fields)) => {
            for (key, value) in fields {
                flatten(&format!("{name}.{key}"), Some(value), leaves);
            }
        }
        Some(Value::String(text)) => {
            leaves.insert(name.to_owned(), text.clone());
        }
        Some(leaf) => {
            leaves.insert(name.to_owned(), leaf.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A run whose latency and CPU have a level, by seconds that vary by a tenth.
    fn run(seconds: usize, p99: f64, cpu_us: f64) -> Run {
        let vary = |level: f64| -> Vec<f64> {
            let wave = [0.0, 7.0, 3.0, 9.0, 1.0, 8.0, 2.0, 6.0, 4.0, 5.0];
            (0..seconds)
                .map(|n| level * (1.0 + wave[n % 10] / 100.0))
                .collect()
        };
        let numbers = |from: usize| (from..from + seconds).collect::<Vec<_>>();
        let cpu: Vec<f64> = vary(cpu_us).iter().map(|us| us * 1_000.0 / 1e6).collect();
        let json = json!({
            "verdict": "pass",
            "plan": "relay",
            "seed": 1,
            "settings": {"duration_s": seconds, "connections": 100},
            "machine": {"cpus": 2, "kernel": "6.18"},
            "rate_per_s": 1_000.0,
            "lost": 0,
            "latency_us": {"p50": 100, "p99": p99},
            "server": {"cpu_us_per_message": cpu_us},
            "series": {
                "step_s": 1,
                "latency_us": {"p99": vary(p99), "samples": vec![1_000; seconds]},
                "samples": {
                    "at_s": numbers(1),
                    "delivered_per_s": vec![1_000.0; seconds],
                    "server_cpu": cpu,
                },
            },
        });
        let name = "run.json".to_owned();
        Run { name, json }
    }

    fn meaning(comparison: &Comparison, name: &str) -> Meaning {
        let row = comparison.rows.iter().find(|row| row.metric.name == name);
        row.expect(name).meaning
    }

    #[test]
    fn a_real_difference_is_told_from_noise() {
        let comparison = Comparison::new(&run(60, 1_000.0, 10.0), &run(60, 1_500.0, 10.0));
        assert_eq!(meaning(&comparison, "latency p99, us"), Meaning::Real);
        assert_eq!(meaning(&comparison, "server CPU, us/msg"), Meaning::Noise);
        assert_eq!(meaning(&comparison, "lost"), Meaning::Unknown);
        let row = comparison.rows.iter().find(|row| row.metric.is_judged);
        assert_eq!(row.and_then(|row| row.ratio), Some(1.5));
        let text = comparison.text();
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        assert!(!text.contains("not like for like"), "{text}");
    }

    #[test]
    fn a_short_run_says_nothing() {
        let comparison = Comparison::new(&run(5, 1_000.0, 10.0), &run(5, 9_000.0, 10.0));
        assert_eq!(meaning(&comparison, "latency p99, us"), Meaning::TooShort);
    }

    #[test]
    fn worse_is_more_than_allowed_in_p99_or_cpu() {
        let worse = |p99, cpu_us, share| {
            let comparison = Comparison::new(&run(60, 1_000.0, 10.0), &run(60, p99, cpu_us));
            comparison.worse_by_more_than(share).expect("valid").len()
        };
        assert_eq!(worse(1_040.0, 10.4, 0.05), 0);
        assert_eq!(worse(1_060.0, 10.4, 0.05), 1);
        assert_eq!(worse(1_060.0, 10.6, 0.05), 2);
        assert_eq!(worse(500.0, 5.0, 0.0), 0);
        let mut invalid = run(60, 1.0, 1.0);
        invalid.json["verdict"] = json!("invalid");
        let comparison = Comparison::new(&invalid, &run(60, 1.0, 1.0));
        assert!(comparison.worse_by_more_than(0.05).is_err());
    }

    #[test]
    fn what_was_not_alike_is_said() {
        let mut other = run(60, 1_000.0, 10.0);
        other.json["settings"]["connections"] = json!(200);
        other.json["machine"]["kernel"] = json!("6.6");
        other.json["workload"] = json!({"size": 64});
        let comparison = Comparison::new(&run(60, 1_000.0, 10.0), &other);
        let expected = [
            "settings.connections: 100 in A, 200 in B",
            "machine.kernel: 6.18 in A, 6.6 in B",
        ];
        assert_eq!(comparison.different, expected);
        let page = comparison.page();
        assert!(page.contains(expected[0]) && page.ends_with("</html>\n"));
    }

    #[test]
    fn shares_are_read_with_and_without_a_sign() {
        assert_eq!(parse_share("5%"), Ok(0.05));
        assert_eq!(parse_share("2.5 %"), Ok(0.025));
        assert_eq!(parse_share("0"), Ok(0.0));
        for text in ["", "%", "-1%", "x", "inf"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }
}
