//! A certificate that nobody has signed, for trying the gateway out.

use crate::end::SettingsError;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use std::{fmt, time::Duration};

/// How long it is valid: a year, and a day before now for clocks that are behind.
const VALID_DAYS: u64 = 365;
const DAY: Duration = Duration::from_secs(86_400);

/// As PEM. Clients that are to trust it need the certificate; the key belongs to the server alone.
pub struct SelfSigned {
    pub certificate: String,
    pub key: String,
}

impl fmt::Debug for SelfSigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SelfSigned")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// Makes an ECDSA P-256 key and its certificate for these DNS names and addresses.
///
/// # Errors
/// A name that is neither, or no random numbers.
pub fn self_signed(names: &[&str], now: crate::UnixTime) -> Result<SelfSigned, SettingsError> {
    let error = |error: rcgen::Error| SettingsError::SelfSigned {
        reason: error.to_string(),
    };
    let names: Vec<String> = names.iter().copied().map(str::to_owned).collect();
    let mut params = CertificateParams::new(names).map_err(error)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "Portico, self-signed");
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.as_secs());
    params.not_before = now - DAY;
    params.not_after = now + Duration::from_secs(VALID_DAYS * DAY.as_secs());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(error)?;
    let certificate = params.self_signed(&key).map_err(error)?;
    Ok(SelfSigned {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}
