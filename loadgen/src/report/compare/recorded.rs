//! What a result file says: figures, and their values by the second.

use anyhow::{Context, bail};
use serde_json::Value;
use std::{fs, path::Path};

/// What one file says.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) json: Value,
}

impl Run {
    pub(super) fn read(file: &Path) -> anyhow::Result<Self> {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let json: Value = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not JSON", file.display()))?;
        if json["verdict"].as_str().is_none() || !json["latency_us"].is_object() {
            bail!("{} is no result that --json has written", file.display());
        }
        let name = file.display().to_string();
        Ok(Self { name, json })
    }

    pub(super) fn number(&self, pointer: &str) -> Option<f64> {
        self.json.pointer(pointer)?.as_f64()
    }

    pub(super) fn verdict(&self) -> &str {
        self.json["verdict"].as_str().unwrap_or("unknown")
    }

    fn column(&self, pointer: &str) -> Vec<Option<f64>> {
        let array = self.json.pointer(pointer).and_then(Value::as_array);
        array.map_or_else(Vec::new, |array| array.iter().map(Value::as_f64).collect())
    }

    /// A figure's value by the second, while messages were sent, without the first second.
    pub(super) fn seconds(&self, source: &Source) -> Vec<f64> {
        let end_s = self.number("/settings/duration_s").unwrap_or(f64::INFINITY);
        match source {
            Source::None => Vec::new(),
            Source::Times(name, percentile) => {
                let step_s = self.number("/series/step_s").unwrap_or(1.0);
                let column = self.column(&format!("/series/{name}/{percentile}"));
                let samples = self.column(&format!("/series/{name}/samples"));
                let steps = column.iter().zip(samples).enumerate().skip(1);
                steps
                    .filter(|(at, _)| (*at as f64 + 1.0) * step_s <= end_s + 1e-6)
                    .filter(|(_, (_, samples))| samples.is_some_and(|count| count > 0.0))
                    .filter_map(|(_, (value, _))| *value)
                    .collect()
            }
            Source::PerSecond(name) => self.samples(end_s, |run| run.column(&sample(name))),
            Source::CpuPerMessage(name) => self.samples(end_s, |run| {
                let cpu = run.column(&sample(name));
                let per_s = run.column(&sample("delivered_per_s"));
                let pairs = cpu.into_iter().zip(per_s);
                pairs
                    .map(|(cpu, per_s)| Some(cpu? * 1e6 / per_s.filter(|per_s| *per_s > 0.0)?))
                    .collect()
            }),
        }
    }

    fn samples(&self, end_s: f64, column: impl Fn(&Self) -> Vec<Option<f64>>) -> Vec<f64> {
        let times = self.column(&sample("at_s"));
        let times = times.into_iter().map(|at| at.unwrap_or(f64::NEG_INFINITY));
        // A sample is about the time before it, and comes some milliseconds late.
        times
            .zip(column(self))
            .filter(|(at_s, _)| *at_s >= 1.5 && *at_s <= end_s + 0.5)
            .filter_map(|(_, value)| value)
            .collect()
    }
}

fn sample(name: &str) -> String {
    format!("/series/samples/{name}")
}

/// Where the values of a figure by the second are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    None,
    Times(&'static str, &'static str),
    PerSecond(&'static str),
    CpuPerMessage(&'static str),
}
