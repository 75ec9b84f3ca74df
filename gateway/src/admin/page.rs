//! The metrics page, in the text format of Prometheus.
//!
//! Counters of shards are summed; levels, and the counters that show whether load is spread
//! evenly, carry the label `shard`. No label ever holds a user or a connection.

use super::{COMMIT, VERSION};
use crate::telemetry::Process;
use portico_gateway::{
    KeyStats, Metric, MetricKind,
    backend::{Health, Stats, stats::COMMIT_BOUNDS_US},
};
use std::fmt::{Display, Write as _};

/// Counters that are shown per shard.
const PER_SHARD: [&str; 4] = [
    "portico_frames_received_total",
    "portico_sends_total",
    "portico_shard_turns_total",
    "portico_shard_parks_total",
];

/// Everything a page tells.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) shards: Vec<Vec<Metric>>,
    pub(crate) store: Option<StoreView>,
    pub(crate) tls: Option<TlsView>,
    pub(crate) keys: Option<KeyStats>,
    pub(crate) ready: bool,
    pub(crate) process: Process,
}

/// A store as it is seen here.
#[derive(Debug)]
pub(crate) struct StoreView {
    pub(crate) name: &'static str,
    pub(crate) health: Health,
    pub(crate) stats: Stats,
    pub(crate) rows_damaged: u64,
}

/// The files of TLS as they are seen here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsView {
    /// 0: the dates cannot be read.
    pub(crate) expires_unix_s: u64,
    pub(crate) reloaded: u64,
    pub(crate) failed: u64,
}

/// Renders a page.
pub(crate) fn page(observed: &Observed) -> String {
    let mut out = Writer::default();
    program(&mut out, observed);
    shards(&mut out, &observed.shards);
    if let Some(view) = &observed.store {
        store(&mut out, view);
    }
    if let Some(view) = &observed.tls {
        tls(&mut out, view);
    }
    if let Some(stats) = &observed.keys {
        keys(&mut out, stats);
    }
    process(&mut out, &observed.process);
    out.text
}

/// Name, type, labels and meaning of every metric, one a line: what `portico metrics` prints.
pub(crate) fn table() -> String {
    let page = page(&Observed {
        shards: vec![portico_gateway::metric_table()],
        store: Some(StoreView {
            name: "embedded",
            health: Health::Up,
            stats: Stats::default(),
            rows_damaged: 0,
        }),
        tls: Some(TlsView {
            expires_unix_s: 0,
            reloaded: 0,
            failed: 0,
        }),
        keys: Some(KeyStats {
            age_s: Some(0),
            ..KeyStats::default()
        }),
        ready: true,
        process: Process::default(),
    });
    let mut rows: Vec<(String, Vec<&str>)> = Vec::new();
    let (mut help, mut kind) = ("", "");
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, word) = rest.split_once(' ').unwrap_or((rest, ""));
            kind = word;
            rows.push((format!("{name} ({kind}) {help}"), Vec::new()));
        } else if let Some((_, labels)) = variable_labels(line, kind)
            && let Some((_, all)) = rows.last_mut()
        {
            all.push(labels);
        }
    }
    let mut out = String::new();
    for (row, labels) in rows {
        let _ = writeln!(out, "{row}");
        for label in labels {
            let _ = writeln!(out, "    {label}");
        }
    }
    out
}

/// The labels that tell series of one name apart, without those of every build or bucket.
fn variable_labels<'a>(line: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    let (name, rest) = line.split_once('{')?;
    let (labels, _) = rest.rsplit_once('}')?;
    (kind != "histogram" && name != "portico_build_info").then_some((name, labels))
}

fn program(out: &mut Writer, observed: &Observed) {
    out.head(
        "portico_build_info",
        "gauge",
        "Always 1; the build is in the labels.",
    );
    let labels = format!("version=\"{VERSION}\",commit=\"{COMMIT}\"");
    out.sample("portico_build_info", &labels, 1);
    out.gauge(
        "portico_ready",
        "1 when new clients are welcome, as /readyz says.",
        u8::from(observed.ready),
    );
    out.gauge(
        "portico_shards",
        "Shards of this process.",
        observed.shards.len(),
    );
}

/// All shards publish the same metrics in the same order, and those of one name stand together.
fn shards(out: &mut Writer, shards: &[Vec<Metric>]) {
    let Some(first) = shards.first() else {
        return;
    };
    let mut told = "";
    for (place, metric) in first.iter().enumerate() {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        if metric.name != told {
            told = metric.name;
            out.head(metric.name, kind, metric.help);
        }
        let values = shards
            .iter()
            .map(|shard| shard.get(place).map_or(0, |metric| metric.value));
        if metric.kind == MetricKind::Gauge || PER_SHARD.contains(&metric.name) {
            let comma = if metric.labels.is_empty() { "" } else { "," };
            for (shard, value) in values.enumerate() {
                let labels = format!("{}{comma}shard=\"{shard}\"", metric.labels);
                out.sample(metric.name, &labels, value);
            }
        } else {
            // Wraps as the counters themselves do; scrapers take that for a restart.
            let sum = values.fold(0_u64, u64::wrapping_add);
            out.sample(metric.name, metric.labels, sum);
        }
    }
}

fn store(out: &mut Writer, view: &StoreView) {
    let stats = &view.stats;
    out.head(
        "portico_store_up",
        "gauge",
        "1 while the store takes writes.",
    );
    let up = u8::from(!matches!(view.health, Health::Down(_)));
    out.sample(
        "portico_store_up",
        &format!("backend=\"{}\"", view.name),
        up,
    );
    out.gauge(
        "portico_store_degraded",
        "1 while the store works and somebody should look; /readyz has the reason.",
        u8::from(matches!(view.health, Health::Degraded(_))),
    );
    for (name, help, value) in [
        (
            "portico_store_writes_total",
            "Writes that succeeded.",
            stats.writes,
        ),
        (
            "portico_store_messages_total",
            "What they were worth in messages.",
            stats.messages,
        ),
        (
            "portico_store_bytes_total",
            "Bytes of those writes.",
            stats.bytes,
        ),
        (
            "portico_store_reads_total",
            "Reads that succeeded.",
            stats.reads,
        ),
        (
            "portico_store_failed_total",
            "Commands answered with an error.",
            stats.failed,
        ),
        (
            "portico_store_expired_total",
            "Of them, commands whose deadline passed before their turn.",
            stats.expired,
        ),
        (
            "portico_store_rejected_total",
            "Batches given back for lack of room.",
            stats.rejected,
        ),
        (
            "portico_store_rows_damaged_total",
            "Damaged rows met by reads, each time. Above 0: look at the disk.",
            view.rows_damaged,
        ),
    ] {
        out.counter(name, help, value);
    }
    out.counter(
        "portico_store_read_seconds_total",
        "Time spent in reads.",
        seconds(stats.read_us_sum),
    );
    for (name, help, value) in [
        (
            "portico_store_writes_queued",
            "Writes taken and not answered.",
            stats.writes_in_flight,
        ),
        (
            "portico_store_reads_queued",
            "Reads taken and not answered.",
            stats.reads_in_flight,
        ),
        (
            "portico_store_bytes_queued",
            "Bytes of the writes among them.",
            stats.bytes_in_flight,
        ),
    ] {
        out.gauge(name, help, value);
    }
    out.gauge(
        "portico_store_commit_seconds_max",
        "The longest commit since the start.",
        seconds(stats.commit_us_max),
    );
    commits(out, stats);
}

fn tls(out: &mut Writer, view: &TlsView) {
    let ends_s = i64::try_from(view.expires_unix_s).unwrap_or(i64::MAX);
    let now_s = std::time::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default()
        .as_secs();
    out.gauge(
        "portico_tls_certificate_expiry_seconds",
        "Seconds until the certificate in use ends; below 0 when it has.",
        ends_s.saturating_sub_unsigned(now_s),
    );
    let name = "portico_tls_reloads_total";
    out.head(
        name,
        "counter",
        "Times the files of TLS were read again, by whether they came into use.",
    );
    out.sample(name, "result=\"used\"", view.reloaded);
    out.sample(name, "result=\"failed\"", view.failed);
}

fn keys(out: &mut Writer, stats: &KeyStats) {
    out.gauge(
        "portico_token_keys",
        "Keys that access tokens are checked with.",
        stats.keys,
    );
    let name = "portico_token_keys_read_total";
    out.head(
        name,
        "counter",
        "Times the keys were read anew, from files or from the issuer's address.",
    );
    for (labels, all, failed) in [
        ("files", stats.reloads, stats.reloads_failed),
        ("url", stats.fetches, stats.fetches_failed),
    ] {
        let good = all.saturating_sub(failed);
        out.sample(name, &format!("source=\"{labels}\",result=\"good\""), good);
        out.sample(
            name,
            &format!("source=\"{labels}\",result=\"failed\""),
            failed,
        );
    }
    if let Some(age_s) = stats.age_s {
        out.gauge(
            "portico_token_keys_age_seconds",
            "Time since the issuer's address last gave a good set of keys.",
            age_s,
        );
    }
}

fn commits(out: &mut Writer, stats: &Stats) {
    let name = "portico_store_commit_seconds";
    out.head(
        name,
        "histogram",
        "Durable steps, each of one or more writes.",
    );
    let mut count = 0_u64;
    let bounds = COMMIT_BOUNDS_US.iter().map(Some).chain([None]);
    for (bound, bucket) in bounds.zip(stats.commit_us_buckets) {
        count = count.wrapping_add(bucket);
        let le = bound.map_or_else(|| "+Inf".to_owned(), |us| seconds(*us).to_string());
        out.sample(&format!("{name}_bucket"), &format!("le=\"{le}\""), count);
    }
    out.sample(&format!("{name}_sum"), "", seconds(stats.commit_us_sum));
    out.sample(&format!("{name}_count"), "", count);
}

fn process(out: &mut Writer, process: &Process) {
    out.counter(
        "portico_process_cpu_seconds_total",
        "CPU time of the process, kernel included.",
        process.cpu_s,
    );
    for (name, help, value) in [
        (
            "portico_process_resident_bytes",
            "Memory of the process that is in RAM. Sockets are the kernel's and not in it.",
            process.resident_bytes,
        ),
        (
            "portico_process_open_files",
            "Descriptors of the process. Clients' sockets are not among them.",
            process.open_files,
        ),
        (
            "portico_process_open_files_max",
            "Their limit.",
            process.open_files_max,
        ),
        (
            "portico_process_threads",
            "Threads of the process.",
            process.threads,
        ),
    ] {
        out.gauge(name, help, value);
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[derive(Default)]
struct Writer {
    text: String,
}

impl Writer {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = if labels.is_empty() {
            writeln!(self.text, "{name} {value}")
        } else {
            writeln!(self.text, "{name}{{{labels}}} {value}")
        };
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "counter", help);
        self.sample(name, "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.sample(name, "", value);
    }
}
