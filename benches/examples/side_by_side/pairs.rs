//! Pairs of users, of whom one writes to the other: a socket each, at a gateway and at the floor.

use super::{Fault, servers::Server};
use portico_client::{
    mint::{KEY_FILE, SigningKey},
    raw::RawConnection,
};
use portico_core::{ShardId, user_home};
use portico_wire::{
    Flags, Op, RouteHeader,
    encode::{put_ack, put_routed},
    frame::ConvKind,
    ids::{DeviceId, MsgId, Seq, UserId},
    limits::FRAME_BYTES_TO_CLIENT_MAX,
    message::Hello,
    next_frame,
};
use std::{
    hint,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const BODY_BYTES: usize = 64;
/// What a receiver lets the gateway send ahead; it acknowledges when half of it is used.
const WINDOW: u32 = 256;
const READ_BYTES: usize = 65_536;
const TOKEN_TTL_S: u64 = 3_600;
/// Users are numbered from here on; each set of pairs has its own.
const FIRST_USER: u64 = 1_000_000_000;
const USERS_PER_SET: u64 = 1_000_000;
/// A shard count of the gateways here, for where users live.
const SHARDS: u16 = 2;
const PATIENCE: Duration = Duration::from_secs(10);
/// A receiver that has nothing yet is not asked again at once.
const PAUSE: Duration = Duration::from_micros(5);

pub(crate) struct Pairs {
    pairs: Vec<Pair>,
    /// Frames of Portico, not bare bytes.
    frames: bool,
    next_id: u64,
    out: Vec<u8>,
}

struct Pair {
    sender: TcpStream,
    receiver: TcpStream,
    recipient: u64,
    buffer: Vec<u8>,
    filled: usize,
    received: usize,
    last_seq: Seq,
    unacknowledged: u32,
}

impl Pairs {
    /// Pairs at the floor, which hears once who a connection is: 16 bytes.
    pub(crate) fn floor(server: &Server, pairs: usize) -> Result<Self, Fault> {
        let connect = |role: u8, topic: usize| -> Result<TcpStream, Fault> {
            let mut stream = TcpStream::connect(server.address)?;
            stream.set_nodelay(true)?;
            let mut greeting = [0; 16];
            greeting[..4].copy_from_slice(b"PTFL");
            greeting[4] = role;
            greeting[8..].copy_from_slice(&(topic as u64).to_le_bytes());
            stream.write_all(&greeting)?;
            stream.read_exact(&mut [0])?;
            Ok(stream)
        };
        let pair = |at| Pair::new(connect(b's', at)?, connect(b'r', at)?, 0);
        Ok(Self::of(
            (0..pairs).map(pair).collect::<Result<_, _>>()?,
            false,
        ))
    }

    /// Pairs at a gateway whose two homes are as asked for; half of the receivers in each shard.
    pub(crate) fn gateway(
        server: &Server,
        pairs: usize,
        set: u64,
        homes: fn(ShardId, ShardId) -> bool,
    ) -> Result<Self, Fault> {
        let key = SigningKey::load(&server.data().join(KEY_FILE))?;
        let connect = |user: u64| -> Result<TcpStream, Fault> {
            let mut raw = RawConnection::connect(server.address)?;
            let now_s = unix()?.as_secs();
            let token = key.token(UserId(user), DeviceId(1), 0, TOKEN_TTL_S, now_s);
            let hello = Hello {
                token: Some(&token),
                receive_max: WINDOW,
                ..Hello::default()
            };
            raw.hello_with(&hello)?;
            raw.expect_op(Op::Synced, PATIENCE)?;
            Ok(raw.stream().try_clone()?)
        };
        let first = FIRST_USER + set * USERS_PER_SET;
        let (mut receiver, mut sender) = (first, first + USERS_PER_SET / 2);
        let mut all = Vec::with_capacity(pairs);
        for at in 0..pairs {
            let wanted = ShardId(at as u16 % SHARDS);
            receiver = (receiver..)
                .find(|user| user_home(UserId(*user), SHARDS) == wanted)
                .ok_or("no such user")?;
            sender = (sender..)
                .find(|user| homes(wanted, user_home(UserId(*user), SHARDS)))
                .ok_or("no such user")?;
            all.push(Pair::new(connect(sender)?, connect(receiver)?, receiver)?);
            (receiver, sender) = (receiver + 1, sender + 1);
        }
        Ok(Self::of(all, true))
    }

    const fn of(pairs: Vec<Pair>, frames: bool) -> Self {
        Self {
            pairs,
            frames,
            next_id: 0,
            out: Vec::new(),
        }
    }

    /// Everybody sends, then everybody has got everything.
    pub(crate) fn round(&mut self, burst: usize) -> Result<(), Fault> {
        let unix_ms = unix()?.as_millis() as u64;
        let body = [b'x'; BODY_BYTES];
        for pair in &mut self.pairs {
            self.out.clear();
            for _ in 0..burst {
                if !self.frames {
                    self.out.extend_from_slice(&body);
                    continue;
                }
                self.next_id += 1;
                let route = RouteHeader {
                    msg_id: MsgId::new_v7(unix_ms, u128::from(self.next_id)),
                    conv: pair.recipient,
                    conv_kind: ConvKind::DIRECT,
                    ..RouteHeader::default()
                };
                // No request number: no answer, the protocol's least.
                let op = Op::Send as u8;
                put_routed(&mut self.out, op, Flags::NONE, 0, 0, &route, &body);
            }
            pair.send(&self.out)?;
        }
        for pair in &mut self.pairs {
            let wanted = pair.received + burst;
            while pair.received < wanted {
                pair.receive(self.frames)?;
            }
        }
        Ok(())
    }
}

impl Pair {
    fn new(sender: TcpStream, receiver: TcpStream, recipient: u64) -> Result<Self, Fault> {
        receiver.set_nonblocking(true)?;
        sender.set_nonblocking(true)?;
        Ok(Self {
            sender,
            receiver,
            recipient,
            buffer: vec![0; READ_BYTES],
            filled: 0,
            received: 0,
            last_seq: Seq(0),
            unacknowledged: 0,
        })
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            match self.sender.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => pause(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive(&mut self, frames: bool) -> Result<(), Fault> {
        match self.receiver.read(&mut self.buffer[self.filled..]) {
            Ok(0) => return Err("the server closed a connection".into()),
            Ok(read) => self.filled += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                pause();
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let used = if frames {
            self.frames()?
        } else {
            let whole = self.filled / BODY_BYTES;
            self.received += whole;
            whole * BODY_BYTES
        };
        self.buffer.copy_within(used..self.filled, 0);
        self.filled -= used;
        if self.unacknowledged >= WINDOW / 2 {
            self.unacknowledged = 0;
            let mut ack = Vec::new();
            put_ack(&mut ack, self.last_seq, WINDOW);
            self.receiver.write_all(&ack)?;
        }
        Ok(())
    }

    /// Counts what was delivered. The answer: how many bytes were whole frames.
    fn frames(&mut self) -> Result<usize, Fault> {
        let mut used = 0;
        while let Some(frame) =
            next_frame(&self.buffer[used..self.filled], FRAME_BYTES_TO_CLIENT_MAX)
                .map_err(|error| format!("no frame: {error}"))?
        {
            used += frame.bytes().len();
            match frame.known_op() {
                Some(Op::Deliver) => {
                    self.last_seq = frame.route().map_or(self.last_seq, |route| route.seq);
                    self.received += 1;
                    self.unacknowledged += 1;
                }
                Some(op @ (Op::Error | Op::Close)) => {
                    return Err(format!("the gateway said {op:?}").into());
                }
                _ => {}
            }
        }
        Ok(used)
    }
}

fn unix() -> Result<Duration, Fault> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

/// Without sleeping, which would cost more than it waits for.
fn pause() {
    let until = Instant::now() + PAUSE;
    while Instant::now() < until {
        hint::spin_loop();
    }
}
