//! Clients that prove by a certificate who they are.

use crate::{end::SettingsError, identity};
use portico_wire::ids::{DeviceId, UserId};
use rustls::{
    RootCertStore,
    pki_types::CertificateDer,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use std::{
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Who a certificate stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    pub user: UserId,
    /// None if any device of the user may show it.
    pub device: Option<DeviceId>,
}

/// Says who a client is, by its certificate.
///
/// Called on the thread of a shard, with a chain that was verified against [`Clients`]' authorities
/// (at the time of the ticket, if the session is resumed): it must not block.
pub trait ClientMap: Debug + Send + Sync + 'static {
    /// The client's certificate comes first. None refuses the connection (access_denied).
    fn client(&self, chain: &[CertificateDer<'_>]) -> Option<Client>;
}

/// Takes the user from a name of the certificate: the first URI `portico:user:7`, or
/// `portico:user:7:device:1`, among its alternative names.
#[derive(Clone, Copy, Debug)]
pub struct UriNames;

impl ClientMap for UriNames {
    fn client(&self, chain: &[CertificateDer<'_>]) -> Option<Client> {
        let certificate = webpki::EndEntityCert::try_from(chain.first()?).ok()?;
        certificate.valid_uri_names().find_map(parse_name)
    }
}

fn parse_name(name: &str) -> Option<Client> {
    let mut words = name.strip_prefix("portico:user:")?.split(':');
    let user = UserId(number(words.next()?)?);
    let device = match (words.next(), words.next()) {
        (None, _) => None,
        (Some("device"), Some(device)) => {
            let device = u16::try_from(number(device)?).ok()?;
            Some(DeviceId(device)).filter(|device| device.0 != 0)
        }
        _ => return None,
    };
    let known = words.next().is_none() && user.is_valid();
    // "device" without a number that names one is not "any device".
    let complete = device.is_some() || !name.contains(":device");
    (known && complete).then_some(Client { user, device })
}

/// Digits only: `+7` is not a way to write a user.
fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// Which clients must, or may, show a certificate.
///
/// Revocation lists are not looked at: short-lived certificates, or the map, have to do it.
#[derive(Clone, Debug)]
pub struct Clients {
    authorities: Vec<CertificateDer<'static>>,
    file: PathBuf,
    required: bool,
    pub(crate) map: Arc<dyn ClientMap>,
}

impl Clients {
    /// Reads the authorities from a PEM file. `required` refuses who shows no certificate.
    ///
    /// # Errors
    /// The file cannot be read, is not PEM, or holds no certificate.
    pub fn read(
        authorities: &Path,
        required: bool,
        map: Arc<dyn ClientMap>,
    ) -> Result<Self, SettingsError> {
        let file = authorities.to_owned();
        match fs::read(authorities) {
            Ok(pem) => Self::parse(&pem, file, required, map),
            Err(source) => Err(SettingsError::Read { file, source }),
        }
    }

    /// As [`Self::read`], from the text itself.
    ///
    /// # Errors
    /// The text is not PEM, or holds no certificate.
    pub fn from_pem(
        authorities: &[u8],
        required: bool,
        map: Arc<dyn ClientMap>,
    ) -> Result<Self, SettingsError> {
        Self::parse(
            authorities,
            PathBuf::from("the client authorities"),
            required,
            map,
        )
    }

    fn parse(
        pem: &[u8],
        file: PathBuf,
        required: bool,
        map: Arc<dyn ClientMap>,
    ) -> Result<Self, SettingsError> {
        Ok(Self {
            authorities: identity::certificates(pem, &file)?,
            file,
            required,
            map,
        })
    }

    pub(crate) fn verifier(
        &self,
        provider: &Arc<rustls::crypto::CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, SettingsError> {
        let mut roots = RootCertStore::empty();
        for (index, authority) in self.authorities.iter().enumerate() {
            roots
                .add(authority.clone())
                .map_err(|error| SettingsError::BadCertificate {
                    file: self.file.clone(),
                    number: index + 1,
                    reason: error.to_string(),
                })?;
        }
        let builder =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let builder = match self.required {
            true => builder,
            false => builder.allow_unauthenticated(),
        };
        let verifier = builder.build();
        verifier.map_err(|error| SettingsError::Refused(error.to_string()))
    }

    /// What a client has to prove, in bytes: tickets are bound to it.
    pub(crate) fn fingerprint(&self) -> ring::digest::Digest {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        context.update(&[u8::from(self.required)]);
        for authority in &self.authorities {
            context.update(&(authority.len() as u64).to_be_bytes());
            context.update(authority);
        }
        context.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_exactly() {
        let client = |user, device: Option<u16>| {
            Some(Client {
                user: UserId(user),
                device: device.map(DeviceId),
            })
        };
        for (name, expected) in [
            ("portico:user:7", client(7, None)),
            ("portico:user:7:device:3", client(7, Some(3))),
            ("portico:user:0", None),
            ("portico:user:", None),
            ("portico:user:+7", None),
            ("portico:user:7:", None),
            ("portico:user:7:device", None),
            ("portico:user:7:device:", None),
            ("portico:user:7:device:0", None),
            ("portico:user:7:device:65536", None),
            ("portico:user:7:device:3:x", None),
            ("portico:user:18446744073709551616", None),
            ("https://example.org/portico:user:7", None),
        ] {
            assert_eq!(parse_name(name), expected, "{name}");
        }
    }

    #[test]
    fn what_is_not_a_certificate_names_nobody() {
        assert_eq!(UriNames.client(&[]), None);
        assert_eq!(
            UriNames.client(&[CertificateDer::from(vec![0x30, 0])]),
            None
        );
    }
}
