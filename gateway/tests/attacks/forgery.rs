//! A client that is logged in and lies: about who it is and when it spoke, about what others have
//! read, about whose messages it may ask for.

use crate::{
    harness::{Message, Peer, new_msg_id, wall_us},
    siege::{Ground, setup},
};
use portico_client::plain_envelope;
use portico_wire::{
    CloseCode, ErrorCode, Flags, Op, RouteHeader, SeqHeader,
    encode::{put_body, put_plain, put_routed, put_seq},
    frame::{ConvKind, receipt_kind},
    ids::{ConvSeq, DeviceId, Seq, UserId},
};

const LIAR: u64 = 1;
const VICTIM: u64 = 2;
const FRIEND: u64 = 3;

fn direct(conv: u64) -> RouteHeader {
    RouteHeader {
        msg_id: new_msg_id(),
        conv,
        conv_kind: ConvKind::DIRECT,
        ..RouteHeader::default()
    }
}

fn routed(peer: &mut Peer, op: Op, flags: Flags, corr: u32, route: &RouteHeader, body: &[u8]) {
    let mut out = Vec::new();
    put_routed(&mut out, op as u8, flags, corr, 0, route, body);
    peer.write(&out);
}

/// Every field that only the server may write, at once and wrong.
#[test]
fn what_the_server_writes_is_not_the_clients_to_say() {
    let ground = Ground::new(&setup());
    let gateway = &ground.gateway;
    ground.besiege(|siege| {
        let (mut liar, mut victim) = (gateway.login(LIAR, 1), gateway.login(VICTIM, 1));
        let mut last = (Seq(0), ConvSeq(0));
        while siege.goes_on() {
            let lie = RouteHeader {
                user: UserId(FRIEND),
                dev: DeviceId(9),
                conv_seq: ConvSeq(u64::MAX),
                ..direct(VICTIM)
            };
            // Unless it is a request, nobody answers that a message was refused.
            let corr = liar.next_corr();
            let flags = [Flags::NONE, Flags::REPLY, Flags::MORE];
            let flags = flags[corr as usize % flags.len()];
            let begun_us = wall_us();
            routed(
                &mut liar,
                Op::Send,
                flags,
                corr,
                &lie,
                &plain_envelope("I am a friend"),
            );
            let message: Message = victim.receive();
            assert_eq!(message.from, UserId(LIAR));
            assert_eq!(message.device, DeviceId(1));
            assert_eq!(message.peer, UserId(LIAR));
            // Numbers are times: the server's, and ascending.
            let said = (message.seq, message.conv_seq);
            assert!(
                said.0 > last.0 && said.1 > last.1,
                "{said:?} after {last:?}"
            );
            let off_us = message.conv_seq.0.abs_diff(begun_us);
            assert!(off_us < 60_000_000, "{off_us} us from the server's clock");
            last = said;
        }
    });
    gateway.still_serves();
}

/// A DELIVER, a SENT, a WELCOME from a client: nobody hears of it, and it is out.
#[test]
fn what_only_the_server_says_ends_the_connection() {
    let ground = Ground::new(&setup());
    let gateway = &ground.gateway;
    let mut victim = gateway.login(VICTIM, 1);
    let ops = [
        Op::Deliver,
        Op::Sent,
        Op::Welcome,
        Op::Synced,
        Op::Pong,
        Op::Error,
        Op::Done,
    ];
    let mut at = 0;
    ground.besiege(|siege| {
        while siege.goes_on() {
            at += 1;
            let mut liar = gateway.login(LIAR, 1);
            let op = ops[at % ops.len()];
            match op {
                Op::Deliver => {
                    let lie = RouteHeader {
                        seq: Seq(wall_us()),
                        conv_seq: ConvSeq(wall_us()),
                        user: UserId(FRIEND),
                        ..direct(VICTIM)
                    };
                    routed(
                        &mut liar,
                        op,
                        Flags::NONE,
                        0,
                        &lie,
                        &plain_envelope("forged"),
                    );
                }
                Op::Sent | Op::Synced => {
                    let mut out = Vec::new();
                    put_seq(&mut out, op, Flags::REPLY, 1, SeqHeader::default());
                    liar.write(&out);
                }
                _ => {
                    let mut out = Vec::new();
                    put_plain(&mut out, op, Flags::NONE, 1, 0);
                    liar.write(&out);
                }
            }
            assert_eq!(liar.closed(), CloseCode::PROTOCOL_ERROR, "{op:?}");
        }
    });
    victim.has_no(Op::Deliver);
    gateway.still_serves();
}

/// Whoever acknowledges the numbers of somebody else's inbox acknowledges in their own.
#[test]
fn acknowledging_other_peoples_messages_changes_nothing_for_them() {
    let ground = Ground::new(&setup());
    let gateway = &ground.gateway;
    let mut friend = gateway.login(FRIEND, 1);
    let mut victim = gateway.login(VICTIM, 1);
    friend.send(VICTIM, "for the victim");
    let waiting = victim.message();
    drop(victim);
    ground.besiege(|siege| {
        let mut liar = gateway.login(LIAR, 1);
        let mut seq = waiting.seq.0;
        while siege.goes_on() {
            liar.ack(Seq(seq));
            // The same for what will come, and as a mark that it was read.
            liar.ack(Seq(seq + 1_000_000));
            let lie = RouteHeader {
                conv_seq: waiting.conv_seq,
                kind: receipt_kind::READ,
                user: UserId(VICTIM),
                ..direct(FRIEND)
            };
            let corr = liar.next_corr();
            routed(&mut liar, Op::Receipt, Flags::NONE, corr, &lie, &[]);
            liar.reply(corr);
            liar.ping();
            seq += 1;
        }
    });
    gateway.await_metric("portico_unsaved", |count| count == 0);
    // The author saw no mark of the victim, nor one of the liar in the conversation with the victim.
    let marks = friend.receipts(VICTIM);
    assert!(
        marks
            .iter()
            .all(|mark| mark.reader != UserId(VICTIM) || mark.up_to == ConvSeq(0)),
        "{marks:?}"
    );
    assert!(
        marks.iter().all(|mark| mark.reader != UserId(LIAR)),
        "{marks:?}"
    );
    let mut victim = gateway.login(VICTIM, 1);
    assert_eq!(victim.receive().text, "for the victim");
    gateway.still_serves();
}

/// Ids of other people's conversations and messages, known exactly: there is no operation that
/// gives anything away for them.
#[test]
fn ids_of_others_open_nothing() {
    let ground = Ground::new(&setup());
    let gateway = &ground.gateway;
    let (mut friend, mut victim) = (gateway.login(FRIEND, 1), gateway.login(VICTIM, 1));
    let (corr, msg_id) = friend.post(VICTIM, "a secret");
    let (conv_seq, _) = friend.sent(corr);
    assert_eq!(victim.receive().text, "a secret");
    victim.read(FRIEND, conv_seq);
    ground.besiege(|siege| {
        let mut liar = gateway.login(LIAR, 1);
        while siege.goes_on() {
            // Marks are of one's own conversation with whom one names.
            for other in [VICTIM, FRIEND] {
                let marks = liar.receipts(other);
                assert!(marks.iter().all(|mark| mark.up_to < conv_seq), "{marks:?}");
            }
            // A RETRY with the id of a message that exists is one's own new message.
            let corr = liar.next_corr();
            liar.post_as(corr, VICTIM, msg_id, Flags::RETRY, "not a secret");
            let (place, _) = liar.sent(corr);
            assert!(place != conv_seq, "it told where the other message is");
            refuses_to_read(&mut liar);
        }
        liar.has_no(Op::Deliver);
    });
    // The RETRY was accepted once, beside the message whose id it has; it may be shown again for each.
    let copy = victim.receive();
    assert_eq!((copy.from, copy.msg_id), (UserId(LIAR), msg_id));
    assert_eq!(copy.text, "not a secret");
    friend.send(VICTIM, "the end");
    loop {
        let message = victim.receive();
        if message.text == "the end" {
            break;
        }
        assert_eq!((message.from, message.conv_seq), (copy.from, copy.conv_seq));
    }
    gateway.still_serves();
}

/// Operations that would read keys, devices, media or people: none is served yet. Whoever
/// serves one takes it out of here, and says in a test of its own who may ask.
fn refuses_to_read(liar: &mut Peer) {
    const READING: [Op; 6] = [
        Op::KeysFetch,
        Op::DevicesGet,
        Op::IdentityLogGet,
        Op::DownloadOpen,
        Op::ProfilesGet,
        Op::UsersLookup,
    ];
    for op in READING {
        let (corr, mut out) = (liar.next_corr(), Vec::new());
        put_body(&mut out, op as u8, Flags::NONE, corr, 0, &[0; 32]);
        liar.write(&out);
        assert_eq!(liar.refused(corr).code, ErrorCode::UNSUPPORTED, "{op:?}");
    }
}
