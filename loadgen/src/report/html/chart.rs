//! A chart of lines as SVG, which needs nothing else: colours and fonts are those of the page.
//!
//! The numbers under the pointer are written beforehand, one sentence per place on the x axis;
//! without scripts the chart only lacks those.

use super::{axis::Axis, escape::escaped};
use std::fmt::{self, Write};

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 250.0;
/// Of the plot within the picture.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 508.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 218.0;

#[derive(Clone, Debug)]
pub(super) struct Line<'a> {
    pub name: &'static str,
    /// By x; a gap where nothing is known.
    pub values: Vec<Option<f64>>,
    pub x: &'a [f64],
}

#[derive(Clone, Debug)]
pub(super) struct Chart<'a> {
    pub title: &'static str,
    /// One sentence about what is shown.
    pub note: &'static str,
    pub x: Axis,
    pub y: Axis,
    /// At most four; all have the same x.
    pub lines: Vec<Line<'a>>,
}

impl Chart<'_> {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        let places = self.places();
        writeln!(
            out,
            "<figure data-at=\"{}\" data-say=\"{}\">",
            joined(places.iter().map(|(x, _)| format!("{x:.1}")), " "),
            escaped(&joined(places.iter().map(|(_, text)| text.clone()), "\n")),
        )?;
        writeln!(out, "<figcaption>{}</figcaption>", escaped(self.title))?;
        self.write_legend(out)?;
        writeln!(
            out,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escaped(self.title)
        )?;
        self.write_axes(out)?;
        for (number, line) in self.lines.iter().enumerate() {
            let path = self.path(line);
            writeln!(out, "<path class=\"line l{number}\" d=\"{path}\"/>")?;
        }
        writeln!(
            out,
            "<line class=\"mark\" x1=\"0\" x2=\"0\" y1=\"{TOP}\" y2=\"{BOTTOM}\"/>\n</svg>\n\
             <output>{}</output>\n</figure>",
            escaped(self.note)
        )
    }

    fn write_legend(&self, out: &mut String) -> fmt::Result {
        write!(out, "<p class=\"legend\">")?;
        for (number, line) in self.lines.iter().enumerate() {
            write!(
                out,
                "<span><svg viewBox=\"0 0 24 8\" aria-hidden=\"true\"><path class=\"line \
                 l{number}\" d=\"M1 4H23\"/></svg>{}</span>",
                escaped(line.name)
            )?;
        }
        writeln!(out, "</p>")
    }

    fn write_axes(&self, out: &mut String) -> fmt::Result {
        for tick in &self.y.ticks {
            let y = self.y_at(*tick);
            writeln!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"y\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                escaped(&self.y.label(*tick))
            )?;
        }
        let mut free_from = f64::NEG_INFINITY;
        for tick in &self.x.ticks {
            let (x, label) = (self.x_at(*tick), self.x.label(*tick));
            writeln!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{BOTTOM}\"/>"
            )?;
            // A label that would touch the one before is left out.
            let half = label.chars().count() as f64 * 3.6;
            if x - half < free_from {
                continue;
            }
            free_from = x + half + 4.0;
            let anchor = if x + half > WIDTH { " end" } else { "" };
            writeln!(
                out,
                "<text class=\"x{anchor}\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                BOTTOM + 18.0,
                escaped(&label)
            )?;
        }
        writeln!(
            out,
            "<path class=\"axis\" d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\"/>"
        )
    }

    /// Broken where nothing is known; a value between two gaps is a dot.
    fn path(&self, line: &Line<'_>) -> String {
        let mut path = String::new();
        let mut is_drawing = false;
        for (x, value) in line.x.iter().zip(&line.values) {
            let Some(value) = value else {
                is_drawing = false;
                continue;
            };
            let (x, y) = (self.x_at(*x), self.y_at(*value));
            // Writing to a String cannot fail.
            let _ = if is_drawing {
                write!(path, "L{x:.1} {y:.1}")
            } else {
                write!(path, "M{x:.1} {y:.1}h0")
            };
            is_drawing = true;
        }
        path
    }

    /// Where the pointer finds something, and what.
    fn places(&self) -> Vec<(f64, String)> {
        let Some(first) = self.lines.first() else {
            return Vec::new();
        };
        let sentence = |at: usize, x: f64| {
            let mut text = format!("{}: ", self.x.label(x));
            let values = self.lines.iter().map(|line| {
                let value = line.values.get(at).copied().flatten();
                let value = value.map_or_else(|| "-".to_owned(), |value| self.y.unit.text(value));
                format!("{} {value}", line.name)
            });
            text.push_str(&joined(values, ", "));
            text
        };
        let x = first.x.iter().enumerate();
        x.map(|(at, x)| (self.x_at(*x), sentence(at, *x))).collect()
    }

    fn x_at(&self, value: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * self.x.place(value)
    }

    fn y_at(&self, value: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * self.y.place(value)
    }
}

fn joined(parts: impl Iterator<Item = String>, separator: &str) -> String {
    let mut text = String::new();
    for (at, part) in parts.enumerate() {
        if at > 0 {
            text.push_str(separator);
        }
        text.push_str(&part);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::axis::Unit, *};

    fn svg(values: Vec<Option<f64>>) -> String {
        let x: Vec<f64> = (0..values.len()).map(|n| n as f64).collect();
        let chart = Chart {
            title: "a < b",
            note: "a note",
            x: Axis::time([0.0, 4.0].into_iter()),
            y: Axis::linear(Unit::Count, [100.0].into_iter()),
            lines: vec![Line {
                name: "n",
                values,
                x: &x,
            }],
        };
        let mut out = String::new();
        chart.write(&mut out).expect("a String");
        out
    }

    #[test]
    fn values_stand_where_the_axes_say() {
        let svg = svg(vec![Some(0.0), Some(50.0), None, Some(100.0), Some(100.0)]);
        // 0 at the bottom left, half way up after a quarter, a gap, then the top.
        assert!(
            svg.contains("d=\"M62.0 218.0h0L173.5 115.0M396.5 12.0h0L508.0 12.0\""),
            "{svg}"
        );
        assert!(
            svg.contains("<text class=\"y\" x=\"56.0\" y=\"16.0\">100</text>"),
            "{svg}"
        );
        assert!(svg.contains("y=\"236.0\">4 s</text>"), "{svg}");
        assert!(svg.contains("1 s: n 50\n2 s: n -\n3 s: n 100"), "{svg}");
        assert!(svg.contains("a &lt; b") && !svg.contains("a < b"));
    }

    #[test]
    fn labels_do_not_touch_each_other() {
        let x = [0.0, 3.0];
        let chart = Chart {
            title: "",
            note: "",
            x: Axis::nines(1e9),
            y: Axis::linear(Unit::Count, [1.0].into_iter()),
            lines: vec![Line {
                name: "n",
                values: vec![Some(1.0); 2],
                x: &x,
            }],
        };
        let mut out = String::new();
        chart.write(&mut out).expect("a String");
        let mut end = f64::NEG_INFINITY;
        let mut labels = 0;
        for part in out.split("<text class=\"x").skip(1) {
            let number = part
                .split("x=\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            let x: f64 = number.expect("an x").parse().expect("a number");
            let text = part
                .split('>')
                .nth(1)
                .and_then(|rest| rest.split('<').next());
            let half = text.expect("a label").chars().count() as f64 * 3.5;
            assert!(x - half >= end, "{part}");
            end = x + half;
            labels += 1;
        }
        assert!(labels >= 4);
    }
}
