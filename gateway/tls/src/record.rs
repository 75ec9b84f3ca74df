//! Records of TLS 1.3 (RFC 8446, section 5): where one ends, how one is opened and sealed.

use crate::{
    end::Failure,
    secret::{Expanded, IV_BYTES, Secret, Suite},
};
use ring::{
    aead::{Aad, LessSafeKey, MAX_TAG_LEN, Nonce},
    error::Unspecified,
};
use std::fmt;

/// Type, version and length.
pub(crate) const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = MAX_TAG_LEN;
/// What a record may carry.
pub const RECORD_PLAINTEXT_MAX: usize = 1 << 14;
/// What a record adds to its plaintext: header, type and tag.
pub const RECORD_OVERHEAD: usize = HEADER_BYTES + 1 + TAG_BYTES;
/// The longest record that a peer may send, padding and header included.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + PROTECTED_MAX;
/// The longest body of a record.
const PROTECTED_MAX: usize = RECORD_PLAINTEXT_MAX + 256;

/// Records under one key, before we change it. AES-GCM stays confidential for 2^24.5 (RFC 8446,
/// section 5.5); ChaCha20 has no such limit, but one rule for all is simpler.
pub(crate) const RECORDS_PER_KEY: u64 = 1 << 24;
/// 2^24.5.
const AES_GCM_RECORDS_MAX: u64 = 23_726_566;
const _: () = assert!(RECORDS_PER_KEY < AES_GCM_RECORDS_MAX);
/// A number that is never used: after it they would start over.
pub(crate) const SEQUENCE_END: u64 = u64::MAX;

pub(crate) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;
pub(crate) const APPLICATION_DATA: u8 = 23;

/// The bytes that so much plaintext becomes when there is room for all of it.
#[must_use]
pub const fn sealed_len(plaintext: usize) -> usize {
    plaintext + plaintext.div_ceil(RECORD_PLAINTEXT_MAX) * RECORD_OVERHEAD
}

/// The length of the protected record at the front of `bytes`; None if it is not complete.
///
/// A header is judged as soon as its bytes are there.
pub(crate) fn frame(bytes: &[u8]) -> Result<Option<usize>, Failure> {
    match bytes.first() {
        None => return Ok(None),
        Some(&APPLICATION_DATA) => {}
        Some(_) => return Err(Failure::UnexpectedRecord),
    }
    let Some(&[high, low]) = bytes.get(3..HEADER_BYTES) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > PROTECTED_MAX {
        return Err(Failure::RecordTooLong);
    }
    if length < TAG_BYTES {
        return Err(Failure::BadRecord);
    }
    let total = HEADER_BYTES + length;
    Ok((bytes.len() >= total).then_some(total))
}

/// What is left when a record was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) kind: u8,
    /// Bytes of content at the front of what was given to open.
    pub(crate) bytes: usize,
}

/// The key of one direction, prepared by the cipher.
pub(crate) struct RecordKey {
    key: LessSafeKey,
    iv: [u8; IV_BYTES],
}

impl RecordKey {
    pub(crate) fn new(secret: &Secret, suite: Suite) -> Result<Self, Unspecified> {
        Self::of(&secret.expand(suite)?, suite)
    }

    pub(crate) fn of(expanded: &Expanded, suite: Suite) -> Result<Self, Unspecified> {
        Ok(Self {
            key: expanded.key(suite)?,
            iv: expanded.iv,
        })
    }

    fn nonce(&self, sequence: u64) -> Nonce {
        let mut nonce = self.iv;
        let tail = nonce.iter_mut().skip(IV_BYTES - size_of::<u64>());
        for (byte, number) in tail.zip(sequence.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// Opens the record that starts at `from` in `bytes` and ends with them. Its content then lies
    /// at the front of `bytes`.
    pub(crate) fn open(
        &self,
        sequence: u64,
        bytes: &mut [u8],
        from: usize,
    ) -> Result<Content, Failure> {
        let header: Option<&[u8; HEADER_BYTES]> = bytes.get(from..).and_then(<[u8]>::first_chunk);
        let header = *header.ok_or(Failure::Internal)?;
        let nonce = self.nonce(sequence);
        let inner = self
            .key
            .open_within(nonce, Aad::from(header), bytes, from + HEADER_BYTES..)
            .map_err(|Unspecified| Failure::BadRecord)?;
        // The type comes after the content; zeros after it are padding.
        let Some(bytes) = inner.iter().rposition(|byte| *byte != 0) else {
            return Err(Failure::OnlyPadding);
        };
        if inner.len() > RECORD_PLAINTEXT_MAX + 1 {
            return Err(Failure::RecordTooLong);
        }
        let kind = inner.get(bytes).copied().unwrap_or_default();
        Ok(Content { kind, bytes })
    }

    /// Appends a record with this content, of at most [`RECORD_PLAINTEXT_MAX`] bytes.
    pub(crate) fn seal(
        &self,
        sequence: u64,
        kind: u8,
        content: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let before = out.len();
        // Far below 65,536, by the bound above.
        let [high, low] = ((content.len() + 1 + TAG_BYTES) as u16).to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        out.extend_from_slice(&header);
        out.extend_from_slice(content);
        out.push(kind);
        let inner = out.get_mut(before + HEADER_BYTES..).unwrap_or_default();
        let nonce = self.nonce(sequence);
        let sealed = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), inner);
        match sealed {
            Ok(tag) => out.extend_from_slice(tag.as_ref()),
            Err(Unspecified) => {
                // Nothing may be sent in the clear.
                out.truncate(before);
                return Err(Failure::Internal);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordKey")
    }
}

/// Appends an alert in the clear, as it is before there are keys.
pub(crate) fn put_plain_alert(alert: crate::Alert, out: &mut Vec<u8>) {
    out.extend_from_slice(&[ALERT, 3, 3, 0, 2]);
    out.extend_from_slice(&alert.bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_judged_early() {
        assert_eq!(frame(b""), Ok(None));
        for first in 0..=u8::MAX {
            let expected = match first {
                APPLICATION_DATA => Ok(None),
                _ => Err(Failure::UnexpectedRecord),
            };
            assert_eq!(frame(&[first]), expected);
        }
        let header = |length: u16| {
            let [high, low] = length.to_be_bytes();
            [APPLICATION_DATA, 3, 3, high, low]
        };
        assert_eq!(frame(&header(16_640)), Ok(None));
        assert_eq!(frame(&header(16_641)), Err(Failure::RecordTooLong));
        assert_eq!(frame(&header(16)), Ok(None));
        assert_eq!(frame(&header(15)), Err(Failure::BadRecord));
        let mut whole = header(17).to_vec();
        whole.resize(5 + 17 + 3, 0);
        assert_eq!(frame(&whole), Ok(Some(22)));
        assert_eq!(frame(&whole[..21]), Ok(None));
    }

    #[test]
    fn sealed_lengths_count_records() {
        assert_eq!(sealed_len(0), 0);
        assert_eq!(sealed_len(1), 1 + 22);
        assert_eq!(sealed_len(1 << 14), (1 << 14) + 22);
        assert_eq!(sealed_len((1 << 14) + 1), (1 << 14) + 1 + 44);
    }

    #[test]
    fn content_of_any_length_moves_to_the_front() {
        for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::Chacha20Poly1305] {
            let secret = Secret::new(&[7; 48]).expect("48 bytes");
            let key = RecordKey::new(&secret, suite).expect("known lengths");
            for length in (0..300).chain([RECORD_PLAINTEXT_MAX - 1, RECORD_PLAINTEXT_MAX]) {
                for from in [0, 1, 16, 500] {
                    let content: Vec<u8> = (0..length).map(|i| i as u8).collect();
                    let mut bytes = vec![0xee; from];
                    key.seal(9, ALERT, &content, &mut bytes).expect("sealed");
                    assert_eq!(bytes.len(), from + length + RECORD_OVERHEAD);
                    let opened = key.open(9, &mut bytes, from);
                    let expected = Content {
                        kind: ALERT,
                        bytes: length,
                    };
                    assert_eq!(opened, Ok(expected));
                    assert!(bytes[..length] == content, "{suite:?} {length} {from}");
                }
            }
        }
    }
}
