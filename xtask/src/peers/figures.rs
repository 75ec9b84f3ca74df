//! What was measured, and what is made of it: medians, minima, ratios to the floor of the same pass.

use serde_json::Value;

/// Everything that the pages are made from.
#[derive(Debug)]
pub(super) struct Comparison {
    pub unix_s: u64,
    pub runs: u32,
    pub seconds: u32,
    pub server_cpu: usize,
    pub load_cpu: usize,
    /// In the words of the tester's result.
    pub machine: Option<Value>,
    pub systems: Vec<SystemSeen>,
    pub cells: Vec<Cell>,
    /// What went wrong, in sentences.
    pub problems: Vec<String>,
}

/// A system that is there, or is not.
#[derive(Debug)]
pub(super) struct SystemSeen {
    pub name: &'static str,
    pub version: String,
    /// Why it was not measured.
    pub skipped: Option<String>,
}

/// One figure of one system in one pass.
#[derive(Debug)]
pub(super) struct Cell {
    pub figure: &'static str,
    pub system: &'static str,
    pub reading: Reading,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reading {
    pub pass: u32,
    pub value: f64,
}

/// All passes of one figure of one system.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Summary {
    pub median: f64,
    pub minimum: f64,
    /// Median of the ratios to the floor of the same pass; the floor has none.
    pub to_floor: Option<f64>,
    pub passes: usize,
}

impl Comparison {
    pub(super) fn problem(&mut self, pass: u32, system: &str, what: String) {
        let problem = format!("pass {}, {system}, {what}", pass + 1);
        eprintln!("{problem}");
        self.problems.push(problem);
    }

    pub(super) fn readings(&self, figure: &str, system: &str) -> Vec<Reading> {
        let of = |cell: &&Cell| cell.figure == figure && cell.system == system;
        self.cells
            .iter()
            .filter(of)
            .map(|cell| cell.reading)
            .collect()
    }

    pub(super) fn summary(&self, figure: &str, system: &str) -> Option<Summary> {
        let readings = self.readings(figure, system);
        let values: Vec<f64> = readings.iter().map(|reading| reading.value).collect();
        let floor = self.readings(figure, "floor");
        let ratios: Vec<f64> = readings
            .iter()
            .filter_map(|reading| {
                let same_pass = floor.iter().find(|floor| floor.pass == reading.pass)?;
                (same_pass.value > 0.0).then(|| reading.value / same_pass.value)
            })
            .collect();
        Some(Summary {
            median: median(&values)?,
            minimum: values.iter().copied().fold(f64::INFINITY, f64::min),
            to_floor: median(&ratios).filter(|_| system != "floor"),
            passes: values.len(),
        })
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some((lower + upper) / 2.0)
}

/// A number of the result by its dotted name.
pub(super) fn number(result: &Value, key: &str) -> Option<f64> {
    let mut value = result;
    for part in key.split('.') {
        value = value.get(part)?;
    }
    value.as_f64()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn example() -> Comparison {
        let figure = "direct, one per segment, us per message";
        let cell = |system, pass, value| Cell {
            figure,
            system,
            reading: Reading { pass, value },
        };
        let seen = |name, version: &str, skipped: Option<&str>| SystemSeen {
            name,
            version: version.to_owned(),
            skipped: skipped.map(str::to_owned),
        };
        Comparison {
            unix_s: 1_795_000_000,
            runs: 3,
            seconds: 5,
            server_cpu: 0,
            load_cpu: 1,
            machine: Some(serde_json::json!({"model": "A & B", "kernel": "6.18", "cpus": 2})),
            systems: vec![
                seen("floor", "0.1.0", None),
                seen("portico", "0.1.0", None),
                seen("nats", "", Some("nats-server is not installed")),
            ],
            // The machine is twice as slow in the second pass, and Portico misses the third.
            cells: vec![
                cell("floor", 0, 4.0),
                cell("portico", 0, 5.0),
                cell("floor", 1, 8.0),
                cell("portico", 1, 12.0),
                cell("floor", 2, 4.0),
            ],
            problems: vec!["pass 3, portico, direct: \"fail\" [\"1 lost\"]".to_owned()],
        }
    }

    #[test]
    fn ratios_are_to_the_floor_of_the_same_pass() {
        let comparison = example();
        let figure = "direct, one per segment, us per message";
        let portico = comparison.summary(figure, "portico").expect("measured");
        assert_eq!(
            (portico.median, portico.minimum, portico.passes),
            (8.5, 5.0, 2)
        );
        // 1.25 and 1.5.
        assert_eq!(portico.to_floor, Some(1.375));
        let floor = comparison.summary(figure, "floor").expect("measured");
        assert_eq!((floor.median, floor.to_floor), (4.0, None));
        assert_eq!(comparison.summary(figure, "nats"), None);
    }

    #[test]
    fn numbers_are_found_by_dotted_names() {
        let result = serde_json::json!({"server": {"cpu": 1.5}, "name": "x"});
        assert_eq!(number(&result, "server.cpu"), Some(1.5));
        assert_eq!(number(&result, "server.memory"), None);
        assert_eq!(number(&result, "name"), None);
    }
}
