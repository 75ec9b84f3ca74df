//! A run of the built program with its pipes.

use super::PATIENCE;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    env,
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    process::{self, ChildStdin, Command, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The program. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Child {
    process: process::Child,
    input: Option<ChildStdin>,
    pub(crate) out: Lines,
    pub(crate) err: Lines,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Exit {
    /// `None`: killed by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Child {
    /// `portico` with nothing from the environment but `settings`: whatever is set where the tests
    /// run must not decide them.
    pub(crate) fn portico<S: AsRef<OsStr>>(
        arguments: impl IntoIterator<Item = S>,
        settings: &[(String, String)],
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portico"));
        command.args(arguments);
        Self::start_with(command, settings)
    }

    /// Any way to start `portico`, with the same environment.
    pub(crate) fn start_with(mut command: Command, settings: &[(String, String)]) -> Self {
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("PORTICO_") || text == "RUST_LOG" {
                command.env_remove(&name);
            }
        }
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        Self::start(command)
    }

    /// Any program.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let out = process.stdout.take().expect("piped");
        let err = process.stderr.take().expect("piped");
        Self {
            input: process.stdin.take(),
            out: Lines::read(out),
            err: Lines::read(err),
            process,
        }
    }

    /// Runs `portico` to its end.
    pub(crate) fn run(arguments: &[&str], settings: &[(&str, &str)]) -> Exit {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let settings: Vec<_> = settings.iter().map(owned).collect();
        Self::portico(arguments, &settings).wait()
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Types a line.
    pub(crate) fn type_line(&mut self, text: &str) {
        let input = self.input.as_mut().expect("not closed");
        writeln!(input, "{text}").expect("it reads what is typed");
    }

    /// Ends the input, as Ctrl-D does.
    pub(crate) fn end_input(&mut self) {
        self.input = None;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        kill_process(id.expect("a process has a number"), signal).expect("it is ours");
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        // Fails if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Waits for its own end.
    pub(crate) fn wait(&mut self) -> Exit {
        self.wait_for(PATIENCE)
    }

    /// The same, with another deadline.
    pub(crate) fn wait_for(&mut self, patience: Duration) -> Exit {
        let deadline = Instant::now() + patience;
        while !self.has_ended() {
            let late = Instant::now() >= deadline;
            assert!(!late, "it does not end; it said:\n{}", self.err.text());
            thread::sleep(Duration::from_millis(5));
        }
        let status = self.process.wait().expect("it has ended");
        self.out.join();
        self.err.join();
        Exit {
            code: status.code(),
            out: self.out.text(),
            err: self.err.text(),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a program has written so far, by lines.
#[derive(Debug)]
pub(crate) struct Lines {
    shared: Arc<(Mutex<Written>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Written {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn read(pipe: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(Written::default()), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(pipe.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                let (written, changed) = &*theirs;
                let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
                written.lines.push(text);
                changed.notify_all();
            }
            let (written, changed) = &*theirs;
            written.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            changed.notify_all();
        });
        Self {
            shared,
            reader: Some(reader),
        }
    }

    pub(crate) fn all(&self) -> Vec<String> {
        let written = self.shared.0.lock();
        written
            .unwrap_or_else(PoisonError::into_inner)
            .lines
            .clone()
    }

    pub(crate) fn text(&self) -> String {
        self.all().join("\n")
    }

    /// The first line, from the beginning, for which `wanted` has a value. `None` when the program
    /// has ended without it.
    pub(crate) fn find<T>(&self, wanted: impl Fn(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + PATIENCE;
        let (written, changed) = &*self.shared;
        let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = 0;
        loop {
            while let Some(line) = written.lines.get(seen) {
                if let Some(value) = wanted(line) {
                    return Some(value);
                }
                seen += 1;
            }
            if written.ended {
                return None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not among {:#?}", written.lines);
            written = changed
                .wait_timeout(written, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for a line that has `part` in it, and returns it.
    pub(crate) fn wait_for(&self, part: &str) -> String {
        let found = self.find(|line| line.contains(part).then(|| line.to_owned()));
        found.unwrap_or_else(|| panic!("it ended without {part:?}; it wrote:\n{}", self.text()))
    }

    fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reading a pipe does not panic");
        }
    }
}
