//! The terminal chat behind `portico chat`: lines of standard input become messages to a user or a
//! group, what arrives is printed.
//!
//! Everything is appended, nothing redrawn, so that it works the same in a terminal, in a pipe and
//! in a log. In a terminal the line that is being typed stays below what arrives, and can be edited
//! (docs/decisions/0026). The marks behind own messages come as lines of their own: `✓` the server has stored
//! it, `✓✓ delivered` a device of the peer has it, `✓✓ read` the peer has seen it.
//!
//! # Invariants
//! - A message is acknowledged after it was printed, and the cursor is saved then: a kill loses
//!   nothing, and repeats at most the message at which it struck.
//! - A line is in the saved outbox before the next one is read: it is sent after a kill, too.
//! - Nothing that a peer or a server sends reaches the terminal as a control sequence.

mod commands;
mod company;
mod editor;
mod events;
mod marks;
mod screen;
mod store;

use crate::{
    blocking::Client,
    mint::{KEY_FILE, KeyError, SigningKey},
    owned::OwnedEvent,
    session::{Conv, SendError, Session, SessionConfig, StateError},
    tls::TlsClient,
};
use company::Company;
use editor::Terminal;
use portico_wire::{
    CloseCode,
    ids::{DeviceId, Seq, UserId},
};
use ring::rand::{SecureRandom, SystemRandom};
use screen::Screen;
use std::{
    collections::VecDeque,
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
    pub color: Color,
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
            color: Color::Auto,
            follow: false,
        }
    }
}

/// When colours are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// If standard output is a terminal and `NO_COLOR` is not set.
    #[default]
    Auto,
    Always,
    Never,
}

impl Color {
    fn is_on(self, stdout: &io::Stdout) -> bool {
        let forbidden = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        match self {
            Self::Auto => stdout.is_terminal() && !forbidden,
            Self::Always => true,
            Self::Never => false,
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
    let color = options.color.is_on(&stdout);
    let (inputs, received) = mpsc::sync_channel(INPUTS_MAX);
    if io::stdin().is_terminal()
        && stdout.is_terminal()
        && let Ok((terminal, above)) = Terminal::open(inputs.clone(), color)
    {
        let chat = Chat::start(options, Screen::new(above, color))?;
        let (prompts, asked) = mpsc::sync_channel(1);
        let lines = inputs.clone();
        let prompts = Some(prompts);
        spawn("chat-input", move || terminal.read(&asked, &lines))?;
        return chat.run(inputs, &received, prompts, FAREWELL);
    }
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
    let chat = Chat::start(options, screen)?;
    let lines = inputs.clone();
    spawn("chat-input", move || read_lines(input, &lines))?;
    chat.run(inputs, &received, None, farewell)
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
    /// Keys are struck, and no line is there yet.
    Typing,
    End,
    Event(OwnedEvent),
}

struct Chat<W> {
    options: ChatOptions,
    key: SigningKey,
    client: Arc<Client>,
    store: Store,
    screen: Screen<W>,
    company: Company,
    /// Whom we talk to.
    to: Conv,
    /// Keystrokes are told to whom we talk to.
    tells_typing: bool,
    /// Lines that wait until the group that they are meant for has been made.
    held: VecDeque<String>,
    /// Where the line editor waits for its prompt.
    prompts: Option<SyncSender<String>>,
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
        let to = Conv::User(options.peer);
        let mut company = Company::default();
        for msg_id in state.unsent() {
            company.marks(to).queued(msg_id, "(from the last time)");
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
            company,
            to,
            tells_typing: true,
            held: VecDeque::new(),
            prompts: None,
            synced: false,
            is_cut_off: false,
        })
    }

    /// Talks until the end, and keeps its place.
    fn run(
        mut self,
        inputs: SyncSender<Input>,
        received: &Receiver<Input>,
        prompts: Option<SyncSender<String>>,
        farewell: Duration,
    ) -> Result<(), ChatError> {
        self.prompts = prompts;
        let client = Arc::clone(&self.client);
        spawn("chat-events", move || forward_events(&client, &inputs))?;
        self.prompt();
        let result = self.talk(received, farewell);
        self.client.close();
        // Somebody else may hold this device now, and then the place in the inbox is theirs.
        if !matches!(result, Err(ChatError::Stopped(_))) {
            self.save()?;
        }
        result
    }

    /// The line editor may go on.
    fn prompt(&self) {
        if let Some(prompts) = &self.prompts {
            // It waits for one at a time, or has ended.
            let _ = prompts.try_send(format!(
                "{}> ",
                screen::harmless(&self.company.name(self.to))
            ));
        }
    }

    fn talk(&mut self, inputs: &Receiver<Input>, farewell: Duration) -> Result<(), ChatError> {
        let mut deadline = None;
        loop {
            let left = match deadline {
                Some(_) if self.is_done() => return Ok(()),
                Some(deadline) => Instant::saturating_duration_since(&deadline, Instant::now()),
                None => FOREVER,
            };
            match inputs.recv_timeout(left) {
                Ok(Input::Line(line)) if line == "/quit" => {
                    self.prompts = None;
                    deadline = Some(Instant::now() + farewell);
                }
                Ok(Input::End) if self.options.follow => {}
                Ok(Input::End) => {
                    deadline.get_or_insert_with(|| Instant::now() + farewell);
                }
                Ok(Input::Line(line)) => {
                    self.line(line)?;
                    self.prompt();
                }
                Ok(Input::Typing) if self.tells_typing => self.type_now(),
                Ok(Input::Typing) => {}
                Ok(Input::LineTooLong) => {
                    self.prompt();
                    self.screen.notice(&format!(
                        "not sent: a line has at most {LINE_BYTES_MAX} bytes"
                    ))?;
                }
                Ok(Input::Event(event)) => self.event(event)?,
                Err(RecvTimeoutError::Timeout) if deadline.is_none() => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return match self.company.unsent() {
                        0 if self.client.phase().is_welcome() => Ok(()),
                        0 => Err(ChatError::NoConnection(self.options.target.clone())),
                        count => Err(ChatError::Unsent(Count(count))),
                    };
                }
            }
        }
    }

    /// Everything has been sent and answered.
    fn is_done(&self) -> bool {
        let quiet = self.company.is_idle() && self.held.is_empty();
        self.synced && quiet && self.company.unsent() == 0
    }

    fn line(&mut self, line: String) -> Result<(), ChatError> {
        if self.company.is_creating() {
            self.held.push_back(line);
            return Ok(());
        }
        match line.strip_prefix('/') {
            _ if line.is_empty() => Ok(()),
            Some(text) if text.starts_with('/') => self.send(text),
            Some(command) => self.command(command),
            None => self.send(&line),
        }
    }

    /// Lines that had to wait.
    fn go_on(&mut self) -> Result<(), ChatError> {
        while !self.company.is_creating()
            && let Some(line) = self.held.pop_front()
        {
            self.line(line)?;
        }
        self.prompt();
        Ok(())
    }

    fn send(&mut self, text: &str) -> Result<(), ChatError> {
        self.send_to(self.to, text)
    }

    fn send_to(&mut self, to: Conv, text: &str) -> Result<(), ChatError> {
        match self.client.send_text(to, text) {
            Ok(msg_id) => self.company.marks(to).queued(msg_id, text),
            Err(SendError::Full) => {
                self.screen
                    .notice("not sent: too many messages are waiting for the server")?;
            }
            Err(error) => self.screen.notice(&format!("not sent: {error}"))?,
        }
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
