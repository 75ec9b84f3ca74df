//! The figures that are compared.

use super::recorded::Source;

#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) pointer: &'static str,
    pub(super) source: Source,
    /// Higher is worse, and may be judged by `--worse-than`.
    pub(super) is_judged: bool,
}

const fn metric(name: &'static str, pointer: &'static str, source: Source) -> Metric {
    Metric {
        name,
        pointer,
        source,
        is_judged: false,
    }
}

const fn judged(name: &'static str, pointer: &'static str, source: Source) -> Metric {
    Metric {
        is_judged: true,
        ..metric(name, pointer, source)
    }
}

pub(super) const METRICS: [Metric; 17] = [
    metric(
        "delivered/s",
        "/rate_per_s",
        Source::PerSecond("delivered_per_s"),
    ),
    metric(
        "latency p50, us",
        "/latency_us/p50",
        Source::Times("latency_us", "p50"),
    ),
    judged(
        "latency p99, us",
        "/latency_us/p99",
        Source::Times("latency_us", "p99"),
    ),
    metric("latency p99.9, us", "/latency_us/p999", Source::None),
    metric(
        "latency max, us",
        "/latency_us/max",
        Source::Times("latency_us", "max"),
    ),
    metric(
        "service p50, us",
        "/service_us/p50",
        Source::Times("service_us", "p50"),
    ),
    metric(
        "service p99, us",
        "/service_us/p99",
        Source::Times("service_us", "p99"),
    ),
    metric(
        "to SENT p50, us",
        "/sent_latency_us/p50",
        Source::Times("sent_latency_us", "p50"),
    ),
    metric(
        "to SENT p99, us",
        "/sent_latency_us/p99",
        Source::Times("sent_latency_us", "p99"),
    ),
    metric(
        "schedule slip p99",
        "/slip_us/p99",
        Source::Times("slip_us", "p99"),
    ),
    judged(
        "server CPU, us/msg",
        "/server/cpu_us_per_message",
        Source::CpuPerMessage("server_cpu"),
    ),
    // It grows as the run goes on: its seconds are no samples of anything.
    metric("server memory, B", "/server/rss_bytes", Source::None),
    metric(
        "B per connection",
        "/server/rss_bytes_per_connection",
        Source::None,
    ),
    metric(
        "own CPU, us/msg",
        "/generator/cpu_us_per_message",
        Source::CpuPerMessage("generator_cpu"),
    ),
    metric("lost", "/lost", Source::None),
    metric("reconnects", "/reconnects", Source::None),
    metric("connections", "/connections", Source::None),
];
