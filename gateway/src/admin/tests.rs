//! The admin port over real sockets, and the metrics page as text.

use super::{limited::Limited, *};
use portico_gateway::{
    MetricKind,
    backend::{Health, Stats},
};
use std::{
    collections::{HashMap, HashSet},
    io::{Read, Write},
    net::TcpStream,
    sync::Mutex,
    time::{Duration, Instant},
};

/// Something to look at, with two shards and a store.
struct Stage {
    readiness: Mutex<Readiness>,
    health: Mutex<Health>,
}

impl Stage {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            readiness: Mutex::new(Readiness::yes(None)),
            health: Mutex::new(Health::Up),
        })
    }
}

fn metric(name: &'static str, labels: &'static str, kind: MetricKind, value: u64) -> Metric {
    Metric {
        name,
        labels,
        help: "Help.",
        kind,
        value,
    }
}

impl Subject for Stage {
    fn shards(&self) -> Vec<Vec<Metric>> {
        use MetricKind::{Counter, Gauge};
        [1_u64, 10]
            .map(|value| {
                vec![
                    metric("portico_sends_total", "", Counter, value),
                    metric("portico_a_total", "reason=\"x\"", Counter, value),
                    metric("portico_a_total", "reason=\"y\"", Counter, 2 * value),
                    metric("portico_b", "", Gauge, value),
                ]
            })
            .to_vec()
    }

    fn tls(&self) -> Option<TlsView> {
        Some(TlsView {
            expires_unix_s: 1_000,
            reloaded: 2,
            failed: 1,
        })
    }

    fn store(&self) -> Option<StoreView> {
        let mut stats = Stats {
            commit_us_sum: 1_500_000,
            ..Stats::default()
        };
        stats.commit_us_buckets[0] = 3;
        stats.commit_us_buckets[2] = 2;
        stats.commit_us_buckets[15] = 1;
        Some(StoreView {
            name: "stage",
            health: self.health.lock().unwrap().clone(),
            stats,
            rows_damaged: 0,
        })
    }

    fn keys(&self) -> Option<KeyStats> {
        Some(KeyStats::default())
    }

    fn grant(&self, wish: &Wish<'_>) -> Result<String, Denial> {
        match wish.authorization {
            "good" => Ok(format!("{} {:?} {}", wish.user, wish.device, wish.request)),
            "late" => Err(Denial::NotNow("the store is away".to_owned())),
            _ => Err(Denial::Unauthorised),
        }
    }

    fn readiness(&self) -> Readiness {
        self.readiness.lock().unwrap().clone()
    }
}

fn free() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// One request on a connection of its own: status line, headers, body.
fn get(address: SocketAddr, request: &str) -> (String, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    write!(stream, "{request}\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let (status, headers) = head.split_once("\r\n").unwrap();
    (status.to_owned(), headers.to_lowercase(), body.to_owned())
}

#[test]
fn the_four_pages_answer() {
    let stage = Stage::new();
    let address = start(free(), stage.clone()).unwrap();
    let ok = "HTTP/1.1 200 OK";

    let (status, _, body) = get(address, "GET /healthz HTTP/1.1");
    assert_eq!((status.as_str(), body.as_str()), (ok, "ok\n"));

    let (status, _, body) = get(address, "GET /readyz HTTP/1.1");
    assert_eq!((status.as_str(), body.as_str()), (ok, "ready\n"));

    let (status, headers, body) = get(address, "GET /version HTTP/1.1");
    assert_eq!(status, ok);
    assert!(headers.contains("content-type: application/json"));
    let parsed: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(parsed["version"], VERSION);
    assert_eq!(parsed["protocol"], portico_wire::VERSION);

    let (status, headers, body) = get(address, "GET /metrics HTTP/1.1");
    assert_eq!(status, ok);
    assert!(headers.contains("content-type: text/plain; version=0.0.4"));
    assert!(body.contains("\nportico_ready 1\n"));
    assert!(body.contains("\nportico_shards 2\n"));

    let (status, _, _) = get(address, "GET /other HTTP/1.1");
    assert_eq!(status, "HTTP/1.1 404 Not Found");
    let (status, _, _) = get(address, "POST /metrics HTTP/1.1");
    assert_eq!(status, "HTTP/1.1 405 Method Not Allowed");
}

#[test]
fn a_wish_is_granted_to_who_may_have_it() {
    let address = start(free(), Stage::new()).unwrap();
    let post = |query: &str, who: &str| {
        let request = format!("POST /devices/revoke{query} HTTP/1.1\r\nAuthorization: {who}");
        let (status, _, body) = get(address, &request);
        (status.split(' ').nth(1).unwrap().to_owned(), body)
    };
    let granted = post("?user=7&device=3", "good");
    let body = "7 Some(3) POST /devices/revoke?user=7&device=3".to_owned();
    assert_eq!(granted, ("200".to_owned(), body));
    assert_eq!(
        post("?user=7", "good").1,
        "7 None POST /devices/revoke?user=7"
    );
    assert_eq!(post("?user=7", "bad").0, "401");
    assert_eq!(post("?user=7&device=0", "good").0, "400");
    assert_eq!(post("", "good").0, "400");
    let late = ("503".to_owned(), "the store is away\n".to_owned());
    assert_eq!(post("?user=7", "late"), late);
    let (status, _, _) = get(address, "POST /devices/revoke?user=7 HTTP/1.1");
    assert_eq!(status, "HTTP/1.1 401 Unauthorized");
    let (status, _, _) = get(address, "GET /devices/revoke?user=7 HTTP/1.1");
    assert_eq!(status, "HTTP/1.1 405 Method Not Allowed");
}

#[test]
fn readiness_tells_its_reasons_while_the_process_is_healthy() {
    let stage = Stage::new();
    let address = start(free(), stage.clone()).unwrap();
    *stage.readiness.lock().unwrap() = Readiness::no("store: full");
    let (status, _, body) = get(address, "GET /readyz HTTP/1.1");
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(body, "store: full\n");
    let (status, _, _) = get(address, "GET /healthz HTTP/1.1");
    assert_eq!(status, "HTTP/1.1 200 OK");
    let (_, _, body) = get(address, "GET /metrics HTTP/1.1");
    assert!(body.contains("\nportico_ready 0\n"));
    *stage.readiness.lock().unwrap() = Readiness::yes(Some("store: slow".to_owned()));
    let (status, _, body) = get(address, "GET /readyz HTTP/1.1");
    assert_eq!(
        (status.as_str(), body.as_str()),
        ("HTTP/1.1 200 OK", "ready\nstore: slow\n")
    );
}

#[test]
fn a_port_in_use_is_an_error_of_the_start() {
    let stage = Stage::new();
    let address = start(free(), stage.clone()).unwrap();
    let error = start(address, stage).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn few_connections_are_served_and_none_for_long() {
    let listener = TcpListener::bind(free()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    thread::spawn(move || {
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let limited = Limited::with(listener, 2, Duration::from_millis(300));
            axum::serve(limited, router(Stage::new())).await
        })
    });
    // Both seats are taken by clients that say nothing; a third one is served when they are gone.
    let silent = [0; 2].map(|_| TcpStream::connect(address).unwrap());
    let start = Instant::now();
    let (status, _, _) = get(address, "GET /healthz HTTP/1.1");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(
        start.elapsed() >= Duration::from_millis(200),
        "{:?}",
        start.elapsed()
    );
    for mut stream in silent {
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
    }
}

fn observe(stage: &Stage) -> Observed {
    Observed {
        shards: stage.shards(),
        keys: None,
        store: stage.store(),
        tls: stage.tls(),
        ready: true,
        process: Process::default(),
    }
}

#[test]
fn counters_are_summed_and_levels_are_shown_per_shard() {
    let page = page(&observe(&Stage::new()));
    for line in [
        "portico_tls_reloads_total{result=\"used\"} 2",
        "portico_tls_reloads_total{result=\"failed\"} 1",
        "portico_a_total{reason=\"x\"} 11",
        "portico_a_total{reason=\"y\"} 22",
        "portico_b{shard=\"0\"} 1",
        "portico_b{shard=\"1\"} 10",
        "portico_sends_total{shard=\"1\"} 10",
        "portico_store_up{backend=\"stage\"} 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
    assert_eq!(page.matches("# TYPE portico_a_total counter\n").count(), 1);
}

#[test]
fn the_histogram_of_commits_is_cumulative() {
    let page = page(&observe(&Stage::new()));
    for line in [
        "portico_store_commit_seconds_bucket{le=\"0.0001\"} 3",
        "portico_store_commit_seconds_bucket{le=\"0.0002\"} 3",
        "portico_store_commit_seconds_bucket{le=\"0.0005\"} 5",
        "portico_store_commit_seconds_bucket{le=\"30\"} 5",
        "portico_store_commit_seconds_bucket{le=\"+Inf\"} 6",
        "portico_store_commit_seconds_sum 1.5",
        "portico_store_commit_seconds_count 6",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
}

#[test]
fn a_store_in_trouble_shows() {
    let stage = Stage::new();
    *stage.health.lock().unwrap() = Health::Down("full".to_owned());
    let down = page(&observe(&stage));
    assert!(down.contains("portico_store_up{backend=\"stage\"} 0\n"));
    *stage.health.lock().unwrap() = Health::Degraded("slow".to_owned());
    let slow = page(&observe(&stage));
    assert!(slow.contains("portico_store_up{backend=\"stage\"} 1\n"));
    assert!(slow.contains("portico_store_degraded 1\n"));
}

/// The page as a scraper reads it.
#[test]
fn the_page_is_well_formed() {
    let page = page(&Observed {
        shards: vec![portico_gateway::metric_table(); 2],
        ..observe(&Stage::new())
    });
    let mut types = HashMap::new();
    let mut samples = HashSet::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(
                types.insert(name, kind).is_none(),
                "{name} is declared twice"
            );
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(samples.insert(series), "{series} is told twice");
            let name = series.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| {
                    name.strip_suffix(suffix)
                        .filter(|name| types.contains_key(name))
                })
                .unwrap_or(name);
            assert!(types.contains_key(family), "{line} has no type");
        }
    }
    for (name, kind) in types {
        assert!(name.starts_with("portico_"), "{name}");
        assert_eq!(
            name.ends_with("_total"),
            kind == "counter",
            "{name} is a {kind}"
        );
    }
}

/// Dashboards and alerts are written against these names. `PORTICO_BLESS=1` accepts a change.
#[test]
fn metric_names_change_on_purpose_only() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/admin/metrics.txt");
    let found = table();
    if std::env::var_os("PORTICO_BLESS").is_some() {
        std::fs::write(path, &found).unwrap();
    }
    let known = std::fs::read_to_string(path).unwrap();
    assert!(
        found == known,
        "metrics changed; look at the change and run with PORTICO_BLESS=1:\n{found}"
    );
}

/// An operator who follows the manual finds what it names.
#[test]
fn the_manual_names_metrics_that_exist() {
    let manual = include_str!("../../../docs/OPERATIONS.md");
    let table = table();
    let known: HashSet<&str> = table
        .lines()
        .filter_map(|line| line.split_once(" (").map(|(name, _)| name))
        .collect();
    let named: HashSet<&str> = manual
        .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| word.starts_with("portico_"))
        .collect();
    assert!(named.len() > 40, "{}", named.len());
    let unknown: Vec<_> = named.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
