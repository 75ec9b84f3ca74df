//! The default configuration file, with everything there is to know about each setting.

use super::{KNOBS, Settings};
use std::fmt::Write as _;

const WIDTH: usize = 98;

/// A complete file with every setting at its default.
pub(crate) fn default_file() -> String {
    let mut settings = Settings::default();
    let mut out = String::new();
    comment(
        &mut out,
        "Portico's settings, each at its default. A file needs only what differs. Order of \
         precedence: these defaults, the file (--config or PORTICO_CONFIG), environment \
         variables, flags. The variable of a setting is PORTICO_ and its section and name in \
         upper case joined by _; the section server is left out: PORTICO_LISTEN, \
         PORTICO_LIMITS_REQUESTS_MAX.",
    );
    let mut section = "";
    for knob in KNOBS {
        if knob.section() != section {
            section = knob.section();
            let _ = write!(out, "\n[{section}]\n");
        }
        let slot = (knob.slot)(&mut settings);
        out.push('\n');
        comment(&mut out, knob.about);
        comment(
            &mut out,
            &format!("Allowed: {}.", slot.allowed(knob.bounds)),
        );
        let _ = writeln!(out, "{} = {}", knob.name(), slot.show());
    }
    out
}

/// The settings as the table of the operator's manual.
#[cfg(test)]
pub(super) fn markdown_table() -> String {
    let mut settings = Settings::default();
    let mut out =
        String::from("| setting | default | allowed | what and why |\n|---|---|---|---|\n");
    for knob in KNOBS {
        let slot = (knob.slot)(&mut settings);
        let (key, about) = (knob.key, knob.about);
        let (default, allowed) = (slot.show(), slot.allowed(knob.bounds));
        let _ = writeln!(out, "| `{key}` | `{default}` | {allowed} | {about} |");
    }
    out
}

/// Writes a text as comment lines of at most [`WIDTH`] characters.
fn comment(out: &mut String, text: &str) {
    let mut width = 0;
    for word in text.split_whitespace() {
        if width == 0 {
            out.push('#');
            width = 1;
        } else if width + 1 + word.len() > WIDTH {
            out.push_str("\n#");
            width = 1;
        }
        out.push(' ');
        out.push_str(word);
        width += 1 + word.len();
    }
    out.push('\n');
}
