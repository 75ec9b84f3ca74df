//! A device that writes down what arrives, and acknowledges behind.

use super::{PATIENCE, Round, writer::text};
use crate::harness::{Gateway, Message};
use portico_client::{RawConnection, RawError};
use portico_wire::{
    encode::put_ack,
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
    limits::RECEIVE_MAX_DEFAULT,
    message::Hello,
};
use std::{
    collections::{HashMap, HashSet},
    io::ErrorKind,
    time::Duration,
};

/// Arrivals that are acknowledged together.
const ACK_EVERY: usize = 7;
/// Nothing came for this long after the gateway said that it has nothing more.
const SILENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) number: usize,
    pub(super) msg_id: MsgId,
    pub(super) conv_seq: ConvSeq,
}

#[derive(Debug)]
pub(super) struct Reader {
    user: u64,
    /// Everything up to here is written down.
    cursor: Seq,
    known: HashSet<(UserId, DeviceId, MsgId)>,
    arrivals: HashMap<u64, Vec<Arrival>>,
}

impl Reader {
    pub(super) fn new(user: u64) -> Self {
        Self {
            user,
            cursor: Seq(0),
            known: HashSet::new(),
            arrivals: HashMap::new(),
        }
    }

    pub(super) fn from(&self, user: u64) -> &[Arrival] {
        self.arrivals.get(&user).map_or(&[], Vec::as_slice)
    }

    /// Works until the gateway is killed. With `forgetful` it says nothing about its cursor and
    /// takes the gateway's word.
    pub(super) fn run(&mut self, gateway: &Gateway, round: &Round, forgetful: bool) {
        let mut conn = match self.login(gateway, forgetful) {
            Ok(conn) => conn,
            Err(error) => {
                assert!(round.is_over(), "reader {}: {error}", self.user);
                return;
            }
        };
        let mut unacknowledged = 0;
        while !round.is_over() {
            match conn.read_frame(POLL) {
                Ok(Some(frame)) => unacknowledged += usize::from(self.arrived(&frame)),
                Err(RawError::Io(error)) if error.kind() == ErrorKind::TimedOut => {}
                Ok(None) | Err(_) if round.is_over() => return,
                other => panic!("reader {}: {other:?}", self.user),
            }
            if unacknowledged >= ACK_EVERY {
                unacknowledged = 0;
                // Fails when the gateway has just been killed.
                let _ = self.acknowledge(&mut conn);
            }
        }
    }

    /// Reads all that the gateway has. Everything was acknowledged to its writers before, so what
    /// is missing here is lost.
    pub(super) fn finish(&mut self, gateway: &Gateway) {
        let mut conn = self.login(gateway, true).expect("WELCOME");
        let mut synced = false;
        loop {
            match conn.read_frame(if synced { SILENCE } else { PATIENCE }) {
                Ok(Some(frame)) => {
                    self.arrived(&frame);
                    self.acknowledge(&mut conn).expect("the gateway reads");
                    synced |= frame.known_op() == Some(portico_wire::Op::Synced);
                }
                Err(RawError::Io(error)) if synced && error.kind() == ErrorKind::TimedOut => break,
                other => panic!("reader {}: {other:?}", self.user),
            }
        }
    }

    fn login(&self, gateway: &Gateway, forgetful: bool) -> Result<RawConnection, RawError> {
        let mut conn = RawConnection::connect(gateway.listen)?;
        let token = gateway.token(self.user, 1);
        conn.hello_with(&Hello {
            token: Some(&token),
            last_seq: if forgetful { Seq(0) } else { self.cursor },
            ..Hello::default()
        })?;
        Ok(conn)
    }

    /// Writes a message down, unless it is known. Is it one?
    fn arrived(&mut self, frame: &portico_client::RawFrame) -> bool {
        let Some(message) = Message::decode(frame) else {
            return false;
        };
        self.cursor = self.cursor.max(message.seq);
        let key = (message.from, message.device, message.msg_id);
        if self.known.insert(key) {
            let user = message.from.0;
            let number = message.text.split(' ').nth(1).and_then(|n| n.parse().ok());
            let number = number.expect("a number of its writer");
            assert!(message.text == text(user, number), "{}", message.text);
            self.arrivals.entry(user).or_default().push(Arrival {
                number,
                msg_id: message.msg_id,
                conv_seq: message.conv_seq,
            });
        }
        true
    }

    fn acknowledge(&self, conn: &mut RawConnection) -> std::io::Result<()> {
        let mut out = Vec::new();
        put_ack(&mut out, self.cursor, RECEIVE_MAX_DEFAULT);
        conn.write_bytes(&out)
    }
}
