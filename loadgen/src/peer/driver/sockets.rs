//! What goes through the sockets: waiting for them, reading until they are empty, one write per turn.

use super::{
    Dialect, Driver, End, READS_IN_A_ROW_MAX, SPARE_BUFFER_BYTES_MAX, SPARE_BUFFERS_MAX, State,
    lend,
};
use crate::{
    fleet::{Happened, OnEvent},
    peer::dialect::Heard,
};
use portico_client::Now;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use std::{
    cmp::Reverse,
    io::{self, Read, Write},
};

impl<D: Dialect> Driver<D> {
    pub(super) fn wait(&mut self, wait_us: u64) -> io::Result<()> {
        let mut wait_us = wait_us;
        if wait_us > 0 {
            let now_us = self.clock.now().mono_us;
            if let Some(Reverse((at_us, _))) = self.timers.peek() {
                wait_us = wait_us.min(at_us.saturating_sub(now_us));
            }
            if self.may_open() {
                wait_us = wait_us.min(self.next_open_us.saturating_sub(now_us));
            }
            if !self.unread.is_empty() {
                wait_us = 0;
            }
        }
        let timeout = Timespec {
            tv_sec: (wait_us / 1_000_000) as i64,
            tv_nsec: (wait_us % 1_000_000 * 1_000) as i64,
        };
        match epoll::wait(&self.epoll, spare_capacity(&mut self.ready), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn socket_event(
        &mut self,
        index: u32,
        flags: epoll::EventFlags,
        on: &mut OnEvent<'_>,
    ) {
        let line = &mut self.lines[index as usize];
        let Some(socket) = &line.socket else {
            // Closed earlier in this turn.
            return;
        };
        if line.state == State::Connecting {
            match socket.take_error() {
                Ok(None) if flags.contains(epoll::EventFlags::OUT) => self.connected(index),
                Ok(None) => return,
                Ok(Some(error)) | Err(error) => {
                    return self.connect_failed(self.clock.now(), index, &error, on);
                }
            }
        } else if line.blocked && flags.contains(epoll::EventFlags::OUT) {
            line.blocked = false;
            self.mark_dirty(index);
        }
        let ended = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        if flags.intersects(epoll::EventFlags::IN | ended) {
            self.read(index, flags.intersects(ended), on);
        }
    }

    /// Reads until the socket is empty. A buffer that was not filled says so without another call,
    /// unless the peer has ended: then the end must be met now, no edge will come for it.
    pub(super) fn read(&mut self, index: u32, ended: bool, on: &mut OnEvent<'_>) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        for reads in 0.. {
            let line = &mut self.lines[index as usize];
            if !line.reading {
                // What has come is looked for when it reads again.
                break;
            }
            if reads == READS_IN_A_ROW_MAX && !ended {
                self.unread.push(index);
                break;
            }
            let Some(mut socket) = line.socket.as_ref() else {
                break;
            };
            match socket.read(&mut buffer) {
                Ok(0) => {
                    self.line_ended(index, &End::SILENT, on);
                    break;
                }
                Ok(bytes) => {
                    self.received(index, &buffer[..bytes], on);
                    if bytes < buffer.len() && !ended {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.line_ended(index, &End::SILENT, on);
                    break;
                }
            }
        }
        self.read_buffer = buffer;
    }

    fn received(&mut self, index: u32, bytes: &[u8], on: &mut OnEvent<'_>) {
        let now = self.clock.now();
        let conn = self.conn_of(index);
        let line = &mut self.lines[index as usize];
        lend(&mut line.out, &mut self.spare);
        let mut is_up = false;
        let mut complaint = None;
        let fed = line.link.feed(
            &self.dialect,
            bytes,
            &mut line.out,
            &mut |heard| match heard {
                Heard::Nothing => {}
                Heard::Up => is_up = true,
                Heard::Message(body) => {
                    let arrived = Happened::Arrived {
                        body,
                        author: None,
                        place: None,
                        crowd: None,
                    };
                    on(now, conn, arrived);
                }
                Heard::Accepted(name) => {
                    let accepted = Happened::Accepted {
                        name,
                        place: None,
                        duplicate: false,
                    };
                    on(now, conn, accepted);
                }
                Heard::Complaint(text) => {
                    complaint.get_or_insert_with(|| String::from_utf8_lossy(text).into_owned());
                }
            },
        );
        if let Err(fault) = fed {
            on(now, conn, Happened::Fault(fault.0));
            let end = End {
                detail: fault.0,
                by_peer: false,
            };
            return self.line_ended(index, &end, on);
        }
        if let Some(text) = complaint {
            let end = End {
                detail: &text,
                by_peer: true,
            };
            return self.line_ended(index, &end, on);
        }
        if is_up {
            self.logged_in(now, index, on);
        }
        self.mark_dirty(index);
        self.take_back(index);
    }

    fn logged_in(&mut self, now: Now, index: u32, on: &mut OnEvent<'_>) {
        let conn = self.conn_of(index);
        let line = &mut self.lines[index as usize];
        if line.state != State::LoggingIn {
            return;
        }
        line.state = State::Up;
        self.opening -= 1;
        if self.heartbeat_us > 0 {
            self.set_timer(index, now.mono_us + self.heartbeat_us);
        } else {
            // The one of the login is void.
            line.generation = line.generation.wrapping_add(1);
        }
        self.up[conn as usize] += 1;
        if self.up[conn as usize] == self.lines_per_user() {
            let begun_us = self
                .lines_of(conn)
                .map(|line| self.lines[line as usize].begun_us);
            let begun_us = begun_us.min().unwrap_or(now.mono_us);
            let after_us = now.mono_us.saturating_sub(begun_us);
            on(now, conn, Happened::Up { after_us });
        }
    }

    /// The server has closed a line, or it is of no more use. A complaint during the login is a
    /// refusal: another attempt would have the same answer.
    fn line_ended(&mut self, index: u32, end: &End<'_>, on: &mut OnEvent<'_>) {
        let logging_in = self.lines[index as usize].state == State::LoggingIn;
        let for_good = logging_in && !end.detail.is_empty();
        self.user_down(self.conn_of(index), end, for_good, on);
    }

    pub(super) fn mark_dirty(&mut self, index: u32) {
        let line = &mut self.lines[index as usize];
        if !line.dirty && !line.blocked && !line.out.is_empty() {
            line.dirty = true;
            self.dirty.push(index);
        }
    }

    pub(super) fn flush(&mut self, on: &mut OnEvent<'_>) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            self.lines[index as usize].dirty = false;
            if !self.write(index) {
                // What the server said before it went decides nothing here, but may be messages.
                self.read(index, true, on);
                if self.lines[index as usize].socket.is_some() {
                    self.line_ended(index, &End::SILENT, on);
                }
            }
        }
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    /// Writes what a line has queued; false when the socket is gone.
    pub(super) fn write(&mut self, index: u32) -> bool {
        let line = &mut self.lines[index as usize];
        let Some(mut socket) = line.socket.as_ref() else {
            return true;
        };
        while !line.out.is_empty() {
            match socket.write(&line.out) {
                Ok(bytes) if bytes == line.out.len() => line.out.clear(),
                Ok(bytes) => drop(line.out.drain(..bytes)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    line.blocked = true;
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.take_back(index);
        true
    }

    /// An idle line keeps no buffer.
    fn take_back(&mut self, index: u32) {
        let out = &mut self.lines[index as usize].out;
        if !out.is_empty() || out.capacity() == 0 {
            return;
        }
        let out = std::mem::take(out);
        if self.spare.len() < SPARE_BUFFERS_MAX && out.capacity() <= SPARE_BUFFER_BYTES_MAX {
            self.spare.push(out);
        }
    }
}
