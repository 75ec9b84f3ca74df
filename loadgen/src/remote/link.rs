//! Messages between a coordinator and a worker: JSON behind its length, over TCP.
//!
//! ```text
//! 0 length:u32 (little endian, of what follows)  4 JSON
//! ```
//! Everything has a bound and a time: how long a frame may be is the reader's choice, nothing is
//! reserved for bytes that have not come, and every wait ends.

use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

/// How long a peer may leave what we write in its socket.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const LENGTH_BYTES: usize = 4;
const CHUNK_BYTES: usize = 65_536;

/// Why nothing more can be said to each other.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("it has closed the connection")]
    Closed,
    #[error("it has said nothing for {0:?}")]
    Silent(Duration),
    #[error("it speaks another protocol: a frame of {0} bytes, allowed {1}")]
    TooLong(usize, usize),
    #[error("it speaks another protocol: {0}")]
    Garbage(serde_json::Error),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    input: Vec<u8>,
    chunk: Vec<u8>,
    /// The longest frame that is taken.
    frame_max: usize,
    heard: Instant,
}

impl Link {
    pub(super) fn new(stream: TcpStream, frame_max: usize) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        Ok(Self {
            stream,
            input: Vec::new(),
            chunk: vec![0; CHUNK_BYTES],
            frame_max,
            heard: Instant::now(),
        })
    }

    /// Once the peer is known, it may say more at once.
    pub(super) const fn set_frame_max(&mut self, frame_max: usize) {
        self.frame_max = frame_max;
    }

    pub(super) fn send(&mut self, message: &impl Serialize) -> Result<(), LinkError> {
        let mut frame = vec![0; LENGTH_BYTES];
        serde_json::to_writer(&mut frame, message).map_err(LinkError::Garbage)?;
        let length = frame.len() - LENGTH_BYTES;
        let length = u32::try_from(length).map_err(|_| LinkError::TooLong(length, usize::MAX))?;
        frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        self.stream.write_all(&frame)?;
        Ok(())
    }

    /// The next message, if one comes within `wait`.
    pub(super) fn poll<M: DeserializeOwned>(
        &mut self,
        wait: Duration,
    ) -> Result<Option<M>, LinkError> {
        let end = Instant::now() + wait;
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Zero would mean for ever.
            let left = left.max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut self.chunk) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(bytes) => {
                    self.heard = Instant::now();
                    self.input.extend_from_slice(&self.chunk[..bytes]);
                }
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next message, which must come within `wait`.
    pub(super) fn receive<M: DeserializeOwned>(&mut self, wait: Duration) -> Result<M, LinkError> {
        self.poll(wait)?.ok_or(LinkError::Silent(wait))
    }

    /// Fails when nothing was heard for so long.
    pub(super) fn check_silence(&self, max: Duration) -> Result<(), LinkError> {
        if self.heard.elapsed() > max {
            return Err(LinkError::Silent(max));
        }
        Ok(())
    }

    fn take<M: DeserializeOwned>(&mut self) -> Result<Option<M>, LinkError> {
        let Some((length, rest)) = self.input.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > self.frame_max {
            return Err(LinkError::TooLong(length, self.frame_max));
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(frame).map_err(LinkError::Garbage)?;
        self.input.drain(..LENGTH_BYTES + length);
        Ok(Some(message))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Whoever waits for us shall know at once. That it has gone already is no fault.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::TcpListener, thread};

    const SOON: Duration = Duration::from_secs(20);

    fn pair() -> (TcpStream, Link) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let ours = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        let (theirs, _) = listener.accept().expect("a connection");
        (theirs, Link::new(ours, 100).expect("a socket"))
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let (theirs, mut reader) = pair();
        let mut writer = Link::new(theirs.try_clone().expect("a socket"), 100).expect("a socket");
        writer.send(&"first").expect("sent");
        writer.send(&vec![1, 2, 3]).expect("sent");
        assert_eq!(reader.receive::<String>(SOON).expect("came"), "first");
        assert_eq!(reader.receive::<Vec<u8>>(SOON).expect("came"), [1, 2, 3]);
        let none = reader.poll::<String>(Duration::from_millis(5));
        assert_eq!(none.expect("still open"), None);

        let mut raw = &theirs;
        let slow = thread::scope(|scope| {
            scope.spawn(move || {
                for byte in b"\x06\0\0\0\"slow\"" {
                    raw.write_all(&[*byte]).expect("open");
                    thread::sleep(Duration::from_millis(1));
                }
            });
            reader.receive::<String>(SOON)
        });
        assert_eq!(slow.expect("came"), "slow");
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_it_is_read() {
        let (mut theirs, mut reader) = pair();
        theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("open");
        let refused = reader.receive::<String>(SOON);
        assert!(matches!(refused, Err(LinkError::TooLong(542_393_671, 100))));
    }

    #[test]
    fn nonsense_silence_and_an_end_are_told_apart() {
        let (mut theirs, mut reader) = pair();
        theirs.write_all(b"\x02\0\0\0{{").expect("open");
        let garbage = reader.receive::<String>(SOON);
        assert!(matches!(garbage, Err(LinkError::Garbage(_))));

        let (theirs, mut reader) = pair();
        let silent = reader.receive::<String>(Duration::from_millis(5));
        assert!(matches!(silent, Err(LinkError::Silent(_))));
        assert!(reader.check_silence(Duration::ZERO).is_err());
        drop(theirs);
        let closed = reader.receive::<String>(SOON);
        assert!(matches!(closed, Err(LinkError::Closed)));
    }
}
