//! Whom a client trusts, what it calls the server, and when it resumes.

use super::{
    PROTOCOL, TlsError,
    tickets::{Store, Tickets},
};
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    version::TLS13,
};
use std::{fmt, fs, net::IpAddr, path::Path, sync::Arc};

/// Tickets that are kept for many connections: more than are ever under way at once in one process,
/// each of which has taken one and will bring another.
const TICKETS_MAX: usize = 16_384;

/// Which connections offer the ticket of an earlier one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Resume {
    /// Those that have been up before, as clients do.
    Returning,
    /// So many of all, 0 to 1, evenly spread, once there is a ticket.
    Share(f64),
}

/// How TLS is spoken with a server. Clones share tickets.
#[derive(Clone)]
pub struct TlsClient {
    resuming: Arc<ClientConfig>,
    /// The same without offering a ticket.
    anew: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
    resume: Resume,
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient")
            .field("name", &self.name)
            .field("resume", &self.resume)
            .finish_non_exhaustive()
    }
}

impl TlsClient {
    /// Trusts the authorities in a PEM file, or the one server whose self-signed certificate it
    /// holds.
    ///
    /// # Errors
    /// A file that cannot be read or has no usable certificate.
    pub fn trusting(file: &Path) -> Result<Self, TlsError> {
        let pem = fs::read(file).map_err(|error| TlsError::Unreadable {
            path: file.display().to_string(),
            reason: error.to_string(),
        })?;
        Self::trusting_pem(&pem, &file.display().to_string())
    }

    /// The same for the content of such a file; `origin` is what errors call it.
    ///
    /// # Errors
    /// As [`Self::trusting`].
    pub fn trusting_pem(pem: &[u8], origin: &str) -> Result<Self, TlsError> {
        let bad = |reason: String| TlsError::BadCertificate {
            path: origin.to_owned(),
            reason,
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| bad(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(TlsError::NoCertificate {
                path: origin.to_owned(),
            });
        }
        Self::with_roots(Arc::new(roots), 1)
    }

    fn with_roots(roots: Arc<RootCertStore>, tickets_max: usize) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut anew = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| TlsError::Failed(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        anew.alpn_protocols = vec![PROTOCOL.into()];
        Ok(Self::around(anew, tickets_max))
    }

    fn around(mut anew: ClientConfig, tickets_max: usize) -> Self {
        let tickets = Arc::new(Tickets::new(tickets_max));
        let mut resuming = anew.clone();
        anew.resumption = Resumption::store(Arc::new(Store::keeping(&tickets)));
        resuming.resumption = Resumption::store(Arc::new(Store::offering(&tickets)));
        Self {
            resuming: Arc::new(resuming),
            anew: Arc::new(anew),
            name: None,
            resume: Resume::Returning,
        }
    }

    /// The server's name, whatever address it is reached at: a DNS name or an IP address.
    ///
    /// # Errors
    /// A text that is neither.
    pub fn named(mut self, name: &str) -> Result<Self, TlsError> {
        self.name = Some(server_name(name)?);
        Ok(self)
    }

    /// Which connections of [`crate::many::Many`] offer a ticket. They share what tickets have come,
    /// whosever they were: to the server it is all the same. A [`crate::Client`] always offers its
    /// own.
    #[must_use]
    pub fn for_many(self, resume: Resume) -> Self {
        let Self { anew, name, .. } = self;
        let tickets_max = match resume {
            Resume::Share(share) if share <= 0.0 => 0,
            Resume::Share(_) | Resume::Returning => TICKETS_MAX,
        };
        Self {
            name,
            resume,
            ..Self::around(ClientConfig::clone(&anew), tickets_max)
        }
    }

    /// The name that a server at "host:port" has to prove.
    pub(crate) fn name_of(&self, address: &str) -> Result<ServerName<'static>, TlsError> {
        match &self.name {
            Some(name) => Ok(name.clone()),
            None => server_name(host(address)),
        }
    }

    /// Whether the next of so many handshakes offers a ticket.
    pub(crate) fn resumes(&self, returning: bool, handshakes: u64) -> bool {
        match self.resume {
            Resume::Returning => returning,
            // The whole part grows with every one that is due.
            Resume::Share(share) => {
                let due = |handshakes: u64| (handshakes as f64 * share).floor();
                due(handshakes + 1) > due(handshakes)
            }
        }
    }

    pub(super) fn config(&self, resume: bool) -> Arc<ClientConfig> {
        Arc::clone(match resume {
            true => &self.resuming,
            false => &self.anew,
        })
    }
}

/// Of "host:port" or "[address]:port".
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    bare.unwrap_or(host)
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    match name.parse::<IpAddr>() {
        Ok(address) => Ok(ServerName::IpAddress(address.into())),
        Err(_) => {
            ServerName::try_from(name.to_owned()).map_err(|_| TlsError::BadName(name.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_that_of_the_address() {
        for (address, expected) in [
            ("chat.example.org:7443", "chat.example.org"),
            ("10.1.2.3:7443", "10.1.2.3"),
            ("[::1]:7443", "::1"),
        ] {
            let name = server_name(host(address)).unwrap();
            assert_eq!(name.to_str(), expected);
        }
        for bad in ["", "a b", "-"] {
            let error = server_name(bad).unwrap_err();
            assert_eq!(error, TlsError::BadName(bad.to_owned()));
        }
    }

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let refused = |pem: &[u8]| TlsClient::trusting_pem(pem, "ca.pem").unwrap_err();
        let path = "ca.pem".to_owned();
        assert_eq!(refused(b"hello"), TlsError::NoCertificate { path });
        let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(refused(broken), TlsError::BadCertificate { .. }));
        let missing = TlsClient::trusting(Path::new("/nowhere/ca.pem")).unwrap_err();
        assert!(missing.sentence().contains("/nowhere/ca.pem"));
        assert!(missing.sentence().contains("--tls-ca"));
    }

    #[test]
    fn a_share_is_spread_evenly() {
        let share = |share: f64| -> Vec<bool> {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            let client = TlsClient::trusting_pem(pem.as_bytes(), "").unwrap();
            let client = client.for_many(Resume::Share(share));
            (0..1_000).map(|nth| client.resumes(false, nth)).collect()
        };
        let count = |all: &[bool]| all.iter().filter(|resumes| **resumes).count();
        assert_eq!(count(&share(0.0)), 0);
        assert_eq!(count(&share(1.0)), 1_000);
        let third = share(0.3);
        assert!(third.chunks(10).all(|ten| (2..=4).contains(&count(ten))));
        assert!((299..=301).contains(&count(&third)));
    }
}
