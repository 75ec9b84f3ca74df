//! What plans measure besides the latency to delivery, added up over workers, and how results show
//! it: a part of the JSON object of a run, and lines of its table.

mod life;

pub(crate) use life::{Life, LifeReport};

use crate::{
    plan::Plan,
    remote,
    report::{Percentiles, grouped},
    tls::{Handshakes, TlsReport},
    verifier::{Counts, Findings, histogram},
};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::{
    fmt::{self, Write},
    ops::Range,
};

/// While something is done to connections, those to whom it is not done are judged apart.
#[derive(Clone, Debug)]
pub(crate) struct Disturbance {
    from_us: u64,
    until_us: u64,
    ends_when_all_are_back: bool,
}

impl Disturbance {
    /// The plan's first deed has been done. `None` if it is not judged apart.
    pub(crate) fn begin(plan: &Plan, now_us: u64) -> Option<Self> {
        let until_us = match (plan.storm, plan.slow_readers, plan.flap) {
            (_, Some(slow), _) => now_us + slow.lasts.as_micros() as u64,
            (Some(_), ..) | (.., Some(_)) => u64::MAX,
            _ => return None,
        };
        Some(Self {
            from_us: now_us,
            until_us,
            ends_when_all_are_back: plan.storm.is_some(),
        })
    }

    pub(crate) const fn span_us(&self) -> Range<u64> {
        self.from_us..self.until_us
    }

    /// Everybody is back now; the first time counts.
    pub(crate) fn all_back(&mut self, now_us: u64) {
        if self.ends_when_all_are_back {
            self.until_us = self.until_us.min(now_us);
        }
    }
}

/// Of one worker, or of all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figures {
    #[serde(with = "remote::histogram")]
    affected_latency_us: Histogram<u64>,
    #[serde(with = "remote::histogram")]
    login_us: Histogram<u64>,
    #[serde(with = "remote::histogram")]
    back_us: Histogram<u64>,
    #[serde(with = "remote::histogram")]
    round_trip_us: Histogram<u64>,
    pub handshakes: Handshakes,
    pub life: Life,
    cut: u64,
    stopped_reading: u64,
    pub not_back: u64,
    all_back_us: u64,
    verifier_bytes: u64,
}

impl Figures {
    pub(crate) fn new() -> Self {
        Self {
            affected_latency_us: histogram(),
            login_us: histogram(),
            back_us: histogram(),
            round_trip_us: histogram(),
            handshakes: Handshakes::new(),
            life: Life::new(),
            cut: 0,
            stopped_reading: 0,
            not_back: 0,
            all_back_us: 0,
            verifier_bytes: 0,
        }
    }

    /// A connection is up, so long after its attempt began.
    pub(crate) fn login(&mut self, after_us: u64) {
        self.login_us.saturating_record(after_us.max(1));
    }

    /// One that the plan had kept away is up, so long after it might come back.
    pub(crate) fn came_back(&mut self, after_us: u64) {
        self.back_us.saturating_record(after_us.max(1));
    }

    pub(crate) fn round_trip(&mut self, us: u64) {
        self.round_trip_us.saturating_record(us.max(1));
    }

    pub(crate) const fn cut(&mut self) {
        self.cut += 1;
    }

    pub(crate) const fn stopped_reading(&mut self) {
        self.stopped_reading += 1;
    }

    /// So many were kept away and are not back at the end.
    pub(crate) const fn missing(&mut self, connections: u64) {
        self.not_back = connections;
    }

    pub(crate) fn disturbed(&mut self, disturbance: &Disturbance) {
        if disturbance.ends_when_all_are_back && disturbance.until_us < u64::MAX {
            self.all_back_us = disturbance.until_us - disturbance.from_us;
        }
    }

    /// Takes over what the verifier found beside what all plans have.
    pub(crate) fn found(&mut self, findings: &Findings) {
        self.verifier_bytes = findings.bytes;
        self.life.after_removal = findings.after_removal;
        self.affected_latency_us
            .clone_from(&findings.affected_latency_us);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let sums = [
            (&mut self.affected_latency_us, &other.affected_latency_us),
            (&mut self.login_us, &other.login_us),
            (&mut self.back_us, &other.back_us),
            (&mut self.round_trip_us, &other.round_trip_us),
        ];
        for (sum, part) in sums {
            // All have the same bounds and precision.
            sum.add(part).expect("histograms of the same bounds");
        }
        self.handshakes.add(&other.handshakes);
        self.life.add(&other.life);
        self.cut += other.cut;
        self.stopped_reading += other.stopped_reading;
        self.not_back += other.not_back;
        self.all_back_us = self.all_back_us.max(other.all_back_us);
        self.verifier_bytes += other.verifier_bytes;
    }
}

/// The part of a result that this file is about. Keys are only ever added.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FiguresReport {
    /// `false`: the next message waited for the one before, so times would mean nothing.
    pub latency_measured: bool,
    /// From the attempt to being ready, over all logins.
    pub login_us: Percentiles,
    pub round_trip_us: Option<Percentiles>,
    /// Of messages whose sender or recipient was away or not reading when due or since.
    pub affected_latency_us: Option<Percentiles>,
    /// Of all others that were due while somebody was.
    pub others_latency_us: Option<Percentiles>,
    /// From when a connection might come back to when it was.
    pub back_us: Option<Percentiles>,
    /// From the cut to the last one back; 0: they never all were.
    pub all_back_us: Option<u64>,
    pub cut: u64,
    pub stopped_reading: u64,
    pub not_back: u64,
    pub to_absent: u64,
    pub answers: u64,
    pub reads_missing: u64,
    pub verifier_bytes: u64,
    #[serde(flatten)]
    pub life: LifeReport,
    /// Of runs with TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsReport>,
}

impl FiguresReport {
    pub(crate) fn new(
        figures: &Figures,
        plan: &Plan,
        counts: &Counts,
        others_latency_us: &Histogram<u64>,
    ) -> Self {
        let touched = plan.has_absent() || plan.slow_readers.is_some();
        let judged_apart = plan.disturbance().is_some();
        Self {
            latency_measured: plan.measures_latency(),
            login_us: Percentiles::of(&figures.login_us),
            round_trip_us: plan
                .pingpong
                .map(|_| Percentiles::of(&figures.round_trip_us)),
            affected_latency_us: touched.then(|| Percentiles::of(&figures.affected_latency_us)),
            others_latency_us: judged_apart.then(|| Percentiles::of(others_latency_us)),
            back_us: plan.has_absent().then(|| Percentiles::of(&figures.back_us)),
            all_back_us: plan.storm.map(|_| figures.all_back_us),
            cut: figures.cut,
            stopped_reading: figures.stopped_reading,
            not_back: figures.not_back,
            to_absent: counts.to_absent,
            answers: counts.answers,
            reads_missing: counts.reads_missing,
            verifier_bytes: figures.verifier_bytes,
            life: LifeReport::new(&figures.life, plan),
            tls: plan.tls.as_ref().map(|_| figures.handshakes.report()),
        }
    }

    /// Rows of the table of times, below those of all plans.
    pub(crate) fn times(&self) -> Vec<(&'static str, &Percentiles)> {
        let optional = [
            ("round trip", &self.round_trip_us),
            ("to the affected", &self.affected_latency_us),
            ("others meanwhile", &self.others_latency_us),
            ("until back", &self.back_us),
        ];
        let mut rows = vec![("login", &self.login_us)];
        for (name, values) in optional {
            rows.extend(values.as_ref().map(|values| (name, values)));
        }
        let tls = self.tls.as_ref();
        rows.extend(self.life.times());
        rows.extend(tls.map(|tls| ("TLS handshake", &tls.handshake_us)));
        rows
    }

    /// Rows of the table of counts that mean something only when they are not 0.
    pub(crate) fn counts(&self) -> Vec<(&'static str, u64)> {
        let tls = self.tls.as_ref();
        let common = [
            ("TLS, full", tls.map_or(0, |tls| tls.handshakes_full)),
            ("TLS, resumed", tls.map_or(0, |tls| tls.handshakes_resumed)),
            ("cut", self.cut),
            ("stopped reading", self.stopped_reading),
            ("not back", self.not_back),
            ("sent to absent", self.to_absent),
            ("answers", self.answers),
            ("reads missing", self.reads_missing),
        ];
        self.life.counts().into_iter().chain(common).collect()
    }

    pub(crate) fn write_notes(&self, out: &mut String) -> fmt::Result {
        if !self.latency_measured {
            writeln!(out, "latency is not measured: a closed loop of rounds")?;
        }
        if let Some(all_back_us) = self.all_back_us.filter(|us| *us > 0) {
            writeln!(out, "all were back after {} us", grouped(all_back_us))?;
        }
        let tls = self.tls.as_ref();
        if let Some(bytes) = tls.and_then(|tls| tls.generator_bytes_per_session) {
            writeln!(out, "TLS        {bytes} bytes of the tester per session")?;
        }
        self.life.write_notes(out)?;
        writeln!(
            out,
            "verifier   {} bytes of memory",
            grouped(self.verifier_bytes)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_ends_when_all_are_back_and_others_by_the_clock() {
        let begin = |name| {
            let plan = Plan::named(name).expect("built in");
            Disturbance::begin(&plan, 1_000)
        };
        let mut storm = begin("storm").expect("judged apart");
        assert_eq!(storm.span_us(), 1_000..u64::MAX);
        storm.all_back(5_000);
        storm.all_back(9_000);
        assert_eq!(storm.span_us(), 1_000..5_000);
        let mut figures = Figures::new();
        figures.disturbed(&storm);
        assert_eq!(figures.all_back_us, 4_000);
        let mut slow = begin("slow-readers").expect("judged apart");
        slow.all_back(5_000);
        assert_eq!(slow.span_us(), 1_000..10_001_000);
        assert!(begin("mixed").is_none());
    }

    #[test]
    fn figures_of_workers_add_up() {
        let mut one = Figures::new();
        one.login(100);
        one.came_back(200);
        one.round_trip(300);
        one.cut();
        one.stopped_reading();
        one.missing(2);
        let mut sum = Figures::new();
        sum.add(&one);
        sum.add(&one);
        assert_eq!(
            (
                sum.login_us.len(),
                sum.back_us.len(),
                sum.round_trip_us.len()
            ),
            (2, 2, 2)
        );
        assert_eq!((sum.cut, sum.stopped_reading, sum.not_back), (2, 2, 4));
    }
}
