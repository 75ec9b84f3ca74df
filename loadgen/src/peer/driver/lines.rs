//! How lines come up, go down and come back: the queue of those to be opened, and the timers.

use super::{
    CATCH_UP_US, Dialect, Driver, End, LOGIN_TIMEOUT_US, OPENING_MAX, RECONNECT_DELAY_US, State,
    lend,
};
use crate::{
    fleet::{Happened, OnEvent},
    peer::opening::{open_socket, reset_at_close},
};
use portico_client::Now;
use std::{cmp::Reverse, io};

impl<D: Dialect> Driver<D> {
    pub(super) fn may_open(&self) -> bool {
        !self.queue.is_empty() && self.opening < OPENING_MAX
    }

    pub(super) fn open_queued(&mut self, on: &mut OnEvent<'_>) {
        while self.may_open() {
            let now = self.clock.now();
            if now.mono_us < self.next_open_us {
                return;
            }
            let Some((index, generation)) = self.queue.pop_front() else {
                return;
            };
            let line = &mut self.lines[index as usize];
            if line.state != State::Queued || line.generation != generation {
                continue;
            }
            let earliest_us = now.mono_us.saturating_sub(CATCH_UP_US);
            self.next_open_us = self.next_open_us.max(earliest_us) + self.gap_us;
            line.link.reset();
            line.state = State::Connecting;
            line.begun_us = now.mono_us;
            line.reading = true;
            self.opening += 1;
            let nth = self.lines_before + index as usize;
            let source = nth
                .checked_rem(self.sources.len())
                .map(|at| self.sources[at]);
            match open_socket(self.target, source, &self.epoll, u64::from(index)) {
                Ok(socket) => {
                    self.lines[index as usize].socket = Some(socket);
                    self.set_timer(index, now.mono_us + LOGIN_TIMEOUT_US);
                }
                Err(error) => self.connect_failed(now, index, &error, on),
            }
        }
    }

    pub(super) fn connect_failed(
        &mut self,
        now: Now,
        index: u32,
        error: &io::Error,
        on: &mut OnEvent<'_>,
    ) {
        on(now, self.conn_of(index), Happened::ConnectFailed(error));
        // Its other line has nothing to wait for alone; it stays, and this one is tried again.
        self.drop_line(index, now.mono_us + RECONNECT_DELAY_US);
    }

    pub(super) fn connected(&mut self, index: u32) {
        let line = &mut self.lines[index as usize];
        line.state = State::LoggingIn;
        lend(&mut line.out, &mut self.spare);
        self.dialect.connected(&mut line.link, &mut line.out);
        self.mark_dirty(index);
    }

    // --- closing

    /// Closes a line that may or may not have a socket, to be opened again at `back_us`.
    pub(super) fn drop_line(&mut self, index: u32, back_us: u64) {
        let conn = self.conn_of(index) as usize;
        let line = &mut self.lines[index as usize];
        match line.state {
            State::Connecting | State::LoggingIn => self.opening -= 1,
            State::Up => self.up[conn] -= 1,
            State::Waiting | State::Queued => {}
            State::Stopped => return,
        }
        if let Some(socket) = line.socket.take() {
            reset_at_close(&socket);
        }
        line.state = State::Waiting;
        line.blocked = false;
        line.out = Vec::new();
        line.link.reset();
        self.set_timer(index, back_us);
    }

    /// All lines of a user go down with one of them.
    pub(super) fn user_down(
        &mut self,
        conn: u32,
        end: &End<'_>,
        for_good: bool,
        on: &mut OnEvent<'_>,
    ) {
        let now = self.clock.now();
        let back_us = now.mono_us + RECONNECT_DELAY_US;
        for index in self.lines_of(conn) {
            self.drop_line(index, back_us);
            if for_good {
                let line = &mut self.lines[index as usize];
                line.state = State::Stopped;
                line.generation += 1;
            }
        }
        let down = Happened::Down {
            code: 0,
            detail: end.detail,
            by_peer: end.by_peer,
            for_good,
        };
        on(now, conn, down);
    }

    // --- timers

    pub(super) fn set_timer(&mut self, index: u32, at_us: u64) {
        let line = &mut self.lines[index as usize];
        line.generation = line.generation.wrapping_add(1);
        self.timers.push(Reverse((at_us, (index, line.generation))));
    }

    pub(super) fn fire_timers(&mut self, on: &mut OnEvent<'_>) {
        let now = self.clock.now();
        while let Some(Reverse((at_us, (index, generation)))) = self.timers.peek().copied() {
            if at_us > now.mono_us {
                return;
            }
            self.timers.pop();
            let line = &mut self.lines[index as usize];
            if line.generation != generation {
                continue;
            }
            match line.state {
                State::Waiting => {
                    line.state = State::Queued;
                    self.queue.push_back((index, generation));
                }
                State::Connecting | State::LoggingIn => {
                    let error = io::Error::from(io::ErrorKind::TimedOut);
                    self.connect_failed(now, index, &error, on);
                }
                State::Up => {
                    lend(&mut line.out, &mut self.spare);
                    self.dialect.heartbeat(&line.link, &mut line.out);
                    self.mark_dirty(index);
                    self.set_timer(index, now.mono_us + self.heartbeat_us);
                }
                State::Queued | State::Stopped => {}
            }
        }
    }
}
