//! The connections of one worker, whatever protocol they speak.
//!
//! A plan drives a [`Fleet`] and never sees a socket. Portico's fleet is the many-connections driver
//! of the client crate; those of other systems speak a few packets of their protocols, so that the
//! same plan and the same verifier measure them like for like.
//!
//! Connections are numbered from 0 in the order of the worker's users; connection `n` belongs to
//! user `first_user + n`, and is the only one of that user.

mod asks;
mod portico;

pub(crate) use portico::CLIENT;

use crate::{
    peer::{self, PeerOpening, System},
    plan::{Acks, Crowds, Groups, Plan, Protocol},
    run::ports_per_source,
    tokens::Tokens,
};
use portico_client::{Now, TlsClient, many::Clock};
use portico_wire::ids::{ConvSeq, DeviceId, UserId};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

/// Who gets a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// One user. Systems without users have a topic of that name, to which its connection subscribes.
    User(UserId),
    /// The members of a group of the plan, by its number in this worker.
    Group(u32),
    /// The members of a group that the gateway keeps, by its number in this worker.
    Crowd(u32),
}

/// Names a message of this worker: the flow that it belongs to, and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MessageName {
    pub flow: u32,
    pub counter: u32,
}

/// A message to be queued.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    pub name: MessageName,
    pub to: Audience,
    /// What the verifier wrote; a fleet carries it untouched.
    pub body: &'a [u8],
}

/// A connection takes no more messages for the time being.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection takes no more messages for the time being")]
pub(crate) struct Full;

/// What a system tells its clients, so that the verifier waits for nothing that never comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Promises {
    /// A sender is told that its message was accepted ([`Happened::Accepted`]).
    pub answers: bool,
    /// A sender is told how far its recipient has got ([`Happened::Receipt`]).
    pub receipts: bool,
    /// Messages are numbered, alike for sender and recipient.
    pub places: bool,
    /// A message may wait for a recipient who is away.
    pub stores: bool,
}

/// What happened to a connection.
#[derive(Debug)]
pub(crate) enum Happened<'a> {
    /// Ready to send, and to receive everything addressed to it, so long after the attempt began.
    Up { after_us: u64 },
    /// TLS is there; its handshake took so long.
    Secured { handshake_us: u64, resumed: bool },
    /// It was up, or on its way there. The fleet opens it again by itself, unless `for_good`.
    Down {
        /// The system's own reason, where it gave one.
        code: u16,
        detail: &'a str,
        by_peer: bool,
        for_good: bool,
    },
    /// No connection came about; the next attempt follows by itself.
    ConnectFailed(&'a io::Error),
    /// A message has come.
    Arrived {
        body: &'a [u8],
        /// Its author and its place, where the system says so.
        author: Option<UserId>,
        place: Option<ConvSeq>,
        /// The group that the gateway keeps and that it was said in, by its number.
        crowd: Option<u32>,
    },
    /// The system took a message of this connection.
    Accepted {
        name: MessageName,
        place: Option<ConvSeq>,
        duplicate: bool,
    },
    /// The system did not take a message of this connection.
    Refused {
        name: MessageName,
        code: u16,
        will_retry: bool,
    },
    /// The system took one member's copy of a message to a group, where each has an answer of its
    /// own.
    AcceptedCopy { name: MessageName, duplicate: bool },
    /// `peer` has everything from this connection up to a place.
    Receipt { peer: UserId, up_to: ConvSeq },
    /// `peer` has read everything from this connection up to a place.
    ReadReceipt { peer: UserId, up_to: ConvSeq },
    /// The system repeated a message and the client dropped it, as the protocol provides for.
    Repeated,
    /// Something came that cannot be a message.
    Undecodable,
    /// The system broke its protocol.
    Fault(&'a str),
    /// A group could not be made.
    GroupFailed { code: u16, detail: &'a str },
    /// A member of a group (an index of the worker's users) was removed or added, at this place.
    GroupChanged {
        group: u32,
        user: u32,
        added: bool,
        place: ConvSeq,
    },
    /// The answer to a change of a group.
    ChangeAnswered { ok: bool },
    /// The answer to a subscription, with so many states; `None`: it was refused.
    Watching { items: Option<u64> },
    /// So many states have changed.
    Presence { items: u64 },
    /// Somebody is typing.
    Signal { from: UserId },
    /// A page of history, so long after it was asked for.
    Page {
        us: u64,
        entries: u64,
        /// Of these: out of order, or not what was sent there.
        wrong: u64,
        ok: bool,
    },
}

/// Hears what happens: when, to which connection, what.
pub(crate) type OnEvent<'a> = dyn FnMut(Now, u32, Happened<'_>) + 'a;

/// The connections of one worker.
pub(crate) trait Fleet {
    fn promises(&self) -> Promises;

    /// The run's clock.
    fn now(&self) -> Now;

    /// Sends what is queued, then waits up to `wait_us` for something to happen and reports all that
    /// did. With 0 it looks once and does not sleep. Bounded in time.
    fn turn(&mut self, wait_us: u64, on: &mut OnEvent<'_>) -> io::Result<()>;

    /// Queues a message. All that a connection has queued leaves with the next turn, in one write.
    fn send(&mut self, conn: u32, message: &Outgoing<'_>) -> Result<(), Full>;

    /// Drops the socket without a word, as a phone that loses its network does, and opens it again
    /// after `back_after_us`. A connection without a socket is not opened before that; a second
    /// call replaces the time of the first.
    fn cut(&mut self, conn: u32, back_after_us: u64);

    /// A connection that does not read leaves what comes in its socket.
    fn set_reading(&mut self, conn: u32, reading: bool);

    /// The user of `conn` has read everything from `peer` up to a place. Nothing where the system
    /// knows no such mark.
    fn read(&mut self, _conn: u32, _peer: UserId, _up_to: ConvSeq) {}

    /// Asks how far `peers` have got: answered by [`Happened::Receipt`]. For systems that promise
    /// receipts.
    fn ask_receipts(&mut self, _conn: u32, _peers: &[UserId]) {}

    /// Makes the groups of the plan, a few at a time; true when all are there.
    fn make_groups(&mut self) -> bool {
        true
    }

    /// Has the owner of a group remove a member, or add it again. False: nothing was asked.
    fn change_group(&mut self, _group: u32, _user: u32, _add: bool) -> bool {
        false
    }

    /// Subscribes to the presence of users. False: nothing was asked.
    fn watch(&mut self, _conn: u32, _users: &[UserId]) -> bool {
        false
    }

    /// Tells a user that the one of `conn` is typing. False: it was not sent.
    fn signal(&mut self, _conn: u32, _to: UserId) -> bool {
        false
    }

    /// Asks for the newest entries of a conversation. False: nothing was asked.
    fn page(&mut self, _conn: u32, _peer: UserId, _limit: u16) -> bool {
        false
    }

    /// Closes all, politely.
    fn close_all(&mut self);
}

/// What the connections of a worker are made from.
#[derive(Clone, Debug)]
pub(crate) struct Opening<'a> {
    pub clock: Clock,
    pub target: SocketAddr,
    /// Local addresses, used in turn; empty: the system chooses.
    pub sources: Vec<IpAddr>,
    /// Of all workers' connections, those before the first of this one.
    pub source_offset: usize,
    pub first_user: u64,
    pub users: u32,
    /// Who is a member of which group, if the plan has groups.
    pub groups: Option<Groups>,
    /// The same of groups that the gateway keeps.
    pub crowds: Option<Rc<Crowds>>,
    /// What is spoken beneath Portico's protocol.
    pub tls: Option<TlsClient>,
    /// Connections opened per second, at most.
    pub connects_per_s: u32,
    /// Seconds between two heartbeats; 0: as the system proposes.
    pub heartbeat_s: u16,
    pub acks: Acks,
    /// Messages of one connection that leave in one write.
    pub burst: u32,
    /// Differs between runs: ids are made from it.
    pub run: u64,
    /// How Portico's users log in; other systems take everybody.
    pub login: Option<Credentials<'a>>,
}

/// What access tokens are made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credentials<'a> {
    pub tokens: Tokens<'a>,
    pub device: DeviceId,
    /// Longer than the run: reconnecting must not fail because of it.
    pub token_ttl: Duration,
}

/// What `protocol` promises when it is used so; known before anything is opened.
pub(crate) const fn promises(protocol: Protocol, acks: Acks) -> Promises {
    match (protocol, acks) {
        (Protocol::Portico, Acks::Full) => Promises {
            answers: true,
            receipts: true,
            places: true,
            stores: true,
        },
        (Protocol::Portico, Acks::Minimal) => Promises {
            answers: false,
            receipts: false,
            // The recipient is told the place, the sender is not.
            places: false,
            stores: true,
        },
        (Protocol::MqttQos1 | Protocol::Redis, _) => Promises {
            answers: true,
            receipts: false,
            places: false,
            stores: false,
        },
        (Protocol::MqttQos0 | Protocol::Nats | Protocol::Relay, _) => Promises {
            answers: false,
            receipts: false,
            places: false,
            stores: false,
        },
    }
}

/// What is promised to a plan, and so checked. A message to a group of Portico's is as many direct
/// ones as it has members: their receipts and places are checked by the other plans.
pub(crate) const fn promises_to(plan: &Plan) -> Promises {
    let promises = promises(plan.protocol, plan.acks);
    if plan.groups.is_some() {
        // Marks of groups are of all members together, and told for the sake of people.
        return Promises {
            receipts: false,
            ..promises
        };
    }
    if plan.fanout.is_none() {
        return promises;
    }
    Promises {
        receipts: false,
        places: false,
        ..promises
    }
}

/// Sockets that a user of the plan takes: two where a connection cannot both hear and speak, and
/// users do both.
pub(crate) const fn sockets_per_user(plan: &Plan) -> u32 {
    match plan.protocol {
        Protocol::Redis | Protocol::Relay if plan.fanout.is_none() => 2,
        _ => 1,
    }
}

/// The only place where a fleet is made.
pub(crate) fn open<'a>(
    protocol: Protocol,
    opening: &Opening<'a>,
) -> anyhow::Result<Box<dyn Fleet + 'a>> {
    let system = match protocol {
        Protocol::Portico => return Ok(Box::new(portico::Portico::open(opening)?)),
        Protocol::MqttQos0 => System::MqttQos0,
        Protocol::MqttQos1 => System::MqttQos1,
        Protocol::Nats => System::Nats,
        Protocol::Redis => System::Redis,
        Protocol::Relay => System::Relay,
    };
    let opening = PeerOpening {
        clock: opening.clock,
        target: opening.target,
        users_before: opening.source_offset,
        first_user: opening.first_user,
        users: opening.users,
        members: opening.groups.map(|groups| groups.members),
        ports_per_source: ports_per_source(),
        connects_per_s: opening.connects_per_s,
        heartbeat_s: opening.heartbeat_s,
    };
    Ok(peer::open(system, &opening)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_both_hears_and_speaks_may_take_two_sockets() {
        let sockets = |name, protocol| {
            let mut plan = Plan::named(name).expect("built in");
            plan.protocol = protocol;
            sockets_per_user(&plan)
        };
        assert_eq!(sockets("relay", Protocol::Portico), 1);
        assert_eq!(sockets("relay", Protocol::Nats), 1);
        assert_eq!(sockets("relay", Protocol::Redis), 2);
        assert_eq!(sockets("relay", Protocol::Relay), 2);
        assert_eq!(sockets("fanout", Protocol::Redis), 1);
    }

    #[test]
    fn promises_depend_on_the_protocol_and_how_it_is_used() {
        let told = |name, change: fn(&mut Plan)| {
            let mut plan = Plan::named(name).expect("built in");
            change(&mut plan);
            let promises = promises_to(&plan);
            (promises.answers, promises.receipts, promises.places)
        };
        assert_eq!(told("relay", |_| {}), (true, true, true));
        assert_eq!(told("fanout", |_| {}), (true, false, false));
        let minimal = told("relay", |plan| plan.acks = Acks::Minimal);
        assert_eq!(minimal, (false, false, false));
        let nats = told("relay", |plan| plan.protocol = Protocol::Nats);
        assert_eq!(nats, (false, false, false));
        let qos1 = told("relay", |plan| plan.protocol = Protocol::MqttQos1);
        assert_eq!(qos1, (true, false, false));
    }
}
