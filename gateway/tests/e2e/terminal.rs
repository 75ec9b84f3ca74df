//! `portico chat` at a terminal: a pseudo terminal of 60 columns, keys, and what is drawn.

use crate::harness::{Child, Gateway, PATIENCE};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    process::{self, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// A chat whose input and output are a terminal.
struct Screen {
    keys: File,
    drawn: Arc<Mutex<Vec<u8>>>,
    chat: process::Child,
}

impl Screen {
    fn start(gateway: &Gateway, me: &str, to: &str, more: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).expect("ours");
        unlockpt(&master).expect("ours");
        let size = Winsize {
            ws_row: 24,
            ws_col: 60,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).expect("a size");
        let name = ptsname(&master, Vec::new()).expect("a name");
        let name = name.to_str().expect("text").to_owned();
        let slave = || {
            let file = OpenOptions::new().read(true).write(true).open(&name);
            Stdio::from(file.expect("the other end"))
        };
        let data = gateway.setup().data().display().to_string();
        let target = gateway.listen.to_string();
        let chat = Command::new(env!("CARGO_BIN_EXE_portico"))
            .args(["chat", "--as", me, "--to", to])
            .args(["--data", &data, "--target", &target])
            .args(more)
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .expect("it starts");
        let keys = File::from(master);
        let mut screen = keys.try_clone().expect("a copy");
        let drawn = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&drawn);
        thread::spawn(move || {
            let mut buffer = [0; 4_096];
            // The end of the last other end is an error here.
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                kept.lock()
                    .expect("no panic")
                    .extend_from_slice(&buffer[..count]);
            }
        });
        Self { keys, drawn, chat }
    }

    /// One key, until it has been answered by something drawn: as people type. Keys that come
    /// together are seen one behind (docs/decisions/0026).
    fn press(&mut self, key: &str) {
        let before = self.drawn.lock().expect("no panic").len();
        self.keys.write_all(key.as_bytes()).expect("it reads");
        let deadline = Instant::now() + PATIENCE;
        while self.drawn.lock().expect("no panic").len() == before {
            assert!(Instant::now() < deadline, "{key:?}: {:?}", self.text());
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn type_text(&mut self, text: &str) {
        for key in text.chars() {
            self.press(&key.to_string());
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.drawn.lock().expect("no panic")).into_owned()
    }

    fn wait_for(&self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.text().contains(wanted) {
            let text = self.text();
            assert!(Instant::now() < deadline, "no {wanted:?} in {text:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&mut self) -> Option<i32> {
        self.keys.write_all(b"\x04").expect("it reads");
        self.chat.wait().expect("it ends").code()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Its own process, by its id; one that has ended stays so.
        let _ = self.chat.kill();
        let _ = self.chat.wait();
    }
}

#[test]
fn lines_are_edited_and_not_torn_by_what_arrives() {
    let gateway = Gateway::start();
    let data = gateway.setup().data().display().to_string();
    let target = gateway.listen.to_string();
    let arguments = [
        "chat", "--as", "2", "--to", "1", "--data", &data, "--target", &target,
    ];
    let mut two = Child::portico(arguments, &[]);
    two.out.wait_for("connected");
    let mut one = Screen::start(&gateway, "1", "2", &[]);
    one.wait_for("connected");
    one.wait_for("user 2> ");
    // Half a line; then something comes; then the rest of it, with a mistake mended.
    one.type_text("half a lime");
    two.type_line("in between");
    one.wait_for("user 2:\x1b[0m in between");
    one.type_text("\x7f\x7fne\r");
    two.out.wait_for("user 1: half a line");
    // The same again, by the arrow key.
    one.press("\x1b[A");
    one.press("\r");
    let twice = || {
        let all = two.out.all();
        let same = all
            .iter()
            .filter(|line| line.contains("user 1: half a line"));
        same.count() == 2
    };
    let deadline = Instant::now() + PATIENCE;
    while !twice() {
        assert!(Instant::now() < deadline, "{:?}", two.out.all());
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(one.end(), Some(0));
    two.end_input();
    assert_eq!(two.wait().code, Some(0));
}

#[test]
fn colours_follow_the_flag() {
    let gateway = Gateway::start();
    let mut plain = Screen::start(&gateway, "1", "2", &["--color", "never"]);
    plain.wait_for("-- connected");
    assert!(!plain.text().contains("\x1b[2m"), "{:?}", plain.text());
    assert_eq!(plain.end(), Some(0));
    let data = gateway.setup().data().display().to_string();
    let target = gateway.listen.to_string();
    let mut piped = Child::portico(
        [
            "chat", "--as", "1", "--to", "2", "--data", &data, "--target", &target, "--color",
            "always",
        ],
        &[],
    );
    piped.out.wait_for("\x1b[2m-- connected");
    piped.end_input();
    assert_eq!(piped.wait().code, Some(0));
}
