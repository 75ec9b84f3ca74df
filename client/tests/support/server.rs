//! A gateway in memory behind a socket on loopback: logins, inboxes, cursors, idempotency,
//! receipts. Faults are queued in [`World`] and taken one by one.

mod life;

use super::{Delivery, Peer, Seen};
use life::Life;
use portico_wire::{
    CloseCode, ErrorCode, Flags, Op,
    frame::{ConvKind, receipt_kind},
    ids::{DeviceId, UserId},
    message::{Hello, Welcome},
};
use std::{
    collections::{HashMap, VecDeque},
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Reads user and device out of a token.
pub type Identify = fn(&str) -> (u64, u16);

/// Tokens of the form "user:device".
pub fn plain_identity(token: &str) -> (u64, u16) {
    let (user, device) = token.split_once(':').unwrap();
    (user.parse().unwrap(), device.parse().unwrap())
}

#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    changed: Condvar,
    identify: Identify,
}

#[derive(Clone, Debug)]
struct Entry {
    delivery: Delivery,
    body: Vec<u8>,
}

#[derive(Debug, Default)]
pub struct World {
    /// Everything that clients sent, with the number of the connection.
    pub seen: Vec<(usize, Seen)>,
    pub logins: usize,
    /// Answers to the next HELLOs, instead of WELCOME.
    pub close_at_hello: VecDeque<(CloseCode, u32)>,
    /// Answers to the next SENDs, instead of SENT.
    pub refuse: VecDeque<(ErrorCode, u32)>,
    /// So many SENDs are stored, but the connection breaks before SENT.
    pub lose_sent: usize,
    /// SENDs get no answer at all.
    pub mute: bool,
    last_seq: u64,
    inboxes: HashMap<u64, Vec<Entry>>,
    accepted: HashMap<(u64, u16, u128), u64>,
    cursors: HashMap<(u64, u16), u64>,
    online: HashMap<(u64, u16), Online>,
    life: Life,
}

#[derive(Debug)]
struct Online {
    connection: usize,
    stream: TcpStream,
}

impl Server {
    pub fn start(identify: Identify) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            world: Mutex::default(),
            changed: Condvar::new(),
            identify,
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                let shared = Arc::clone(&accepting);
                thread::spawn(move || Connection::new(shared, connection, stream).run());
            }
        });
        Self { address, shared }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap()
    }

    /// Waits until something holds of the world; panics when it does not come to that.
    pub fn wait<T>(&self, mut holds: impl FnMut(&World) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut world = self.world();
        loop {
            if let Some(value) = holds(&world) {
                return value;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "it never happened: {:?}", world.seen);
            world = self.shared.changed.wait_timeout(world, left).unwrap().0;
        }
    }

    /// A message from `from` to `to`, as if another client had sent it.
    pub fn inject(&self, from: u64, to: u64, msg_id: u128, body: &[u8]) -> u64 {
        let mut world = self.world();
        world.store((from, 9), to, msg_id, body)
    }

    /// Writes frames to a device that is online.
    pub fn push(&self, device: (u64, u16), write: impl FnOnce(&mut Peer)) {
        let mut peer = Peer::default();
        write(&mut peer);
        let world = self.world();
        (&world.online[&device].stream)
            .write_all(&peer.out)
            .unwrap();
    }

    /// Breaks the connection of a device.
    pub fn cut(&self, device: (u64, u16)) {
        let world = self.world();
        world.online[&device]
            .stream
            .shutdown(Shutdown::Both)
            .unwrap();
    }
}

impl World {
    pub fn cursor(&self, device: (u64, u16)) -> u64 {
        self.cursors.get(&device).copied().unwrap_or(0)
    }

    /// Frames of one kind that were sent, in order.
    pub fn sends(&self, op: Op) -> Vec<Seen> {
        let all = self.seen.iter().map(|(_, seen)| seen);
        all.filter(|seen| seen.op == op).cloned().collect()
    }

    fn next_seq(&mut self) -> u64 {
        self.last_seq = self.last_seq.max(now_us() - 1) + 1;
        self.last_seq
    }

    fn store(&mut self, from: (u64, u16), to: u64, msg_id: u128, body: &[u8]) -> u64 {
        let conv_seq = self.next_seq();
        self.accepted.insert((from.0, from.1, msg_id), conv_seq);
        let seq = self.next_seq();
        let entry = Entry {
            delivery: Delivery {
                seq,
                conv_seq,
                peer: from.0,
                from: from.0,
                device: from.1,
                msg_id,
            },
            body: body.to_vec(),
        };
        self.push_to(to, |peer| {
            peer.deliver_raw(entry.delivery, Flags::NONE, &entry.body);
        });
        self.inboxes.entry(to).or_default().push(entry);
        conv_seq
    }

    fn push_to(&self, user: u64, write: impl FnOnce(&mut Peer)) {
        let mut peer = Peer::default();
        write(&mut peer);
        for (device, online) in &self.online {
            if device.0 == user {
                // A device that is going away gets it when it is back.
                let _ = (&online.stream).write_all(&peer.out);
            }
        }
    }
}

struct Connection {
    shared: Arc<Shared>,
    number: usize,
    stream: TcpStream,
    peer: Peer,
    device: Option<(u64, u16)>,
}

impl Connection {
    fn new(shared: Arc<Shared>, number: usize, stream: TcpStream) -> Self {
        Self {
            shared,
            number,
            stream,
            peer: Peer::default(),
            device: None,
        }
    }

    fn run(mut self) {
        let mut buffer = [0; 4_096];
        'connection: while let Ok(count @ 1..) = self.stream.read(&mut buffer) {
            for seen in self.peer.read(&buffer[..count]) {
                if !self.frame(seen) {
                    break 'connection;
                }
            }
        }
        let mut world = self.shared.world.lock().unwrap();
        if let Some(device) = self.device
            && world
                .online
                .get(&device)
                .is_some_and(|online| online.connection == self.number)
        {
            world.online.remove(&device);
        }
        self.shared.changed.notify_all();
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// `false`: the connection is over.
    fn frame(&mut self, seen: Seen) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut world = shared.world.lock().unwrap();
        world.seen.push((self.number, seen.clone()));
        let goes_on = self.act(&mut world, seen);
        shared.changed.notify_all();
        // Under the lock, so that pushes of other connections cannot come in between.
        goes_on & self.stream.write_all(&self.peer.take()).is_ok()
    }

    fn act(&mut self, world: &mut World, seen: Seen) -> bool {
        match (seen.op, self.device) {
            (Op::Hello, None) => return self.hello(world, &seen),
            (Op::Ping, _) => {
                self.peer.pong(seen.corr);
            }
            (Op::Close, _) => return false,
            (Op::Ack, Some(device)) => {
                let cursor = world.cursors.entry(device).or_default();
                *cursor = (*cursor).max(seen.seq.seq);
                Self::delivered(world, device.0, seen.seq.seq);
            }
            (Op::Receipt, Some(_)) if seen.route.conv_kind == ConvKind::GROUP => {
                self.peer.done(seen.corr);
            }
            (Op::Receipt, Some(device)) => {
                let (peer, up_to) = (seen.route.conv, seen.route.conv_seq.0);
                world.push_to(peer, |out| {
                    let at_s = (now_us() / 1_000_000) as u32;
                    out.receipt(device.0, device.0, receipt_kind::READ, up_to, at_s);
                });
                self.peer.done(seen.corr);
            }
            (Op::ReceiptsGet, Some(_)) => {
                self.peer.done(seen.corr);
            }
            (_, Some(device)) if self.lives(world, device, &seen) => {}
            (Op::Send, Some(device)) => return self.send(world, device, &seen),
            (op, _) => panic!("{op:?} from a client that should not send it"),
        }
        true
    }

    fn hello(&mut self, world: &mut World, seen: &Seen) -> bool {
        if let Some((code, retry_after_ms)) = world.close_at_hello.pop_front() {
            self.peer.close(code, retry_after_ms);
            return false;
        }
        let hello = Hello::decode(&seen.body).unwrap();
        let device = (self.shared.identify)(hello.token.unwrap());
        self.device = Some(device);
        world.logins += 1;
        let head = world.last_seq;
        let cursor = match hello.last_seq.0 {
            0 => world.cursor(device),
            last_seq => last_seq,
        };
        self.peer.welcome(
            seen.corr,
            &Welcome {
                user: UserId(device.0),
                device: DeviceId(device.1),
                resume_token: b"resume",
                server_us: now_us(),
                ..Welcome::default()
            },
        );
        let inbox = world.inboxes.get(&device.0);
        let missed: Vec<Entry> = inbox
            .into_iter()
            .flatten()
            .filter(|entry| entry.delivery.seq > cursor)
            .cloned()
            .collect();
        for entry in &missed {
            self.peer
                .deliver_raw(entry.delivery, Flags::NONE, &entry.body);
        }
        self.peer.synced(head, missed.len() as u32);
        let stream = self.stream.try_clone().unwrap();
        let connection = self.number;
        if let Some(old) = world.online.insert(device, Online { connection, stream }) {
            let mut out = Peer::default();
            out.close(CloseCode::SESSION_REPLACED, 0);
            let _ = (&old.stream).write_all(&out.out);
            let _ = old.stream.shutdown(Shutdown::Both);
        }
        true
    }

    fn send(&mut self, world: &mut World, device: (u64, u16), seen: &Seen) -> bool {
        if world.mute {
            return true;
        }
        if let Some((code, retry_after_ms)) = world.refuse.pop_front() {
            self.peer.error(seen.corr, code, retry_after_ms);
            return true;
        }
        let msg_id = seen.route.msg_id.0;
        let first = world.accepted.get(&(device.0, device.1, msg_id)).copied();
        let conv_seq = match first {
            // As the real one: the store is only asked on RETRY.
            Some(conv_seq) if seen.is_retry() => conv_seq,
            _ => world.store(device, seen.route.conv, msg_id, &seen.body),
        };
        if world.lose_sent > 0 {
            world.lose_sent -= 1;
            return false;
        }
        let duplicate = first.is_some() && seen.is_retry();
        self.peer.sent(seen.corr, conv_seq, duplicate);
        true
    }

    /// The authors of what a device has acknowledged learn of it.
    fn delivered(world: &World, user: u64, up_to: u64) {
        let mut marks = HashMap::new();
        for entry in world.inboxes.get(&user).into_iter().flatten() {
            if entry.delivery.seq <= up_to {
                marks.insert(entry.delivery.from, entry.delivery.conv_seq);
            }
        }
        for (author, conv_seq) in marks {
            world.push_to(author, |out| {
                let at_s = (now_us() / 1_000_000) as u32;
                out.receipt(user, user, receipt_kind::DELIVERED, conv_seq, at_s);
            });
        }
    }
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_micros() as u64
}
