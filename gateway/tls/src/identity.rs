//! The server's certificate and its key, from PEM.

use crate::{end::SettingsError, secret_file, validity::Validity};
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{
        CertificateDer, PrivateKeyDer, UnixTime,
        pem::{Error as PemError, PemObject},
    },
    sign::CertifiedKey,
};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Warn when a certificate ends within this: two weeks, in seconds.
const EXPIRES_SOON_S: u64 = 14 * 86_400;

/// A certificate chain and the private key of its first certificate, which fit together.
#[derive(Clone)]
pub struct Identity {
    pub(crate) certified: Arc<CertifiedKey>,
    file: PathBuf,
    validity: Option<Validity>,
}

impl Identity {
    /// # Errors
    /// A file that cannot be read, is not PEM or lacks what it must hold; a key of another
    /// certificate or of an unsupported kind.
    pub fn read(certificates: &Path, key: &Path) -> Result<Self, SettingsError> {
        let read = |file: &Path| {
            fs::read(file).map_err(|source| SettingsError::Read {
                file: file.to_owned(),
                source,
            })
        };
        let secret = secret_file::read(key)?;
        Self::parse(&read(certificates)?, certificates, &secret, key)
    }

    /// As [`Self::read`], from the texts themselves.
    ///
    /// # Errors
    /// As [`Self::read`], without those of files.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, SettingsError> {
        let (certificates_name, key_name) = (Path::new("the certificate"), Path::new("the key"));
        Self::parse(certificates, certificates_name, key, key_name)
    }

    fn parse(
        certificates_pem: &[u8],
        file: &Path,
        key_pem: &[u8],
        key_file: &Path,
    ) -> Result<Self, SettingsError> {
        let chain = certificates(certificates_pem, file)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| match error {
            PemError::NoItemsFound => SettingsError::NoKey {
                file: key_file.to_owned(),
            },
            error => not_pem(key_file, &error),
        })?;
        let key = any_supported_type(&key).map_err(|error| SettingsError::UnsupportedKey {
            file: key_file.to_owned(),
            reason: error.to_string(),
        })?;
        let validity = chain.first().and_then(Validity::of);
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(SettingsError::KeyMismatch {
                    key: key_file.to_owned(),
                    certificate: file.to_owned(),
                });
            }
            Err(error) => {
                return Err(SettingsError::BadCertificate {
                    file: file.to_owned(),
                    number: 1,
                    reason: error.to_string(),
                });
            }
        }
        Ok(Self {
            certified: Arc::new(certified),
            file: file.to_owned(),
            validity,
        })
    }

    /// Of the first certificate. None if its dates cannot be read.
    #[must_use]
    pub const fn validity(&self) -> Option<Validity> {
        self.validity
    }

    /// What an operator should know about the dates of the certificate. The gateway serves
    /// nevertheless: clients may not care, and refusing to start would be worse.
    #[must_use]
    pub fn warning(&self, now: UnixTime) -> Option<String> {
        let (file, now_s) = (self.file.display(), now.as_secs());
        let Some(validity) = self.validity else {
            return Some(format!(
                "{file}: the dates of the certificate cannot be read"
            ));
        };
        if now_s < validity.not_before_s {
            let hours = (validity.not_before_s - now_s).div_ceil(3600);
            return Some(format!(
                "{file}: the certificate is not valid yet, but in {hours} h: clients refuse it. Is the clock right?"
            ));
        }
        if now_s > validity.not_after_s {
            let days = (now_s - validity.not_after_s) / 86_400;
            return Some(format!(
                "{file}: the certificate has expired {days} days ago: clients refuse it. Put a new one there and reload"
            ));
        }
        let left_s = validity.not_after_s - now_s;
        (left_s < EXPIRES_SOON_S).then(|| {
            let days = left_s / 86_400;
            format!(
                "{file}: the certificate expires in {days} days. Put a new one there and reload"
            )
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("file", &self.file)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// At least one.
pub(crate) fn certificates(
    pem: &[u8],
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(SettingsError::NoCertificate {
            file: file.to_owned(),
        }),
        Ok(all) => Ok(all),
        Err(error) => Err(not_pem(file, &error)),
    }
}

/// The lines themselves are not repeated: the file may hold a key.
fn not_pem(file: &Path, error: &PemError) -> SettingsError {
    let reason = match error {
        PemError::MissingSectionEnd { .. } => "a block has no END line".to_owned(),
        PemError::IllegalSectionStart { .. } => "a BEGIN line is malformed".to_owned(),
        PemError::Base64Decode(_) => "a block is not base64".to_owned(),
        error => error.to_string(),
    };
    SettingsError::NotPem {
        file: file.to_owned(),
        reason,
    }
}
