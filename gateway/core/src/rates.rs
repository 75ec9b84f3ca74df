//! How fast clients may go: token buckets per connection, per user and per source address.
//!
//! A bucket is one number: the time at which all that was taken from it has been made good. What is
//! ahead of the clock is owed; as much may be owed as the burst takes to refill. So a bucket needs no
//! timer and no refill, is full without being touched, and costs an addition and a comparison.
//!
//! What exceeds is refused with a place of its own in line, as logins are (`admission`): a hundred
//! messages that are refused at once come back one after the other, at the rate at which they are
//! taken. Who is refused very often all the same is closed.
//!
//! # Invariants
//! - Only the monotonic clock counts: the wall clock may step as it likes.
//! - What was refused has had no effect, and has cost nothing but the count of refusals.
//! - ACK, PING, CLIENT_STATE and CLOSE are never dropped. Too many of them count as refusals.
//! - A connection of whose source the driver did not ask, or whose source is exempt, has no limit.
//!
//! # Does not
//! Bound what the gateway as a whole takes: that is `admission`, and the limits of the store.

mod source;
mod table;

pub use source::{BadNetwork, Network};

use crate::{
    conn::ConnId,
    error::Refusal,
    input::Now,
    limits::ShardConfig,
    metrics::Counter,
    shard::{Shard, Turn},
};
use portico_wire::{CloseCode, Frame, Op, ids::UserId, message::Close};
use source::Sources;
use std::net::IpAddr;
pub(crate) use table::PLACE_BYTES;
use table::{Table, Whole};

/// So many in a second, and so many at once after a pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// 0: no bound.
    pub per_s: u32,
    /// One at least.
    pub burst: u32,
}

/// The rates of a gateway. Those of a source are shared evenly by the shards, because the kernel
/// spreads the connections of an address over them; each shard takes eight at once at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Connections from here have no limit of this kind.
    pub exempt: Vec<Network>,
    /// Per connection after WELCOME.
    pub frames: Rate,
    pub bytes: Rate,
    /// SENDs, per connection. What a device owes when it leaves is owed by its user's next one.
    pub messages: Rate,
    /// Users named in PRESENCE_SUB to be added, per connection.
    pub presence: Rate,
    /// SIGNALs, per connection.
    pub signals: Rate,
    /// Logins of one user, all devices together.
    pub user_logins: Rate,
    /// Connections that one source opens.
    pub source_opens: Rate,
    /// Connections of one source that have not logged in, at a time. 0: no bound.
    pub source_greeting_max: u32,
    /// HELLOs of one source.
    pub source_logins: Rate,
    /// So many refusals of one connection within the window close it. 0: never.
    pub refusals_max: u16,
    pub refusals_window_s: u16,
    /// Sources that a shard knows at a time, and the same number of users; rounded up to a multiple
    /// of 8. In a full set the one is forgotten that has used up least
    /// of what it may.
    pub table_max: usize,
}

impl Default for Rates {
    fn default() -> Self {
        let rate = |per_s, burst| Rate { per_s, burst };
        Self {
            exempt: Network::loopback(),
            frames: rate(1_000, 4_000),
            bytes: rate(256 << 10, 1 << 20),
            messages: rate(60, 120),
            presence: rate(50, 1_000),
            signals: rate(5, 20),
            user_logins: rate(1, 60),
            source_opens: rate(500, 2_000),
            source_greeting_max: 1_000,
            source_logins: rate(500, 2_000),
            refusals_max: 1_000,
            refusals_window_s: 10,
            table_max: 4_096,
        }
    }
}

impl Rates {
    #[must_use]
    pub fn is_exempt(&self, source: IpAddr) -> bool {
        self.exempt.iter().any(|network| network.contains(source))
    }
}

/// The longest time that a burst may take to come back; so much may be owed.
const BURST_US_MAX: u64 = 1_800_000_000;
/// Nobody is told to stay away longer; a longer line begins anew at the front.
const WAIT_US_MAX: u32 = 60_000_000;
/// What a source may do at once on each shard, whatever its part of the burst is.
const SOURCE_BURST_MIN: u32 = 8;
/// Fractions of a microsecond that a unit costs.
const FRACTION_BITS: u32 = 16;

/// A rate, made ready for counting.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Microseconds per unit, as a fixed-point number; 0: no bound.
    unit: u64,
    burst_us: u32,
}

impl Pace {
    fn new(rate: Rate) -> Self {
        let unit = (1_000_000_u64 << FRACTION_BITS)
            .checked_div(u64::from(rate.per_s))
            .unwrap_or(0);
        let burst_us = (u64::from(rate.burst.max(1)) * unit).div_ceil(1 << FRACTION_BITS);
        Self {
            unit,
            burst_us: burst_us.min(BURST_US_MAX) as u32,
        }
    }

    /// The part of one of so many shards.
    fn share(rate: Rate, shards: u16) -> Self {
        let shards = u32::from(shards.max(1));
        let burst = (rate.burst / shards).max(SOURCE_BURST_MIN.min(rate.burst));
        let whole = Self::new(Rate { burst: 1, ..rate });
        let unit = whole.unit * u64::from(shards);
        let burst_us = (u64::from(burst.max(1)) * unit).div_ceil(1 << FRACTION_BITS);
        Self {
            unit,
            burst_us: burst_us.min(BURST_US_MAX) as u32,
        }
    }

    /// The time that so many units take; never more than the burst, so that what is larger than it
    /// empties the bucket and is not refused for ever.
    fn cost_us(&self, units: u32) -> u32 {
        let cost_us = (u64::from(units).saturating_mul(self.unit)) >> FRACTION_BITS;
        cost_us.min(u64::from(self.burst_us)) as u32
    }
}

/// A bucket of a connection: the time when nothing is owed, in microseconds of the monotonic clock, of
/// which 32 bits are kept. They come round in 71 minutes, and a connection has more than one heartbeat
/// in that time: a time further ahead than the burst is one that has long passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bucket(u32);

impl Bucket {
    /// A full one: nothing is owed at any time.
    const fn owed_us(self, pace: &Pace, now_us: u32) -> u32 {
        let owed_us = self.0.wrapping_sub(now_us);
        if owed_us > pace.burst_us { 0 } else { owed_us }
    }

    /// Takes so many units, or none and says how long to wait.
    fn take(&mut self, pace: &Pace, units: u32, now_us: u32) -> Result<(), u32> {
        let owed_us = self.owed_us(pace, now_us) + pace.cost_us(units);
        if owed_us > pace.burst_us {
            return Err(owed_us - pace.burst_us);
        }
        *self = Self(now_us.wrapping_add(owed_us));
        Ok(())
    }
}

/// The buckets of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ConnRates {
    frames: Bucket,
    bytes: Bucket,
    messages: Bucket,
    /// The last place in line that was told.
    told: u32,
    /// Refusals in the window, and the end of the window's number.
    refused: u16,
    window: u16,
}

const _: () = assert!(
    size_of::<ConnRates>() <= 20,
    "the slot of an idle connection is part of the memory budget"
);

/// What a frame was too much for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Frames,
    Bytes,
    Messages,
}

impl Limit {
    const fn counter(self) -> Counter {
        match self {
            Self::Frames => Counter::LimitedFrames,
            Self::Bytes => Counter::LimitedBytes,
            Self::Messages => Counter::LimitedMessages,
        }
    }
}

/// What a shard knows of rates.
#[derive(Debug)]
pub(crate) struct Limiter {
    frames: Pace,
    bytes: Pace,
    messages: Pace,
    presence: Pace,
    signals: Pace,
    user_logins: Pace,
    /// By user: logins, and what devices owed for messages when they left.
    users: Table,
    sources: Sources,
}

/// Places of `Table::due` for users.
const LOGINS: usize = 0;
const MESSAGES: usize = 1;

impl Limiter {
    pub(crate) fn new(config: &ShardConfig) -> Self {
        let rates = &config.limits.rates;
        let messages = Pace::new(rates.messages);
        let user_logins = Pace::new(rates.user_logins);
        let whole = Whole {
            bursts_us: [user_logins.burst_us, messages.burst_us],
            held_max: 0,
        };
        Self {
            frames: Pace::new(rates.frames),
            bytes: Pace::new(rates.bytes),
            messages,
            presence: Pace::new(rates.presence),
            signals: Pace::new(rates.signals),
            user_logins,
            users: Table::new(rates.table_max, config.hash_seed, whole),
            sources: Sources::new(config),
        }
    }

    /// One frame of so many bytes: all of its buckets take it, or none does, and the wait is told.
    fn take(
        &self,
        conn: &mut ConnRates,
        frame: Frame<'_>,
        now_us: u64,
    ) -> Result<(), (Limit, u32)> {
        let now_us = now_us as u32;
        // An edit of a group goes to all its members, as a message does.
        let is_message = matches!(
            frame.known_op(),
            Some(Op::Send | Op::GroupCreate | Op::GroupEdit)
        );
        let bytes = frame.bytes().len() as u32;
        let frames_us = self.frames.cost_us(1) + conn.frames.owed_us(&self.frames, now_us);
        let bytes_us = self.bytes.cost_us(bytes) + conn.bytes.owed_us(&self.bytes, now_us);
        let owed_us = conn.messages.owed_us(&self.messages, now_us);
        let messages_us = owed_us + self.messages.cost_us(u32::from(is_message));
        let (limit, pace, owed_us) = if frames_us > self.frames.burst_us {
            (Limit::Frames, &self.frames, frames_us)
        } else if bytes_us > self.bytes.burst_us {
            (Limit::Bytes, &self.bytes, bytes_us)
        } else if messages_us > self.messages.burst_us {
            (Limit::Messages, &self.messages, messages_us)
        } else {
            conn.frames = Bucket(now_us.wrapping_add(frames_us));
            conn.bytes = Bucket(now_us.wrapping_add(bytes_us));
            conn.messages = Bucket(now_us.wrapping_add(messages_us));
            return Ok(());
        };
        let cost_us = match limit {
            Limit::Bytes => pace.cost_us(bytes),
            Limit::Frames | Limit::Messages => pace.cost_us(1),
        };
        // Behind the last who was told a time, if that has not passed.
        let told_us = conn.told.wrapping_sub(now_us);
        let first_us = owed_us - pace.burst_us;
        let wait_us = if told_us > WAIT_US_MAX - cost_us.min(WAIT_US_MAX) {
            first_us
        } else {
            first_us.max(told_us + cost_us)
        };
        conn.told = now_us.wrapping_add(wait_us);
        Err((limit, wait_us))
    }

    /// So many users to be told of, or the wait in microseconds.
    pub(crate) fn take_subscriptions(
        &self,
        bucket: &mut Bucket,
        count: u32,
        now_us: u64,
    ) -> Result<(), u32> {
        bucket.take(&self.presence, count, now_us as u32)
    }

    /// One SIGNAL, or the wait in microseconds.
    pub(crate) fn take_signal(&self, bucket: &mut Bucket, now_us: u64) -> Result<(), u32> {
        bucket.take(&self.signals, 1, now_us as u32)
    }

    /// The connection no longer counts among those of its source that have not logged in.
    pub(crate) fn release(&mut self, index: u32) {
        self.sources.release(index);
    }

    /// Gives back what a burst of connections has left.
    pub(crate) fn give_back(&mut self) {
        self.sources.give_back();
    }

    /// The connection counts among those.
    pub(crate) fn knows_source(&self, index: u32) -> bool {
        self.sources.knows(index)
    }

    #[cfg(feature = "testing")]
    pub(crate) fn waiting(&self) -> usize {
        self.sources.waiting()
    }
}

impl Shard {
    /// May a connection from here be served? The driver asks as soon as it knows: before TLS and before
    /// [`crate::Input::Opened`], or before the first frame where a balancer says it; if the answer is no it closes the socket without a word, which whoever
    /// floods would not read. A connection of which it does not ask has no limits of rate.
    #[must_use]
    pub fn admit_source(&mut self, now: Now, conn: ConnId, address: IpAddr) -> bool {
        if self.config.limits.rates.is_exempt(address) {
            return true;
        }
        let sources = &mut self.limiter.sources;
        match sources.open(conn.index, address, now.mono_us) {
            Ok(()) => {
                // A balancer tells it late.
                if let Some(conn) = self.conn_mut(conn) {
                    conn.notes.limited = true;
                }
                true
            }
            Err(counter) => {
                self.counters.bump(counter);
                false
            }
        }
    }

    /// The connection ended before [`crate::Input::Opened`].
    pub fn forget_source(&mut self, conn: ConnId) {
        self.limiter.release(conn.index);
    }

    /// May the source of this connection log in once more? Otherwise the connection is closed, and told when it may.
    pub(crate) fn admit_hello(&mut self, id: ConnId, cx: &mut Turn<'_>) -> bool {
        match self.limiter.sources.login(id.index, cx.now.mono_us) {
            Ok(()) => true,
            Err(wait_ms) => {
                self.counters.bump(Counter::LimitedSourceLogins);
                let detail = "too many logins from this address";
                self.close_limited(id, wait_ms, detail, cx);
                false
            }
        }
    }

    /// The same for a user, by the word of the authenticator: nobody else can use these up.
    pub(crate) fn admit_user(&mut self, id: ConnId, user: UserId, cx: &mut Turn<'_>) -> bool {
        let limited = self.conn(id).is_some_and(|conn| conn.notes.limited);
        let pace = self.limiter.user_logins;
        if !limited || pace.unit == 0 {
            return true;
        }
        let now_us = cx.now.mono_us;
        let place = self.limiter.users.find_or_add(user.0, now_us);
        match place.take_or_wait(LOGINS, &pace, now_us) {
            Ok(()) => true,
            Err(wait_ms) => {
                self.counters.bump(Counter::LimitedUserLogins);
                let detail = "too many logins of this user";
                self.close_limited(id, wait_ms, detail, cx);
                false
            }
        }
    }

    fn close_limited(&mut self, id: ConnId, wait_ms: u32, detail: &str, cx: &mut Turn<'_>) {
        let close = Close {
            retry_after_ms: wait_ms,
            ..Close::new(CloseCode::RATE_LIMITED, detail)
        };
        self.close_with(id, &close, cx);
    }

    /// A new session takes over what its user's devices owed when they left.
    pub(crate) fn take_debts(&mut self, index: u32, now_us: u64) {
        let conn = &mut self.conns[index as usize];
        if conn.notes.limited
            && let Some(place) = self.limiter.users.find(conn.user.0)
        {
            let owed_us = place.due.0[MESSAGES].saturating_sub(now_us);
            let owed_us = owed_us.min(u64::from(self.limiter.messages.burst_us));
            conn.rates.messages = Bucket((now_us as u32).wrapping_add(owed_us as u32));
        }
    }

    /// A session ends; what it owes is kept until it is made good.
    pub(crate) fn keep_debts(&mut self, index: u32) {
        let conn = &self.conns[index as usize];
        if !conn.notes.limited {
            return;
        }
        let now_us = self.now_us;
        let messages = conn.rates.messages;
        let owed_us = messages.owed_us(&self.limiter.messages, now_us as u32);
        if owed_us > 0 {
            let place = self.limiter.users.find_or_add(conn.user.0, now_us);
            let due = &mut place.due.0[MESSAGES];
            *due = (*due).max(now_us + u64::from(owed_us));
        }
    }

    /// Takes a frame of an open connection, or refuses it. True: it is to be handled.
    pub(crate) fn admit_frame(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) -> bool {
        let conn = &mut self.conns[id.index as usize];
        match self.limiter.take(&mut conn.rates, frame, cx.now.mono_us) {
            Ok(()) => true,
            Err((limit, wait_us)) => self.on_too_fast(id, frame, limit, wait_us, cx),
        }
    }

    #[cold]
    fn on_too_fast(
        &mut self,
        id: ConnId,
        frame: Frame<'_>,
        limit: Limit,
        wait_us: u32,
        cx: &mut Turn<'_>,
    ) -> bool {
        self.counters.bump(limit.counter());
        let rates = &self.config.limits.rates;
        let (max, window_s) = (rates.refusals_max, rates.refusals_window_s.max(1));
        let window = (cx.now.mono_s() / u32::from(window_s)) as u16;
        let conn = &mut self.conns[id.index as usize].rates;
        if conn.window != window {
            (conn.window, conn.refused) = (window, 0);
        }
        conn.refused = conn.refused.saturating_add(1);
        if max > 0 && conn.refused > max {
            let wait_ms = u32::from(window_s) * 1_000;
            let detail = "it goes on although it was told to wait";
            self.close_limited(id, wait_ms, detail, cx);
            return false;
        }
        // Their sender does not wait for an answer, or lives by it.
        let kept = matches!(
            frame.known_op(),
            Some(Op::Ack | Op::Ping | Op::ClientState | Op::Close)
        );
        if kept {
            return true;
        }
        let (request, corr) = (frame.is_request(), frame.corr());
        if !request {
            self.counters.bump(Counter::UnanswerableSends);
        }
        let why = Refusal::TooFast {
            retry_after_ms: wait_us.div_ceil(1_000).max(1),
        };
        self.refuse(id, request, corr, frame.op(), why, cx);
        false
    }
}

#[cfg(test)]
mod tests;
