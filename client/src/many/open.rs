//! Opening connections: at a pace, within a bound, from the places that [`Sources`] names.

use super::{
    Many,
    config::{ConnIndex, ManyEvent, OnEvent},
    slot::State,
    sources::Sources,
};
use crate::session::{Now, Phase};
use rustix::event::epoll;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
};

/// How far the pace of connecting may catch up after a pause.
const CONNECT_CATCH_UP_US: u64 = 10_000;

impl Many {
    pub(super) fn open_queued(&mut self, on_event: &mut OnEvent<'_>) {
        let gap_us = 1_000_000 / u64::from(self.config.connects_per_s.max(1));
        while self.may_open() {
            let now = self.now();
            if now.mono_us < self.next_connect_us {
                break;
            }
            let Some(index) = self.queue.pop_front() else {
                break;
            };
            let slot = &mut self.slots[index as usize];
            if slot.state != State::Queued {
                // It was told to stay away meanwhile.
                continue;
            }
            if matches!(slot.session.phase(), Phase::Stopped(_)) {
                // Closed by its owner while it waited.
                slot.state = State::Stopped;
                continue;
            }
            if slot.session.needs_token() {
                slot.state = State::Tokenless;
                self.tokenless += 1;
                on_event(now, ConnIndex(index), ManyEvent::TokenWanted);
                continue;
            }
            let earliest = now.mono_us.saturating_sub(CONNECT_CATCH_UP_US);
            self.next_connect_us = self.next_connect_us.max(earliest) + gap_us;
            self.open(index, now, on_event);
        }
    }

    /// Something waits to be opened, and the bound leaves room for it.
    pub(super) fn may_open(&self) -> bool {
        !self.queue.is_empty() && self.connecting + self.tokenless < self.config.connecting_max
    }

    fn open(&mut self, index: u32, now: Now, on_event: &mut OnEvent<'_>) {
        let until_us = now.mono_us + self.connect_timeout_us();
        let slot = &mut self.slots[index as usize];
        slot.state = State::Connecting;
        slot.until_us = until_us;
        self.connecting += 1;
        match open_socket(&self.sources, self.config.target, index, &self.epoll) {
            Ok(socket) => {
                slot.socket = Some(socket);
                self.rearm(index);
            }
            Err(error) => self.connect_failed(index, &error, on_event),
        }
    }

    pub(super) fn connected(&mut self, index: u32, on_event: &mut OnEvent<'_>) {
        let slot = &mut self.slots[index as usize];
        let Some(socket) = &slot.socket else { return };
        // Frames are gathered here; waiting in the kernel as well would only add delay. A socket
        // on which this fails is broken, and the next write says so.
        let _ = socket.set_nodelay(true);
        let now = self.now();
        let after_us = self.attempt_us(index, now);
        on_event(now, ConnIndex(index), ManyEvent::Connected { after_us });
        if self.config.tls.is_some() {
            if let Err(error) = self.secure(index) {
                self.connect_failed(index, &error.into(), on_event);
            }
            return;
        }
        self.slots[index as usize].state = State::Greeting;
        self.drive(index, on_event, |session, now, _| session.connected(now));
    }

    pub(super) fn connect_failed(
        &mut self,
        index: u32,
        error: &io::Error,
        on_event: &mut OnEvent<'_>,
    ) {
        on_event(
            self.now(),
            ConnIndex(index),
            ManyEvent::ConnectFailed(error),
        );
        self.transport_ended(index, on_event);
    }

    /// How long the attempt of a connection that has not reached WELCOME takes already.
    pub(super) fn attempt_us(&self, index: u32, now: Now) -> u64 {
        let until_us = self.slots[index as usize].until_us;
        (now.mono_us + self.connect_timeout_us()).saturating_sub(until_us)
    }

    fn connect_timeout_us(&self) -> u64 {
        u64::from(self.config.connect_timeout_ms) * 1_000
    }
}

fn open_socket(
    sources: &Sources,
    target: SocketAddr,
    index: u32,
    epoll: &OwnedFd,
) -> io::Result<TcpStream> {
    let socket = match sources.place(index as usize) {
        None => connect(target, None)?,
        Some(place) => match connect(target, Some(place)) {
            // A stranger has that port, or an end of ours that the kernel still remembers.
            Err(error) if is_taken(&error) => {
                connect(target, Some(SocketAddr::new(place.ip(), 0)))?
            }
            result => result?,
        },
    };
    let flags = epoll::EventFlags::IN
        | epoll::EventFlags::OUT
        | epoll::EventFlags::RDHUP
        | epoll::EventFlags::ET;
    let data = epoll::EventData::new_u64(u64::from(index));
    epoll::add(epoll, &socket, data, flags)?;
    Ok(socket)
}

fn connect(target: SocketAddr, from: Option<SocketAddr>) -> io::Result<TcpStream> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(target), kind, Some(Protocol::TCP))?;
    if let Some(from) = from {
        // The port may serve another target too, or be remembered by the kernel for a moment.
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    match socket.connect(&target.into()) {
        Ok(()) => Ok(socket.into()),
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
        {
            Ok(socket.into())
        }
        Err(error) => Err(error),
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
    )
}
