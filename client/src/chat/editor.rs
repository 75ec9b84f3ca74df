//! Lines typed at a terminal: edited, remembered, and not torn by what arrives meanwhile.

use super::{Input, LINE_BYTES_MAX};
use rustyline::{
    ColorMode, Config, Context, Editor, ExternalPrinter, Helper, completion::Completer,
    highlight::Highlighter, hint::Hinter, history::MemHistory, validate::Validator,
};
use std::{
    cell::Cell,
    io::{self, Write},
    sync::mpsc::{self, Receiver, SyncSender},
    thread,
    time::{Duration, Instant},
};

/// Lines that can be had again with the arrow keys.
const HISTORY_MAX: usize = 200;
/// Whoever goes on typing is told of again after this.
const TYPING_EVERY: Duration = Duration::from_secs(4);

/// Sees each keystroke, to tell that somebody is typing.
struct Keys {
    lines: SyncSender<Input>,
    told: Cell<Option<Instant>>,
}

impl Hinter for Keys {
    type Hint = String;

    fn hint(&self, line: &str, _at: usize, _context: &Context<'_>) -> Option<String> {
        let is_text = !line.is_empty() && !line.starts_with('/');
        let is_due = self.told.get().is_none_or(|at| at.elapsed() > TYPING_EVERY);
        // When much waits there already, this is the least of it.
        if is_text && is_due && self.lines.try_send(Input::Typing).is_ok() {
            self.told.set(Some(Instant::now()));
        }
        None
    }
}

impl Completer for Keys {
    type Candidate = String;
}

impl Highlighter for Keys {}

impl Validator for Keys {}

impl Helper for Keys {}

/// The line editor, and what prints above the line that is being typed.
pub(super) struct Terminal {
    editor: Editor<Keys, MemHistory>,
}

impl Terminal {
    pub(super) fn open(lines: SyncSender<Input>, color: bool) -> io::Result<(Self, Above)> {
        let config = Config::builder()
            .max_history_size(HISTORY_MAX)
            .and_then(|config| config.history_ignore_dups(true))
            .map_err(io::Error::other)?
            .auto_add_history(true)
            .color_mode(if color {
                ColorMode::Enabled
            } else {
                ColorMode::Disabled
            })
            .build();
        let history = MemHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history).map_err(io::Error::other)?;
        editor.set_helper(Some(Keys {
            lines,
            told: Cell::new(None),
        }));
        let printer = editor.create_external_printer().map_err(io::Error::other)?;
        Ok((Self { editor }, Above::start(printer)?))
    }

    /// Reads lines until the user ends the chat. Each waits for its prompt, because the line before may
    /// have changed it.
    pub(super) fn read(mut self, prompts: &Receiver<String>, lines: &SyncSender<Input>) {
        while let Ok(prompt) = prompts.recv() {
            let input = match self.editor.readline(&prompt) {
                Ok(line) if line.len() > LINE_BYTES_MAX => Input::LineTooLong,
                Ok(line) => Input::Line(line),
                // Ctrl-D, Ctrl-C, or a terminal that is gone.
                Err(_) => Input::End,
            };
            let is_end = matches!(input, Input::End);
            if lines.send(input).is_err() || is_end {
                return;
            }
        }
    }
}

/// Prints whole lines above the one that is being typed, on a thread of its own: the editor takes them
/// only while it waits for a key, and must not be waited for by the thread that it waits for itself.
pub(super) struct Above {
    printing: Option<SyncSender<String>>,
    ended: Receiver<()>,
    text: Vec<u8>,
}

/// Lines that wait to be printed; then whoever prints more waits.
const PRINTING_MAX: usize = 1_024;
/// How long the end waits for what is not printed yet.
const LAST_LINES: Duration = Duration::from_secs(1);

impl Above {
    fn start(mut printer: impl ExternalPrinter + Send + 'static) -> io::Result<Self> {
        let (printing, texts) = mpsc::sync_channel::<String>(PRINTING_MAX);
        let (end, ended) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("chat-printer".to_owned())
            .spawn(move || {
                while let Ok(text) = texts.recv() {
                    if printer.print(text).is_err() {
                        break;
                    }
                }
                // Nobody may wait for it.
                let _ = end.try_send(());
            })?;
        Ok(Self {
            printing: Some(printing),
            ended,
            text: Vec::new(),
        })
    }
}

impl Drop for Above {
    fn drop(&mut self) {
        self.printing = None;
        let _ = self.ended.recv_timeout(LAST_LINES);
    }
}

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.text.is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&self.text).into_owned();
        self.text.clear();
        let printing = self.printing.as_ref();
        let sent = printing.is_some_and(|printing| printing.send(text).is_ok());
        if sent {
            Ok(())
        } else {
            Err(io::Error::other("the terminal is gone"))
        }
    }
}
