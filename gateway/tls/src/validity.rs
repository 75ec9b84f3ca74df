//! From when until when a certificate is valid: just enough of DER to find two dates.
//!
//! It reads the operator's own certificate for a warning; nothing is decided by it.

/// Seconds since 1970, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before_s: u64,
    pub not_after_s: u64,
}

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;

impl Validity {
    /// None if it is not a certificate, or its dates are before 1970.
    pub(crate) fn of(certificate: impl AsRef<[u8]>) -> Option<Self> {
        let (_, certificate, _) = element(certificate.as_ref()).filter(|e| e.0 == SEQUENCE)?;
        let (_, mut rest, _) = element(certificate).filter(|e| e.0 == SEQUENCE)?;
        if rest.first() == Some(&VERSION) {
            rest = element(rest)?.2;
        }
        // Serial number, algorithm, issuer.
        for _ in 0..3 {
            rest = element(rest)?.2;
        }
        let (_, dates, _) = element(rest).filter(|e| e.0 == SEQUENCE)?;
        let (kind, not_before, rest) = element(dates)?;
        let not_before_s = seconds(kind, not_before)?;
        let (kind, not_after, _) = element(rest)?;
        let not_after_s = seconds(kind, not_after)?;
        Some(Self {
            not_before_s,
            not_after_s,
        })
    }
}

/// Tag, content, and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits
                .iter()
                .fold(0, |sum, digit| sum << 8 | usize::from(*digit));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280, section 4.1.2.5).
fn seconds(kind: u8, text: &[u8]) -> Option<u64> {
    let (digits, end) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if end != b"Z" || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |digits: &[u8]| {
        digits
            .iter()
            .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'))
    };
    let (year, rest) = match (kind, digits.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year = number(year);
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        (GENERALIZED_TIME, 14) => {
            let (year, rest) = digits.split_at_checked(4)?;
            (number(year), rest)
        }
        _ => return None,
    };
    let mut pairs = rest.chunks(2).map(number);
    let mut next = || pairs.next();
    let (month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?);
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if year < 1970 || !in_range {
        return None;
    }
    let days =
        days_before_year(year) - days_before_year(1970) + days_before_month(year, month) + day - 1;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// Since the year 1.
const fn days_before_year(year: u64) -> u64 {
    let years = year - 1;
    years * 365 + years / 4 - years / 100 + years / 400
}

const fn days_before_month(year: u64, month: u64) -> u64 {
    let common = match month {
        1 => 0,
        2 => 31,
        3 => 59,
        4 => 90,
        5 => 120,
        6 => 151,
        7 => 181,
        8 => 212,
        9 => 243,
        10 => 273,
        11 => 304,
        _ => 334,
    };
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    common + (leap && month > 2) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_seconds_since_1970() {
        for (kind, text, expected) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "000229235959Z", Some(951_868_799)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "21000301000000Z", Some(4_107_542_400)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, "701301000000Z", None),
            (GENERALIZED_TIME, "19691231235959Z", None),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "700101000000+", None),
            (GENERALIZED_TIME, "700101000000Z", None),
            (0, "700101000000Z", None),
            (UTC_TIME, "", None),
        ] {
            assert_eq!(seconds(kind, text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn every_prefix_of_a_certificate_is_no_certificate() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 11, 27);
        params.not_after = rcgen::date_time_ymd(2051, 1, 1);
        let certificate = params.self_signed(&key).expect("a certificate");
        let expected = Validity {
            not_before_s: 1_795_737_600,
            not_after_s: 2_556_144_000,
        };
        let der = certificate.der();
        assert_eq!(Validity::of(der), Some(expected));
        for length in 0..der.len() {
            assert_eq!(Validity::of(&der[..length]), None, "{length}");
        }
    }
}
