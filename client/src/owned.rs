//! Events that can be kept and sent between threads.

mod answer;

pub use answer::{OwnedAnswer, OwnedContact, OwnedGroup, OwnedGroupChange};

use crate::session::{AskId, Conv, Event, ProtocolFault};
use portico_wire::{
    CloseCode, ErrorCode,
    ids::{ConvSeq, DeviceId, GroupId, MsgId, Seq, UserId},
    message::{Envelope, history::Revoke, people::PresenceItem},
};

/// An Envelope with bytes of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedEnvelope {
    pub cipher: u8,
    pub body: Vec<u8>,
    pub packing: u8,
    pub key_id: Vec<u8>,
}

impl From<Envelope<'_>> for OwnedEnvelope {
    fn from(envelope: Envelope<'_>) -> Self {
        Self {
            cipher: envelope.cipher,
            body: envelope.body.to_vec(),
            packing: envelope.packing,
            key_id: envelope.key_id.to_vec(),
        }
    }
}

/// An [`Event`] with bytes of its own; the variants are explained there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedEvent {
    Welcome {
        resumed: bool,
        head: Seq,
        floor: Seq,
    },
    Synced {
        up_to: Seq,
        replayed: u32,
    },
    Gap {
        floor: Seq,
    },
    Message {
        seq: Seq,
        conv_seq: ConvSeq,
        peer: UserId,
        group: Option<GroupId>,
        from: UserId,
        from_device: DeviceId,
        msg_id: MsgId,
        kind: u8,
        ephemeral: bool,
        envelope: Option<OwnedEnvelope>,
    },
    GroupChanged {
        seq: Seq,
        conv_seq: ConvSeq,
        group: GroupId,
        by: UserId,
        by_device: DeviceId,
        change: OwnedGroupChange,
    },
    Withdrawn {
        seq: Seq,
        conv_seq: ConvSeq,
        conv: Conv,
        by: UserId,
        target: Revoke,
    },
    Undecodable {
        seq: Seq,
        from: UserId,
        msg_id: MsgId,
    },
    Duplicate {
        seq: Seq,
        from: UserId,
        msg_id: MsgId,
    },
    Sent {
        msg_id: MsgId,
        conv_seq: ConvSeq,
        duplicate: bool,
    },
    Refused {
        msg_id: MsgId,
        code: ErrorCode,
        retry_after_ms: u32,
        will_retry: bool,
    },
    Receipt {
        peer: UserId,
        read: bool,
        up_to: ConvSeq,
        at_s: u32,
    },
    GroupReceipt {
        group: GroupId,
        member: Option<UserId>,
        reached: u16,
        of: u16,
        read: bool,
        up_to: ConvSeq,
        at_s: u32,
    },
    GroupReadElsewhere {
        group: GroupId,
        up_to: ConvSeq,
    },
    Signal {
        conv: Conv,
        from: UserId,
        kind: u8,
        ttl_s: u32,
    },
    Presence {
        items: Vec<PresenceItem>,
    },
    Answer {
        ask: AskId,
        answer: OwnedAnswer,
    },
    ReadElsewhere {
        peer: UserId,
        up_to: ConvSeq,
    },
    TokenExpiring {
        in_s: u32,
    },
    Renewed {
        ttl_s: u32,
    },
    RenewalRefused {
        code: ErrorCode,
    },
    Draining {
        leave_after_ms: u32,
    },
    Closed {
        code: CloseCode,
        by_peer: bool,
        reconnect_after_ms: Option<u32>,
        detail: String,
    },
    ProtocolFault(ProtocolFault),
}

impl From<Event<'_>> for OwnedEvent {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Welcome {
                resumed,
                head,
                floor,
            } => Self::Welcome {
                resumed,
                head,
                floor,
            },
            Event::Synced { up_to, replayed } => Self::Synced { up_to, replayed },
            Event::Gap { floor } => Self::Gap { floor },
            Event::Message {
                seq,
                conv_seq,
                peer,
                group,
                from,
                from_device,
                msg_id,
                kind,
                ephemeral,
                envelope,
                raw: _,
            } => Self::Message {
                seq,
                conv_seq,
                peer,
                group,
                from,
                from_device,
                msg_id,
                kind,
                ephemeral,
                envelope: envelope.map(OwnedEnvelope::from),
            },
            Event::GroupChanged {
                seq,
                conv_seq,
                group,
                by,
                by_device,
                change,
            } => Self::GroupChanged {
                seq,
                conv_seq,
                group,
                by,
                by_device,
                change: change.into(),
            },
            Event::Withdrawn {
                seq,
                conv_seq,
                conv,
                by,
                target,
            } => Self::Withdrawn {
                seq,
                conv_seq,
                conv,
                by,
                target,
            },
            Event::Undecodable { seq, from, msg_id } => Self::Undecodable { seq, from, msg_id },
            Event::Duplicate { seq, from, msg_id } => Self::Duplicate { seq, from, msg_id },
            Event::Sent {
                msg_id,
                conv_seq,
                duplicate,
            } => Self::Sent {
                msg_id,
                conv_seq,
                duplicate,
            },
            Event::Refused {
                msg_id,
                code,
                retry_after_ms,
                will_retry,
            } => Self::Refused {
                msg_id,
                code,
                retry_after_ms,
                will_retry,
            },
            Event::Receipt {
                peer,
                read,
                up_to,
                at_s,
            } => Self::Receipt {
                peer,
                read,
                up_to,
                at_s,
            },
            Event::GroupReceipt {
                group,
                member,
                reached,
                of,
                read,
                up_to,
                at_s,
            } => Self::GroupReceipt {
                group,
                member,
                reached,
                of,
                read,
                up_to,
                at_s,
            },
            Event::GroupReadElsewhere { group, up_to } => Self::GroupReadElsewhere { group, up_to },
            Event::Signal {
                conv,
                from,
                kind,
                ttl_s,
            } => Self::Signal {
                conv,
                from,
                kind,
                ttl_s,
            },
            Event::Presence { items } => Self::Presence {
                items: items.to_vec(),
            },
            Event::Answer { ask, answer } => Self::Answer {
                ask,
                answer: answer.into(),
            },
            Event::ReadElsewhere { peer, up_to } => Self::ReadElsewhere { peer, up_to },
            Event::TokenExpiring { in_s } => Self::TokenExpiring { in_s },
            Event::Renewed { ttl_s } => Self::Renewed { ttl_s },
            Event::RenewalRefused { code } => Self::RenewalRefused { code },
            Event::Draining { leave_after_ms } => Self::Draining { leave_after_ms },
            Event::Closed {
                code,
                by_peer,
                reconnect_after_ms,
                detail,
            } => Self::Closed {
                code,
                by_peer,
                reconnect_after_ms,
                detail: detail.to_owned(),
            },
            Event::ProtocolFault(fault) => Self::ProtocolFault(fault),
        }
    }
}
