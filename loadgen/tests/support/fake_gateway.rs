//! A gateway of a few hundred lines that breaks chosen promises, to prove that the tool notices.
//!
//! A thread per connection, everything in memory. It uses the wire crate alone, so it can agree
//! with the client only about bytes. It checks no signatures.

mod life;

use life::Life;
use portico_wire::{
    CloseCode, ErrorCode, Flags, Frame, Op, RouteHeader,
    encode::{self, Encoder},
    frame::{
        ConvKind, next_frame,
        receipt_kind::{DELIVERED, READ},
    },
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
    limits::FRAME_BYTES_DEFAULT_MAX,
    message::{Close, ErrorReply, Hello, ReceiptsGet, Welcome},
};
use std::{
    collections::{BTreeMap, HashMap},
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What the gateway does wrong. Unless said otherwise: to every fourth message to each user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Never delivered.
    Drop,
    /// Delivered twice as it is: the protocol allows that.
    Repeat,
    /// Delivered twice under two ids.
    Duplicate,
    /// Delivered after its successor.
    Swap,
    /// One bit of the body is changed.
    Corrupt,
    /// Delivered to a neighbour.
    Misroute,
    /// The recipient is told another place than the sender.
    Misnumber,
    /// Delivered, but never answered.
    Silence,
    /// Every message is ignored.
    Swallow,
    /// After the login everything is read, and not even looked at.
    Discard,
    /// Refused at the first attempt: OVERLOADED.
    Overload,
    /// Refused for good: FORBIDDEN.
    Forbid,
    /// The same, but for every message to a user after so many: a capacity that no clock decides.
    Quota(u64),
    /// The connection of the sender breaks after the message was stored, before it is answered;
    /// every tenth time, because back-off takes its time.
    Disconnect,
    /// No delivered marks, not for any message.
    NoReceipts,
    /// Read marks are taken and told to nobody.
    NoReads,
    /// Delivered marks only when asked for.
    ReceiptsOnRequest,
    /// Every user is turned away at login.
    TurnAway,
    /// Every fourth user's first login is put off for a moment: CLOSE OVERLOADED.
    PutOff,
    /// Every fourth user's connection ends some time after login, without a word.
    HangUp,
    /// Everything takes this much longer.
    DelayMs(u64),
    /// Goes on delivering to members who were removed from their group.
    AfterRemoval,
    /// Pages of history come in the wrong order.
    OldestFirst,
    /// At the hundredth message everything stands still for this long, once.
    StallMs(u64),
}

/// Longer than the logins of a test take.
const HANG_UP_AFTER: Duration = Duration::from_secs(2);

/// Runs until the process ends: tests are short.
#[derive(Debug)]
pub(crate) struct FakeGateway {
    pub(crate) address: SocketAddr,
    world: Arc<World>,
}

impl FakeGateway {
    pub(crate) fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let world = Arc::new(World {
            fault,
            users: RwLock::default(),
            last_seq: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            gate: RwLock::new(()),
            life: Mutex::default(),
        });
        let served = Arc::clone(&world);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let world = Arc::clone(&served);
                let connection = move || {
                    // An end of the stream, expected or not, ends the connection and nothing else.
                    let _ = Connection::new(&world, stream).and_then(Connection::serve);
                };
                thread::Builder::new()
                    .stack_size(128 * 1_024)
                    .spawn(connection)
                    .expect("a thread");
            }
        });
        Self { address, world }
    }

    /// That came so far.
    pub(crate) fn messages(&self) -> u64 {
        self.world.messages.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct World {
    fault: Fault,
    users: RwLock<HashMap<UserId, Arc<Mutex<User>>>>,
    last_seq: AtomicU64,
    messages: AtomicU64,
    /// Held to write while the whole gateway stands still.
    gate: RwLock<()>,
    life: Mutex<Life>,
}

#[derive(Debug, Default)]
struct User {
    stream: Option<TcpStream>,
    /// Not yet acknowledged.
    inbox: Vec<Entry>,
    /// Messages to this user so far.
    received: u64,
    /// The place given to each message from this user.
    accepted: HashMap<MsgId, ConvSeq>,
    /// How far each peer has got messages from this user.
    delivered: HashMap<UserId, ConvSeq>,
    /// The same for what they have read.
    read: HashMap<UserId, ConvSeq>,
    /// Kept back until the next one.
    held: Option<(RouteHeader, Vec<u8>)>,
    /// Logins tried so far.
    logins: u64,
}

#[derive(Debug)]
struct Entry {
    route: RouteHeader,
    frame: Vec<u8>,
}

impl User {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(stream) = &mut self.stream
            && stream.write_all(bytes).is_err()
        {
            self.stream = None;
        }
    }

    fn deliver(&mut self, world: &World, route: RouteHeader, body: &[u8]) {
        self.push(world, Op::Deliver, route, body);
    }
}

impl World {
    /// As the protocol has it: the clock, or a little more than the last one.
    fn next_seq(&self) -> u64 {
        let now_us = now_us();
        let next = |last: u64| Some(now_us.max(last + 10));
        let last = self
            .last_seq
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .expect("never refused");
        now_us.max(last + 10)
    }

    fn user(&self, user: UserId) -> Arc<Mutex<User>> {
        if let Some(known) = self.users.read().expect("no panic").get(&user) {
            return Arc::clone(known);
        }
        let mut users = self.users.write().expect("no panic");
        Arc::clone(users.entry(user).or_default())
    }

    fn push_receipt(&self, sender: UserId, recipient: UserId, up_to: ConvSeq) {
        let sender = self.user(sender);
        let mut sender = sender.lock().expect("no panic");
        sender.delivered.insert(recipient, up_to);
        if self.fault != Fault::ReceiptsOnRequest {
            let mut frame = Vec::new();
            put_receipt(&mut frame, Flags::NONE, 0, DELIVERED, recipient, up_to);
            sender.write(&frame);
        }
    }
}

fn put_receipt(out: &mut Vec<u8>, flags: Flags, corr: u32, kind: u8, peer: UserId, up_to: ConvSeq) {
    let route = RouteHeader {
        conv: peer.0,
        conv_kind: ConvKind::DIRECT,
        conv_seq: up_to,
        user: peer,
        kind,
        ..RouteHeader::default()
    };
    let now_s = (now_us() / 1_000_000) as u32;
    encode::put_routed(out, Op::Receipt as u8, flags, corr, now_s, &route, &[]);
}

/// Why a connection ends.
struct Ended;

struct Connection<'a> {
    world: &'a World,
    stream: TcpStream,
    user: UserId,
    device: DeviceId,
}

impl<'a> Connection<'a> {
    fn new(world: &'a World, stream: TcpStream) -> Result<Self, Ended> {
        stream.set_nodelay(true).map_err(|_| Ended)?;
        Ok(Self {
            world,
            stream,
            user: UserId(0),
            device: DeviceId(0),
        })
    }

    fn serve(mut self) -> Result<(), Ended> {
        let mut input = Vec::new();
        let mut chunk = vec![0; 8_192];
        loop {
            let bytes = self.stream.read(&mut chunk).map_err(|_| Ended)?;
            if bytes == 0 {
                return Err(Ended);
            }
            if self.world.fault == Fault::Discard && self.user.0 != 0 {
                continue;
            }
            input.extend_from_slice(&chunk[..bytes]);
            let mut used = 0;
            while let Some(frame) =
                next_frame(&input[used..], FRAME_BYTES_DEFAULT_MAX).map_err(|_| Ended)?
            {
                used += frame.bytes().len();
                self.frame(frame)?;
            }
            input.drain(..used);
        }
    }

    fn frame(&mut self, frame: Frame<'_>) -> Result<(), Ended> {
        drop(self.world.gate.read().expect("no panic"));
        if self.lives(frame)? {
            return Ok(());
        }
        let mut out = Vec::new();
        match frame.known_op() {
            Some(Op::Hello) => return self.hello(frame),
            Some(Op::Send) => return self.send(frame),
            Some(Op::Ack) => self.ack(Seq(frame.seq_header().seq)),
            Some(Op::Ping) => encode::put_pong(&mut out, frame.corr()),
            Some(Op::Receipt) => {
                let mark = frame.route().ok_or(Ended)?;
                if self.world.fault != Fault::NoReads {
                    let sender = self.world.user(UserId(mark.conv));
                    let mut sender = sender.lock().expect("no panic");
                    sender.read.insert(self.user, mark.conv_seq);
                    let mut told = Vec::new();
                    put_receipt(&mut told, Flags::NONE, 0, READ, self.user, mark.conv_seq);
                    sender.write(&told);
                }
                encode::put_done(&mut out, frame.corr(), 0);
            }
            Some(Op::ReceiptsGet) => {
                let get = ReceiptsGet::decode(frame.body()).map_err(|_| Ended)?;
                let own = self.world.user(self.user);
                let own = own.lock().expect("no panic");
                for (_, peer) in get.convs {
                    let peer = UserId(peer);
                    for (kind, marks) in [(DELIVERED, &own.delivered), (READ, &own.read)] {
                        if let Some(up_to) = marks.get(&peer) {
                            let flags = Flags::REPLY | Flags::MORE;
                            put_receipt(&mut out, flags, frame.corr(), kind, peer, *up_to);
                        }
                    }
                }
                drop(own);
                encode::put_done(&mut out, frame.corr(), 0);
            }
            Some(Op::Close) => return Err(Ended),
            _ => {}
        }
        self.answer(&out);
        Ok(())
    }

    fn answer(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let own = self.world.user(self.user);
            own.lock().expect("no panic").write(bytes);
        }
    }

    fn hello(&mut self, frame: Frame<'_>) -> Result<(), Ended> {
        let hello = Hello::decode(frame.body()).map_err(|_| Ended)?;
        let mut out = Vec::new();
        if self.world.fault == Fault::TurnAway {
            let close = Close::new(CloseCode::AUTH_FAILED, "not signed by our key");
            Encoder::new().close(&mut out, &close);
            let _ = self.stream.write_all(&out);
            return Err(Ended);
        }
        self.user = user_of(hello.token.ok_or(Ended)?).ok_or(Ended)?;
        self.device = hello.device;
        // What the client has counts as acknowledged.
        self.ack(hello.last_seq);
        let own = self.world.user(self.user);
        let mut own = own.lock().expect("no panic");
        own.logins += 1;
        let chosen = self.user.0.is_multiple_of(4);
        if self.world.fault == Fault::PutOff && chosen && own.logins == 1 {
            let close = Close {
                retry_after_ms: 50,
                ..Close::new(CloseCode::OVERLOADED, "come back later")
            };
            Encoder::new().close(&mut out, &close);
            let _ = self.stream.write_all(&out);
            return Err(Ended);
        }
        if self.world.fault == Fault::HangUp && chosen {
            let stream = self.stream.try_clone().map_err(|_| Ended)?;
            thread::spawn(move || {
                thread::sleep(HANG_UP_AFTER);
                let _ = stream.shutdown(Shutdown::Both);
            });
        }
        let welcome = Welcome {
            user: self.user,
            device: self.device,
            server_us: now_us(),
            ..Welcome::default()
        };
        Encoder::new().welcome(&mut out, frame.corr(), &welcome);
        for entry in &own.inbox {
            out.extend_from_slice(&entry.frame);
        }
        let last = own
            .inbox
            .last()
            .map_or(hello.last_seq, |entry| entry.route.seq);
        encode::put_synced(&mut out, last, own.inbox.len() as u32);
        own.stream = Some(self.stream.try_clone().map_err(|_| Ended)?);
        own.write(&out);
        Ok(())
    }

    fn send(&mut self, frame: Frame<'_>) -> Result<(), Ended> {
        let asked = frame.route().ok_or(Ended)?;
        let fault = self.world.fault;
        let before = self.world.messages.fetch_add(1, Ordering::Relaxed);
        match fault {
            Fault::DelayMs(ms) => thread::sleep(Duration::from_millis(ms)),
            Fault::StallMs(ms) if before == 100 => {
                let _closed = self.world.gate.write().expect("no panic");
                thread::sleep(Duration::from_millis(ms));
            }
            Fault::Swallow | Fault::Discard => return Ok(()),
            _ => {}
        }
        let mut out = Vec::new();
        let own = self.world.user(self.user);
        let known = own
            .lock()
            .expect("no panic")
            .accepted
            .get(&asked.msg_id)
            .copied();
        if let Some(place) = known.filter(|_| frame.flags().contains(Flags::RETRY)) {
            encode::put_sent(&mut out, frame.corr(), place, true);
            self.answer(&out);
            return Ok(());
        }

        let recipient = self.world.user(UserId(asked.conv));
        let mut recipient = recipient.lock().expect("no panic");
        let every = if fault == Fault::Disconnect { 10 } else { 4 };
        let chosen = recipient.received % every == 1;
        let refused = match fault {
            Fault::Overload | Fault::Forbid => chosen,
            Fault::Quota(messages) => recipient.received >= messages,
            _ => false,
        };
        recipient.received += 1;
        if refused {
            drop(recipient);
            let error = ErrorReply {
                code: match fault {
                    Fault::Overload => ErrorCode::OVERLOADED,
                    _ => ErrorCode::FORBIDDEN,
                },
                retry_after_ms: 0,
                detail: "",
                op: Op::Send as u8,
                server_us: 0,
            };
            Encoder::new().error(&mut out, frame.corr(), &error);
            self.answer(&out);
            return Ok(());
        }
        let place = ConvSeq(self.world.next_seq());
        let route = RouteHeader {
            conv: self.user.0,
            user: self.user,
            dev: self.device,
            conv_seq: place,
            ..asked
        };
        self.world.keep(&route, UserId(asked.conv), frame.body());
        if chosen && fault == Fault::Misroute {
            drop(recipient);
            let neighbour = self.world.user(UserId(asked.conv ^ 2));
            let mut neighbour = neighbour.lock().expect("no panic");
            neighbour.deliver(self.world, route, frame.body());
        } else {
            self.deliver(&mut recipient, route, frame.body(), chosen);
            drop(recipient);
        }

        own.lock()
            .expect("no panic")
            .accepted
            .insert(asked.msg_id, place);
        match fault {
            Fault::Silence if chosen => Ok(()),
            Fault::Disconnect if chosen => {
                let _ = self.stream.shutdown(Shutdown::Both);
                Err(Ended)
            }
            // Nobody asked.
            _ if frame.corr() == 0 => Ok(()),
            _ => {
                encode::put_sent(&mut out, frame.corr(), place, false);
                self.answer(&out);
                Ok(())
            }
        }
    }

    fn deliver(&self, recipient: &mut User, route: RouteHeader, body: &[u8], chosen: bool) {
        let world = self.world;
        match world.fault {
            Fault::Drop if chosen => {}
            Fault::Repeat if chosen => {
                recipient.deliver(world, route, body);
                recipient.deliver(world, route, body);
            }
            Fault::Duplicate if chosen => {
                recipient.deliver(world, route, body);
                let other = MsgId(route.msg_id.0 ^ 1 << 40);
                let route = RouteHeader {
                    msg_id: other,
                    ..route
                };
                recipient.deliver(world, route, body);
            }
            Fault::Swap if chosen => recipient.held = Some((route, body.to_vec())),
            Fault::Swap => {
                recipient.deliver(world, route, body);
                if let Some((route, body)) = recipient.held.take() {
                    recipient.deliver(world, route, &body);
                }
            }
            Fault::Corrupt if chosen => {
                let mut body = body.to_vec();
                // Inside the payload, so that the Envelope around it stays readable.
                let payload = body.windows(4).position(|bytes| bytes == b"PTLG");
                body[payload.expect("a message of the tool") + 60] ^= 1;
                recipient.deliver(world, route, &body);
            }
            Fault::Misnumber if chosen => {
                let conv_seq = ConvSeq(route.conv_seq.0 + 1);
                recipient.deliver(world, RouteHeader { conv_seq, ..route }, body);
            }
            _ => recipient.deliver(world, route, body),
        }
    }

    fn ack(&self, up_to: Seq) {
        let own = self.world.user(self.user);
        let mut got: BTreeMap<UserId, ConvSeq> = BTreeMap::new();
        own.lock().expect("no panic").inbox.retain(|entry| {
            let behind = entry.route.seq <= up_to;
            if behind && entry.route.conv_kind != ConvKind::GROUP {
                let place = got.entry(entry.route.user).or_default();
                *place = entry.route.conv_seq.max(*place);
            }
            !behind
        });
        if self.world.fault != Fault::NoReceipts {
            for (sender, up_to) in got {
                self.world.push_receipt(sender, self.user, up_to);
            }
        }
    }
}

/// The subject of a token, unverified.
fn user_of(token: &str) -> Option<UserId> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    claims["sub"].as_str()?.parse().ok().map(UserId)
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_micros() as u64
}
