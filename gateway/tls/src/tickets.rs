//! Session tickets: what a client shows to resume without certificates and signatures.
//!
//! A ticket is the session's state, sealed; nothing is kept here. The keys follow from one secret
//! and the time: every node that knows the secret opens every node's tickets, also after a restart,
//! and a key is in use for one period and accepted for one more.
//!
//! What a client had to prove goes into the keys too. A ticket earned where no certificate was
//! asked for is worthless where one is, and so are all tickets when the authorities change.
//!
//! Who has the secret can pretend to be the server to clients that resume, and can make tickets that
//! name any client where certificates are accepted: it is as precious as the server's key. Recorded
//! sessions stay closed, since resumption always comes with a new key exchange (psk_dhe_ke).

use crate::{end::SettingsError, secret_file};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
    rand::{SecureRandom, SystemRandom},
};
use rustls::{server::ProducesTickets, time_provider::TimeProvider};
use std::{fmt, path::Path, sync::Arc};
use zeroize::Zeroizing;

/// How long a key makes tickets. A ticket is good for this at least, and for twice this at most.
pub const TICKET_PERIOD_S: u32 = 12 * 3600;

/// The number of the period, nonce, sealed state, tag.
const PERIOD_BYTES: usize = size_of::<u32>();
const TICKET_OVERHEAD: usize = PERIOD_BYTES + NONCE_LEN + MAX_TAG_LEN;

/// What all ticket keys follow from. Nodes that share it resume each other's sessions.
#[derive(Clone)]
pub struct TicketSecret(hkdf::Prk);

impl TicketSecret {
    pub const BYTES_MIN: usize = 32;
    pub const BYTES_MAX: usize = 1_024;

    /// One that nobody else has: tickets end with the process.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn random() -> Result<Self, SettingsError> {
        let mut secret = Zeroizing::new([0; Self::BYTES_MIN]);
        SystemRandom::new()
            .fill(&mut *secret)
            .map_err(|_| SettingsError::NoRandom)?;
        Ok(Self::extract(&*secret))
    }

    /// Reads a file of random bytes, such as `head -c 32 /dev/urandom` makes.
    ///
    /// # Errors
    /// The file cannot be read, or holds fewer than [`Self::BYTES_MIN`] or more than
    /// [`Self::BYTES_MAX`] bytes.
    pub fn read(file: &Path) -> Result<Self, SettingsError> {
        let secret = secret_file::read(file)?;
        if !(Self::BYTES_MIN..=Self::BYTES_MAX).contains(&secret.len()) {
            return Err(SettingsError::TicketSecretLength {
                file: file.to_owned(),
                bytes: secret.len(),
            });
        }
        Ok(Self::extract(&secret))
    }

    fn extract(secret: &[u8]) -> Self {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"portico tickets 1");
        Self(salt.extract(secret))
    }

    fn key(&self, period: u32, binding: &[u8]) -> Option<LessSafeKey> {
        let info = [&period.to_be_bytes()[..], binding];
        let key: UnboundKey = self.0.expand(&info, &AES_256_GCM).ok()?.into();
        Some(LessSafeKey::new(key))
    }
}

impl fmt::Debug for TicketSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketSecret")
    }
}

/// Makes and opens tickets, with keys made for each: some microseconds beside a handshake's
/// hundred, and no lock between shards.
#[derive(Debug)]
pub(crate) struct Tickets {
    pub(crate) secret: TicketSecret,
    /// What a client had to prove.
    pub(crate) binding: Vec<u8>,
    pub(crate) clock: Arc<dyn TimeProvider>,
}

impl Tickets {
    fn period(&self) -> Option<u32> {
        let now_s = self.clock.current_time()?.as_secs();
        u32::try_from(now_s / u64::from(TICKET_PERIOD_S)).ok()
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        TICKET_PERIOD_S
    }

    /// A nonce is random. Among the 2^32 tickets of a period one is used twice with a probability
    /// of 2^-33.
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let period = self.period()?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(plain.len() + TICKET_OVERHEAD);
        ticket.extend_from_slice(&period.to_be_bytes());
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(plain);
        let key = self.secret.key(period, &self.binding)?;
        let sealed = ticket.get_mut(PERIOD_BYTES + NONCE_LEN..)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), sealed);
        ticket.extend_from_slice(tag.ok()?.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (period, rest) = ticket.split_first_chunk()?;
        let (nonce, sealed) = rest.split_first_chunk()?;
        let period = u32::from_be_bytes(*period);
        // The clock of the node that made it may be ahead.
        if period.abs_diff(self.period()?) > 1 {
            return None;
        }
        let key = self.secret.key(period, &self.binding)?;
        let mut plain = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key
            .open_in_place(nonce, Aad::empty(), &mut plain)
            .ok()?
            .len();
        plain.truncate(length);
        Some(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::UnixTime;
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        time::Duration,
    };

    #[derive(Debug, Default)]
    struct Clock(AtomicU64);

    impl TimeProvider for Clock {
        fn current_time(&self) -> Option<UnixTime> {
            let now = Duration::from_secs(self.0.load(Ordering::Relaxed));
            Some(UnixTime::since_unix_epoch(now))
        }
    }

    fn tickets(secret: &[u8], binding: &[u8], clock: &Arc<Clock>) -> Tickets {
        Tickets {
            secret: TicketSecret::extract(secret),
            binding: binding.to_vec(),
            clock: clock.clone(),
        }
    }

    #[test]
    fn a_ticket_is_good_for_one_period_at_least_and_two_at_most() {
        let clock = Arc::new(Clock::default());
        let at = |now_s: u64| clock.0.store(now_s, Ordering::Relaxed);
        let period = u64::from(TICKET_PERIOD_S);
        let tickets = tickets(&[1; 32], b"", &clock);
        for made in [1_000 * period, 1_001 * period - 1] {
            at(made);
            let ticket = tickets.encrypt(b"state").expect("a ticket");
            assert_eq!(ticket.len(), 5 + TICKET_OVERHEAD);
            for (now, good) in [
                (made, true),
                (made + period, true),
                (made - period, true),
                (made + 2 * period, false),
                (made - 2 * period, false),
            ] {
                at(now);
                let expected = good.then(|| b"state".to_vec());
                assert_eq!(tickets.decrypt(&ticket), expected, "{made} {now}");
            }
        }
    }

    #[test]
    fn only_the_same_secret_and_demands_open_it() {
        let clock = Arc::new(Clock::default());
        let ticket = tickets(&[1; 32], b"none", &clock)
            .encrypt(b"state")
            .expect("a ticket");
        let opened = |secret: u8, binding: &[u8]| {
            tickets(&[secret; 32], binding, &clock)
                .decrypt(&ticket)
                .is_some()
        };
        assert!(opened(1, b"none"), "another node with the same secret");
        assert!(!opened(2, b"none"));
        assert!(!opened(1, b"certificates"));
    }

    #[test]
    fn what_is_not_a_ticket_is_refused() {
        let clock = Arc::new(Clock::default());
        let tickets = tickets(&[1; 32], b"", &clock);
        let ticket = tickets.encrypt(b"state").expect("a ticket");
        for length in 0..ticket.len() {
            assert_eq!(tickets.decrypt(&ticket[..length]), None, "{length}");
        }
        for bit in 0..ticket.len() * 8 {
            let mut flipped = ticket.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(tickets.decrypt(&flipped), None, "{bit}");
        }
        assert_eq!(tickets.decrypt(&[0; 64]), None);
    }
}
