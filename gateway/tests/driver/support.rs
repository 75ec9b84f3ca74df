//! A gateway in this process, and clients that speak the wire protocol over plain sockets, so that
//! no fault of the driver can hide in both ends.

use portico_gateway::{
    AuthError, Authenticator, Credentials, Gateway, GatewayOptions, Grant, RingSizes, Stores,
    backend::{Backend, Limits, memory::Store, messages::Messages},
};
use portico_wire::{
    CloseCode, Flags, Frame, Op, RouteHeader, VERSION,
    encode::{Encoder, put_ack, put_routed},
    frame::{ConvKind, ROUTE_END},
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
    limits::FRAME_BYTES_TO_CLIENT_MAX,
    message::{ClientState, Close, Hello},
    next_frame,
};
use std::{
    collections::HashMap,
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Believes a token that is a user's number, as device 1.
pub(crate) struct Trusting;

impl Authenticator for Trusting {
    fn authenticate(&self, credentials: &Credentials, _: u64) -> Result<Grant, AuthError> {
        let token = credentials.token.as_deref().ok_or(AuthError::Invalid)?;
        Ok(Grant {
            user: UserId(token.parse().map_err(|_| AuthError::Invalid)?),
            device: DeviceId(1),
            resumed: false,
            resume_token: Vec::new(),
            resume_ttl_s: 0,
            ..Grant::default()
        })
    }
}

pub(crate) fn options(shards: usize) -> GatewayOptions {
    GatewayOptions {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        shards,
        slots_per_shard: 4_096,
        // Small, so that many gateways fit into the memory that may be locked.
        ring: RingSizes {
            submissions: 256,
            completions: 4_096,
            buffers: 256,
            buffer_bytes: 2_048,
        },
        ..GatewayOptions::default()
    }
}

pub(crate) fn memory() -> Arc<dyn Backend<Messages>> {
    Store::new().messages(Limits::default())
}

pub(crate) fn stores(messages: Arc<dyn Backend<Messages>>) -> Stores {
    let records = Store::new().records(Limits::default());
    Stores { messages, records }
}

pub(crate) fn start(options: GatewayOptions) -> Gateway {
    Gateway::start(options, stores(memory()), Arc::new(Trusting)).unwrap()
}

/// The sum of a number over all shards.
pub(crate) fn sum(gateway: &Gateway, name: &str, labels: &str) -> u64 {
    let metrics = gateway.metrics();
    let named = |metric: &&portico_gateway::Metric| metric.name == name && metric.labels == labels;
    let all = metrics.shards.iter().flatten().filter(named);
    let values: Vec<u64> = all.map(|metric| metric.value).collect();
    assert_eq!(
        values.len(),
        gateway.shards(),
        "no metric {name}{{{labels}}}"
    );
    values.into_iter().sum()
}

/// Every connection has left its slot, nothing strange came from a ring, and the driver and the core
/// agree on it.
pub(crate) fn all_gone(gateway: &Gateway) {
    eventually("all slots are free", || {
        sum(gateway, "portico_sockets", "") == 0 && sum(gateway, "portico_connections", "") == 0
    });
    assert_eq!(sum(gateway, "portico_ring_stale_completions_total", ""), 0);
}

/// Tests that measure threads or CPU time run alone, the others together.
static TURN: RwLock<()> = RwLock::new(());

pub(crate) fn together() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    TURN.write().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Names and CPU times, in nanoseconds, of the threads of this process.
pub(crate) fn threads() -> HashMap<u64, (String, u64)> {
    let mut threads = HashMap::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let id = task.file_name().to_string_lossy().parse().unwrap();
        let cpu = read("schedstat").split(' ').next().map(str::parse);
        let cpu = cpu.and_then(Result::ok).unwrap_or(0);
        threads.insert(id, (read("comm").trim().to_owned(), cpu));
    }
    threads
}

/// A frame that came, as values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Welcome,
    Synced,
    Sent {
        corr: u32,
    },
    Message {
        seq: Seq,
        from: UserId,
        body: Vec<u8>,
    },
    Close(CloseCode),
    Other(u8),
}

/// A client's end.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) user: u64,
    bytes: Vec<u8>,
    read: usize,
}

static MESSAGES: AtomicU64 = AtomicU64::new(1);

/// A HELLO of this user, ready to be written.
pub(crate) fn hello(user: u64) -> Vec<u8> {
    let token = user.to_string();
    let mut out = Vec::new();
    let hello = Hello {
        min_version: VERSION,
        max_version: VERSION,
        token: Some(&token),
        device: DeviceId(0),
        resume_token: None,
        last_seq: Seq(0),
        receive_max: 256,
        features: 0,
        state: ClientState::Foreground,
        client: "driver-test",
    };
    Encoder::new().hello(&mut out, 1, &hello);
    out
}

/// A message to a user, ready to be written.
pub(crate) fn message(to: u64, corr: u32, body: &[u8]) -> Vec<u8> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let unix_ms = now.unwrap().as_millis() as u64;
    let number = MESSAGES.fetch_add(1, Ordering::Relaxed);
    let route = RouteHeader {
        msg_id: MsgId::new_v7(unix_ms, u128::from(number)),
        conv: to,
        conv_kind: ConvKind::DIRECT,
        ..RouteHeader::default()
    };
    let mut out = Vec::new();
    put_routed(&mut out, Op::Send as u8, Flags::NONE, corr, 0, &route, body);
    out
}

/// An ephemeral message, in a frame of this size.
pub(crate) fn ephemeral(to: u64, frame_bytes: usize) -> Vec<u8> {
    let route = RouteHeader {
        msg_id: MsgId::new_v7(1, 1),
        conv: to,
        conv_kind: ConvKind::DIRECT,
        ..RouteHeader::default()
    };
    let body = vec![7; frame_bytes - ROUTE_END];
    let mut out = Vec::new();
    put_routed(
        &mut out,
        Op::Send as u8,
        Flags::EPHEMERAL,
        1,
        0,
        &route,
        &body,
    );
    out
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            user: 0,
            bytes: Vec::new(),
            read: 0,
        }
    }

    /// Connects and waits until everything has been replayed.
    pub(crate) fn login(address: SocketAddr, user: u64) -> Self {
        let mut client = Self::connect(address);
        client.user = user;
        client.write(&hello(user));
        client.until(&Got::Welcome);
        client.until(&Got::Synced);
        client
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn send(&mut self, to: u64, corr: u32, body: &[u8]) {
        self.write(&message(to, corr, body));
    }

    pub(crate) fn acknowledge(&mut self, up_to: Seq) {
        let mut out = Vec::new();
        put_ack(&mut out, up_to, 256);
        self.write(&out);
    }

    /// The next frame.
    pub(crate) fn next(&mut self) -> Got {
        match self.try_next() {
            Ok(Some(got)) => got,
            Ok(None) => panic!("user {}: the stream ended", self.user),
            Err(error) => panic!("user {}: {error}", self.user),
        }
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) fn try_next(&mut self) -> io::Result<Option<Got>> {
        loop {
            let rest = &self.bytes[self.read..];
            if let Some(frame) = next_frame(rest, FRAME_BYTES_TO_CLIENT_MAX).unwrap() {
                let got = Got::of(&frame);
                self.read += frame.bytes().len();
                return Ok(Some(got));
            }
            self.bytes.drain(..self.read);
            self.read = 0;
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Skips to this frame.
    pub(crate) fn until(&mut self, wanted: &Got) {
        loop {
            let got = self.next();
            if got == *wanted {
                return;
            }
            assert!(!matches!(got, Got::Close(_)), "{got:?} before {wanted:?}");
        }
    }

    /// Skips to the next message.
    pub(crate) fn next_message(&mut self) -> (Seq, UserId, Vec<u8>) {
        loop {
            match self.next() {
                Got::Message { seq, from, body } => return (seq, from, body),
                Got::Close(code) => panic!("closed with {code:?} before a message"),
                Got::Welcome | Got::Synced | Got::Sent { .. } | Got::Other(_) => {}
            }
        }
    }

    /// Skips to CLOSE, and to the end of the stream after it.
    pub(crate) fn until_closed(&mut self) -> CloseCode {
        let code = loop {
            if let Got::Close(code) = self.next() {
                break code;
            }
        };
        assert_eq!(self.try_next().unwrap(), None, "nothing follows CLOSE");
        code
    }
}

impl Got {
    fn of(frame: &Frame<'_>) -> Self {
        match frame.known_op() {
            Some(Op::Welcome) => Self::Welcome,
            Some(Op::Synced) => Self::Synced,
            Some(Op::Sent) => {
                assert!(ConvSeq(frame.seq_header().seq) > ConvSeq(0));
                Self::Sent { corr: frame.corr() }
            }
            Some(Op::Deliver) => {
                let route = frame.route().unwrap();
                Self::Message {
                    seq: route.seq,
                    from: route.user,
                    body: frame.body().to_vec(),
                }
            }
            Some(Op::Close) => Self::Close(Close::decode(frame.body()).unwrap().code),
            _ => Self::Other(frame.op()),
        }
    }
}
