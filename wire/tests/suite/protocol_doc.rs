//! docs/PROTOCOL.md says what the tables of this crate say: every operation with its direction,
//! header and body; every code; every frame of the worked example, byte for byte.

use crate::{hex, in_repository, samples};
use portico_wire::{
    CloseCode, ErrorCode, Op, fb,
    op::{Direction, Header},
};
use std::{collections::BTreeMap, fs};

fn document() -> String {
    fs::read_to_string(in_repository("docs/PROTOCOL.md")).expect("the document is committed")
}

/// The text of the section whose heading starts with `## number.`.
fn section(document: &str, number: u32) -> &str {
    let start = document.find(&format!("\n## {number}. "));
    let text = &document[start.expect("the section exists") + 1..];
    text.find("\n## ").map_or(text, |end| &text[..end])
}

/// The cells of every table row that begins with a number.
fn numbered_rows(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'))
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells[0].parse::<u32>().is_ok())
        .collect()
}

#[test]
fn every_operation_has_its_row() {
    let document = document();
    let rows = numbered_rows(section(&document, 4));
    let found: Vec<_> = rows.iter().map(|row| row[..5].join(" ")).collect();
    let expected: Vec<_> = Op::ALL.iter().map(|op| row(*op)).collect();
    assert_eq!(found, expected);
    for row in rows {
        let served = ["yes", "no", "DIRECT"].contains(&row[6]);
        assert!(served && row.len() == 8, "{row:?}");
    }
}

fn row(op: Op) -> String {
    let direction = match op.direction() {
        Direction::ToServer => "C>S",
        Direction::ToClient => "S>C",
        Direction::Both => "both",
    };
    let header = match op.header() {
        Header::Base => "B",
        Header::Seq => "S",
        Header::Route => "R",
    };
    let body = op.body_table().unwrap_or("-");
    format!("{} {} {direction} {header} {body}", op as u8, op.name())
}

#[test]
fn every_code_has_its_row() {
    let document = document();
    let found = |number| {
        let rows = numbered_rows(section(&document, number));
        let row = |row: Vec<&str>| (row[0].to_owned(), row[1].to_owned());
        rows.into_iter().map(row).collect::<Vec<_>>()
    };
    let name = |name: Option<&str>| name.expect("a known code").to_owned();
    let errors = ErrorCode::ALL
        .iter()
        .filter(|code| **code != ErrorCode::NONE);
    let errors: Vec<_> = errors
        .map(|code| (code.0.to_string(), name(code.name())))
        .collect();
    assert_eq!(found(12), errors);
    let closes: Vec<_> = CloseCode::ALL
        .iter()
        .map(|code| (code.0.to_string(), name(code.name())))
        .collect();
    assert_eq!(found(13), closes);
}

#[test]
fn every_flag_has_its_row() {
    let document = document();
    let text = section(&document, 2);
    for (name, flag) in fb::FrameFlags::all().iter_names() {
        let row = format!("| {name} | {} |", flag.bits());
        assert!(text.contains(&row), "no row {row}");
    }
}

/// The blocks marked `hex`: a name, then bytes; blanks and what follows a semicolon do not count.
fn example_blocks(document: &str) -> BTreeMap<String, String> {
    let mut blocks = BTreeMap::new();
    for block in document.split("```hex\n").skip(1) {
        let block = block.split("```").next().unwrap_or_default();
        let (name, lines) = block.split_once('\n').expect("a name, then bytes");
        let digits: String = lines
            .lines()
            .filter_map(|line| line.split(';').next())
            .flat_map(str::chars)
            .filter(|c| !c.is_whitespace())
            .collect();
        let before = blocks.insert(name.to_owned(), digits);
        assert_eq!(before, None, "{name} is shown twice");
    }
    blocks
}

#[test]
fn the_worked_example_shows_the_golden_bytes() {
    let shown = example_blocks(&document());
    let golden: BTreeMap<_, _> = samples::example()
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), hex(&bytes)))
        .collect();
    for (name, bytes) in &golden {
        assert_eq!(shown.get(name), Some(bytes), "{name}");
    }
    assert_eq!(shown.len(), golden.len());
}

/// The example also says in words which UUID it shows.
#[test]
fn the_worked_example_names_its_message() {
    let example = samples::example();
    let (_, bytes) = example
        .iter()
        .find(|(name, _)| *name == "alice > SEND")
        .expect("the example sends");
    let frame = portico_wire::next_frame(bytes, 4_096).expect("valid");
    let route = frame.and_then(|frame| frame.route()).expect("routed");
    let id = route.msg_id.to_string();
    assert_eq!(document().matches(&id).count(), 2, "{id}");
}
