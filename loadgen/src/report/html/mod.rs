//! The result as one page: it opens from disk, asks no server for anything, follows the reader's
//! light or dark, and prints.

mod axis;
mod chart;
mod escape;

pub(super) use escape::escaped;

use super::{
    Percentiles, Report, grouped, round,
    seconds::{Rates, Times},
    table::figure,
    to_json,
};
use axis::{Axis, Unit};
use chart::{Chart, Line};
use std::fmt::{self, Write};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("hover.js");

/// `table` is what was printed.
pub(crate) fn page(report: &Report, table: &str) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_page(&mut out, report, table);
    out
}

/// The head of a page, up to where its body begins.
pub(super) fn write_head(out: &mut String, title: &str) -> fmt::Result {
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>",
        escaped(title)
    )
}

fn write_page(out: &mut String, report: &Report, table: &str) -> fmt::Result {
    let verdict = report.verdict.to_string();
    write_head(
        out,
        &format!("{} {verdict}, {}", report.plan, report.started),
    )?;
    writeln!(
        out,
        "<h1>{} <span class=\"{}\">{verdict}</span></h1>",
        escaped(&report.plan),
        verdict.to_lowercase()
    )?;
    write_about(out, report)?;
    write_sentences(out, "Why", &report.reasons)?;
    write_sentences(out, "Warnings", &report.warnings)?;
    writeln!(out, "<h2>Summary</h2>\n<div class=\"tables\">")?;
    write_counts(out, report)?;
    write_times(out, report)?;
    write_costs(out, report)?;
    writeln!(out, "</div>")?;
    writeln!(out, "<h2>Charts</h2>\n<div class=\"charts\">")?;
    write_charts(out, report)?;
    writeln!(out, "</div>")?;
    let workload = to_json(&report.workload).map_err(|_| fmt::Error)?;
    writeln!(
        out,
        "<h2>Plan</h2>\n<pre>{}</pre>\n<h2>As printed</h2>\n<pre>{}</pre>\n\
         <script>\n{SCRIPT}</script>\n</body>\n</html>",
        escaped(&workload),
        escaped(table)
    )
}

fn write_about(out: &mut String, report: &Report) -> fmt::Result {
    let settings = &report.settings;
    for line in [
        format!(
            "{} connections, {} of {} bytes for {} s, seed {}, target {}",
            grouped(report.connections),
            report.workload.pace_in_words(),
            grouped(settings.body_bytes as u64),
            settings.duration_s,
            report.seed,
            report.target
        ),
        format!(
            "{} x {}, Linux {}, {:.1} GB of memory",
            report.machine.cpus,
            report.machine.model,
            report.machine.kernel,
            report.machine.memory_bytes as f64 / 1e9
        ),
        format!(
            "begun {}, portico-loadgen {}, run {}",
            report.started, report.version, report.run
        ),
    ] {
        writeln!(out, "<p class=\"about\">{}</p>", escaped(&line))?;
    }
    Ok(())
}

fn write_sentences(out: &mut String, title: &str, sentences: &[String]) -> fmt::Result {
    if sentences.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>{title}</h2>\n<ul>")?;
    for sentence in sentences {
        writeln!(out, "<li>{}</li>", escaped(sentence))?;
    }
    writeln!(out, "</ul>")
}

/// Each row's cells; the first is what it is about. Scrolls by itself where it is too wide.
pub(super) fn write_table(out: &mut String, head: &[&str], rows: &[Vec<String>]) -> fmt::Result {
    writeln!(out, "<div class=\"scroll\"><table>")?;
    if !head.is_empty() {
        write!(out, "<thead><tr>")?;
        for cell in head {
            write!(out, "<th scope=\"col\">{}</th>", escaped(cell))?;
        }
        writeln!(out, "</tr></thead>")?;
    }
    writeln!(out, "<tbody>")?;
    for row in rows {
        write!(out, "<tr>")?;
        for (at, cell) in row.iter().enumerate() {
            let (open, close) = match at {
                0 => ("<th scope=\"row\">", "</th>"),
                _ => ("<td>", "</td>"),
            };
            write!(out, "{open}{}{close}", escaped(cell))?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</tbody></table></div>")
}

fn write_counts(out: &mut String, report: &Report) -> fmt::Result {
    let mut rows: Vec<_> = report
        .counts()
        .into_iter()
        .map(|(name, count)| vec![name.to_owned(), grouped(count)])
        .collect();
    for (title, codes) in [
        ("refused", &report.refused),
        ("deferred", &report.deferred),
        ("closed", &report.closes),
    ] {
        let row =
            |(code, count): (&String, &u64)| vec![format!("{title}: {code}"), grouped(*count)];
        rows.extend(codes.iter().map(row));
    }
    for name in &report.not_promised {
        rows.push(vec![(*name).to_owned(), "not promised".to_owned()]);
    }
    rows.push(vec![
        "delivered/s".to_owned(),
        grouped(report.rate_per_s as u64),
    ]);
    write_table(out, &["messages", ""], &rows)
}

fn write_times(out: &mut String, report: &Report) -> fmt::Result {
    let micros = |us: u64| Unit::Micros.text(us as f64);
    let row = |(name, times): (&str, &Percentiles)| {
        let Percentiles {
            p50,
            p90,
            p99,
            p999,
            max,
            ..
        } = *times;
        let mut row = vec![name.to_owned()];
        row.extend([p50, p90, p99, p999, max].map(micros));
        row
    };
    let times = report.times().into_iter();
    let rows: Vec<_> = times
        .filter(|(_, times)| times.samples > 0)
        .map(row)
        .collect();
    write_table(out, &["time", "p50", "p90", "p99", "p99.9", "max"], &rows)
}

fn write_costs(out: &mut String, report: &Report) -> fmt::Result {
    let own = &report.generator;
    let percent = |share: f64| Unit::Percent.text(share);
    let mut rows = Vec::new();
    if let Some(server) = &report.server {
        let name = format!("{} ({})", server.name, server.pid);
        let bytes = Unit::Bytes.text(server.rss_bytes as f64);
        rows.push(vec!["server".to_owned(), name]);
        rows.push(vec![
            format!("server CPU {}", report.cpu_per.words()),
            format!("{} us", figure(server.cpu_us_per_message)),
        ]);
        rows.push(vec!["server memory".to_owned(), bytes]);
    }
    rows.push(vec![
        format!("generator CPU {}", report.cpu_per.words()),
        format!("{} us", figure(own.cpu_us_per_message)),
    ]);
    rows.push(vec!["busiest worker".to_owned(), percent(own.busy)]);
    rows.push(vec!["workers".to_owned(), own.workers.to_string()]);
    let stolen = percent(report.environment.steal_share);
    rows.push(vec!["stolen by the host".to_owned(), stolen]);
    write_table(out, &["cost", ""], &rows)
}

fn write_charts(out: &mut String, report: &Report) -> fmt::Result {
    let series = &report.series;
    write_latency(out, &series.latency_us, series.step_s)?;
    write_curve(out, report)?;
    write_rates(out, &series.samples)
}

fn write_latency(out: &mut String, times: &Times, step_s: u32) -> fmt::Result {
    if times.samples.is_empty() {
        return Ok(());
    }
    let x: Vec<f64> = (0..times.samples.len())
        .map(|step| step as f64 * f64::from(step_s))
        .collect();
    let known = |values: &[u64]| -> Vec<Option<f64>> {
        let pairs = values.iter().zip(&times.samples);
        pairs
            .map(|(us, samples)| (*samples > 0).then_some(*us as f64))
            .collect()
    };
    let lines = [
        ("p50", &times.p50),
        ("p99", &times.p99),
        ("max", &times.max),
    ];
    let all = lines.iter().flat_map(|(_, values)| values.iter());
    Chart {
        title: "Latency over time",
        note: "From the intended time of a message to its arrival, by the second of the arrival.",
        x: Axis::time(x.iter().copied()),
        y: Axis::logarithmic(Unit::Micros, all.map(|us| *us as f64)),
        lines: lines
            .into_iter()
            .map(|(name, values)| Line {
                name,
                values: known(values),
                x: &x,
            })
            .collect(),
    }
    .write(out)
}

fn write_curve(out: &mut String, report: &Report) -> fmt::Result {
    let curve = &report.curve_us;
    let samples = report.latency_us.samples as f64;
    if curve.us.is_empty() {
        return Ok(());
    }
    // The greatest value is above all others, and one of so many.
    let above = |percentile: &f64| (1.0 - percentile / 100.0).max(1.0 / samples.max(10.0));
    let x: Vec<f64> = curve.percentile.iter().map(|p| -above(p).log10()).collect();
    let values = curve.us.iter().map(|us| *us as f64);
    Chart {
        title: "Latency by percentile",
        note: "So many of the messages arrived within this time.",
        x: Axis::nines(samples),
        y: Axis::logarithmic(Unit::Micros, values.clone()),
        lines: vec![Line {
            name: "latency",
            values: values.map(Some).collect(),
            x: &x,
        }],
    }
    .write(out)
}

fn write_rates(out: &mut String, samples: &Rates) -> fmt::Result {
    if samples.at_s.is_empty() {
        return Ok(());
    }
    let all = |values: &[f64]| values.iter().copied().map(Some).collect::<Vec<_>>();
    let whole = |values: &[Option<u64>]| -> Vec<Option<f64>> {
        values.iter().map(|value| value.map(|v| v as f64)).collect()
    };
    let connections = samples
        .connections
        .iter()
        .map(|n| Some(*n as f64))
        .collect();
    let charts = [
        (
            "Throughput",
            "Messages queued for the gateway and arrived, per second, and what went wrong.",
            Unit::PerSecond,
            vec![
                ("sent", all(&samples.sent_per_s)),
                ("delivered", all(&samples.delivered_per_s)),
                ("errors", all(&samples.errors_per_s)),
            ],
        ),
        (
            "CPU",
            "Of one processor; all threads of a process together.",
            Unit::Percent,
            vec![
                ("server", samples.server_cpu.clone()),
                ("generator", samples.generator_cpu.clone()),
            ],
        ),
        (
            "Memory",
            "Resident.",
            Unit::Bytes,
            vec![
                ("server", whole(&samples.server_rss_bytes)),
                ("generator", whole(&samples.generator_rss_bytes)),
            ],
        ),
        (
            "Connections",
            "Logged in.",
            Unit::Count,
            vec![("up", connections)],
        ),
    ];
    for (title, note, unit, mut lines) in charts {
        lines.retain(|(_, values)| values.iter().any(Option::is_some));
        let values = lines.iter().flat_map(|(_, values)| values.iter().flatten());
        let y = Axis::linear(unit, values.copied());
        let x = Axis::time(samples.at_s.iter().copied().map(|s| round(s, 10.0)));
        let lines = lines.into_iter().map(|(name, values)| Line {
            name,
            values,
            x: &samples.at_s,
        });
        Chart {
            title,
            note,
            x,
            y,
            lines: lines.collect(),
        }
        .write(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{seconds::tests::observed, tests::good};

    fn example() -> String {
        let mut measured = good();
        for us in 1..=1_000 {
            measured.latency_us.record(us * 10).expect("within bounds");
        }
        measured.observed = observed();
        measured.observed.environment.steal_share = 0.05;
        measured.counts.lost = 3;
        measured.target = "<script>alert(1)</script>".to_owned();
        let report = Report::new(&measured);
        page(&report, &report.table())
    }

    #[test]
    fn the_page_has_everything_and_asks_nobody() {
        let page = example();
        for part in [
            "<span class=\"fail\">FAIL</span>",
            "accepted but never delivered",
            "the host gave 5.0 %",
            "Latency over time",
            "Latency by percentile",
            "Throughput",
            "CPU",
            "Memory",
            "Connections",
            "prefers-color-scheme: dark",
            "&lt;script&gt;alert(1)",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for outside in [
            "http:",
            "https:",
            "src=",
            "href=",
            "@import",
            "url(",
            "<script>alert",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    /// No parser of HTML here: but what is opened must be closed, in order.
    #[test]
    fn the_page_is_well_formed() {
        let page = example();
        let body = page
            .split("<style>")
            .next()
            .map(str::to_owned)
            .expect("a head")
            + page.split("</style>").nth(1).expect("a body");
        let body = body.replace(SCRIPT, "");
        let mut open = Vec::new();
        for tag in body.split('<').skip(1) {
            let (inside, _) = tag.split_once('>').expect("a tag ends");
            let name = inside.split([' ', '/']).find(|part| !part.is_empty());
            let name = name.expect("a tag has a name");
            if inside.starts_with('!') || inside.ends_with('/') || name == "meta" {
                continue;
            }
            if inside.starts_with('/') {
                assert_eq!(open.pop(), Some(name.to_owned()), "in {inside}");
            } else {
                open.push(name.to_owned());
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn a_run_without_seconds_has_no_empty_charts() {
        let report = Report::new(&good());
        let page = page(&report, "");
        assert!(!page.contains("<figure"));
    }
}
