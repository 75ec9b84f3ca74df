//! A constructor per request, and the decoding of what comes back. Nothing else makes requests.

use super::{
    Bell, Completion, Errno, Events, Key, Op, Ring, RingHandle, Slot,
    provided::GROUP,
    token::{pack, unpack},
};
use io_uring::{cqueue, opcode, squeue, types};
use std::{
    collections::hash_map::Entry,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

const SEND_FLAGS: i32 = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
const POLL_EVENTS: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;
/// IORING_MSG_RING_CQE_SKIP: the target of a SEND_FD gets no completion.
const MSG_RING_CQE_SKIP: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcceptMode {
    /// Until it ends by itself or is cancelled.
    Multishot,
    /// One connection.
    Once,
}

/// Where a connection comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Plain,
    Tls,
}

/// Ones of this bit come in through TLS.
const TLS_DOOR: u32 = 1 << 8;

impl AcceptMode {
    /// Tells the completions of the kinds, and of the doors, apart.
    pub(crate) const fn key(self, door: Door) -> Key {
        let door = match door {
            Door::Plain => 0,
            Door::Tls => TLS_DOOR,
        };
        Key::new(self as u32 | door, 0)
    }

    const fn of_key(key: Key) -> (Self, Door) {
        let door = match key.index & TLS_DOOR {
            0 => Door::Plain,
            _ => Door::Tls,
        };
        if key.index & !TLS_DOOR == Self::Multishot as u32 {
            (Self::Multishot, door)
        } else {
            (Self::Once, door)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadMode {
    /// Waits until bytes come.
    Waiting,
    /// Ends with EAGAIN when no bytes are there.
    AtOnce,
    /// Brings buffers until the stream ends, no buffer is free, or it is cancelled.
    Multishot,
}

impl Ring {
    /// Accepts into the table of direct descriptors.
    pub(crate) fn accept(&mut self, listener: BorrowedFd<'_>, mode: AcceptMode, door: Door) {
        let fd = types::Fd(listener.as_raw_fd());
        let entry = match mode {
            AcceptMode::Multishot => opcode::AcceptMulti::new(fd)
                .allocate_file_index(true)
                .build(),
            AcceptMode::Once => {
                let (at, name) = self.memory.names.lend();
                let (address, len) = (&raw mut name.address, &raw mut name.len);
                let accept = opcode::Accept::new(fd, address.cast(), len)
                    .file_index(Some(types::DestinationSlot::auto_target()))
                    .build();
                let key = mode.key(door).with_generation(at);
                return self.push(Op::Accept, key, accept);
            }
        };
        self.push(Op::Accept, mode.key(door), entry);
    }

    /// Reports every edge of readable, hung up and failed, until it is cancelled.
    pub(crate) fn poll(&mut self, key: Key, slot: Slot) {
        let poll = opcode::PollAdd::new(types::Fixed(slot.0), POLL_EVENTS).multi(true);
        self.push(Op::Poll, key, poll.build());
    }

    /// Receives into a buffer of the kernel's choice.
    pub(crate) fn recv(&mut self, key: Key, slot: Slot, mode: ReadMode) {
        let fd = types::Fixed(slot.0);
        let once = |flags| {
            opcode::Recv::new(fd, std::ptr::null_mut(), 0)
                .buf_group(GROUP)
                .flags(flags)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT)
        };
        let entry = match mode {
            ReadMode::Waiting => once(0),
            ReadMode::AtOnce => once(libc::MSG_DONTWAIT),
            ReadMode::Multishot => opcode::RecvMulti::new(fd, GROUP).build(),
        };
        self.push(Op::Recv, key, entry);
    }

    /// Sends `buffer[from..]`, at most `bytes_max` of it. The buffer comes back with the completion.
    ///
    /// # Panics
    /// If a SEND of this connection is in flight, or nothing is to be sent: faults of the driver.
    pub(crate) fn send(
        &mut self,
        key: Key,
        slot: Slot,
        buffer: Vec<u8>,
        from: usize,
        bytes_max: usize,
    ) {
        let Entry::Vacant(place) = self.memory.sends.entry(key.index) else {
            panic!("one SEND of a connection at a time");
        };
        // What the kernel reads is the buffer's heap: it stays where it is when the map grows.
        let rest = &place.insert(buffer)[from..];
        assert!(!rest.is_empty(), "a SEND of nothing");
        let len = rest.len().min(bytes_max).min(i32::MAX as usize) as u32;
        let send = opcode::Send::new(types::Fixed(slot.0), rest.as_ptr(), len)
            .flags(SEND_FLAGS)
            .build();
        self.push(Op::Send, key, send);
    }

    pub(crate) fn close(&mut self, key: Key, slot: Slot) {
        let close = opcode::Close::new(types::Fixed(slot.0)).build();
        self.push(Op::Close, key, close);
    }

    /// Puts the socket into a free slot of another ring's table as well.
    pub(crate) fn hand_over(&mut self, key: Key, slot: Slot, target: &RingHandle) {
        let entry = opcode::MsgRingSendFd::new(
            types::Fd(target.0.as_raw_fd()),
            types::Fixed(slot.0),
            types::DestinationSlot::auto_target(),
            0,
        )
        .opcode_flags(MSG_RING_CQE_SKIP)
        .build();
        self.push(Op::HandOver, key, entry);
    }

    /// Ends the wait of another ring's owner.
    pub(crate) fn wake(&mut self, target: &RingHandle) {
        let woken = pack(Op::Wake, Key::NONE);
        let entry = opcode::MsgRingData::new(types::Fd(target.0.as_raw_fd()), 0, woken, None)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        self.push(Op::Ignore, Key::NONE, entry);
    }

    /// Reports ringing: a byte written to a pipe that is polled is an edge even when there are some
    /// in it already.
    pub(crate) fn watch(&mut self, bell: &Bell) {
        let fd = types::Fd(bell.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true);
        self.push(Op::Bell, Key::NONE, poll.build());
    }

    /// Ends a request early. Its own completion still comes. The kernel searches for it, so this is
    /// for the end of connections, never for each message.
    pub(crate) fn cancel(&mut self, op: Op, key: Key) {
        let cancel = opcode::AsyncCancel::new(pack(op, key)).build();
        self.push(Op::Ignore, Key::NONE, cancel);
    }

    /// The same for all single ACCEPTs, or for the multishot one.
    pub(crate) fn cancel_accepts(&mut self, mode: AcceptMode, door: Door) {
        match mode {
            AcceptMode::Multishot => self.cancel(Op::Accept, mode.key(door)),
            AcceptMode::Once => {
                for at in 0..self.memory.names.count() {
                    self.cancel(Op::Accept, mode.key(door).with_generation(at));
                }
            }
        }
    }

    /// The regular tick: a multishot TIMEOUT, armed once. Another period than that of the armed one
    /// takes effect when that has ended, at a later call.
    pub(crate) fn arm_tick(&mut self, period: Duration) {
        match self.tick {
            None => {
                self.tick = Some(period);
                self.memory.times.tick = types::Timespec::from(period);
                let tick = opcode::Timeout::new(&raw const self.memory.times.tick)
                    .flags(types::TimeoutFlags::MULTISHOT);
                self.push(Op::Tick, Key::NONE, tick.build());
            }
            Some(armed) if armed != period => self.disarm_tick(),
            Some(_) => {}
        }
    }

    pub(crate) fn disarm_tick(&mut self) {
        if self.tick.is_some() {
            let remove = opcode::TimeoutRemove::new(pack(Op::Tick, Key::NONE)).build();
            self.push(Op::Ignore, Key::NONE, remove);
        }
    }

    /// Makes sure that a completion comes at this time of the monotonic clock, or earlier.
    pub(crate) fn arm_deadline(&mut self, at_us: u64) {
        if self.deadline_us.is_some_and(|armed| armed <= at_us) {
            return;
        }
        let time = types::Timespec::from(Duration::from_micros(at_us));
        self.memory.times.deadline = time;
        let time = &raw const self.memory.times.deadline;
        let flags = types::TimeoutFlags::ABS;
        if self.deadline_us.replace(at_us).is_some() {
            let armed = pack(Op::Deadline, Key::NONE);
            let update = opcode::TimeoutUpdate::new(armed, time).flags(flags).build();
            self.push(Op::Ignore, Key::NONE, update);
        } else {
            let timeout = opcode::Timeout::new(time).flags(flags).build();
            self.push(Op::Deadline, Key::NONE, timeout);
        }
    }

    pub(super) fn cancel_all(&mut self) {
        let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        self.push(Op::Ignore, Key::NONE, cancel);
    }

    fn push(&mut self, op: Op, key: Key, entry: squeue::Entry) {
        if op != Op::Ignore {
            self.in_flight += 1;
        }
        self.backlog.push_back(entry.user_data(pack(op, key)));
        self.fill();
    }

    /// Settles the books of the ring and says what happened.
    pub(super) fn decode(&mut self, entry: &cqueue::Entry) -> Completion {
        let Some((op, key)) = unpack(entry.user_data()) else {
            return Completion::Nothing;
        };
        let flags = entry.flags();
        let last = !cqueue::more(flags);
        let result = match entry.result() {
            error if error < 0 => Err(Errno(-error)),
            value => Ok(value),
        };
        if last && !matches!(op, Op::Ignore | Op::Wake) {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        match op {
            Op::Ignore => Completion::Nothing,
            Op::Wake => Completion::Woken,
            Op::Bell => Completion::Rung { last },
            Op::Tick => {
                if last {
                    self.tick = None;
                }
                Completion::Tick { last }
            }
            Op::Deadline => {
                self.deadline_us = None;
                Completion::Deadline
            }
            Op::Accept => {
                let (mode, door) = AcceptMode::of_key(key);
                Completion::Accepted {
                    mode,
                    door,
                    result: result.map(|slot| Slot(slot as u32)),
                    from: match mode {
                        AcceptMode::Multishot => None,
                        AcceptMode::Once => self.memory.names.take(key.generation),
                    },
                    last,
                }
            }
            Op::Poll => Completion::Polled {
                key,
                result: result.map(Events),
                last,
            },
            Op::Recv => {
                let result = result.map(|len| len as usize);
                let lent = cqueue::buffer_select(flags)
                    .and_then(|id| self.memory.provided.lent(id, result.unwrap_or(0)));
                Completion::Received {
                    key,
                    result,
                    lent,
                    more: cqueue::sock_nonempty(flags),
                    last,
                }
            }
            Op::Send => {
                let kept = self.memory.sends.remove(&key.index);
                Completion::Sent {
                    key,
                    result: result.map(|len| len as usize),
                    buffer: kept.unwrap_or_default(),
                }
            }
            Op::HandOver => Completion::HandedOver {
                key,
                result: result.map(|slot| Slot(slot as u32)),
            },
            Op::Close => Completion::Closed { key },
        }
    }
}
