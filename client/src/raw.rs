//! One connection, TCP or TLS, frame by frame, without any rule of the protocol enforced on what is
//! written: for tests that have to misbehave, and for looking at a server by hand.

use crate::tls::{Progress, Secured};
use portico_wire::{
    CloseCode, Flags, Op, RouteHeader, SeqHeader,
    encode::{Encoder, put_routed},
    frame::{ConvKind, next_frame},
    ids::{DeviceId, MsgId, Seq, UserId},
    limits::FRAME_BYTES_CEILING,
    message::{Close, Hello, Welcome},
};
use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

/// How long to wait for a connection and for WELCOME.
const PATIENCE: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 16_384;

/// See the [module](self).
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
    tls: Option<Box<Secured>>,
    input: Vec<u8>,
    encoder: Encoder,
}

/// A frame that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    pub op: u8,
    pub flags: Flags,
    pub corr: u32,
    pub aux: u32,
    /// Zeros unless the operation has a SeqHeader.
    pub seq: SeqHeader,
    pub route: Option<RouteHeader>,
    pub body: Vec<u8>,
}

impl RawFrame {
    #[must_use]
    pub const fn known_op(&self) -> Option<Op> {
        Op::from_u8(self.op)
    }

    /// The code, if this is a CLOSE that can be read.
    #[must_use]
    pub fn close_code(&self) -> Option<CloseCode> {
        if self.known_op() != Some(Op::Close) {
            return None;
        }
        Close::decode(&self.body).ok().map(|close| close.code)
    }
}

/// What a WELCOME said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawWelcome {
    pub user: UserId,
    pub device: DeviceId,
    pub resumed: bool,
    pub resume_token: Vec<u8>,
    pub head_seq: Seq,
    pub floor_seq: Seq,
    pub receive_max: u32,
    pub max_frame: u32,
    pub heartbeat_s: u16,
    pub server_us: u64,
    pub node: String,
}

/// Why there was no WELCOME, or no frame.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server said CLOSE.
    #[error("closed by the server: {0}")]
    Closed(CloseCode),
    #[error("the server closed the connection without CLOSE")]
    Ended,
    #[error("the server sent operation {0} instead")]
    Unexpected(u8),
    #[error("the server sent bytes that are not a frame or a body of this protocol")]
    Broken,
}

impl RawConnection {
    pub fn connect(address: impl ToSocketAddrs) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_write_timeout(Some(PATIENCE))?;
                    return Ok(Self {
                        stream,
                        tls: None,
                        input: Vec::new(),
                        encoder: Encoder::new(),
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Connects to "host:port" and shakes hands. An error may carry a [`crate::TlsError`].
    #[cfg(feature = "tls")]
    pub fn connect_tls(address: &str, client: &crate::TlsClient) -> io::Result<Self> {
        let mut raw = Self::connect(address)?;
        let tls = crate::link::shake_hands(&raw.stream, address, client, &mut raw.input)?;
        raw.tls = Some(tls);
        Ok(raw)
    }

    /// The handshake resumed an earlier connection.
    #[must_use]
    pub fn has_resumed(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.has_resumed())
    }

    /// The socket, for options and half-closes.
    #[must_use]
    pub const fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub const fn encoder(&mut self) -> &mut Encoder {
        &mut self.encoder
    }

    /// Writes bytes as they are, within TLS if there is any.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => self.stream.write_all(bytes),
            Some(tls) => {
                tls.seal(bytes)?;
                let sealed = std::mem::take(tls.unsent());
                self.stream.write_all(&sealed)
            }
        }
    }

    /// Says that nothing more comes, in the words of TLS.
    pub fn close_notify(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        tls.close();
        let sealed = std::mem::take(tls.unsent());
        self.stream.write_all(&sealed)
    }

    /// Logs in with default fields.
    pub fn hello(&mut self, token: &str) -> Result<RawWelcome, RawError> {
        self.hello_with(&Hello {
            token: Some(token),
            ..Hello::default()
        })
    }

    /// Logs in with any fields.
    pub fn hello_with(&mut self, hello: &Hello<'_>) -> Result<RawWelcome, RawError> {
        let mut out = Vec::new();
        self.encoder.hello(&mut out, 1, hello);
        self.write_bytes(&out)?;
        let frame = self.expect_frame(PATIENCE)?;
        match frame.known_op() {
            Some(Op::Welcome) => welcome(&frame),
            Some(Op::Close) => Err(match frame.close_code() {
                Some(code) => RawError::Closed(code),
                None => RawError::Broken,
            }),
            _ => Err(RawError::Unexpected(frame.op)),
        }
    }

    /// SEND of a plain text, as a request.
    pub fn send_text(
        &mut self,
        corr: u32,
        to: UserId,
        msg_id: MsgId,
        flags: Flags,
        text: &str,
    ) -> io::Result<()> {
        let route = RouteHeader {
            msg_id,
            conv: to.0,
            conv_kind: ConvKind::DIRECT,
            ..RouteHeader::default()
        };
        let body = crate::plain_envelope(text);
        let mut out = Vec::new();
        put_routed(&mut out, Op::Send as u8, flags, corr, 0, &route, &body);
        self.write_bytes(&out)
    }

    /// The next frame; `None` at the end of the stream; an error of kind `TimedOut` when nothing
    /// whole has come in time.
    pub fn read_frame(&mut self, timeout: Duration) -> Result<Option<RawFrame>, RawError> {
        let deadline = Instant::now() + timeout;
        loop {
            let next = next_frame(&self.input, FRAME_BYTES_CEILING);
            if let Some(frame) = next.map_err(|_| RawError::Broken)? {
                let used = frame.bytes().len();
                let frame = RawFrame {
                    op: frame.op(),
                    flags: frame.flags(),
                    corr: frame.corr(),
                    aux: frame.aux(),
                    seq: if frame.route().is_some() {
                        SeqHeader::default()
                    } else {
                        frame.seq_header()
                    },
                    route: frame.route(),
                    body: frame.body().to_vec(),
                };
                self.input.drain(..used);
                return Ok(Some(frame));
            }
            if !self.fill(deadline)? {
                return Ok(None);
            }
        }
    }

    /// The next frame, where one must come.
    pub fn expect_frame(&mut self, timeout: Duration) -> Result<RawFrame, RawError> {
        self.read_frame(timeout)?.ok_or(RawError::Ended)
    }

    /// Skips frames until one of `op`.
    pub fn expect_op(&mut self, op: Op, timeout: Duration) -> Result<RawFrame, RawError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let frame = self.expect_frame(left)?;
            match frame.close_code() {
                _ if frame.op == op as u8 => return Ok(frame),
                Some(code) => return Err(RawError::Closed(code)),
                None => {}
            }
        }
    }

    /// Skips frames until the CLOSE, and returns its code.
    pub fn expect_close(&mut self, timeout: Duration) -> Result<CloseCode, RawError> {
        let frame = self.expect_op(Op::Close, timeout)?;
        frame.close_code().ok_or(RawError::Broken)
    }

    /// Waits for the end of the stream, skipping what comes before. A reset counts as an end.
    pub fn expect_end(&mut self, timeout: Duration) -> Result<(), RawError> {
        let deadline = Instant::now() + timeout;
        loop {
            self.input.clear();
            match self.fill(deadline) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads what is there. `false`: the stream has ended.
    fn fill(&mut self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut buffer = [0; READ_BYTES];
        match self.stream.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(count) => {
                let bytes = buffer.get_mut(..count).unwrap_or_default();
                match &mut self.tls {
                    None => self.input.extend_from_slice(bytes),
                    Some(tls) => {
                        let before = self.input.len();
                        let progress = tls.receive(bytes, &mut self.input)?;
                        // What came in front of the end is looked at first.
                        return Ok(progress != Progress::Ended || self.input.len() > before);
                    }
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::TimedOut.into())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }
}

fn welcome(frame: &RawFrame) -> Result<RawWelcome, RawError> {
    let welcome = Welcome::decode(&frame.body).map_err(|_| RawError::Broken)?;
    Ok(RawWelcome {
        user: welcome.user,
        device: welcome.device,
        resumed: welcome.resumed,
        resume_token: welcome.resume_token.to_vec(),
        head_seq: welcome.head_seq,
        floor_seq: welcome.floor_seq,
        receive_max: welcome.receive_max,
        max_frame: welcome.max_frame,
        heartbeat_s: welcome.heartbeat_s,
        server_us: welcome.server_us,
        node: welcome.node.to_owned(),
    })
}
