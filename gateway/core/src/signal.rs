//! Typing and recording: told to the connections of the peer, or of a group's members, that are in the
//! foreground, or forgotten.
//!
//! A signal is never stored and waits for nothing but the peer's block list. What finds no room is
//! dropped; the next one makes up for it.

use crate::{
    conn::{ConnId, Phase},
    error::Refusal,
    groups::GroupError,
    inbox::{conv_kind, shown_conv},
    mesh::ShardMessage,
    metrics::Counter,
    outgoing::Draft,
    people::Waiter,
    rates::Bucket,
    shard::{Shard, Turn},
};
use bytes::Bytes;
use portico_wire::{
    Frame, Op, RouteHeader,
    encode::people::put_signal,
    frame::{ConvKind, signal_kind},
    ids::{ConvId, DeviceId, GroupId, MsgId, UserId},
    limits::{SIGNAL_INTERVAL_MS, SIGNAL_TTL_CEILING_S, SIGNAL_TTL_DEFAULT_S},
    message::ClientState,
};

/// Somebody does something in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    pub sender: UserId,
    pub device: DeviceId,
    pub conv: ConvId,
    /// Of [`signal_kind`].
    pub kind: u8,
    /// How long to show it.
    pub ttl_s: u32,
}

/// Conversations of a connection whose last signal is remembered. Who types in more of them at a
/// time is held by the rate of all its signals.
const RECENT_MAX: usize = 4;

/// The signals that a connection has sent; made with the first, gone with the connection.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    bucket: Bucket,
    /// Conversation and time, in microseconds of the shard's clock.
    recent: [Option<(ConvId, u64)>; RECENT_MAX],
    next: u8,
}

impl Signals {
    /// Notes a signal in `conv`, or says how long ago the last one was if that was too recent.
    fn note(&mut self, conv: ConvId, now_us: u64) -> Result<(), u64> {
        let interval_us = u64::from(SIGNAL_INTERVAL_MS) * 1_000;
        let known = self.recent.iter_mut().flatten().find(|(at, _)| *at == conv);
        match known {
            Some((_, at_us)) if now_us < *at_us + interval_us => {
                return Err(*at_us + interval_us - now_us);
            }
            Some((_, at_us)) => *at_us = now_us,
            None => {
                self.recent[usize::from(self.next)] = Some((conv, now_us));
                self.next = (self.next + 1) % RECENT_MAX as u8;
            }
        }
        Ok(())
    }
}

impl Shard {
    pub(crate) fn on_signal(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let Some(route) = frame.route() else {
            return;
        };
        let Some(conn) = self.conn(id) else {
            return;
        };
        let (request, corr) = (frame.is_request(), frame.corr());
        let (sender, device, limited) = (conn.user, conn.device, conn.notes.limited);
        let peer = UserId(route.conv);
        let group = GroupId(route.conv);
        let named = match route.conv_kind {
            ConvKind::DIRECT if peer.is_valid() => Ok(ConvId::direct(sender, peer)),
            ConvKind::GROUP if group.0 != 0 => Ok(ConvId::Group(group)),
            ConvKind::GROUP => Err(Refusal::Group(GroupError::NotFound)),
            ConvKind::STATUS => Err(Refusal::UnsupportedConversation),
            _ => Err(Refusal::NoSuchUser),
        };
        let conv = match named {
            Ok(conv) => conv,
            Err(why) => return self.refuse(id, request, corr, frame.op(), why, cx),
        };
        let checked = if route.kind > signal_kind::RECORDING {
            Err(Refusal::BadSignal)
        } else if conv == ConvId::Group(group) {
            Ok(())
        } else {
            self.denial(sender, peer)
                .map_or(Ok(()), |denial| Err(Refusal::Denied(denial)))
        };
        let checked = checked.and_then(|()| self.pace_signal(id, conv, route.kind, limited, cx));
        if let Err(why) = checked {
            return self.refuse(id, request, corr, frame.op(), why, cx);
        }
        let ttl_s = match route.ttl_s {
            0 => SIGNAL_TTL_DEFAULT_S,
            ttl_s => ttl_s.min(SIGNAL_TTL_CEILING_S),
        };
        if conv == ConvId::Group(group) {
            let draft = Draft {
                op: Op::Signal as u8,
                sender,
                device,
                conv,
                epoch: 0,
                msg_id: MsgId::default(),
                kind: route.kind,
                flags: 0,
                ttl_s,
                body: Bytes::new(),
            };
            self.relay(draft, cx);
            return self.done(id, if request { corr } else { 0 }, cx);
        }
        let signal = Signal {
            sender,
            device,
            conv,
            kind: route.kind,
            ttl_s,
        };
        let home = self.home(peer);
        self.post(home, ShardMessage::Signal { to: peer, signal }, cx);
        self.done(id, if request { corr } else { 0 }, cx);
    }

    /// One in two seconds per conversation, STOPPED aside, and so many in all.
    pub(crate) fn pace_signal(
        &mut self,
        id: ConnId,
        conv: ConvId,
        kind: u8,
        limited: bool,
        cx: &Turn<'_>,
    ) -> Result<(), Refusal> {
        let now_us = cx.now.mono_us;
        let signals = self.signals.entry(id.index).or_default();
        let taken = if limited {
            self.limiter.take_signal(&mut signals.bucket, now_us)
        } else {
            Ok(())
        };
        let paced = match kind {
            signal_kind::STOPPED => Ok(()),
            _ => signals.note(conv, now_us),
        };
        let wait_us = match (taken, paced) {
            (Ok(()), Ok(())) => return Ok(()),
            (Err(wait_us), Ok(())) => u64::from(wait_us),
            (Ok(()), Err(wait_us)) => wait_us,
            (Err(a_us), Err(b_us)) => b_us.max(u64::from(a_us)),
        };
        self.counters.bump(Counter::LimitedSignals);
        Err(Refusal::TooFast {
            retry_after_ms: wait_us.div_ceil(1_000).max(1) as u32,
        })
    }

    /// At the peer's home: to be shown unless the peer has blocked the sender.
    pub(crate) fn on_signal_to(&mut self, to: UserId, signal: Signal, cx: &mut Turn<'_>) {
        self.want(to, Waiter::Signal(signal), cx);
    }

    /// Shows a signal to the user's connections in the foreground that have room.
    pub(crate) fn show_signal(&mut self, to: UserId, signal: &Signal, cx: &mut Turn<'_>) {
        let route = RouteHeader {
            conv: shown_conv(signal.conv, to),
            conv_kind: conv_kind(signal.conv),
            user: signal.sender,
            dev: signal.device,
            kind: signal.kind,
            ttl_s: signal.ttl_s,
            ..RouteHeader::default()
        };
        for index in self.chain_list(to).iter() {
            let conn = &self.conns[index as usize];
            let own = conn.user == signal.sender && conn.device == signal.device;
            if own || conn.phase != Phase::Open || conn.state != ClientState::Foreground {
                continue;
            }
            if !self.has_room(conn) {
                self.counters.bump(Counter::SignalsDropped);
                continue;
            }
            let id = self.id_of(index);
            self.write(id, cx, |out, _| put_signal(out, 0, &route));
            self.counters.bump(Counter::SignalsOut);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_two_seconds_per_conversation_for_the_latest_few() {
        let conv = |peer| ConvId::direct(UserId(1), UserId(peer));
        let mut signals = Signals::default();
        assert_eq!(signals.note(conv(2), 1_000_000), Ok(()));
        assert_eq!(signals.note(conv(2), 1_500_000), Err(1_500_000));
        assert_eq!(signals.note(conv(3), 1_500_000), Ok(()));
        assert_eq!(signals.note(conv(2), 3_000_000), Ok(()));
        assert_eq!(signals.note(conv(2), 4_999_999), Err(1));
        for peer in 4..8 {
            assert_eq!(signals.note(conv(peer), 4_999_999), Ok(()));
        }
        // Forgotten: the rate of all signals holds it.
        assert_eq!(signals.note(conv(2), 4_999_999), Ok(()));
    }
}
