//! A submitter: what one core of the gateway is to a backend. Checks on the way that every token
//! is answered exactly once, and that a rejected batch comes back as it was.

use super::ensure;
use crate::{Backend, Completion, Error, Family, Rejected, Request, Sink};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// No command may take longer, injected delays included.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// The longest pause before a command is submitted again.
const PAUSE_MAX: Duration = Duration::from_millis(5);

struct Mailbox<F: Family>(Mutex<Sender<Completion<F>>>);

impl<F: Family> Sink<F> for Mailbox<F> {
    fn complete(&self, batch: Vec<Completion<F>>) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for completion in batch {
            // The client may be gone; then nobody waits.
            let _ = sender.send(completion);
        }
    }
}

/// A submitter with one lane.
pub struct Client<F: Family> {
    backend: Arc<dyn Backend<F>>,
    sink: Arc<dyn Sink<F>>,
    completions: Receiver<Completion<F>>,
    next_token: u64,
    in_flight: HashSet<u64>,
    lane: u32,
}

impl<F: Family> fmt::Debug for Client<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("lane", &self.lane)
            .field("in_flight", &self.in_flight.len())
            .finish_non_exhaustive()
    }
}

impl<F: Family> Client<F> {
    #[must_use]
    pub fn new(backend: Arc<dyn Backend<F>>, lane: u32) -> Self {
        let (sender, completions) = channel();
        Self {
            backend,
            sink: Arc::new(Mailbox(Mutex::new(sender))),
            completions,
            next_token: 0,
            in_flight: HashSet::new(),
            lane,
        }
    }

    /// Submits without waiting and without repeating. `Ok(Err(_))` is a rejection.
    ///
    /// # Errors
    /// If a rejected batch does not come back as it was.
    pub fn submit(
        &mut self,
        cmds: &[F::Cmd],
        deadline: Instant,
    ) -> Result<Result<Vec<u64>, Error>, String> {
        let lane = self.lane;
        let first = self.next_token + 1;
        self.next_token += cmds.len() as u64;
        let tokens: Vec<u64> = (first..=self.next_token).collect();
        let request = |(token, cmd): (&u64, &F::Cmd)| Request {
            token: *token,
            lane,
            deadline,
            cmd: cmd.clone(),
        };
        let batch: Vec<_> = tokens.iter().zip(cmds).map(request).collect();
        // Before submitting: the answer may be faster than we are.
        self.in_flight.extend(&tokens);
        match self.backend.submit(batch, &self.sink) {
            Ok(()) => Ok(Ok(tokens)),
            Err(Rejected { batch, why }) => {
                let whole = batch.len() == cmds.len()
                    && batch
                        .iter()
                        .zip(&tokens)
                        .zip(cmds)
                        .all(|((r, token), cmd)| {
                            r.token == *token
                                && r.lane == lane
                                && format!("{:?}", r.cmd) == format!("{cmd:?}")
                        });
                ensure!(whole, "a rejected batch comes back whole and unchanged");
                for token in tokens {
                    self.in_flight.remove(&token);
                }
                Ok(Err(why))
            }
        }
    }

    /// The next completion, or `None` if none comes within `wait`.
    ///
    /// # Errors
    /// If it answers what is not in flight: a token it answered already, for one.
    pub fn next(&mut self, wait: Duration) -> Result<Option<Completion<F>>, String> {
        let Ok(completion) = self.completions.recv_timeout(wait) else {
            return Ok(None);
        };
        ensure!(
            self.in_flight.remove(&completion.token),
            "a token is answered once, and only if it was submitted"
        );
        Ok(Some(completion))
    }

    /// Waits for all tokens in flight.
    ///
    /// # Errors
    /// If a token is not answered, or twice.
    pub fn collect(&mut self) -> Result<HashMap<u64, Result<F::Reply, Error>>, String> {
        let mut answers = HashMap::new();
        while !self.in_flight.is_empty() {
            let completion = self.next(PATIENCE)?;
            let completion = completion.ok_or("every token is answered")?;
            answers.insert(completion.token, completion.result);
        }
        Ok(answers)
    }

    /// One attempt: a result per command, in the order of the commands. A rejection counts as the
    /// failure of each.
    ///
    /// # Errors
    /// If the backend breaks a rule.
    pub fn attempt(&mut self, cmds: &[F::Cmd]) -> Result<Vec<Result<F::Reply, Error>>, String> {
        match self.submit(cmds, Instant::now() + PATIENCE / 2)? {
            Err(why) => Ok(cmds.iter().map(|_| Err(why.clone())).collect()),
            Ok(tokens) => {
                let mut answers = self.collect()?;
                let in_order = tokens.iter().map(|token| answers.remove(token));
                in_order
                    .collect::<Option<_>>()
                    .ok_or_else(|| "every token is answered".into())
            }
        }
    }

    /// Submits, and submits again unchanged what failed in a retryable way, until all is settled.
    ///
    /// # Errors
    /// If the backend breaks a rule, or never settles.
    pub fn settle(&mut self, cmds: &[F::Cmd]) -> Result<Vec<Result<F::Reply, Error>>, String> {
        let mut settled: Vec<Option<Result<F::Reply, Error>>> = cmds.iter().map(|_| None).collect();
        let give_up = Instant::now() + PATIENCE;
        loop {
            let open: Vec<usize> = (0..cmds.len()).filter(|i| settled[*i].is_none()).collect();
            if open.is_empty() {
                return Ok(settled.into_iter().flatten().collect());
            }
            ensure!(
                Instant::now() < give_up,
                "a retryable failure passes in time"
            );
            let again: Vec<_> = open.iter().map(|i| cmds[*i].clone()).collect();
            let mut pause = Duration::ZERO;
            for (i, answer) in open.into_iter().zip(self.attempt(&again)?) {
                match answer {
                    Err(error) if error.kind.is_retryable() => {
                        pause = pause.max(error.retry_after.unwrap_or_default());
                    }
                    answer => settled[i] = Some(answer),
                }
            }
            thread::sleep(pause.min(PAUSE_MAX));
        }
    }

    /// Settles one command that must succeed.
    ///
    /// # Errors
    /// If it fails, or the backend breaks a rule.
    pub fn ok(&mut self, cmd: &F::Cmd) -> Result<F::Reply, String> {
        let answer = self.settle(std::slice::from_ref(cmd))?.pop();
        let answer = answer.ok_or("every command has a result")?;
        answer.map_err(|error| format!("{cmd:?} succeeds, but it failed: {error}"))
    }

    /// Settles commands that must all succeed.
    ///
    /// # Errors
    /// If one fails, or the backend breaks a rule.
    pub fn all_ok(&mut self, cmds: &[F::Cmd]) -> Result<(), String> {
        for (cmd, answer) in cmds.iter().zip(self.settle(cmds)?) {
            answer.map_err(|error| format!("{cmd:?} succeeds, but it failed: {error}"))?;
        }
        Ok(())
    }
}
