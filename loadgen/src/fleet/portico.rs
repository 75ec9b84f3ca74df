//! Portico's connections: sessions of the client crate on its many-connections driver.
//!
//! A message's id says which message it is, so no table from ids to messages is needed. A group is
//! as many direct messages as it has members, in one write, unless the plan has groups of the
//! gateway's own. Its members have flows of their own in the ids, numbered by connection.

use super::{
    Audience, Credentials, Fleet, Full, Happened, MessageName, OnEvent, Opening, Outgoing,
    asks::Asks,
};
use crate::{
    fleet::{Promises, promises},
    plan::{Acks, Groups, Protocol},
    random::mix,
};
use anyhow::Context;
use portico_client::{
    Conv, Event, Login, Now, SendOptions, Session, SessionState, Settings,
    many::{ConnIndex, Many, ManyConfig, ManyEvent},
};
use portico_wire::{
    encode::Encoder,
    frame::signal_kind,
    ids::{ConvSeq, MsgId, UserId},
    message::Envelope,
};
use std::{io, sync::Arc};

/// What sessions call themselves.
pub(crate) const CLIENT: &str = "portico-loadgen";
/// Messages of one user that may be unanswered. More than the gateway takes at once, and few
/// enough that a gateway in trouble does not fill this process.
const OUTBOX_MAX: usize = 512;
/// Messages whose ids a client remembers. A gateway repeats what it sent last, so few suffice.
const DEDUPE_MAX: usize = 64;
/// How long a signal is to be shown.
const SIGNAL_TTL_S: u32 = 6;
/// An Envelope around a body takes at most so much more.
const ENVELOPE_BYTES: usize = 64;

pub(super) struct Portico<'a> {
    many: Many,
    /// As of the end of the last turn.
    now: Now,
    acks: Acks,
    groups: Option<Groups>,
    first_user: u64,
    login: Credentials<'a>,
    envelope: EnvelopeMould,
    /// When the present attempt of each connection began.
    begun_us: Vec<u64>,
    asks: Asks,
    /// Those that wait for another token: the gateway has refused to resume their session.
    tokenless: Vec<ConnIndex>,
}

impl<'a> Portico<'a> {
    pub(super) fn open(opening: &Opening<'a>) -> anyhow::Result<Self> {
        let login = opening
            .login
            .context("users of Portico need a signing key")?;
        let mut config = ManyConfig::new(opening.target, opening.clock);
        config.connections = opening.users as usize;
        config.sources.clone_from(&opening.sources);
        config.source_offset = opening.source_offset;
        config.connects_per_s = opening.connects_per_s;
        config.tls.clone_from(&opening.tls);
        let mut many = Many::new(config).context("cannot set up epoll")?;
        let now = many.now();
        let members = opening.groups.map_or(1, |groups| groups.members);
        // Twice what one sender queues at once.
        let outbox_max = OUTBOX_MAX.max(2 * opening.burst as usize * members as usize);
        let settings = Arc::new(Settings {
            tell_expiry: false,
            client: CLIENT.to_owned(),
            outbox_max,
            dedupe_max: DEDUPE_MAX,
            heartbeat_s: opening.heartbeat_s,
            keep_token: false,
            lazy_ack: opening.acks == Acks::Minimal,
            ..Settings::default()
        });
        for index in 0..opening.users {
            let user = UserId(opening.first_user + u64::from(index));
            let token = login.token(user, now);
            let own = Login::new(user, login.device, token);
            let seed = mix(opening.run ^ user.0);
            many.add(Session::sharing(
                &settings,
                own,
                SessionState::default(),
                seed,
            ));
        }
        Ok(Self {
            many,
            now,
            acks: opening.acks,
            groups: opening.groups,
            first_user: opening.first_user,
            login,
            envelope: EnvelopeMould::default(),
            begun_us: vec![0; opening.users as usize],
            asks: Asks::new(opening.run, opening.first_user, opening.crowds.clone()),
            tokenless: Vec::new(),
        })
    }

    /// Queues one message; `wire` names it in its id.
    fn send_one(
        &mut self,
        conn: ConnIndex,
        to: impl Into<Conv>,
        wire: MessageName,
        body: &[u8],
    ) -> Result<(), Full> {
        let server_us = self.many.session(conn).server_clock_us(self.now);
        let options = SendOptions {
            msg_id: Some(msg_id(server_us / 1_000, wire)),
            ..SendOptions::default()
        };
        let envelope = self.envelope.fill(body);
        let sent = match self.acks {
            Acks::Full => self.many.send(conn, to, envelope, options),
            Acks::Minimal => self
                .many
                .send_unanswered(self.now, conn, to, envelope, options),
        };
        // The plan's sizes and users are valid, so the outbox is full, or nobody is logged in.
        sent.map(drop).map_err(|_| Full)
    }
}

impl Credentials<'_> {
    fn token(&self, user: UserId, now: Now) -> String {
        let unix_s = now.wall_us / 1_000_000;
        self.tokens.token(user, self.device, self.token_ttl, unix_s)
    }
}

impl Fleet for Portico<'_> {
    fn promises(&self) -> Promises {
        promises(Protocol::Portico, self.acks)
    }

    fn now(&self) -> Now {
        self.many.now()
    }

    fn turn(&mut self, wait_us: u64, on: &mut OnEvent<'_>) -> io::Result<()> {
        let Self {
            many,
            begun_us,
            tokenless,
            groups,
            asks,
            ..
        } = self;
        many.turn(wait_us, &mut |now, conn, event| match event {
            ManyEvent::Session(event) => {
                let begun_us = begun_us.get(conn.0 as usize).copied().unwrap_or_default();
                if !asks.event(now, conn.0, &event, on) {
                    session_event(now, conn.0, &event, begun_us, (*groups, asks), on);
                }
            }
            ManyEvent::ConnectFailed(error) => on(now, conn.0, Happened::ConnectFailed(error)),
            ManyEvent::TokenWanted => tokenless.push(conn),
            ManyEvent::LoggedIn { after_us } => {
                if let Some(begun_us) = begun_us.get_mut(conn.0 as usize) {
                    *begun_us = now.mono_us.saturating_sub(after_us);
                }
            }
            ManyEvent::Secured {
                handshake_us,
                resumed,
            } => {
                let secured = Happened::Secured {
                    handshake_us,
                    resumed,
                };
                on(now, conn.0, secured);
            }
            ManyEvent::Connected { .. } => {}
        })?;
        self.now = self.many.now();
        for conn in std::mem::take(&mut self.tokenless) {
            let user = UserId(self.first_user + u64::from(conn.0));
            self.many.set_token(conn, self.login.token(user, self.now));
        }
        Ok(())
    }

    fn send(&mut self, conn: u32, message: &Outgoing<'_>) -> Result<(), Full> {
        match message.to {
            Audience::User(to) => self.send_one(ConnIndex(conn), to, message.name, message.body),
            Audience::Crowd(number) => {
                let group = self.asks.group(number).ok_or(Full)?;
                self.send_one(ConnIndex(conn), group, message.name, message.body)
            }
            Audience::Group(number) => {
                let groups = self.groups.ok_or(Full)?;
                // All copies or none: half a message would have to be counted as half.
                let request = self.acks == Acks::Full;
                let bytes = message.body.len() + ENVELOPE_BYTES;
                let session = self.many.session(ConnIndex(conn));
                if !session.has_room_for(groups.members as usize, bytes, request) {
                    return Err(Full);
                }
                for member in groups.members_of(number) {
                    let to = UserId(self.first_user + u64::from(member));
                    let wire = MessageName {
                        flow: member,
                        counter: message.name.counter,
                    };
                    self.send_one(ConnIndex(conn), to, wire, message.body)?;
                }
                Ok(())
            }
        }
    }

    fn cut(&mut self, conn: u32, back_after_us: u64) {
        self.many.cut_for(ConnIndex(conn), back_after_us);
    }

    fn set_reading(&mut self, conn: u32, reading: bool) {
        self.many.set_reading(ConnIndex(conn), reading);
    }

    fn read(&mut self, conn: u32, peer: UserId, up_to: ConvSeq) {
        self.many.with(ConnIndex(conn), |session, now| {
            session.read(now, peer, up_to);
        });
    }

    fn ask_receipts(&mut self, conn: u32, peers: &[UserId]) {
        self.many.with(ConnIndex(conn), |session, now| {
            session.receipts(now, peers);
        });
    }

    fn make_groups(&mut self) -> bool {
        self.asks.make_groups(&mut self.many)
    }

    fn change_group(&mut self, group: u32, user: u32, add: bool) -> bool {
        self.asks.change(&mut self.many, group, user, add)
    }

    fn watch(&mut self, conn: u32, users: &[UserId]) -> bool {
        self.asks.watch(&mut self.many, conn, users)
    }

    fn signal(&mut self, conn: u32, to: UserId) -> bool {
        self.many.with(ConnIndex(conn), |session, _| {
            session.signal(to, signal_kind::TYPING, SIGNAL_TTL_S)
        })
    }

    fn page(&mut self, conn: u32, peer: UserId, limit: u16) -> bool {
        self.asks.page(&mut self.many, conn, peer, limit)
    }

    fn close_all(&mut self) {
        self.many.close_all();
    }
}

/// Tells what a session's event means; `begun_us` is when the present attempt of it began.
fn session_event(
    now: Now,
    conn: u32,
    event: &Event<'_>,
    begun_us: u64,
    (groups, asks): (Option<Groups>, &Asks),
    on: &mut OnEvent<'_>,
) {
    let happened = match *event {
        Event::Message {
            conv_seq,
            from,
            group,
            envelope,
            ..
        } => Happened::Arrived {
            // Nothing is ever revoked here, so a tombstone has lost its body on the way.
            body: envelope.map_or(&[][..], |envelope| envelope.body),
            author: Some(from),
            place: Some(conv_seq),
            // One of a group that is none of the plan's counts as said in no group.
            crowd: group.and_then(|group| asks.number_of(group)),
        },
        Event::Sent {
            msg_id,
            conv_seq,
            duplicate,
        } => {
            let wire = name_of(msg_id);
            match groups {
                None => Happened::Accepted {
                    name: wire,
                    place: Some(conv_seq),
                    duplicate,
                },
                Some(groups) => Happened::AcceptedCopy {
                    name: groups.name(wire),
                    duplicate,
                },
            }
        }
        Event::Refused {
            msg_id,
            code,
            will_retry,
            ..
        } => {
            let wire = name_of(msg_id);
            Happened::Refused {
                name: groups.map_or(wire, |groups| groups.name(wire)),
                code: code.0,
                will_retry,
            }
        }
        Event::Receipt {
            peer, read, up_to, ..
        } if read => Happened::ReadReceipt { peer, up_to },
        Event::Receipt { peer, up_to, .. } => Happened::Receipt { peer, up_to },
        Event::Undecodable { .. } => Happened::Undecodable,
        Event::Duplicate { .. } => Happened::Repeated,
        Event::Synced { .. } => Happened::Up {
            after_us: now.mono_us.saturating_sub(begun_us),
        },
        Event::Closed {
            code,
            by_peer,
            reconnect_after_ms,
            detail,
        } => Happened::Down {
            code: code.0,
            detail,
            by_peer,
            for_good: reconnect_after_ms.is_none(),
        },
        Event::ProtocolFault(fault) => return on(now, conn, Happened::Fault(&fault.to_string())),
        Event::Draining { .. }
        | Event::TokenExpiring { .. }
        | Event::Renewed { .. }
        | Event::RenewalRefused { .. }
        | Event::Welcome { .. }
        | Event::Gap { .. }
        | Event::GroupChanged { .. }
        | Event::Withdrawn { .. }
        | Event::GroupReceipt { .. }
        | Event::GroupReadElsewhere { .. }
        | Event::Signal { .. }
        | Event::Presence { .. }
        | Event::Answer { .. }
        | Event::ReadElsewhere { .. } => return,
    };
    on(now, conn, happened);
}

/// The message id is free to choose as long as the device never uses it twice, so it says which
/// message it is: 30 bits of the flow, 32 of the counter.
fn msg_id(unix_ms: u64, name: MessageName) -> MsgId {
    let key = u128::from(name.flow) << 32 | u128::from(name.counter);
    MsgId::new_v7(unix_ms, key)
}

const fn name_of(msg_id: MsgId) -> MessageName {
    let key = msg_id.lo() & 0x3fff_ffff_ffff_ffff;
    MessageName {
        flow: (key >> 32) as u32,
        counter: key as u32,
    }
}

/// An Envelope that is filled again and again: bodies of one size differ only in their bytes, so
/// that building a flatbuffer for each would be the dearest part of a message.
#[derive(Default)]
struct EnvelopeMould {
    encoder: Encoder,
    bytes: Vec<u8>,
    body_at: usize,
    body_bytes: usize,
}

impl EnvelopeMould {
    fn fill(&mut self, body: &[u8]) -> &[u8] {
        let end = self.body_at + self.body_bytes;
        match self.bytes.get_mut(self.body_at..end) {
            Some(place) if place.len() == body.len() && !body.is_empty() => {
                place.copy_from_slice(body);
            }
            _ => self.cast(body),
        }
        &self.bytes
    }

    fn cast(&mut self, body: &[u8]) {
        let envelope = Envelope {
            body,
            ..Envelope::default()
        };
        self.bytes.clear();
        self.bytes
            .extend_from_slice(self.encoder.envelope(&envelope));
        // Where the body lies: a reader says so.
        let place = Envelope::decode(&self.bytes).map_or(0, |read| {
            read.body.as_ptr().addr() - self.bytes.as_ptr().addr()
        });
        self.body_at = place;
        self.body_bytes = if place == 0 { 0 } else { body.len() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_which_message_it_is() {
        for (flow, counter) in [(0, 0), (5, u32::MAX), ((1 << 30) - 1, 7)] {
            let name = MessageName { flow, counter };
            let id = msg_id(1_700_000_000_000, name);
            assert_eq!(name_of(id), name);
            assert_eq!(id.unix_ms(), Some(1_700_000_000_000));
        }
    }

    #[test]
    fn a_filled_envelope_is_the_one_that_would_be_built() {
        let mut mould = EnvelopeMould::default();
        for (byte, bytes) in [
            (1, 64),
            (2, 64),
            (3, 61),
            (4, 61),
            (5, 64),
            (6, 0),
            (7, 128),
        ] {
            let body = vec![byte; bytes];
            let envelope = Envelope {
                body: &body,
                ..Envelope::default()
            };
            let built = Encoder::new().envelope(&envelope).to_vec();
            assert_eq!(mould.fill(&body), built, "{bytes} bytes");
        }
    }
}
