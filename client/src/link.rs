//! A socket of one session, with or without TLS on it.

use crate::tls::{Progress, Secured, TlsClient, TlsError, is_alert};
use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the first packet of TLS to the last.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses tried for one name.
const ADDRESSES_MAX: usize = 4;
/// How long a client that closes waits for its last bytes to be taken, and for the server's end.
const FAREWELL: Duration = Duration::from_secs(1);
/// What a flight of a handshake is read in.
const FLIGHT_BYTES: usize = 4_096;

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) stream: TcpStream,
    tls: Option<Box<Secured>>,
    /// For the socket.
    unwritten: Vec<u8>,
    /// Nothing has come yet.
    is_fresh: bool,
}

impl Link {
    /// Connects to "host:port", and shakes hands where TLS is wanted. What the server has said
    /// behind the handshake is appended to `plain`. The socket does not block.
    pub(crate) fn open(
        address: &str,
        tls: Option<&TlsClient>,
        plain: &mut Vec<u8>,
    ) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for socket_address in address.to_socket_addrs()?.take(ADDRESSES_MAX) {
            match TcpStream::connect_timeout(&socket_address, CONNECT_TIMEOUT) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    let tls = tls.map(|client| shake_hands(&stream, address, client, plain));
                    let tls = tls.transpose()?;
                    stream.set_nonblocking(true)?;
                    return Ok(Self {
                        stream,
                        tls,
                        unwritten: Vec::new(),
                        is_fresh: true,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Takes what the session wants to say.
    pub(crate) fn say(&mut self, output: &mut Vec<u8>) -> io::Result<()> {
        match &mut self.tls {
            Some(_) if output.is_empty() => {}
            Some(tls) => {
                tls.seal(output)?;
                output.clear();
                self.unwritten.append(tls.unsent());
            }
            None if self.unwritten.is_empty() => self.unwritten = std::mem::take(output),
            None => self.unwritten.append(output),
        }
        Ok(())
    }

    /// Bytes that the socket has not taken.
    pub(crate) const fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// Writes as much as the socket takes.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        let mut written = 0;
        let result = loop {
            let rest = self.unwritten.get(written..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(());
            }
            match self.stream.write(rest) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.unwritten.drain(..written);
        if self.unwritten.is_empty() {
            self.unwritten = Vec::new();
        }
        result
    }

    /// Reads once and appends what the server has said to `plain`; `false` when it says no more.
    pub(crate) fn read(&mut self, buffer: &mut [u8], plain: &mut Vec<u8>) -> io::Result<bool> {
        let count = self.stream.read(buffer)?;
        if count == 0 {
            return Ok(false);
        }
        let bytes = buffer.get_mut(..count).unwrap_or_default();
        let Some(tls) = &mut self.tls else {
            if std::mem::take(&mut self.is_fresh) && is_alert(bytes) {
                return Err(TlsError::TlsWanted.into());
            }
            plain.extend_from_slice(bytes);
            return Ok(true);
        };
        let progress = tls.receive(bytes, plain);
        self.unwritten.append(tls.unsent());
        match progress {
            Ok(progress) => Ok(progress == Progress::Open),
            // What came before is whole, and may be a CLOSE. The alert is tried once.
            Err(_) => {
                let _ = self.write();
                Ok(false)
            }
        }
    }

    /// Writes what is left and waits for the server's end: closing a socket with unread bytes
    /// resets it, and the server might lose our last ones. Whatever fails here, the connection is
    /// over.
    pub(crate) fn farewell(mut self, buffer: &mut [u8]) {
        if let Some(tls) = &mut self.tls {
            tls.close();
            self.unwritten.append(tls.unsent());
        }
        let stream = &mut self.stream;
        let deadline = Instant::now() + FAREWELL;
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_write_timeout(Some(FAREWELL));
        if stream.write_all(&self.unwritten).is_err() || stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
                return;
            }
            if !matches!(stream.read(buffer), Ok(count) if count > 0) {
                return;
            }
        }
    }
}

/// The handshake on a socket that blocks, with the server at `address`.
pub(crate) fn shake_hands(
    mut stream: &TcpStream,
    address: &str,
    client: &TlsClient,
    plain: &mut Vec<u8>,
) -> io::Result<Box<Secured>> {
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let mut tls = Secured::begin(client, client.name_of(address)?, true)?;
    let mut flight = [0; FLIGHT_BYTES];
    loop {
        let written = stream.write_all(tls.unsent());
        *tls.unsent() = Vec::new();
        if tls.is_open() {
            written?;
            return Ok(Box::new(tls));
        }
        // One that cannot be written to may have said why.
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(TlsError::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let count = match stream.read(&mut flight) {
            Ok(0) => return Err(TlsError::CutOff.into()),
            Ok(count) => count,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Err(TlsError::TimedOut.into()),
                io::ErrorKind::Interrupted => continue,
                io::ErrorKind::ConnectionReset => return Err(TlsError::CutOff.into()),
                _ => return Err(error),
            },
        };
        let bytes = flight.get_mut(..count).unwrap_or_default();
        if let Err(error) = tls.receive(bytes, plain) {
            // Whoever looks for the fault on the other side finds the alert there.
            let _ = stream.write_all(tls.unsent());
            return Err(error.into());
        }
    }
}
