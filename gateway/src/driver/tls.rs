//! TLS of a shard's connections: what came in is deciphered, what goes out is sealed, and sessions
//! that rest give back what they can.
//!
//! A connection that came in through the TLS door has a [`Link`] beside its entry in the table of
//! sockets; others have none, and pay nothing. The core never hears of TLS: it is told of a connection
//! when the handshake is over ([`handshake`]), gets plaintext, gives plaintext, and counts plaintext.
//!
//! # Invariants
//! - Received bytes are deciphered where the kernel put them. Only an incomplete record, or plaintext
//!   that the core does not take yet, moves into the connection's unread bytes: first plaintext
//!   ([`Link::plain`] bytes), then ciphertext.
//! - Records go out in the order in which they were made: what a session has to say by itself (`out`)
//!   stands in front of what is sealed after it.
//! - Plaintext is sealed when it is sent, and one record at a time: until then the core can have it
//!   back. What is sealed is sent, or the connection ends.
//! - An open session whose keys are prepared has one place in the list of those that may hibernate.
//!
//! - What handshakes hold counts against the budget of unread bytes, as incomplete frames do.
//!
//! # Does not
//! Have a timer per session: the list is looked at once a second, from its front.

mod handshake;
mod identity;
mod seal;

pub(super) use identity::authenticate;

use super::{
    Driver, LISTED_MAX,
    counters::Tally,
    ring::{Key, Lent},
    socket::State,
};
use crate::tls_options::TlsOptions;
use portico_core::{Input, Now, feed};
use portico_tls::{Alert, Client, End, Form, Received, Session};
use std::{collections::VecDeque, mem};

/// Buffers of sealed bytes kept for reuse.
const SPARE_MAX: usize = 32;
const SPARE_BYTES_MAX: usize = 20 << 10;
/// With so many handshakes waiting, some tenths of a second of work, clients wait in the backlog; until
/// so many are left.
const WAITING_HIGH: usize = 1_024;
const WAITING_LOW: usize = 512;
/// Sessions that are looked at in a turn.
const LOOKS_MAX: usize = 1_024;

/// What a TLS connection has beside its socket.
#[derive(Debug)]
pub(super) struct Link {
    session: Session,
    /// Goes before anything that is sealed later: handshake, key updates, alerts.
    out: Vec<u8>,
    /// The core's bytes that are not sealed yet, from `rest_from` on.
    rest: Vec<u8>,
    rest_from: u32,
    /// Of the socket's unread bytes so many are plaintext, at the front.
    plain: u32,
    /// Plaintext bytes of the buffer in flight, and how many the core was told of.
    sealed: u32,
    told: u32,
    /// Bytes of its handshake so far.
    shaken: u32,
    /// Second in which it last opened or sealed something.
    used_s: u32,
    client: Option<Box<Client>>,
    /// The client has our part of the handshake.
    answered: bool,
    /// The handshake is over.
    opened: bool,
    /// Stands in the list of those that may hibernate.
    awake: bool,
    /// Bytes of its handshake wait for their turn.
    waiting: bool,
    /// The peer has said that it sends no more.
    peer_closed: bool,
    /// We have said so, or it is too late to say anything.
    closed: bool,
}

/// Of a quiet connection: its link, and its place in the table of links.
pub(super) const LINK_BYTES: usize = size_of::<Link>() + size_of::<Option<Box<Link>>>();

const _: () = assert!(
    LINK_BYTES - size_of::<Session>() + Session::HIBERNATED_BYTES <= 300,
    "a quiet TLS connection is part of the memory budget"
);

impl Link {
    fn new(session: Session) -> Self {
        Self {
            session,
            out: Vec::new(),
            rest: Vec::new(),
            rest_from: 0,
            plain: 0,
            sealed: 0,
            told: 0,
            shaken: 0,
            used_s: 0,
            client: None,
            answered: false,
            opened: false,
            awake: false,
            waiting: false,
            peer_closed: false,
            closed: false,
        }
    }

    /// What it owns beside itself and its session.
    pub(super) fn queued_bytes(&self) -> usize {
        self.out.len() + self.rest.len()
    }

    fn unsealed(&self) -> &[u8] {
        self.rest.get(self.rest_from as usize..).unwrap_or_default()
    }

    fn is_usable(&self) -> bool {
        matches!(self.session.form(), Form::Open | Form::Hibernated) && !self.closed
    }

    /// The kernel has so much of a sealed buffer: what is that in plaintext, beyond what was told?
    fn note_sent(&mut self, sent: usize, of: usize) -> usize {
        let share = u64::from(self.sealed) * sent as u64 / (of as u64).max(1);
        // Not more than `sealed`.
        let share = share as u32;
        let news = share.saturating_sub(self.told);
        self.told += news;
        news as usize
    }

    /// Nobody is there to hear it.
    fn mute(&mut self) {
        self.closed = true;
        self.out = Vec::new();
        self.rest = Vec::new();
        self.rest_from = 0;
    }
}

/// The links of a shard, by the index of their sockets, and the lists over them.
#[derive(Debug)]
pub(super) struct Links {
    options: Option<TlsOptions>,
    links: Vec<Option<Box<Link>>>,
    /// Those whose handshake has bytes.
    waiting: VecDeque<u32>,
    /// When handshakes have to be over; in order. Those that are stay until then.
    deadlines: VecDeque<(u64, Key)>,
    /// Seconds in which sessions are to be looked at; in order.
    awake: VecDeque<(u32, Key)>,
    spare: Vec<Vec<u8>>,
    /// What handshakes that are not over have received, and may still hold.
    shaken_bytes: usize,
    handshaking: usize,
    opened: usize,
    awake_count: usize,
}

impl Links {
    pub(super) const fn new(options: Option<TlsOptions>) -> Self {
        Self {
            options,
            links: Vec::new(),
            waiting: VecDeque::new(),
            deadlines: VecDeque::new(),
            awake: VecDeque::new(),
            spare: Vec::new(),
            shaken_bytes: 0,
            handshaking: 0,
            opened: 0,
            awake_count: 0,
        }
    }

    fn insert(&mut self, index: u32, link: Box<Link>) {
        let at = index as usize;
        if self.links.len() <= at {
            self.links.resize_with(at + 1, || None);
        }
        if link.opened {
            self.opened += 1;
        } else {
            self.handshaking += 1;
        }
        self.links[at] = Some(link);
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<Box<Link>> {
        let mut link = self.links.get_mut(index as usize)?.take()?;
        if link.opened {
            self.opened -= 1;
            self.awake_count -= usize::from(mem::take(&mut link.awake));
        } else {
            self.handshaking -= 1;
            self.shaken_bytes -= link.shaken as usize;
        }
        Some(link)
    }

    fn get_mut(&mut self, index: u32) -> Option<&mut Link> {
        self.links.get_mut(index as usize)?.as_deref_mut()
    }

    fn get(&self, index: u32) -> Option<&Link> {
        self.links.get(index as usize)?.as_deref()
    }

    pub(super) fn is_some(&self, index: u32) -> bool {
        self.get(index).is_some()
    }

    /// Who the certificate says it is.
    pub(super) fn client(&self, index: u32) -> Option<Client> {
        self.get(index)?.client.as_deref().copied()
    }

    /// Do bytes of a handshake wait for their turn?
    pub(super) fn has_work(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn is_waiting(&self, index: u32) -> bool {
        self.get(index).is_some_and(|link| link.waiting)
    }

    /// Is there something to say to the peer before its socket closes?
    pub(super) fn has_last_word(&self, index: u32) -> bool {
        let speaks = |link: &Link| {
            !link.out.is_empty() || link.is_usable() || (!link.closed && !link.rest.is_empty())
        };
        self.get(index).is_some_and(speaks)
    }

    pub(super) fn next_deadline_us(&self) -> Option<u64> {
        let handshake = self.deadlines.front().map(|(at_us, _)| *at_us);
        let look = self.awake.front();
        let look = look.map(|(at_s, _)| u64::from(*at_s) * 1_000_000);
        [handshake, look].into_iter().flatten().min()
    }

    /// Gives back what a burst has left in the lists.
    pub(super) fn trim(&mut self) {
        self.waiting.shrink_to(LISTED_MAX);
        self.deadlines.shrink_to(LISTED_MAX);
        self.awake.shrink_to(LISTED_MAX);
    }

    pub(super) const fn handshaking(&self) -> usize {
        self.handshaking
    }

    pub(super) const fn opened(&self) -> usize {
        self.opened
    }

    pub(super) const fn hibernated(&self) -> usize {
        self.opened - self.awake_count
    }

    /// Keeps a buffer that the kernel has done with.
    pub(super) fn take_spare(&mut self, mut buffer: Vec<u8>) {
        let fits = (1..=SPARE_BYTES_MAX).contains(&buffer.capacity());
        if fits && self.spare.len() < SPARE_MAX {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// Its handshake has bytes. One that was answered before is nearly over, and costs little from
    /// here: it goes first. Else, where all wait for long, all would be begun and few would end in time.
    fn wait_for_turn(&mut self, index: u32) {
        let Some(link) = self.get_mut(index) else {
            return;
        };
        if mem::replace(&mut link.waiting, true) {
            return;
        }
        if link.answered {
            self.waiting.push_front(index);
        } else {
            self.waiting.push_back(index);
        }
    }

    /// Do so many handshakes wait that no more should be begun? `holds`: as it was.
    pub(super) fn holds_door(&self, holds: bool) -> bool {
        let bound = if holds { WAITING_LOW } else { WAITING_HIGH };
        self.waiting.len() >= bound
    }

    /// A session has opened or sealed something: some seconds without that, and it may hibernate.
    fn note_used(&mut self, key: Key, now_s: u32) {
        let after_s = self.options.as_ref().map_or(0, |tls| tls.hibernate_after_s);
        let Some(link) = self.get_mut(key.index) else {
            return;
        };
        link.used_s = now_s;
        if after_s > 0 && !link.awake && link.session.form() == Form::Open {
            link.awake = true;
            self.awake_count += 1;
            self.awake.push_back((now_s + after_s, key));
        }
    }
}

impl Driver {
    /// Deciphers what came and hands the plaintext to the core. What it does not take is kept, and so
    /// is an incomplete record.
    pub(super) fn take_records(&mut self, index: u32, lent: &Lent) {
        let conn = self.sockets.conn(index);
        let mut unread = mem::take(&mut self.sockets.get_mut(index).unread);
        let Some(link) = self.tls.get_mut(index) else {
            return;
        };
        let mut received = Received::default();
        let kept = if !link.opened {
            self.tls.wait_for_turn(index);
            self.unread.append(&mut unread, self.ring.bytes(lent))
        } else if unread.is_empty() {
            let bytes = self.ring.bytes_mut(lent);
            received = link.session.receive(bytes, &mut link.out);
            let plain = &bytes[..received.plaintext];
            let used = feed(&mut self.core, self.now, conn, plain, &mut self.fx);
            link.plain = (plain.len() - used) as u32;
            let incomplete = &bytes[received.consumed..];
            [&plain[used..], incomplete]
                .into_iter()
                .all(|rest| rest.is_empty() || self.unread.append(&mut unread, rest))
        } else {
            let fits = self.unread.append(&mut unread, self.ring.bytes(lent));
            if fits {
                received = self.open_unread(index, &mut unread);
                self.feed_unread(index, &mut unread);
            }
            fits
        };
        self.sockets.get_mut(index).unread = unread;
        if !kept {
            self.tallies.bump(Tally::UnreadShed);
            return self.fail(index);
        }
        self.after_receive(index, received.ended);
    }

    /// Deciphers the records among the unread bytes.
    fn open_unread(&mut self, index: u32, unread: &mut Vec<u8>) -> Received {
        let Some(link) = self.tls.get_mut(index) else {
            return Received::default();
        };
        let from = link.plain as usize;
        let records = unread.get_mut(from..).unwrap_or_default();
        let received = link.session.receive(records, &mut link.out);
        let front = from + received.plaintext;
        self.unread.cut(unread, front, from + received.consumed);
        // Unread bytes are bounded far below 4 GiB.
        link.plain = front as u32;
        received
    }

    /// Hands the plaintext among the unread bytes to the core.
    pub(super) fn feed_unread(&mut self, index: u32, unread: &mut Vec<u8>) {
        let conn = self.sockets.conn(index);
        let Some(link) = self.tls.get_mut(index) else {
            return;
        };
        let plain = unread.get(..link.plain as usize).unwrap_or_default();
        if !plain.is_empty() {
            let used = feed(&mut self.core, self.now, conn, plain, &mut self.fx);
            link.plain -= used as u32;
            self.unread.consume(unread, used);
        }
    }

    /// What follows from received records, after their plaintext was handed in.
    fn after_receive(&mut self, index: u32, ended: Option<End>) {
        let key = self.sockets.key(index);
        self.tls.note_used(key, seconds(self.now));
        let Some(link) = self.tls.get_mut(index) else {
            return;
        };
        if !link.out.is_empty() {
            self.sockets.mark_dirty(index);
        }
        let Some(end) = ended else {
            return;
        };
        self.tallies.bump(end_tally(&end));
        match end {
            End::PeerClosed => {
                link.peer_closed = true;
                self.tallies.bump(Tally::TlsAlertInClose);
                self.on_records_end(index);
            }
            End::PeerAlert(alert) => {
                link.mute();
                self.tallies.bump(alert_in_tally(alert));
                self.fail(index);
            }
            End::Failed(failure) => {
                tracing::debug!(%failure, index, "a TLS session ends");
                self.tallies.bump(alert_out_tally(failure.alert()));
                // The alert goes out, and the socket closes after the peer's.
                self.end_in_core(index);
            }
        }
    }

    /// The peer's records have ended: what it said before is handled first.
    pub(super) fn on_records_end(&mut self, index: u32) {
        let ended = self.tls.get(index).is_some_and(|link| link.peer_closed);
        if ended && !self.is_owed(index) {
            self.on_stream_end(index);
        }
    }

    /// After a move the session may have ended already.
    pub(super) fn on_records_resumed(&mut self, index: u32) {
        let Some(link) = self.tls.get(index) else {
            return;
        };
        if link.session.form() == Form::Ended {
            return self.end_in_core(index);
        }
        self.on_records_end(index);
    }

    /// The core lets go of the connection; there may be an alert to send.
    fn end_in_core(&mut self, index: u32) {
        match self.sockets.get(index).state {
            State::Greeting | State::Open => {
                let conn = self.sockets.conn(index);
                let input = Input::Ended { conn };
                self.core.handle(self.now, input, &mut self.fx);
            }
            // It moves on, and is asked again at the other shard.
            State::Moving => {}
            State::Handshaking | State::Leaving | State::Closing | State::Free => {}
        }
    }

    /// The stream has ended or broken without a word: there is nothing to answer.
    pub(super) fn mute(&mut self, index: u32) {
        if let Some(link) = self.tls.get_mut(index)
            && !link.peer_closed
            && !mem::replace(&mut link.closed, true)
        {
            link.mute();
            if link.opened {
                self.tallies.bump(Tally::TlsEndedCut);
            }
        }
    }

    // ---- rest

    /// Lets sessions hibernate that have been quiet for a while.
    pub(super) fn hibernate_quiet(&mut self) {
        let now_s = seconds(self.now);
        let after_s = self
            .tls
            .options
            .as_ref()
            .map_or(0, |tls| tls.hibernate_after_s);
        for _ in 0..LOOKS_MAX {
            let Some((at_s, key)) = self.tls.awake.front().copied() else {
                return;
            };
            if at_s > now_s {
                return;
            }
            self.tls.awake.pop_front();
            let here = self.sockets.of_key(key).is_some();
            let Some(link) = self.tls.get_mut(key.index).filter(|_| here) else {
                continue;
            };
            if link.used_s + after_s <= now_s {
                link.session.hibernate();
                link.awake = false;
                self.tls.awake_count -= 1;
                self.tallies.bump(Tally::TlsHibernations);
            } else {
                self.tls.awake.push_back((now_s + after_s, key));
            }
        }
    }

    // ---- moves

    pub(super) fn adopt_link(&mut self, index: u32, link: Box<Link>) {
        let has_output = !link.out.is_empty() || !link.rest.is_empty();
        self.tls.insert(index, link);
        let key = self.sockets.key(index);
        self.tls.note_used(key, seconds(self.now));
        if has_output {
            self.sockets.mark_dirty(index);
        }
    }
}

/// Whole ones of the monotonic clock.
const fn seconds(now: Now) -> u32 {
    (now.mono_us / 1_000_000) as u32
}

const fn end_tally(end: &End) -> Tally {
    match end {
        End::PeerClosed => Tally::TlsEndedClosed,
        End::PeerAlert(_) => Tally::TlsEndedAlert,
        End::Failed(portico_tls::Failure::BadRecord) => Tally::TlsEndedBadRecord,
        End::Failed(_) => Tally::TlsEndedOther,
    }
}

const fn alert_in_tally(alert: Alert) -> Tally {
    match alert {
        Alert::CLOSE_NOTIFY => Tally::TlsAlertInClose,
        // What clients think of our certificate: 42 to 46, and unknown_ca.
        Alert(42..=46 | 48) => Tally::TlsAlertInCertificate,
        _ => Tally::TlsAlertInOther,
    }
}

const fn alert_out_tally(alert: Alert) -> Tally {
    match alert {
        Alert::CLOSE_NOTIFY => Tally::TlsAlertOutClose,
        Alert::BAD_RECORD_MAC => Tally::TlsAlertOutBadRecord,
        Alert::UNEXPECTED_MESSAGE => Tally::TlsAlertOutUnexpected,
        Alert::DECODE_ERROR => Tally::TlsAlertOutDecode,
        Alert::ACCESS_DENIED => Tally::TlsAlertOutDenied,
        _ => Tally::TlsAlertOutOther,
    }
}
