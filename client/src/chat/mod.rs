//! The terminal chat behind `portico chat`: lines of standard input become messages to one user,
//! what arrives is printed.
//!
//! Everything is appended, nothing redrawn, so that it works the same in a terminal, in a pipe and
//! in a log. The marks behind own messages come as lines of their own: `✓` the server has stored
//! it, `✓✓ delivered` a device of the peer has it, `✓✓ read` the peer has seen it.
//!
//! # Invariants
//! - A message is acknowledged after it was printed, and the cursor is saved then: a kill loses
//!   nothing, and repeats at most the message at which it struck.
//! - A line is in the saved outbox before the next one is read: it is sent after a kill, too.
//! - Nothing that a peer or a server sends reaches the terminal as a control sequence.

mod marks;
mod screen;
mod store;

use crate::{
    blocking::Client,
    mint::{KEY_FILE, KeyError, SigningKey},
    owned::{OwnedEnvelope, OwnedEvent},
    session::{SendError, Session, SessionConfig, StateError},
    tls::TlsClient,
};
use marks::Marks;
use portico_wire::{
    CloseCode, ErrorCode,
    frame::msg_kind,
    ids::{ConvSeq, DeviceId, MsgId, Seq, UserId},
};
use ring::rand::{SecureRandom, SystemRandom};
use screen::Screen;
use std::{
    env,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use store::Store;

/// How long the chat waits at its end for what is not sent yet.
const FAREWELL: Duration = Duration::from_secs(10);
/// Tokens are made anew for each connection; this only has to outlive a login.
const TOKEN_TTL_S: u64 = 3_600;
/// Longest line that is sent.
const LINE_BYTES_MAX: usize = 16_384;
/// Events and lines under way between the threads.
const INPUTS_MAX: usize = 64;
const FOREVER: Duration = Duration::from_secs(3_600);

/// What `portico chat` is told.
#[derive(Clone, Debug)]
pub struct ChatOptions {
    /// Who we are.
    pub user: UserId,
    pub device: DeviceId,
    /// Whom we talk to.
    pub peer: UserId,
    /// The gateway, "host:port".
    pub target: String,
    /// The gateway's data directory: its key signs our token, `chat/` holds our place.
    pub data: PathBuf,
    /// TLS with the gateway.
    pub tls: Option<TlsClient>,
    /// Colours, if standard output is a terminal and `NO_COLOR` is not set.
    pub color: bool,
    /// Go on listening when standard input has ended.
    pub follow: bool,
}

impl ChatOptions {
    /// The defaults of the command line.
    #[must_use]
    pub fn new(user: UserId, peer: UserId) -> Self {
        Self {
            user,
            device: DeviceId(1),
            peer,
            target: "127.0.0.1:7400".to_owned(),
            data: PathBuf::from("./portico-data"),
            tls: None,
            color: true,
            follow: false,
        }
    }
}

/// Why the chat ended otherwise than by its user's wish.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    #[error("{0} (`portico serve` makes {path}; is --data the gateway's directory?)", path = .1.display())]
    Key(KeyError, PathBuf),
    #[error("no user has the number {0}")]
    BadUser(UserId),
    #[error("cannot use {path}: {0}", path = .1.display())]
    Place(io::Error, PathBuf),
    #[error("cannot use {path}: {0}", path = .1.display())]
    State(StateError, PathBuf),
    #[error("cannot start: {0}")]
    Start(io::Error),
    #[error("cannot print: {0}")]
    Output(#[from] io::Error),
    #[error("no connection to {0}")]
    NoConnection(String),
    #[error("{0} not sent; kept, and sent when this chat is started again")]
    Unsent(Count),
    #[error("the server ended the session: {0}")]
    Stopped(CloseCode),
}

/// A number of messages, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub usize);

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            1 => f.write_str("1 message"),
            count => write!(f, "{count} messages"),
        }
    }
}

/// Chats on standard input and output until the input ends.
pub fn run(options: ChatOptions) -> Result<(), ChatError> {
    let stdout = io::stdout();
    let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let color = options.color && stdout.is_terminal() && !no_color;
    let screen = Screen::new(stdout.lock(), color);
    run_on(options, BufReader::new(io::stdin()), screen, FAREWELL)
}

/// Chats on any input and output. The thread that reads `input` ends with it.
fn run_on<W: Write>(
    options: ChatOptions,
    input: impl BufRead + Send + 'static,
    screen: Screen<W>,
    farewell: Duration,
) -> Result<(), ChatError> {
    let (inputs, received) = mpsc::sync_channel(INPUTS_MAX);
    let mut chat = Chat::start(options, screen)?;
    let lines = inputs.clone();
    spawn("chat-input", move || read_lines(input, &lines))?;
    let client = Arc::clone(&chat.client);
    spawn("chat-events", move || forward_events(&client, &inputs))?;
    let result = chat.talk(&received, farewell);
    chat.client.close();
    // Somebody else may hold this device now, and then the place in the inbox is theirs.
    if !matches!(result, Err(ChatError::Stopped(_))) {
        chat.save()?;
    }
    result
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), ChatError> {
    let builder = thread::Builder::new().name(name.to_owned());
    builder.spawn(body).map_err(ChatError::Start)?;
    Ok(())
}

/// What can happen.
#[derive(Debug)]
enum Input {
    Line(String),
    LineTooLong,
    End,
    Event(OwnedEvent),
}

struct Chat<W> {
    options: ChatOptions,
    key: SigningKey,
    client: Arc<Client>,
    store: Store,
    screen: Screen<W>,
    marks: Marks,
    synced: bool,
    /// That there is no connection has been said, and is not said again until there was one.
    is_cut_off: bool,
}

impl<W: Write> Chat<W> {
    fn start(options: ChatOptions, mut screen: Screen<W>) -> Result<Self, ChatError> {
        for user in [options.user, options.peer] {
            if !user.is_valid() {
                return Err(ChatError::BadUser(user));
            }
        }
        let path = options.data.join(KEY_FILE);
        let key = SigningKey::load(&path).map_err(|error| ChatError::Key(error, path))?;
        let store = Store::open(&options.data, options.user, options.device)?;
        let (state, damaged) = store.load()?;
        if damaged {
            screen.notice("the saved place was damaged; starting from the server's")?;
        }
        let mut marks = Marks::default();
        for msg_id in state.unsent() {
            marks.queued(msg_id, "(from the last time)");
        }
        let token = mint(&key, &options);
        let mut config = SessionConfig::new(options.user, options.device, token);
        config.auto_ack = false;
        config.client = concat!("portico-chat/", env!("CARGO_PKG_VERSION")).to_owned();
        let mut seed = [0; 8];
        SystemRandom::new()
            .fill(&mut seed)
            .map_err(|_| ChatError::Start(io::Error::other("the system has no randomness")))?;
        let session = Session::new(config, state, u64::from_le_bytes(seed));
        let client = match options.tls.clone() {
            Some(tls) => Client::connect_tls(&options.target, session, tls),
            None => Client::connect(&options.target, session),
        };
        let client = client.map_err(ChatError::Start)?;
        Ok(Self {
            options,
            key,
            client: Arc::new(client),
            store,
            screen,
            marks,
            synced: false,
            is_cut_off: false,
        })
    }

    fn talk(&mut self, inputs: &Receiver<Input>, farewell: Duration) -> Result<(), ChatError> {
        let mut deadline = None;
        loop {
            let left = match deadline {
                Some(_) if self.synced && self.marks.unsent() == 0 => return Ok(()),
                Some(deadline) => Instant::saturating_duration_since(&deadline, Instant::now()),
                None => FOREVER,
            };
            match inputs.recv_timeout(left) {
                Ok(Input::Line(line)) if line == "/quit" => {
                    deadline = Some(Instant::now() + farewell);
                }
                Ok(Input::End) if self.options.follow => {}
                Ok(Input::End) => {
                    deadline.get_or_insert_with(|| Instant::now() + farewell);
                }
                Ok(Input::Line(line)) => self.line(&line)?,
                Ok(Input::LineTooLong) => {
                    self.screen.notice(&format!(
                        "not sent: a line has at most {LINE_BYTES_MAX} bytes"
                    ))?;
                }
                Ok(Input::Event(event)) => self.event(event)?,
                Err(RecvTimeoutError::Timeout) if deadline.is_none() => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return match self.marks.unsent() {
                        0 if self.client.phase().is_welcome() => Ok(()),
                        0 => Err(ChatError::NoConnection(self.options.target.clone())),
                        count => Err(ChatError::Unsent(Count(count))),
                    };
                }
            }
        }
    }

    fn line(&mut self, line: &str) -> Result<(), ChatError> {
        let text = match line {
            "" => return Ok(()),
            "/help" => {
                let help = "a line is a message; /quit (or Ctrl-D) ends; // sends a leading slash";
                return Ok(self.screen.notice(help)?);
            }
            _ => match line.strip_prefix('/') {
                Some(text) if text.starts_with('/') => text,
                Some(_) => return Ok(self.screen.notice("no such command; /help")?),
                None => line,
            },
        };
        self.send(text)
    }

    fn send(&mut self, text: &str) -> Result<(), ChatError> {
        match self.client.send_text(self.options.peer, text) {
            Ok(msg_id) => self.marks.queued(msg_id, text),
            Err(SendError::Full) => {
                self.screen
                    .notice("not sent: too many messages are waiting for the server")?;
            }
            Err(error) => self.screen.notice(&format!("not sent: {error}"))?,
        }
        self.save()
    }

    fn event(&mut self, event: OwnedEvent) -> Result<(), ChatError> {
        match event {
            OwnedEvent::Message {
                seq,
                conv_seq,
                peer,
                from,
                from_device,
                kind,
                envelope,
                ..
            } => {
                let author = Author {
                    user: from,
                    device: from_device,
                };
                self.show(author, conv_seq, kind, envelope)?;
                self.passed(seq)?;
                if from != self.options.user {
                    self.client.read(peer, conv_seq);
                }
            }
            OwnedEvent::Undecodable { from, .. } => {
                self.screen
                    .notice(&format!("a message from user {from} cannot be read"))?;
                self.save()?;
            }
            OwnedEvent::Sent {
                msg_id, conv_seq, ..
            } => {
                if let Some(text) = self.marks.sent(msg_id, conv_seq) {
                    self.screen.mark(conv_seq.0, "✓", &text)?;
                }
                self.save()?;
            }
            OwnedEvent::Refused {
                msg_id,
                code,
                will_retry,
                ..
            } => self.refused(msg_id, code, will_retry)?,
            OwnedEvent::Receipt {
                peer,
                read,
                up_to,
                at_s,
            } if peer == self.options.peer => {
                if let Some(text) = self.marks.reached(read, up_to) {
                    let mark = if read {
                        "✓✓ read"
                    } else {
                        "✓✓ delivered"
                    };
                    let at_us = u64::from(at_s) * 1_000_000;
                    self.screen.mark(at_us, mark, &text)?;
                }
            }
            OwnedEvent::TokenExpiring { .. } => {
                self.client.renew(mint(&self.key, &self.options));
            }
            OwnedEvent::RenewalRefused { code } => {
                let text = format!("the gateway did not take a new token ({code})");
                self.screen.notice(&text)?;
            }
            OwnedEvent::Welcome { .. } => {
                self.is_cut_off = false;
                let (user, target) = (self.options.user, &self.options.target);
                let text = format!("connected to {target} as user {user}");
                self.screen.notice(&text)?;
            }
            OwnedEvent::Synced { .. } => {
                self.synced = true;
                self.save()?;
                if self.marks.are_open() {
                    self.client.receipts(&[self.options.peer]);
                }
            }
            OwnedEvent::Gap { .. } => {
                self.screen
                    .notice("older messages were dropped by the server's retention")?;
            }
            OwnedEvent::Draining { .. } => self.screen.notice("the server is going away")?,
            OwnedEvent::Closed {
                code,
                reconnect_after_ms,
                detail,
                ..
            } => self.closed(code, reconnect_after_ms, &detail)?,
            OwnedEvent::ProtocolFault(fault) => {
                self.screen
                    .notice(&format!("the server broke the protocol: {fault}"))?;
            }
            OwnedEvent::Receipt { .. }
            | OwnedEvent::Renewed { .. }
            | OwnedEvent::ReadElsewhere { .. }
            | OwnedEvent::Duplicate { .. } => {}
        }
        Ok(())
    }

    fn show(
        &mut self,
        author: Author,
        conv_seq: ConvSeq,
        kind: u8,
        envelope: Option<OwnedEnvelope>,
    ) -> Result<(), ChatError> {
        // Keys and the chatter of devices are not for people.
        if matches!(kind, msg_kind::KEY_DISTRIBUTION | msg_kind::DEVICE_SYNC) {
            return Ok(());
        }
        let name = if author.user == self.options.user {
            format!("you (device {})", author.device)
        } else {
            format!("user {}", author.user)
        };
        let text = match &envelope {
            None => "(withdrawn)".into(),
            Some(envelope) if envelope.cipher != 0 || envelope.packing != 0 => "(encrypted)".into(),
            Some(envelope) => String::from_utf8_lossy(&envelope.body),
        };
        self.screen.message(conv_seq.0, &name, &text)?;
        Ok(())
    }

    fn refused(
        &mut self,
        msg_id: MsgId,
        code: ErrorCode,
        will_retry: bool,
    ) -> Result<(), ChatError> {
        if will_retry {
            return Ok(self.screen.notice(&format!("not sent yet: {code}"))?);
        }
        let Some(text) = self.marks.refused(msg_id) else {
            return Ok(());
        };
        // The session has set its clock by the server's: a new id will do.
        if code == ErrorCode::CLOCK_AHEAD {
            return self.send(&text);
        }
        self.screen.notice(&format!("not sent: {code}: {text}"))?;
        self.save()
    }

    fn closed(
        &mut self,
        code: CloseCode,
        reconnect_after_ms: Option<u32>,
        detail: &str,
    ) -> Result<(), ChatError> {
        if reconnect_after_ms.is_none() {
            if code == CloseCode::SESSION_REPLACED {
                self.screen
                    .notice("another chat of this device has taken over")?;
            } else if !detail.is_empty() {
                self.screen.notice(detail)?;
            }
            return Err(ChatError::Stopped(code));
        }
        self.client.set_token(mint(&self.key, &self.options));
        if code != CloseCode::DRAINING && !self.is_cut_off {
            self.is_cut_off = true;
            let target = &self.options.target;
            let tls_failure = self.client.tls_failure();
            let detail = tls_failure.map_or_else(|| detail.to_owned(), |error| error.sentence());
            let text = format!("not connected to {target} ({detail}); trying again and again");
            self.screen.notice(&text)?;
        }
        Ok(())
    }

    /// A message has been printed.
    fn passed(&mut self, seq: Seq) -> Result<(), ChatError> {
        if seq.0 != 0 {
            self.client.acknowledge(seq);
            self.save()?;
        }
        Ok(())
    }

    fn save(&self) -> Result<(), ChatError> {
        self.store.save(&self.client.state())
    }
}

/// Who wrote a message.
#[derive(Clone, Copy, Debug)]
struct Author {
    user: UserId,
    device: DeviceId,
}

fn mint(key: &SigningKey, options: &ChatOptions) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_unix_s = now.map_or(0, |now| now.as_secs());
    key.token(options.user, options.device, 0, TOKEN_TTL_S, now_unix_s)
}

/// Reads lines until the input ends, or the chat.
fn read_lines(mut input: impl BufRead, lines: &SyncSender<Input>) {
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = input.by_ref().take(LINE_BYTES_MAX as u64 + 1);
        // An input that cannot be read has ended.
        let count = limited.read_until(b'\n', &mut line).unwrap_or(0);
        let message = if count == 0 {
            Input::End
        } else if count > LINE_BYTES_MAX && !line.ends_with(b"\n") {
            if input.skip_until(b'\n').is_err() {
                return;
            }
            Input::LineTooLong
        } else {
            let text = String::from_utf8_lossy(&line);
            Input::Line(text.trim_end_matches(['\r', '\n']).to_owned())
        };
        if lines.send(message).is_err() || count == 0 {
            return;
        }
    }
}

fn forward_events(client: &Client, inputs: &SyncSender<Input>) {
    while !client.has_ended() {
        if let Some(event) = client.next_event(FOREVER)
            && inputs.send(Input::Event(event)).is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
