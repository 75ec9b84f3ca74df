//! The comparison as a table in Markdown, as JSON, and as one page of HTML that needs nothing else.

use super::{
    figures::{Comparison, Summary, SystemSeen},
    rows::{Figure, Row},
};
use anyhow::Result;
use serde_json::{Value, json};
use std::fmt::Write;

fn figures<'a>(rows: &'a [&Row]) -> impl Iterator<Item = &'a Figure> {
    rows.iter().flat_map(|row| row.figures)
}

fn measured(comparison: &Comparison) -> Vec<&SystemSeen> {
    let systems = comparison.systems.iter();
    systems.filter(|system| system.skipped.is_none()).collect()
}

/// Three digits that mean something.
fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn cell(summary: Option<Summary>) -> String {
    let Some(summary) = summary else {
        return "–".to_owned();
    };
    let value = format!("{} ({})", short(summary.median), short(summary.minimum));
    match summary.to_floor {
        Some(ratio) => format!("{value} · {ratio:.2}x"),
        None => value,
    }
}

/// Where and how it was taken, in one sentence.
fn conditions(comparison: &Comparison) -> String {
    let machine = comparison.machine.as_ref();
    let text = |key: &str| {
        let value = machine.and_then(|machine| machine.get(key));
        match value {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => "unknown".to_owned(),
        }
    };
    format!(
        "{} x {}, Linux {}, loopback, {}; servers on processor {}, tester on processor {}; median \
         (minimum) of {} interleaved passes of {} s per row, and the ratio to the floor of the \
         same pass.",
        text("cpus"),
        text("model"),
        text("kernel"),
        date(comparison.unix_s),
        comparison.server_cpu,
        comparison.load_cpu,
        comparison.runs,
        comparison.seconds
    )
}

/// The day in UTC.
fn date(unix_s: u64) -> String {
    let day = unix_s / 86_400;
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut day) = (1970, day);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", day + 1)
}

pub(super) fn markdown(comparison: &Comparison, rows: &[&Row]) -> String {
    let systems = measured(comparison);
    let mut out = format!("{}\n\n|", conditions(comparison));
    for system in &systems {
        // Writing to a String cannot fail.
        let _ = write!(out, " | {} {}", system.name, system.version);
    }
    out += " |\n|---";
    out += &"|---:".repeat(systems.len());
    out += "|\n";
    for figure in figures(rows) {
        let _ = write!(out, "| {}", figure.name);
        for system in &systems {
            let _ = write!(
                out,
                " | {}",
                cell(comparison.summary(figure.name, system.name))
            );
        }
        out += " |\n";
    }
    let skipped = comparison.systems.iter().filter_map(|system| {
        let why = system.skipped.as_ref()?;
        Some(format!("{} ({why})", system.name))
    });
    let skipped: Vec<_> = skipped.collect();
    if !skipped.is_empty() {
        let _ = write!(out, "\nSkipped: {}.\n", skipped.join(", "));
    }
    if !comparison.problems.is_empty() {
        out += "\nProblems:\n";
        for problem in &comparison.problems {
            let _ = writeln!(out, "- {problem}");
        }
    }
    out
}

pub(super) fn json(comparison: &Comparison, rows: &[&Row]) -> Result<String> {
    let systems: Vec<Value> = comparison
        .systems
        .iter()
        .map(|system| {
            json!({"name": system.name, "version": system.version, "skipped": system.skipped})
        })
        .collect();
    let mut figures_json = Vec::new();
    for figure in figures(rows) {
        let mut of_systems = serde_json::Map::new();
        for system in measured(comparison) {
            let Some(summary) = comparison.summary(figure.name, system.name) else {
                continue;
            };
            let readings = comparison.readings(figure.name, system.name);
            let passes: Vec<Value> = readings
                .iter()
                .map(|reading| json!({"pass": reading.pass + 1, "value": reading.value}))
                .collect();
            let value = json!({
                "median": summary.median,
                "minimum": summary.minimum,
                "to_floor": summary.to_floor,
                "passes": passes,
            });
            of_systems.insert(system.name.to_owned(), value);
        }
        figures_json.push(json!({"figure": figure.name, "systems": of_systems}));
    }
    let all = json!({
        "unix_s": comparison.unix_s,
        "runs": comparison.runs,
        "seconds": comparison.seconds,
        "server_cpu": comparison.server_cpu,
        "load_cpu": comparison.load_cpu,
        "machine": comparison.machine,
        "systems": systems,
        "figures": figures_json,
        "problems": comparison.problems,
    });
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;\
padding:0 1rem;color:#1c2430;background:#fff}table{border-collapse:collapse;width:100%}\
th,td{padding:.4rem .6rem;border-bottom:1px solid #d8dee6;text-align:right;vertical-align:top}\
th:first-child,td:first-child{text-align:left}td small{color:#5a6675;display:block}\
td .bar{display:block;height:4px;background:#3b6ea8;margin-top:3px}\
td.best .bar{background:#2c8a57}td.best{font-weight:600}\
@media(prefers-color-scheme:dark){body{color:#dfe5ec;background:#14181d}\
th,td{border-color:#333c47}td small{color:#96a3b1}}";

pub(super) fn html(comparison: &Comparison, rows: &[&Row]) -> String {
    let systems = measured(comparison);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Portico and others</title><style>{STYLE}</style></head><body>\n\
         <h1>Portico and others</h1>\n<p>{}</p>\n<table><tr><th></th>",
        escaped(&conditions(comparison))
    );
    for system in &systems {
        let _ = write!(
            out,
            "<th>{}<br><small>{}</small></th>",
            system.name,
            escaped(&system.version)
        );
    }
    out += "</tr>\n";
    for figure in figures(rows) {
        let summaries: Vec<_> = systems
            .iter()
            .map(|system| (system.name, comparison.summary(figure.name, system.name)))
            .collect();
        let medians = || {
            summaries
                .iter()
                .filter_map(|(_, summary)| Some((*summary)?.median))
        };
        let most = medians().fold(f64::MIN_POSITIVE, f64::max);
        // The floor is no competitor.
        let rivals = summaries.iter().filter(|(name, _)| *name != "floor");
        let best = rivals.filter_map(|(_, summary)| Some((*summary)?.median));
        let best = best.fold(f64::INFINITY, f64::min);
        let _ = write!(out, "<tr><td>{}</td>", escaped(figure.name));
        for (name, summary) in summaries {
            let Some(summary) = summary else {
                out += "<td>–</td>";
                continue;
            };
            let is_best = name != "floor" && summary.median <= best;
            let class = if is_best { " class=\"best\"" } else { "" };
            let ratio = summary
                .to_floor
                .map(|ratio| format!(", {ratio:.2} x floor"));
            let _ = write!(
                out,
                "<td{class}>{}<small>min {}{}</small><span class=\"bar\" \
                 style=\"width:{:.0}%\"></span></td>",
                short(summary.median),
                short(summary.minimum),
                ratio.unwrap_or_default(),
                100.0 * summary.median / most
            );
        }
        out += "</tr>\n";
    }
    out += "</table>\n<p>Less is better in every row.</p>\n";
    let skipped = comparison.systems.iter().filter_map(|system| {
        let why = system.skipped.as_ref()?;
        Some(format!("{} skipped: {why}", system.name))
    });
    let notes: Vec<_> = skipped.chain(comparison.problems.iter().cloned()).collect();
    if !notes.is_empty() {
        out += "<ul>";
        for note in notes {
            let _ = write!(out, "<li>{}</li>", escaped(&note));
        }
        out += "</ul>\n";
    }
    out + "</body></html>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{figures::tests::example, rows::ROWS},
        *,
    };

    fn direct() -> Vec<&'static Row> {
        ROWS.iter().filter(|row| row.name == "direct").collect()
    }

    #[test]
    fn the_table_has_a_column_for_each_that_was_measured() {
        let text = markdown(&example(), &direct());
        for part in [
            "| | floor 0.1.0 | portico 0.1.0 |\n|---|---:|---:|\n",
            "| direct, one per segment, us per message | 4.00 (4.00) | 8.50 (5.00) · 1.38x |\n",
            "Skipped: nats (nats-server is not installed).",
            "- pass 3, portico, direct: \"fail\" [\"1 lost\"]",
            "2 x A & B, Linux 6.18, loopback, 2026-11-18;",
        ] {
            assert!(text.contains(part), "`{part}` in\n{text}");
        }
    }

    #[test]
    fn the_page_needs_nothing_else_and_marks_the_best_rival() {
        let text = html(&example(), &direct());
        assert!(text.contains("A &amp; B"));
        assert!(text.contains("<td class=\"best\">8.50"));
        for foreign in ["http://", "https://", "src=", "<script"] {
            assert!(!text.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn every_reading_is_in_the_json() {
        let text = json(&example(), &direct()).expect("JSON");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        let portico = &value["figures"][0]["systems"]["portico"];
        assert_eq!(portico["passes"].as_array().map(Vec::len), Some(2));
        assert_eq!(portico["to_floor"], 1.375);
        assert_eq!(
            value["systems"][2]["skipped"],
            "nats-server is not installed"
        );
    }

    #[test]
    fn days_are_counted() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(951_782_400), "2000-02-29");
        assert_eq!(date(1_798_761_599), "2026-12-31");
    }
}
