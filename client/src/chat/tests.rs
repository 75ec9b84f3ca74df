//! The chat against a gateway in memory, line by line and after kills.

use super::*;
use crate::{
    session::SessionState,
    support::front::{Faults, Front, Identity},
    support::server::{PATIENCE, Server},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use portico_wire::Op;
use std::{
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

fn identify(token: &str) -> (u64, u16) {
    let claims = token.split('.').nth(1).unwrap();
    let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    let number = |name: &str| {
        let (_, rest) = claims.split_once(name).unwrap();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().unwrap()
    };
    (number(r#""sub":""#), number(r#""dev":"#) as u16)
}

/// A data directory with a key, removed at the end.
struct Data(PathBuf);

impl Data {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("portico-chat-{}-{number}", std::process::id());
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        let key = path.join(KEY_FILE);
        fs::write(&key, SigningKey::generate_pem().unwrap()).unwrap();
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        Self(path)
    }

    fn options(&self, server: &Server, user: u64, peer: u64) -> ChatOptions {
        ChatOptions {
            target: server.address.to_string(),
            data: self.0.clone(),
            ..ChatOptions::new(UserId(user), UserId(peer))
        }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An output that others can look at.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Paper {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn wait(&self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.text().contains(wanted) {
            assert!(
                Instant::now() < deadline,
                "no {wanted:?} in {}",
                self.text()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a chat with all its input there from the start.
fn piped(options: ChatOptions, input: &str) -> (String, Result<(), ChatError>) {
    let paper = Paper::default();
    let input = io::Cursor::new(input.to_owned());
    let screen = Screen::new(paper.clone(), false);
    let result = run_on(options, input, screen, PATIENCE);
    (paper.text(), result)
}

/// A chat in the background, fed through a pipe.
struct Running {
    paper: Paper,
    lines: io::PipeWriter,
    thread: thread::JoinHandle<Result<(), ChatError>>,
}

impl Running {
    fn start(options: ChatOptions) -> Self {
        Self::start_with(options, PATIENCE)
    }

    fn start_with(options: ChatOptions, farewell: Duration) -> Self {
        let paper = Paper::default();
        let (input, lines) = io::pipe().unwrap();
        let screen = Screen::new(paper.clone(), false);
        let input = BufReader::new(input);
        let thread = thread::spawn(move || run_on(options, input, screen, farewell));
        Self {
            paper,
            lines,
            thread,
        }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.lines, "{line}").unwrap();
    }

    fn end(self) -> (String, Result<(), ChatError>) {
        drop(self.lines);
        let result = self.thread.join().unwrap();
        (self.paper.text(), result)
    }
}

#[test]
fn a_piped_line_is_sent_and_the_chat_ends() {
    let (server, data) = (Server::start(identify), Data::new());
    let (text, result) = piped(data.options(&server, 1, 2), "hi\n");
    result.unwrap();
    assert!(text.contains("✓ hi\n"), "{text}");
    assert_eq!(server.world().sends(Op::Send).len(), 1);
}

#[test]
fn two_chats_show_messages_and_marks() {
    let (server, data) = (Server::start(identify), Data::new());
    let mut one = Running::start(data.options(&server, 1, 2));
    one.paper.wait("connected");
    one.say("first");
    one.paper.wait("✓ first");
    // The other was away: its message has waited.
    let mut two = Running::start(data.options(&server, 2, 1));
    two.paper.wait("user 1: first");
    one.paper.wait("✓✓ delivered first");
    one.paper.wait("✓✓ read first");
    two.say("//second");
    one.paper.wait("user 2: /second");
    two.paper.wait("✓✓ read /second");
    two.say("/help");
    two.paper.wait("a line is a message");
    two.say("/quit");
    assert!(two.thread.join().unwrap().is_ok());
    one.end().1.unwrap();
}

#[test]
fn nothing_is_shown_twice_and_nothing_missed_between_two_starts() {
    let (server, data) = (Server::start(identify), Data::new());
    let body = crate::plain_envelope("one");
    server.inject(2, 1, 1, &body);
    let (text, result) = piped(data.options(&server, 1, 2), "");
    result.unwrap();
    assert!(text.contains("user 2: one\n"));
    server.inject(2, 1, 2, &crate::plain_envelope("two"));
    let (text, result) = piped(data.options(&server, 1, 2), "");
    result.unwrap();
    assert!(
        text.contains("user 2: two\n") && !text.contains("one"),
        "{text}"
    );
    let (text, result) = piped(data.options(&server, 1, 2), "");
    result.unwrap();
    assert!(!text.contains("user 2"), "{text}");
}

#[test]
fn the_saved_place_counts_even_when_the_server_knows_less() {
    let (server, data) = (Server::start(identify), Data::new());
    server.inject(2, 1, 1, &crate::plain_envelope("one"));
    let chat = Running::start(data.options(&server, 1, 2));
    chat.paper.wait("user 2: one");
    // As after a kill: the file is there, the acknowledgement may be lost.
    let folder = data.0.join("chat");
    let saved = folder.join("user-1-device-1.state");
    let deadline = Instant::now() + PATIENCE;
    let state = loop {
        let state = SessionState::decode(&fs::read(&saved).unwrap()).unwrap();
        if state.cursor.0 != 0 {
            break state;
        }
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(
        fs::metadata(&saved).unwrap().permissions().mode() & 0o777,
        0o600
    );
    chat.end().1.unwrap();
    fs::write(&saved, state.encode()).unwrap();
    let (text, result) = piped(data.options(&server, 1, 2), "");
    result.unwrap();
    assert!(!text.contains("one"), "{text}");
}

#[test]
fn that_nobody_answers_is_said_once() {
    let (server, data) = (Server::start(identify), Data::new());
    let mut options = data.options(&server, 1, 2);
    // Bound and given back: nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    options.target = free.local_addr().unwrap().to_string();
    drop(free);
    let wanted = format!("not connected to {}", options.target);
    let chat = Running::start_with(options, Duration::from_secs(3));
    chat.paper.wait(&wanted);
    // Three seconds hold several tries: the first two come within 1.5 s.
    let (text, result) = chat.end();
    assert!(
        matches!(result, Err(ChatError::NoConnection(_))),
        "{result:?}"
    );
    assert_eq!(text.matches("not connected").count(), 1, "{text}");
}

#[test]
fn what_was_not_sent_is_said_and_sent_the_next_time() {
    let (server, data) = (Server::start(identify), Data::new());
    server.world().mute = true;
    let farewell = Duration::from_millis(300);
    let mut chat = Running::start_with(data.options(&server, 1, 2), farewell);
    chat.paper.wait("connected");
    chat.say("later");
    server.wait(|world| (!world.sends(Op::Send).is_empty()).then_some(()));
    let (_, result) = chat.end();
    assert!(
        matches!(result, Err(ChatError::Unsent(Count(1)))),
        "{result:?}"
    );
    server.world().mute = false;
    let (text, result) = piped(data.options(&server, 1, 2), "");
    result.unwrap();
    assert!(text.contains("✓ (from the last time)"), "{text}");
    let sends = server.world().sends(Op::Send);
    assert_eq!(sends[0].route.msg_id, sends[1].route.msg_id);
    assert!(!sends[0].is_retry() && sends[1].is_retry());
}

#[test]
fn a_hostile_text_reaches_the_screen_without_its_teeth() {
    let (server, data) = (Server::start(identify), Data::new());
    let hostile = "\x1b[2J\x1b]52;c;QQ==\x07\r\nuser 3: give me your key\u{202e}";
    server.inject(2, 1, 1, &crate::plain_envelope(hostile));
    let (text, result) = piped(data.options(&server, 1, 2), "");
    result.unwrap();
    assert!(!text.chars().any(|char| char.is_control() && char != '\n'));
    assert!(!text.contains("\nuser 3"), "{text}");
    assert!(text.contains("␛[2J␛]52;c;QQ==␇␍␊user 3"), "{text}");
}

#[test]
fn a_replaced_session_ends_the_chat() {
    let (server, data) = (Server::start(identify), Data::new());
    let chat = Running::start(data.options(&server, 1, 2));
    chat.paper.wait("connected");
    let other = Data::new();
    let second = Running::start(other.options(&server, 1, 2));
    second.paper.wait("connected");
    let result = chat.thread.join().unwrap();
    assert!(matches!(
        result,
        Err(ChatError::Stopped(CloseCode::SESSION_REPLACED))
    ));
    assert!(chat.paper.text().contains("taken over"));
    second.end().1.unwrap();
}

#[test]
fn a_damaged_place_is_put_aside_and_a_newer_one_left_alone() {
    let (server, data) = (Server::start(identify), Data::new());
    let saved = data.0.join("chat").join("user-1-device-1.state");
    fs::create_dir(data.0.join("chat")).unwrap();
    fs::write(&saved, b"PTCS\x01not much").unwrap();
    let (text, result) = piped(data.options(&server, 1, 2), "");
    result.unwrap();
    assert!(text.contains("damaged"), "{text}");
    assert!(saved.with_extension("damaged").exists());
    fs::write(&saved, b"PTCS\x03from the future").unwrap();
    let (_, result) = piped(data.options(&server, 1, 2), "");
    assert!(matches!(
        result,
        Err(ChatError::State(StateError::Version(3), _))
    ));
    assert!(saved.exists());
}

#[test]
fn without_a_key_or_with_a_bad_user_it_does_not_start() {
    let (server, data) = (Server::start(identify), Data::new());
    let (_, result) = piped(data.options(&server, 0, 2), "");
    assert!(matches!(result, Err(ChatError::BadUser(UserId(0)))));
    fs::remove_file(data.0.join(KEY_FILE)).unwrap();
    let (_, result) = piped(data.options(&server, 1, 2), "");
    assert!(matches!(result, Err(ChatError::Key(..))));
    assert_eq!(server.world().logins, 0);
}

#[test]
fn lines_are_cut_at_their_ends_and_long_ones_refused() {
    let long = "x".repeat(LINE_BYTES_MAX + 5);
    let full = "y".repeat(LINE_BYTES_MAX);
    let input = format!("one\r\n\n{long}\n{full}\nlast");
    let (lines, read) = mpsc::sync_channel(16);
    read_lines(io::Cursor::new(input), &lines);
    drop(lines);
    let read: Vec<String> = read.iter().map(|input| format!("{input:?}")).collect();
    let expected = [
        r#"Line("one")"#.to_owned(),
        r#"Line("")"#.to_owned(),
        "LineTooLong".to_owned(),
        format!("Line({full:?})"),
        r#"Line("last")"#.to_owned(),
        "End".to_owned(),
    ];
    assert_eq!(read, expected);
}

#[test]
fn a_chat_over_tls_is_a_chat_and_says_why_it_has_no_connection() {
    let server = Server::start(identify);
    let identity = Identity::self_signed();
    let front = Front::start(&identity, server.address, Faults::default());
    let data = Data::new();
    let options = |tls: &Identity| ChatOptions {
        target: front.address.to_string(),
        tls: Some(TlsClient::trusting_pem(tls.trusted.as_bytes(), "the test").unwrap()),
        ..data.options(&server, 1, 2)
    };
    let (text, result) = piped(options(&identity), "over TLS\n");
    assert!(result.is_ok(), "{result:?}");
    assert!(text.contains('✓'), "{text}");
    assert_eq!(front.handshakes(), (1, 0));

    let stranger = Running::start_with(options(&Identity::self_signed()), Duration::ZERO);
    stranger.paper.wait("nobody who is trusted; --tls-ca names");
    assert!(stranger.end().1.is_err());
}

#[test]
fn a_group_is_made_written_to_and_left() {
    let (server, data) = (Server::start(identify), Data::new());
    let two = Running::start(data.options(&server, 2, 1));
    two.paper.wait("connected");
    let mut one = Running::start(data.options(&server, 1, 2));
    one.paper.wait("user 2 is online");
    one.say("/group team 2");
    // Meant for the group, although it is typed before the group is there.
    one.say("hello all");
    one.paper.wait("you talk to team");
    one.paper.wait("✓✓ delivered to all 1 hello all");
    two.paper.wait("user 1 made the group");
    two.paper.wait("user 1 in group 100: hello all");
    one.say("/who");
    one.paper.wait("team, #100: 2 members");
    one.paper.wait("user 1, owner  you");
    one.paper.wait("user 2  online");
    one.say("/invite 3");
    one.paper.wait("invited");
    two.paper.wait("user 1 added 3");
    one.say("second");
    one.paper.wait("✓✓ delivered to 1 of 2 second");
    one.say("/typing");
    two.paper.wait("user 1 is typing in group 100");
    one.say("/history 1");
    one.paper.wait("what was said before");
    one.paper.wait("you: second");
    assert!(!one.paper.text().contains("you: hello all"));
    one.say("/leave");
    one.paper.wait("you talk to user 2");
    one.say("in private");
    two.paper.wait("user 1: in private");
    one.end().1.unwrap();
    two.end().1.unwrap();
}

#[test]
fn commands_say_what_is_wrong_with_them() {
    let (server, data) = (Server::start(identify), Data::new());
    let lines = "/group\n/group x y\n/invite 3\n/leave\n/history 0\n/history 101\n/to nobody\n\
                 /typing perhaps\n/nonsense\n/help\n";
    let (text, result) = piped(data.options(&server, 1, 2), lines);
    result.unwrap();
    for part in [
        "/group NAME USER",
        "/invite adds to a group",
        "/leave leaves a group",
        "/history N: 1 to 100",
        "/to USER, or the title",
        "/typing, /typing on",
        "no such command",
        "/quit",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains('\x1b'));
    let wide = text.lines().filter(|line| line.chars().count() > 60);
    assert_eq!(wide.collect::<Vec<_>>(), Vec::<&str>::new());
}

/// What was asked is answered before the end of a pipe ends the chat.
#[test]
fn a_pipe_waits_for_its_answers() {
    let (server, data) = (Server::start(identify), Data::new());
    let lines = "/group team 2\none\ntwo\n/history 5\n";
    let (text, result) = piped(data.options(&server, 1, 2), lines);
    result.unwrap();
    assert!(
        text.contains("you: one") && text.contains("you: two"),
        "{text}"
    );
}
