//! How many messages per second a gateway takes when each client keeps a few unanswered: a closed
//! loop, for capacity and for CPU per message. (Latency under a given load is a matter for an open
//! loop: `portico-loadgen`.)
//!
//! ```text
//! cargo run --release -p portico-client --features mint --example in_flight -- ./portico-data
//! ```
//!
//! The arguments: the gateway's data directory (for its signing key), seconds to measure (10),
//! clients (256), messages that each keeps unanswered (8), bytes of a body (128), the process to
//! account for, if it runs here (0: none), and the gateway's address (127.0.0.1:7400). Each client
//! writes to the others at random, sends the next message when a SENT comes, and acknowledges what
//! it got after each read. One thread.
//!
//! Every message must be answered, and delivered in the order of its inbox; otherwise the run fails.

use portico_client::mint::{KEY_FILE, SigningKey};
use portico_client::raw::RawConnection;
use portico_wire::{
    Flags, Op, RouteHeader,
    encode::{Encoder, put_ack, put_routed},
    frame::ConvKind,
    ids::{DeviceId, MsgId, Seq, UserId},
    limits::FRAME_BYTES_TO_CLIENT_MAX,
    message::{Close, Envelope, ErrorReply},
    next_frame,
};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Users are numbered from here on.
const FIRST_USER: u64 = 1_000_000;
/// Before the measurement, to fill caches and to let the store find its pace.
const WARM_UP: Duration = Duration::from_secs(2);
/// Without an answer for so long the run has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 65_536;
const TOKEN_TTL_S: u64 = 3_600;

type Fault = Box<dyn Error>;

struct Arguments {
    data: String,
    seconds: u64,
    clients: usize,
    in_flight: usize,
    body_len: usize,
    server: u32,
    target: SocketAddr,
}

impl Arguments {
    fn read() -> Result<Self, Fault> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let number = |i: usize, default: u64| -> Result<u64, Fault> {
            Ok(args.get(i).map_or(Ok(default), |arg| arg.parse())?)
        };
        let data = args.first().ok_or("name the gateway's data directory")?;
        let target = args.get(6).map_or("127.0.0.1:7400", String::as_str);
        Ok(Self {
            data: data.clone(),
            seconds: number(1, 10)?.max(1),
            clients: usize::try_from(number(2, 256)?)?.clamp(2, 20_000),
            in_flight: usize::try_from(number(3, 8)?)?.clamp(1, 256),
            body_len: usize::try_from(number(4, 128)?)?.min(16_384),
            server: u32::try_from(number(5, 0)?)?,
            target: target.parse()?,
        })
    }
}

struct Client {
    stream: TcpStream,
    user: UserId,
    out: Vec<u8>,
    /// A frame of which not all has come.
    rest: Vec<u8>,
    /// When the message of each place was sent; its `corr` is the place plus one.
    sent_at: Vec<Instant>,
    /// The greatest number that was delivered.
    seen: Seq,
    acked: Seq,
}

struct Load {
    clients: Vec<Client>,
    envelope: Vec<u8>,
    random: u64,
    next_id: u64,
    unix_ms: u64,
    sending: bool,
    measuring: bool,
    sent: u64,
    answered: u64,
    delivered: u64,
    receipts: u64,
    /// From SEND to SENT, in microseconds.
    latencies_us: Vec<u32>,
}

impl Load {
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Queues the next message of a client in one of its places.
    fn send(&mut self, index: usize, place: usize, now: Instant) {
        if !self.sending {
            return;
        }
        let others = self.clients.len() as u64 - 1;
        let to = (index as u64 + 1 + self.random() % others) % (others + 1);
        self.next_id += 1;
        let route = RouteHeader {
            msg_id: MsgId::new_v7(self.unix_ms, u128::from(self.next_id)),
            conv: FIRST_USER + to,
            conv_kind: ConvKind::DIRECT,
            ..RouteHeader::default()
        };
        let client = &mut self.clients[index];
        client.sent_at[place] = now;
        let (op, corr) = (Op::Send as u8, place as u32 + 1);
        put_routed(
            &mut client.out,
            op,
            Flags::NONE,
            corr,
            0,
            &route,
            &self.envelope,
        );
        self.sent += 1;
    }

    /// Reads what has come for a client, answers it, and writes.
    fn serve(&mut self, index: usize, buffer: &mut [u8], now: Instant) -> Result<(), Fault> {
        let client = &mut self.clients[index];
        let kept = client.rest.len();
        buffer[..kept].copy_from_slice(&client.rest);
        client.rest.clear();
        let read = match client.stream.read(&mut buffer[kept..]) {
            Ok(0) => return Err("the gateway closed a connection".into()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error.into()),
        };
        let mut bytes = &buffer[..kept + read];
        while let Some(frame) = next_frame(bytes, FRAME_BYTES_TO_CLIENT_MAX)
            .map_err(|error| format!("the gateway sent what is no frame: {error}"))?
        {
            bytes = &bytes[frame.bytes().len()..];
            match frame.known_op() {
                Some(Op::Sent) => {
                    let place = frame.corr() as usize - 1;
                    if self.measuring {
                        let took =
                            now.saturating_duration_since(self.clients[index].sent_at[place]);
                        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
                        self.latencies_us.push(took);
                    }
                    self.answered += 1;
                    self.send(index, place, now);
                }
                Some(Op::Deliver) => {
                    let seq = frame.route().map_or(Seq(0), |route| route.seq);
                    let client = &mut self.clients[index];
                    if seq <= client.seen {
                        return Err(format!("user {}: {seq:?} out of order", client.user).into());
                    }
                    client.seen = seq;
                    self.delivered += 1;
                }
                Some(Op::Receipt) => self.receipts += 1,
                Some(Op::Error) => {
                    let error = ErrorReply::decode(frame.body());
                    return Err(format!("a message was refused: {error:?}").into());
                }
                Some(Op::Close) => {
                    return Err(format!("closed: {:?}", Close::decode(frame.body())).into());
                }
                _ => {}
            }
        }
        let client = &mut self.clients[index];
        client.rest.extend_from_slice(bytes);
        if client.seen > client.acked {
            client.acked = client.seen;
            put_ack(&mut client.out, client.seen, 256);
        }
        client.flush()
    }
}

impl Client {
    fn login(arguments: &Arguments, key: &SigningKey, user: UserId) -> Result<Self, Fault> {
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let token = key.token(user, DeviceId(1), 0, TOKEN_TTL_S, unix_s);
        let mut raw = RawConnection::connect(arguments.target)?;
        raw.hello(&token)?;
        // What earlier runs have left for this user comes first.
        let mut seen = Seq(0);
        loop {
            let frame = raw.expect_frame(PATIENCE)?;
            match frame.known_op() {
                Some(Op::Deliver) => seen = frame.route.map_or(seen, |route| route.seq),
                Some(Op::Synced) => break,
                _ => {}
            }
            if seen > Seq(0) {
                let mut ack = Vec::new();
                put_ack(&mut ack, seen, 256);
                raw.write_bytes(&ack)?;
            }
        }
        let stream = raw.stream().try_clone()?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            user,
            out: Vec::new(),
            rest: Vec::new(),
            sent_at: vec![Instant::now(); arguments.in_flight],
            seen,
            acked: seen,
        })
    }

    /// What a client may leave unanswered fits into the buffers of a socket.
    fn flush(&mut self) -> Result<(), Fault> {
        if !self.out.is_empty() {
            self.stream.write_all(&self.out)?;
            self.out.clear();
        }
        Ok(())
    }
}

fn main() -> Result<(), Fault> {
    let arguments = Arguments::read()?;
    let key = SigningKey::load(&Path::new(&arguments.data).join(KEY_FILE))?;
    let users = (0..arguments.clients as u64).map(|index| UserId(FIRST_USER + index));
    let clients: Result<Vec<Client>, Fault> = users
        .map(|user| Client::login(&arguments, &key, user))
        .collect();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let body = vec![0x5a; arguments.body_len];
    let envelope = Envelope {
        body: &body,
        ..Envelope::default()
    };
    let load = Load {
        clients: clients?,
        envelope: Encoder::new().envelope(&envelope).to_vec(),
        random: 1,
        next_id: unix.as_nanos() as u64,
        unix_ms: unix.as_millis() as u64,
        sending: true,
        measuring: false,
        sent: 0,
        answered: 0,
        delivered: 0,
        receipts: 0,
        latencies_us: Vec::new(),
    };
    run(load, &arguments)
}

fn run(mut load: Load, arguments: &Arguments) -> Result<(), Fault> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, client) in load.clients.iter().enumerate() {
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&poll, &client.stream, data, epoll::EventFlags::IN)?;
    }
    let mut buffer = vec![0; 2 * READ_BYTES];
    let mut ready: Vec<epoll::Event> = Vec::with_capacity(1_024);
    for place in 0..arguments.in_flight {
        for index in 0..load.clients.len() {
            load.send(index, place, Instant::now());
        }
    }
    for client in &mut load.clients {
        client.flush()?;
    }
    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::from_secs(arguments.seconds);
    let mut started: Option<Mark> = None;
    let mut ended: Option<Mark> = None;
    let mut last_news = Instant::now();
    while load.answered < load.sent || load.delivered < load.sent {
        ready.clear();
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        epoll::wait(&poll, spare_capacity(&mut ready), Some(&timeout))?;
        let now = Instant::now();
        for event in &ready {
            load.serve(event.data.u64() as usize, &mut buffer, now)?;
        }
        if !ready.is_empty() {
            last_news = now;
        } else if now - last_news > PATIENCE {
            return Err("the gateway has stopped answering".into());
        }
        if started.is_none() && now >= begin {
            load.measuring = true;
            started = Some(Mark::take(&load, arguments.server, now)?);
        }
        if ended.is_none() && now >= end {
            (load.measuring, load.sending) = (false, false);
            ended = Some(Mark::take(&load, arguments.server, now)?);
        }
    }
    let (Some(started), Some(ended)) = (started, ended) else {
        return Err("the run ended before it had begun".into());
    };
    report(&mut load, &started, &ended);
    Ok(())
}

/// The state of things at one moment.
struct Mark {
    at: Instant,
    answered: u64,
    own_cpu_ns: u64,
    /// CPU time by thread: its number, its name, nanoseconds.
    threads: BTreeMap<u32, (String, u64)>,
}

impl Mark {
    fn take(load: &Load, server: u32, at: Instant) -> Result<Self, Fault> {
        let own = fs::read_to_string("/proc/thread-self/schedstat")?;
        let mut threads = BTreeMap::new();
        if server != 0 {
            for task in fs::read_dir(format!("/proc/{server}/task"))?.flatten() {
                let stat = fs::read_to_string(task.path().join("schedstat"))?;
                let name = fs::read_to_string(task.path().join("comm"))?;
                let id = task.file_name().to_string_lossy().parse()?;
                threads.insert(id, (name.trim_end().to_owned(), first_number(&stat)?));
            }
        }
        Ok(Self {
            at,
            answered: load.answered,
            own_cpu_ns: first_number(&own)?,
            threads,
        })
    }
}

fn first_number(text: &str) -> Result<u64, Fault> {
    let number = text.split_whitespace().next();
    Ok(number.ok_or("a file of the system is empty")?.parse()?)
}

fn report(load: &mut Load, started: &Mark, ended: &Mark) {
    let count = (ended.answered - started.answered).max(1) as f64;
    let elapsed = (ended.at - started.at).as_secs_f64();
    let us_each = |ns: u64| ns as f64 / 1e3 / count;
    load.latencies_us.sort_unstable();
    let latencies = &load.latencies_us;
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        let value = latencies.get(index.min(latencies.len().saturating_sub(1)));
        f64::from(value.copied().unwrap_or(0)) / 1e3
    };
    println!(
        "{:.0} messages/s; SEND to SENT p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms; {} of {} delivered, {} receipts",
        count / elapsed,
        at(0.5),
        at(0.99),
        at(1.0),
        load.delivered,
        load.sent,
        load.receipts,
    );
    let mut server_ns = 0;
    let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
    for (id, (name, ns)) in &ended.threads {
        let before = started.threads.get(id).map_or(0, |(_, ns)| *ns);
        *by_name.entry(name).or_default() += ns - before;
        server_ns += ns - before;
    }
    println!(
        "CPU per message: {:.2} us here, {:.2} us there",
        us_each(ended.own_cpu_ns - started.own_cpu_ns),
        us_each(server_ns)
    );
    for (name, ns) in by_name.into_iter().filter(|(_, ns)| us_each(*ns) >= 0.005) {
        println!("  {name:<16} {:6.2} us", us_each(ns));
    }
}
