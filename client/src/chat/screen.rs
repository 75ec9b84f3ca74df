//! What is printed, and how foreign text is made harmless.
//!
//! A message can hold anything: control sequences that repaint the terminal, move the cursor over
//! another message, set the clipboard; marks that reverse the order of what follows. None of these
//! is passed on.

use std::io::{self, Write};

/// Characters of one message that are printed.
const TEXT_CHARS_MAX: usize = 4_000;

const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// Lines on a terminal, in a pipe or in a test.
#[derive(Debug)]
pub(super) struct Screen<W> {
    out: W,
    color: bool,
    /// Days since 1970 of the last line with a time.
    day: Option<u64>,
}

impl<W: Write> Screen<W> {
    pub(super) const fn new(out: W, color: bool) -> Self {
        Self {
            out,
            color,
            day: None,
        }
    }

    /// A message with the time of its acceptance.
    pub(super) fn message(&mut self, at_us: u64, name: &str, text: &str) -> io::Result<()> {
        let time = self.time(at_us)?;
        let (name, text) = (harmless(name), harmless(text));
        let (bold, plain) = (self.style(BOLD), self.style(PLAIN));
        writeln!(self.out, "{time} {bold}{name}:{plain} {text}")?;
        self.out.flush()
    }

    /// A mark behind an own message.
    pub(super) fn mark(&mut self, at_us: u64, mark: &str, excerpt: &str) -> io::Result<()> {
        let time = self.time(at_us)?;
        let excerpt = harmless(excerpt);
        let (dim, plain) = (self.style(DIM), self.style(PLAIN));
        writeln!(self.out, "{dim}{time}   {mark} {excerpt}{plain}")?;
        self.out.flush()
    }

    /// Something about the chat itself.
    pub(super) fn notice(&mut self, text: &str) -> io::Result<()> {
        let text = harmless(text);
        let (dim, plain) = (self.style(DIM), self.style(PLAIN));
        writeln!(self.out, "{dim}-- {text}{plain}")?;
        self.out.flush()
    }

    /// The time of day; a new day is announced first.
    fn time(&mut self, at_us: u64) -> io::Result<String> {
        let seconds = at_us / 1_000_000;
        let day = seconds / 86_400;
        if self.day != Some(day) {
            self.day = Some(day);
            let (year, month, day) = date(day);
            self.notice(&format!("{year}-{month:02}-{day:02}, times in UTC"))?;
        }
        let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
        Ok(format!("{hour:02}:{minute:02}:{second:02}"))
    }

    const fn style(&self, sequence: &'static str) -> &'static str {
        if self.color { sequence } else { "" }
    }
}

/// Year, month and day of a day since 1970 in the Gregorian calendar, counted from years that begin
/// in March, so that the leap day comes last.
const fn date(day: u64) -> (u64, u64, u64) {
    // From 0000-03-01 to 1970-01-01; 400 years have 146,097 days.
    let day = day + 719_468;
    let era = day / 146_097;
    let of_era = day % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + (month <= 2) as u64;
    (year, month, day_of_month)
}

/// One printable line: control characters become their pictures, what changes the direction or the
/// place of other text becomes a replacement character, and the rest is cut off.
pub(super) fn harmless(text: &str) -> String {
    let mut chars = text.chars();
    let mut line: String = chars
        .by_ref()
        .take(TEXT_CHARS_MAX)
        .map(|char| match char {
            '\t' => ' ',
            '\0'..='\x1f' => char::from_u32(0x2400 + char as u32).unwrap_or('\u{fffd}'),
            '\x7f' => '\u{2421}',
            '\u{80}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}' => '\u{fffd}',
            _ => char,
        })
        .collect();
    let more = chars.count();
    if more > 0 {
        line.push_str(&format!("… ({more} characters more)"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(print: impl FnOnce(&mut Screen<&mut Vec<u8>>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        print(&mut Screen::new(&mut out, false)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn no_text_can_carry_a_control_character() {
        for code in (0..0x20).chain(0x7f..0xa0) {
            let hostile = format!("a{}b", char::from_u32(code).unwrap());
            let shown = harmless(&hostile);
            assert!(!shown.chars().any(char::is_control), "{code:x}");
            assert!(shown.starts_with('a') && shown.ends_with('b'));
        }
        assert_eq!(harmless("\x1b]52;c;AA\x07"), "␛]52;c;AA␇");
        assert_eq!(harmless("one\r\ntwo"), "one␍␊two");
        assert_eq!(harmless("\u{202e}evil"), "\u{fffd}evil");
        assert_eq!(harmless("Grüße 🙂"), "Grüße 🙂");
    }

    #[test]
    fn long_texts_are_cut() {
        let shown = harmless(&"x".repeat(TEXT_CHARS_MAX + 7));
        assert!(shown.ends_with("x… (7 characters more)"));
    }

    #[test]
    fn days_and_times() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(20_782), (2026, 11, 25));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
        let text = printed(|screen| {
            screen.message(1_795_575_600_000_000, "user 2", "hello")?;
            screen.mark(1_795_575_661_000_000, "✓", "hi")
        });
        assert_eq!(
            text,
            "-- 2026-11-25, times in UTC\n03:00:00 user 2: hello\n03:01:01   ✓ hi\n"
        );
    }

    #[test]
    fn colours_only_on_demand() {
        let mut out = Vec::new();
        Screen::new(&mut out, true).notice("x").unwrap();
        assert_eq!(out, b"\x1b[2m-- x\x1b[0m\n");
        assert_eq!(printed(|screen| screen.notice("x")), "-- x\n");
    }
}
