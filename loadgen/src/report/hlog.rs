//! The interval log of HdrHistogram: every step's histograms, whole, for tools that know the format
//! (HistogramLogProcessor, HistogramLogAnalyzer, the libraries' log readers).
//!
//! A line per step and measure, tagged `latency`, `service`, `sent` or `slip`; values are
//! microseconds. Times of lines are seconds after the first message was due, which is StartTime
//! and BaseTime. Steps are seconds, and longer in runs of more than an hour (see `series`).

use crate::{observer::Observed, series::Measure};
use anyhow::Context;
use hdrhistogram::serialization::{
    V2DeflateSerializer,
    interval_log::{IntervalLogWriterBuilder, Tag},
};
use std::{
    io::Write,
    time::{Duration, UNIX_EPOCH},
};

pub(crate) fn write(out: &mut impl Write, observed: &Observed) -> anyhow::Result<()> {
    let start = UNIX_EPOCH + Duration::from_micros(observed.start_unix_us);
    let step = Duration::from_secs(u64::from(observed.series.step_s()));
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(concat!(
            "[Interval log of portico-loadgen ",
            env!("CARGO_PKG_VERSION"),
            ", values in microseconds]"
        ))
        .with_start_time(start)
        .with_base_time(start)
        .begin_log_with(out, &mut serializer)
        .context("cannot write the interval log")?;
    let mut at = Duration::ZERO;
    for steps in observed.series.steps() {
        for measure in Measure::ALL {
            let Some(histogram) = steps[measure as usize].unpack() else {
                continue;
            };
            log.write_histogram(&histogram, at, step, Tag::new(measure.tag()))
                .map_err(|error| anyhow::anyhow!("cannot write the interval log: {error:?}"))?;
        }
        at += step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::seconds::tests::observed;
    use base64::Engine;
    use hdrhistogram::{
        Histogram,
        serialization::{
            Deserializer,
            interval_log::{IntervalLogIterator, LogEntry},
        },
    };

    #[test]
    fn the_log_is_read_back_by_the_formats_own_reader() {
        let mut observed = observed();
        observed.start_unix_us = 1_795_794_784_250_000;
        let mut log = Vec::new();
        write(&mut log, &observed).expect("memory");
        let mut times = (None, None);
        let mut lines = Vec::new();
        for entry in IntervalLogIterator::new(&log) {
            match entry.expect("a well-formed line") {
                LogEntry::StartTime(at) => times.0 = Some(at),
                LogEntry::BaseTime(at) => times.1 = Some(at),
                LogEntry::Interval(line) => lines.push(line),
            }
        }
        let start = Duration::from_millis(1_795_794_784_250);
        assert_eq!(times, (Some(start), Some(start)));
        assert_eq!(lines.len(), 3, "only latencies were recorded");
        let mut sum = crate::verifier::histogram();
        for (second, line) in lines.iter().enumerate() {
            assert_eq!(line.tag().map(|tag| tag.as_str()), Some("latency"));
            assert_eq!(line.start_timestamp(), Duration::from_secs(second as u64));
            assert_eq!(line.duration(), Duration::from_secs(1));
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(line.encoded_histogram())
                .expect("base64");
            let read: Histogram<u64> = Deserializer::new()
                .deserialize(&mut bytes.as_slice())
                .expect("a histogram");
            assert_eq!(read.len(), 100);
            assert_eq!(read.max() as usize, (second + 1) * 100);
            sum.add(read).expect("the same bounds");
        }
        assert_eq!(sum.len(), 300);
    }
}
