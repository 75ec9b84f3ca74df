//! The admin port, asked with the least of HTTP that works.

use super::PATIENCE;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

/// An answer.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// GET. `None` if nobody answers.
pub(crate) fn get(admin: SocketAddr, path: &str) -> Option<Page> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: portico\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    assert!(!head.to_lowercase().contains("chunked"), "{head}");
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Page {
        status,
        body: body.to_owned(),
    })
}

/// The numbers of /metrics.
#[derive(Debug)]
pub(crate) struct Metrics(Vec<(String, String, f64)>);

impl Metrics {
    pub(crate) fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            samples
                .map(|line| {
                    let (series, value) = line.rsplit_once(' ').expect("name and value");
                    let (name, labels) = split(series);
                    let value = value.parse().expect("a number");
                    (name.to_owned(), labels.to_owned(), value)
                })
                .collect(),
        )
    }

    /// The sum of the samples of `series`, written as `name` or `name{label="value"}`; samples may
    /// have more labels. A series that does not exist is a mistake in the test.
    pub(crate) fn get(&self, series: &str) -> u64 {
        let (name, label) = split(series);
        let mut found = self
            .0
            .iter()
            .filter(|sample| sample.0 == name && sample.1.contains(label))
            .map(|sample| sample.2)
            .peekable();
        assert!(found.peek().is_some(), "no metric {series}");
        found.sum::<f64>() as u64
    }
}

fn split(series: &str) -> (&str, &str) {
    match series.split_once('{') {
        Some((name, labels)) => (name, labels.trim_end_matches('}')),
        None => (series, ""),
    }
}
