//! Pages, the list of conversations and withdrawals, written and read as the values of the crate.

use super::Sample;
use crate::tables::{GROUP, OTHER, SEQ, USER};
use portico_wire::{
    Flags, Frame, Op,
    encode::{Encoder, put_routed},
    frame::ConvKind,
    ids::{ConvSeq, DeviceId, MsgId, UserId},
    message::history::{Conversation, ConversationsGet, HistoryEnd, HistoryGet, Revoke},
};

const CORR: u32 = 0x0c0b_0a09;

fn get() -> HistoryGet {
    HistoryGet {
        conv_kind: ConvKind::GROUP,
        conv: GROUP,
        before: ConvSeq(SEQ + 9),
        after: ConvSeq(SEQ),
        limit: 100,
        forward: true,
    }
}

const END: HistoryEnd = HistoryEnd {
    more: true,
    next: ConvSeq(SEQ),
};

const LIST: ConversationsGet = ConversationsGet {
    before: ConvSeq(SEQ),
    limit: 20,
};

fn conversation() -> Conversation {
    Conversation {
        conv_kind: ConvKind::DIRECT,
        conv: OTHER,
        head_seq: ConvSeq(SEQ + 1),
        read_seq: ConvSeq(SEQ),
        unread: 12,
    }
}

fn target() -> Revoke {
    Revoke {
        seq: ConvSeq(SEQ),
        user: UserId(USER),
        device: DeviceId(0x0302),
        msg_id: MsgId::from_bytes(std::array::from_fn(|i| 0x20 + i as u8)),
    }
}

type Write = fn(&mut Encoder, &mut Vec<u8>);
type Check = fn(&Frame<'_>);

/// Each body with every field set and with none.
pub(super) fn samples() -> Vec<Sample> {
    let e = &mut Encoder::new();
    let more = Flags::REPLY | Flags::MORE;
    let mut sample = |name: &str, op: Op, flags, write: Write, check: Check| {
        let mut bytes = Vec::new();
        write(e, &mut bytes);
        Sample {
            name: format!("{}.{name}", op.name()),
            op,
            bytes,
            check,
            flags,
            corr: CORR,
            aux: 0,
        }
    };
    let (none, reply) = (Flags::NONE, Flags::REPLY);
    vec![
        sample(
            "value",
            Op::History,
            none,
            |e, out| e.history_get(out, CORR, &get()),
            |frame| assert_eq!(HistoryGet::decode(frame.body()), Ok(get())),
        ),
        sample(
            "minimal",
            Op::History,
            none,
            |e, out| e.history_get(out, CORR, &HistoryGet::default()),
            |frame| {
                let decoded = HistoryGet::decode(frame.body());
                assert_eq!(decoded, Ok(HistoryGet::default()));
            },
        ),
        sample(
            "value",
            Op::HistoryEnd,
            reply,
            |e, out| e.history_end(out, CORR, &END),
            |frame| assert_eq!(HistoryEnd::decode(frame.body()), Ok(END)),
        ),
        sample(
            "minimal",
            Op::HistoryEnd,
            reply,
            |e, out| e.history_end(out, CORR, &HistoryEnd::default()),
            |frame| {
                let decoded = HistoryEnd::decode(frame.body());
                assert_eq!(decoded, Ok(HistoryEnd::default()));
            },
        ),
        sample(
            "value",
            Op::ConversationsGet,
            none,
            |e, out| e.conversations_get(out, CORR, &LIST),
            |frame| assert_eq!(ConversationsGet::decode(frame.body()), Ok(LIST)),
        ),
        sample(
            "minimal",
            Op::ConversationsGet,
            none,
            |e, out| e.conversations_get(out, CORR, &ConversationsGet::default()),
            |frame| {
                let decoded = ConversationsGet::decode(frame.body());
                assert_eq!(decoded, Ok(ConversationsGet::default()));
            },
        ),
        sample(
            "value",
            Op::Conversation,
            more,
            |e, out| e.conversation(out, CORR, &conversation()),
            |frame| assert_eq!(Conversation::decode(frame.body()), Ok(conversation())),
        ),
        sample(
            "minimal",
            Op::Conversation,
            more,
            |e, out| e.conversation(out, CORR, &Conversation::default()),
            |frame| {
                let decoded = Conversation::decode(frame.body());
                assert_eq!(decoded, Ok(Conversation::default()));
            },
        ),
        sample(
            "value",
            Op::Revoke,
            Flags::ROUTED,
            |e, out| {
                let (op, route) = (Op::Revoke as u8, super::route());
                put_routed(out, op, Flags::NONE, CORR, 0, &route, e.revoke(&target()));
            },
            |frame| assert_eq!(Revoke::decode(frame.body()), Ok(target())),
        ),
        sample(
            // A withdrawn message in a page of history: a DELIVER that ends with its header.
            "withdrawn",
            Op::Deliver,
            more | Flags::ROUTED,
            |_, out| {
                let (op, route) = (Op::Deliver as u8, super::route());
                put_routed(out, op, Flags::REPLY | Flags::MORE, CORR, 0, &route, &[]);
            },
            |frame| assert_eq!(frame.body(), b""),
        ),
    ]
}
