//! The floor: what a machine costs with no gateway in it. An epoll loop that copies bytes from a
//! sender to its receivers and parses nothing but a greeting: wait, receive, send, which nothing
//! that passes messages on can do without.
//!
//! # Invariants
//! - A receiver that does not read costs [`BACKLOG_BYTES_MAX`] at most, then its connection.
//! - Bytes of one sender reach each receiver whole and in order. Those of two senders to one
//!   receiver may be mixed anywhere: nothing here knows where a message ends.

use crate::aside::Served;
use anyhow::Context;
use rustc_hash::FxHashMap;
use rustix::{buffer::spare_capacity, event::epoll};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
};

/// What a connection says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub role: Role,
    /// What it receives, or where it sends.
    pub topic: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Receiver,
    Sender,
}

/// The whole answer to a greeting.
pub(crate) const GREETED: u8 = b'+';
const GREETING_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"PTFL";

impl Greeting {
    pub(crate) fn encode(self) -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = match self.role {
            Role::Receiver => b'r',
            Role::Sender => b's',
        };
        bytes[8..].copy_from_slice(&self.topic.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let role = match bytes.get(4)? {
            b'r' => Role::Receiver,
            b's' => Role::Sender,
            _ => return None,
        };
        let topic = bytes.get(8..)?.first_chunk()?;
        bytes.starts_with(&MAGIC).then_some(Self {
            role,
            topic: u64::from_le_bytes(*topic),
        })
    }
}

/// Copied at once. One buffer serves all connections.
const READ_BYTES: usize = 65_536;
const READY_MAX: usize = 512;
/// What may wait for a receiver whose socket is full.
const BACKLOG_BYTES_MAX: usize = 8 << 20;
/// The listener's place in the epoll; connections have their index.
const LISTENER: u64 = u64::MAX;

/// Serves until the process ends.
pub(crate) fn run(listener: TcpListener, served: Served) -> anyhow::Result<()> {
    let mut floor = Floor::new(listener).context("cannot set up epoll")?;
    served.ready(floor.address)?;
    loop {
        floor.turn()?;
    }
}

struct Floor {
    listener: TcpListener,
    address: SocketAddr,
    epoll: OwnedFd,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Receivers of a topic, by index.
    topics: FxHashMap<u64, Vec<usize>>,
    ready: Vec<epoll::Event>,
    buffer: Box<[u8]>,
}

struct Connection {
    stream: TcpStream,
    part: Part,
    /// What its socket did not take.
    backlog: Vec<u8>,
}

enum Part {
    /// It has not said all of its greeting.
    Unknown(Vec<u8>),
    Receiver(u64),
    Sender(u64),
}

impl Floor {
    fn new(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, data, epoll::EventFlags::IN)?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            epoll,
            connections: Vec::new(),
            free: Vec::new(),
            topics: FxHashMap::default(),
            ready: Vec::with_capacity(READY_MAX),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
        })
    }

    fn turn(&mut self) -> io::Result<()> {
        match epoll::wait(&self.epoll, spare_capacity(&mut self.ready), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = std::mem::take(&mut self.ready);
        for event in ready.drain(..) {
            let (data, flags) = (event.data.u64(), event.flags);
            if data == LISTENER {
                self.accept()?;
                continue;
            }
            let index = data as usize;
            if flags.contains(epoll::EventFlags::OUT) {
                self.write(index, &[]);
            }
            if flags != epoll::EventFlags::OUT {
                self.read(index);
            }
        }
        self.ready = ready;
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN)?;
            self.connections[index] = Some(Connection {
                stream,
                part: Part::Unknown(Vec::new()),
                backlog: Vec::new(),
            });
        }
    }

    /// One receive for one event, as cheap servers do.
    fn read(&mut self, index: usize) {
        let Some(connection) = &mut self.connections[index] else {
            // Closed earlier in this turn.
            return;
        };
        let bytes = match connection.stream.read(&mut self.buffer) {
            Ok(0) => return self.close(index),
            Ok(bytes) => bytes,
            Err(error) if is_passing(&error) => return,
            Err(_) => return self.close(index),
        };
        match &mut connection.part {
            Part::Sender(topic) => {
                let topic = *topic;
                self.copy(topic, bytes);
            }
            // Nobody asked it.
            Part::Receiver(_) => {}
            Part::Unknown(said) => {
                said.extend_from_slice(&self.buffer[..bytes]);
                if said.len() >= GREETING_BYTES {
                    self.greet(index);
                }
            }
        }
    }

    fn copy(&mut self, topic: u64, bytes: usize) {
        let Some(receivers) = self.topics.get_mut(&topic) else {
            return;
        };
        // Lent for the loop, which may close one of them.
        let receivers = std::mem::take(receivers);
        let buffer = std::mem::take(&mut self.buffer);
        let mut lost = Vec::new();
        for receiver in &receivers {
            if !write(
                &self.epoll,
                &mut self.connections,
                *receiver,
                &buffer[..bytes],
            ) {
                lost.push(*receiver);
            }
        }
        self.buffer = buffer;
        self.topics.insert(topic, receivers);
        for receiver in lost {
            self.close(receiver);
        }
    }

    fn greet(&mut self, index: usize) {
        let Some(connection) = &mut self.connections[index] else {
            return;
        };
        let Part::Unknown(said) = &connection.part else {
            return;
        };
        let greeting = Greeting::decode(said);
        // Clients wait for the answer before they send.
        let Some(greeting) = greeting.filter(|_| said.len() == GREETING_BYTES) else {
            return self.close(index);
        };
        connection.part = match greeting.role {
            Role::Receiver => {
                self.topics.entry(greeting.topic).or_default().push(index);
                Part::Receiver(greeting.topic)
            }
            Role::Sender => Part::Sender(greeting.topic),
        };
        self.write(index, &[GREETED]);
    }

    fn write(&mut self, index: usize, bytes: &[u8]) {
        if !write(&self.epoll, &mut self.connections, index, bytes) {
            self.close(index);
        }
    }

    fn close(&mut self, index: usize) {
        let Some(connection) = self.connections[index].take() else {
            return;
        };
        if let Part::Receiver(topic) = connection.part
            && let Some(receivers) = self.topics.get_mut(&topic)
        {
            receivers.retain(|receiver| *receiver != index);
            if receivers.is_empty() {
                self.topics.remove(&topic);
            }
        }
        self.free.push(index);
    }
}

/// Sends to a connection what waits for it and `bytes`; false when it has to be closed.
fn write(
    epoll: &OwnedFd,
    connections: &mut [Option<Connection>],
    index: usize,
    bytes: &[u8],
) -> bool {
    let Some(connection) = &mut connections[index] else {
        return true;
    };
    if connection.backlog.is_empty() {
        match connection.stream.write(bytes) {
            Ok(written) if written == bytes.len() => return true,
            Ok(written) => connection.backlog.extend_from_slice(&bytes[written..]),
            Err(error) if is_passing(&error) => connection.backlog.extend_from_slice(bytes),
            Err(_) => return false,
        }
        return wait_for_room(epoll, connection, index, true);
    }
    connection.backlog.extend_from_slice(bytes);
    match connection.stream.write(&connection.backlog) {
        Ok(written) => drop(connection.backlog.drain(..written)),
        Err(error) if is_passing(&error) => {}
        Err(_) => return false,
    }
    if connection.backlog.is_empty() {
        connection.backlog = Vec::new();
        return wait_for_room(epoll, connection, index, false);
    }
    connection.backlog.len() <= BACKLOG_BYTES_MAX
}

fn wait_for_room(epoll: &OwnedFd, connection: &Connection, index: usize, wait: bool) -> bool {
    let flags = match wait {
        true => epoll::EventFlags::IN | epoll::EventFlags::OUT,
        false => epoll::EventFlags::IN,
    };
    let data = epoll::EventData::new_u64(index as u64);
    epoll::modify(epoll, &connection.stream, data, flags).is_ok()
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::{
        sync::Arc,
        sync::atomic::{AtomicBool, Ordering},
        thread,
        time::Duration,
    };

    /// A floor on a thread, until it is dropped.
    pub(crate) struct Running {
        pub(crate) address: SocketAddr,
        ended: Arc<AtomicBool>,
        thread: Option<thread::JoinHandle<()>>,
    }

    impl Running {
        pub(crate) fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = listener.local_addr().expect("bound");
            let ended = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&ended);
            let thread = thread::spawn(move || {
                let mut floor = Floor::new(listener).expect("epoll");
                while !seen.load(Ordering::Relaxed) {
                    floor.turn().expect("it goes on");
                }
            });
            Self {
                address,
                ended,
                thread: Some(thread),
            }
        }

        pub(crate) fn join(&self, role: Role, topic: u64) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).expect("it listens");
            let timeout = Some(Duration::from_secs(20));
            stream.set_read_timeout(timeout).expect("a socket");
            stream
                .write_all(&Greeting { role, topic }.encode())
                .expect("sent");
            let mut answer = [0];
            stream.read_exact(&mut answer).expect("an answer");
            assert_eq!(answer, [GREETED]);
            stream
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.ended.store(true, Ordering::Relaxed);
            // Wakes it.
            let _ = TcpStream::connect(self.address);
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }

    #[test]
    fn greetings_come_back() {
        for role in [Role::Receiver, Role::Sender] {
            let greeting = Greeting { role, topic: 77 };
            assert_eq!(Greeting::decode(&greeting.encode()), Some(greeting));
        }
        assert_eq!(Greeting::decode(b"PTFLx\0\0\0\x01\0\0\0\0\0\0\0"), None);
        assert_eq!(Greeting::decode(b"PTF"), None);
    }

    #[test]
    fn bytes_reach_every_receiver_of_the_topic_and_nobody_else() {
        let floor = Running::start();
        let mut ears = [1, 1, 2].map(|topic| floor.join(Role::Receiver, topic));
        for (topic, text) in [(1, b"one"), (2, b"two")] {
            floor
                .join(Role::Sender, topic)
                .write_all(text)
                .expect("sent");
        }
        for (ear, expected) in ears.iter_mut().zip([b"one", b"one", b"two"]) {
            let mut got = [0; 3];
            ear.read_exact(&mut got).expect("it arrives");
            assert_eq!(&got, expected);
        }
    }

    #[test]
    fn a_receiver_that_is_slow_gets_everything_in_order() {
        let floor = Running::start();
        let mut ear = floor.join(Role::Receiver, 1);
        let mut voice = floor.join(Role::Sender, 1);
        // More than the sockets between them hold, and less than may wait.
        let bytes: Vec<u8> = (0..BACKLOG_BYTES_MAX as u32 / 4)
            .flat_map(u32::to_le_bytes)
            .collect();
        let expected = bytes.clone();
        let sender = thread::spawn(move || voice.write_all(&bytes).map(|()| voice));
        thread::sleep(Duration::from_millis(100));
        let mut got = vec![0; expected.len()];
        ear.read_exact(&mut got).expect("all of it");
        assert!(got == expected);
        sender.join().expect("no panic").expect("sent");
    }

    #[test]
    fn whoever_does_not_greet_is_sent_away() {
        let floor = Running::start();
        let mut stranger = TcpStream::connect(floor.address).expect("it listens");
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
        let mut answer = Vec::new();
        stranger
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a socket");
        // An end or a reset: bytes of it may not have been read.
        let _ = stranger.read_to_end(&mut answer);
        assert!(answer.is_empty());
    }
}
