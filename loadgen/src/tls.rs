//! TLS of a run: whom its clients trust and when they resume, and what their handshakes were.

use crate::{cli::Args, plan::Plan, remote, report::Percentiles, verifier::histogram};
use anyhow::{Context, anyhow};
use hdrhistogram::Histogram;
use portico_client::{Resume, TlsClient, TlsError};
use serde::{Deserialize, Serialize};
use std::fs;

/// What clients need to know, in a form that can be sent to workers elsewhere.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Trust {
    /// Certificates, as PEM.
    pem: String,
    /// Where they are from, for errors.
    origin: String,
    /// Whose certificate the server has to show.
    name: String,
    /// Share of the handshakes that offer a ticket; `None`: of those that come back.
    resume: Option<f64>,
}

impl Trust {
    /// Of a plan with TLS.
    pub(crate) fn of(args: &Args, plan: &Plan) -> anyhow::Result<Option<Self>> {
        let Some(tls) = &plan.tls else {
            return Ok(None);
        };
        let file = tls.ca.clone().unwrap_or_else(|| args.certificate_file());
        let origin = file.display().to_string();
        let pem = fs::read_to_string(&file).map_err(|error| TlsError::Unreadable {
            path: origin.clone(),
            reason: error.to_string(),
        });
        let target = args.target(plan);
        let trust = Self {
            pem: pem.map_err(in_words)?,
            origin,
            name: tls.name.clone().unwrap_or_else(|| host(&target).to_owned()),
            resume: tls.resume,
        };
        // What is wrong with it is better said before anything is asked of anybody.
        trust.client().map(|_| Some(trust))
    }

    /// For a single connection.
    pub(crate) fn client(&self) -> anyhow::Result<TlsClient> {
        TlsClient::trusting_pem(self.pem.as_bytes(), &self.origin)
            .and_then(|client| client.named(&self.name))
            .map_err(in_words)
    }

    /// For all connections of a run: they share their tickets.
    pub(crate) fn clients(&self) -> anyhow::Result<TlsClient> {
        let resume = self.resume.map_or(Resume::Returning, Resume::Share);
        Ok(self.client()?.for_many(resume))
    }
}

/// The same for a run that may have none.
pub(crate) fn clients(trust: Option<&Trust>) -> anyhow::Result<Option<TlsClient>> {
    trust.map(Trust::clients).transpose()
}

/// What is wrong, with the flag that mends it.
pub(crate) fn in_words(error: TlsError) -> anyhow::Error {
    anyhow!(sentence(&error))
}

/// Whose certificate is expected is said with `--tls-name` here.
pub(crate) fn sentence(error: &TlsError) -> String {
    error.sentence().replace("--server-name", "--tls-name")
}

/// Of HOST:PORT or [ADDRESS]:PORT.
fn host(target: &str) -> &str {
    let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Handshakes of a worker, or of all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Handshakes {
    /// From its first packet to its last.
    #[serde(with = "remote::histogram")]
    us: Histogram<u64>,
    full: u64,
    resumed: u64,
}

impl Handshakes {
    pub(crate) fn new() -> Self {
        Self {
            us: histogram(),
            full: 0,
            resumed: 0,
        }
    }

    pub(crate) fn record(&mut self, us: u64, resumed: bool) {
        self.us.saturating_record(us.max(1));
        *(if resumed {
            &mut self.resumed
        } else {
            &mut self.full
        }) += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let added = self.us.add(&other.us);
        added.expect("histograms of the same bounds");
        self.full += other.full;
        self.resumed += other.resumed;
    }

    pub(crate) fn report(&self) -> TlsReport {
        TlsReport {
            handshakes_full: self.full,
            handshakes_resumed: self.resumed,
            handshake_us: Percentiles::of(&self.us),
            generator_bytes_per_session: None,
        }
    }
}

/// The part of a result. Keys are only ever added.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TlsReport {
    pub handshakes_full: u64,
    pub handshakes_resumed: u64,
    pub handshake_us: Percentiles,
    /// By how much this process has grown until all were up, per connection: TLS, session and
    /// verifier. Absent where workers elsewhere had the connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generator_bytes_per_session: Option<f64>,
}

/// The certificate of a gateway that made its own.
pub(crate) fn preflight(address: &str, trust: &Trust) -> anyhow::Result<()> {
    let connected = portico_client::RawConnection::connect_tls(address, &trust.client()?);
    match connected {
        Ok(mut connection) => connection
            .close_notify()
            .with_context(|| format!("{address} did not let itself be left")),
        Err(error) => Err(match TlsError::within(&error) {
            Some(refused) => anyhow!("no TLS with {address}: {}", sentence(refused)),
            None => anyhow!("no TLS with {address}: {error}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_target_is_whose_certificate_is_expected() {
        for (target, expected) in [
            ("a.example:7443", "a.example"),
            ("10.0.0.1:7443", "10.0.0.1"),
            ("[::1]:7443", "::1"),
        ] {
            assert_eq!(host(target), expected);
        }
    }

    #[test]
    fn handshakes_add_up_and_are_told_apart() {
        let mut one = Handshakes::new();
        one.record(1_000, false);
        one.record(500, true);
        let mut sum = one.clone();
        sum.add(&one);
        let report = sum.report();
        assert_eq!((report.handshakes_full, report.handshakes_resumed), (2, 2));
        assert_eq!(report.handshake_us.samples, 4);
    }

    #[test]
    fn errors_name_the_flags_of_this_program() {
        let text = sentence(&TlsError::BadName("a b".to_owned()));
        assert!(text.contains("--tls-name") && !text.contains("--server-name"));
    }
}
