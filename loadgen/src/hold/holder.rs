//! A thread that holds connections: it logs them in at a pace, keeps their heartbeats going, cuts
//! them all when the plan says so, and follows the gateway's word about coming back.
//!
//! Nobody writes to these users. What is measured about them is how they come up, whether they
//! stay, and what they cost; the messages are the active workers' part.
//!
//! # Invariants
//! - A connection is counted as live from SYNCED until its session says Closed, or it is cut.
//! - An access token is made for a login that needs one, and is gone with WELCOME.
//!
//! # Does not
//! Verify messages, keep a schedule of any, or share descriptors with another thread.

use super::{
    descriptors,
    held::{Held, Wave},
};
use crate::{
    control::{Control, Stage},
    random::mix,
    schedule::Schedule,
    worker::{is_exhaustion, tls_is_wanted, turned_away},
};
use anyhow::Context;
use portico_client::{
    Event, Login, Now, Session, SessionState, Settings, TlsClient,
    many::{Clock, ConnIndex, Many, ManyConfig, ManyEvent},
    mint::SigningKey,
};
use portico_wire::{
    CloseCode,
    ids::{DeviceId, UserId},
};
use rustix::process::setpriority_process;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Holders stand back behind the thread that measures, and behind a gateway on this machine: fifty
/// of them on two processors would otherwise get fifty turns for one of the gateway's. What they
/// stand for are phones, each of which has a processor of its own.
const NICE: i32 = 19;
/// Logins begun in one turn, so that reading is never far away.
const ADDS_PER_TURN_MAX: usize = 64;
/// How long a holder may sleep when nothing is due: the stage is looked at in between.
const IDLE_TURN_US: u64 = 250_000;
/// The ramp is paced by the holder, and the way back by the sessions themselves.
const CONNECTS_PER_S: u32 = 1_000_000;
/// A holder's share of the run. It owns and borrows no descriptor, see [`descriptors`].
#[derive(Debug)]
pub(super) struct Holding<'a> {
    pub run: u64,
    pub clock: Clock,
    pub target: SocketAddr,
    pub sources: Vec<IpAddr>,
    pub key: &'a SigningKey,
    pub settings: Arc<Settings>,
    pub tls: Option<TlsClient>,
    pub device: DeviceId,
    pub first_user: u64,
    pub users: u32,
    /// Of all connections of the run, those before this slice.
    pub users_before: u32,
    /// The first login, and how many follow per second.
    pub begin_us: u64,
    pub logins_per_s: f64,
    pub token_ttl: Duration,
}

impl Holding<'_> {
    const fn user(&self, conn: ConnIndex) -> UserId {
        UserId(self.first_user + conn.0 as u64)
    }

    fn token(&self, user: UserId) -> String {
        let unix_s = self.clock.now().wall_us / 1_000_000;
        let ttl_s = self.token_ttl.as_secs();
        self.key.token(user, self.device, 0, ttl_s, unix_s)
    }
}

/// A holder's numbers while it runs, for the coordinating thread.
#[derive(Debug, Default)]
pub(super) struct HolderGauges {
    pub live: AtomicU64,
    pub logins: AtomicU64,
    pub refused: AtomicU64,
    /// The cut is done, and `live` has been stored since.
    pub is_cut: AtomicBool,
}

/// Runs on a thread that has been given nothing open.
pub(super) fn run(
    holding: &Holding<'_>,
    control: &Control,
    gauges: &HolderGauges,
) -> anyhow::Result<Held> {
    descriptors::own_table().context("cannot get a descriptor table for a thread")?;
    // Of this thread alone. Where it is refused, the measuring thread's slip shows it.
    let _ = setpriority_process(None, NICE);
    let mut holder = Holder::new(holding, control, gauges)?;
    while !control.reached(Stage::Finishing) {
        holder.add_due();
        holder.cut_if_due();
        holder.turn()?;
    }
    Ok(holder.finish())
}

struct Holder<'a> {
    holding: &'a Holding<'a>,
    control: &'a Control,
    gauges: &'a HolderGauges,
    many: Many,
    logins: Schedule,
    watch: Watch<'a>,
    cut_done: bool,
}

impl<'a> Holder<'a> {
    fn new(
        holding: &'a Holding<'a>,
        control: &'a Control,
        gauges: &'a HolderGauges,
    ) -> io::Result<Self> {
        let mut config = ManyConfig::new(holding.target, holding.clock);
        config.connections = holding.users as usize;
        config.sources.clone_from(&holding.sources);
        config.source_offset = holding.users_before as usize;
        config.connects_per_s = CONNECTS_PER_S;
        config.tls.clone_from(&holding.tls);
        let users = u64::from(holding.users);
        Ok(Self {
            holding,
            control,
            gauges,
            many: Many::new(config)?,
            logins: Schedule::of(users, holding.begin_us, holding.logins_per_s),
            watch: Watch {
                control,
                held: Held::new(),
                wave_began_us: holding.begin_us,
                is_coming_back: false,
                presence: Vec::with_capacity(holding.users as usize),
                tokenless: Vec::new(),
                failed: None,
                live: 0,
            },
            cut_done: false,
        })
    }

    /// The ramp: whoever is due is handed to the driver, which opens a bounded number of connections at
    /// a time. How long one waits there is not in the times of its login, but in the ramp's length.
    fn add_due(&mut self) {
        let now_us = self.many.now().mono_us;
        for _ in 0..ADDS_PER_TURN_MAX {
            let Some((number, _)) = self.logins.pop_due(now_us) else {
                break;
            };
            // A holder has fewer than 2^32 users.
            let user = self.holding.user(ConnIndex(number as u32));
            let login = Login::new(user, self.holding.device, self.holding.token(user));
            let seed = mix(self.holding.run ^ user.0);
            let (settings, state) = (&self.holding.settings, SessionState::default());
            self.many
                .add(Session::sharing(settings, login, state, seed));
            self.watch.presence.push(Presence::Down);
        }
    }

    fn cut_if_due(&mut self) {
        let cut_us = self.control.storm_us().start;
        if self.watch.is_coming_back || self.many.now().mono_us < cut_us {
            return;
        }
        self.watch.is_coming_back = true;
        self.watch.wave_began_us = cut_us;
        for index in 0..self.watch.presence.len() {
            if self.watch.presence[index] == Presence::Live {
                self.watch.presence[index] = Presence::Cut;
                self.watch.live -= 1;
                self.watch.held.cut += 1;
                self.many.cut(ConnIndex(index as u32));
            }
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        let now_us = self.many.now().mono_us;
        let mut wait_us = IDLE_TURN_US;
        if let Some(next_us) = self.logins.next_us() {
            wait_us = wait_us.min(next_us.saturating_sub(now_us));
        }
        if !self.watch.is_coming_back {
            let cut_us = self.control.storm_us().start;
            wait_us = wait_us.min(cut_us.saturating_sub(now_us));
        }
        let watch = &mut self.watch;
        self.many.turn(wait_us, &mut |now, conn, event| {
            watch.event(now, conn, &event);
        })?;
        for conn in watch.tokenless.drain(..) {
            let token = self.holding.token(self.holding.user(conn));
            self.many.set_token(conn, token);
        }
        let (ramp, comeback) = (&watch.held.ramp, &watch.held.comeback);
        let refused = ramp.refused.values().chain(comeback.refused.values());
        let gauges = self.gauges;
        gauges.live.store(watch.live, Ordering::Relaxed);
        gauges
            .logins
            .store(ramp.logins + comeback.logins, Ordering::Relaxed);
        gauges.refused.store(refused.sum(), Ordering::Relaxed);
        if watch.is_coming_back && !self.cut_done {
            self.cut_done = true;
            // Release: whoever sees it sees what is live since.
            gauges.is_cut.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Resets instead of closing: a port whose client closed first is not free for a minute, and a
    /// million of those would be in the way of the next run.
    fn finish(mut self) -> Held {
        for index in 0..self.watch.presence.len() {
            let conn = ConnIndex(index as u32);
            let allowed_s = self.many.session(conn).ping_interval_s();
            self.watch.held.heartbeat_s = self.watch.held.heartbeat_s.max(allowed_s);
            self.many.cut(conn);
        }
        self.watch.held
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Down,
    Live,
    /// We ended it: its Closed event is no news.
    Cut,
}

/// Where events end.
struct Watch<'a> {
    control: &'a Control,
    held: Held,
    wave_began_us: u64,
    is_coming_back: bool,
    presence: Vec<Presence>,
    /// Those that wait for a token: the gateway has refused to resume their session.
    tokenless: Vec<ConnIndex>,
    /// Its attempt has failed, and its Closed event, which comes next, tells nothing new.
    failed: Option<ConnIndex>,
    live: u64,
}

impl Watch<'_> {
    const fn wave(&mut self) -> &mut Wave {
        match self.is_coming_back {
            true => &mut self.held.comeback,
            false => &mut self.held.ramp,
        }
    }

    fn event(&mut self, now: Now, conn: ConnIndex, event: &ManyEvent<'_>) {
        match event {
            ManyEvent::Session(event) => self.session_event(now, conn, event),
            ManyEvent::Connected { after_us } => {
                let time_us = (*after_us).max(1);
                self.wave().connect_us.saturating_record(time_us);
            }
            ManyEvent::Secured {
                handshake_us,
                resumed,
            } => self.wave().handshakes.record(*handshake_us, *resumed),
            ManyEvent::LoggedIn { after_us } => {
                let wave = self.wave();
                wave.logins += 1;
                wave.login_us.saturating_record((*after_us).max(1));
            }
            ManyEvent::TokenWanted => self.tokenless.push(conn),
            ManyEvent::ConnectFailed(error) => {
                self.failed = Some(conn);
                let wave = self.wave();
                wave.connect_failures += 1;
                wave.exhausted += u64::from(is_exhaustion(error));
                if let Some(wanted) = tls_is_wanted(error) {
                    self.control.obstruct(wanted);
                }
            }
        }
    }

    fn session_event(&mut self, now: Now, conn: ConnIndex, event: &Event<'_>) {
        match *event {
            Event::Synced { .. } => {
                if self.presence[conn.0 as usize] != Presence::Live {
                    self.presence[conn.0 as usize] = Presence::Live;
                    self.live += 1;
                    let after_us = now.mono_us.saturating_sub(self.wave_began_us).max(1);
                    self.wave().live_after_us.saturating_record(after_us);
                }
            }
            Event::Closed {
                code,
                by_peer,
                reconnect_after_ms,
                detail,
            } => {
                self.closed(conn, code, by_peer);
                if reconnect_after_ms.is_none() {
                    self.control.obstruct(turned_away(code, detail, by_peer));
                }
            }
            Event::ProtocolFault(fault) => {
                self.held.protocol_faults += 1;
                self.held.fault.get_or_insert_with(|| fault.to_string());
            }
            Event::Draining { .. } => self.held.drains += 1,
            Event::Message { .. } | Event::Duplicate { .. } | Event::Undecodable { .. } => {
                self.held.strays += 1;
            }
            Event::GroupChanged { .. } | Event::Withdrawn { .. } => self.held.strays += 1,
            Event::Welcome { .. }
            | Event::GroupReceipt { .. }
            | Event::GroupReadElsewhere { .. }
            | Event::Signal { .. }
            | Event::Presence { .. }
            | Event::Answer { .. }
            | Event::TokenExpiring { .. }
            | Event::Renewed { .. }
            | Event::RenewalRefused { .. }
            | Event::Gap { .. }
            | Event::Sent { .. }
            | Event::Refused { .. }
            | Event::Receipt { .. }
            | Event::ReadElsewhere { .. } => {}
        }
    }

    fn closed(&mut self, conn: ConnIndex, code: CloseCode, by_peer: bool) {
        let is_known = self.failed.take() == Some(conn);
        match std::mem::replace(&mut self.presence[conn.0 as usize], Presence::Down) {
            Presence::Live => {
                self.live -= 1;
                *self.held.drops.entry(code.0).or_default() += 1;
                let missed = code == CloseCode::IDLE_TIMEOUT && !by_peer;
                self.held.heartbeats_missed += u64::from(missed);
            }
            Presence::Cut => {}
            Presence::Down if by_peer => {
                *self.wave().refused.entry(code.0).or_default() += 1;
            }
            Presence::Down => self.wave().broken_off += u64::from(!is_known),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portico_client::ProtocolFault;
    use portico_wire::ids::Seq;
    use std::collections::BTreeMap;

    const CONN: ConnIndex = ConnIndex(0);

    fn watch(control: &Control) -> Watch<'_> {
        Watch {
            control,
            held: Held::new(),
            wave_began_us: 0,
            is_coming_back: false,
            presence: vec![Presence::Down],
            tokenless: Vec::new(),
            failed: None,
            live: 0,
        }
    }

    fn tell(watch: &mut Watch<'_>, event: &ManyEvent<'_>) {
        let now = Now {
            mono_us: 5_000,
            wall_us: 0,
        };
        watch.event(now, CONN, event);
    }

    fn log_in(watch: &mut Watch<'_>) {
        let up_to = Seq(0);
        let synced = Event::Synced { up_to, replayed: 0 };
        tell(watch, &ManyEvent::LoggedIn { after_us: 70 });
        tell(watch, &ManyEvent::Session(synced));
    }

    fn close(watch: &mut Watch<'_>, code: CloseCode, by_peer: bool) {
        let closed = Event::Closed {
            code,
            by_peer,
            reconnect_after_ms: Some(1),
            detail: "",
        };
        tell(watch, &ManyEvent::Session(closed));
    }

    #[test]
    fn a_login_counts_in_the_wave_in_which_it_was_made() {
        let control = Control::new();
        let mut watch = watch(&control);
        log_in(&mut watch);
        assert_eq!((watch.live, watch.held.ramp.logins), (1, 1));
        assert_eq!(watch.held.ramp.live_after_us.max(), 5_023);
        watch.presence[0] = Presence::Cut;
        watch.live = 0;
        watch.is_coming_back = true;
        close(&mut watch, CloseCode::SERVER_ERROR, false);
        log_in(&mut watch);
        assert_eq!((watch.live, watch.held.ramp.logins), (1, 1));
        assert_eq!(watch.held.comeback.logins, 1);
        assert!(watch.held.drops.is_empty(), "the cut was ours");
        assert_eq!(watch.held.comeback.broken_off, 0);
    }

    #[test]
    fn the_end_of_a_live_connection_is_a_drop() {
        let control = Control::new();
        let mut watch = watch(&control);
        log_in(&mut watch);
        close(&mut watch, CloseCode::IDLE_TIMEOUT, false);
        log_in(&mut watch);
        close(&mut watch, CloseCode::IDLE_TIMEOUT, true);
        assert_eq!(watch.live, 0);
        assert_eq!(
            watch.held.drops,
            BTreeMap::from([(CloseCode::IDLE_TIMEOUT.0, 2)])
        );
        // The gateway missed the other one.
        assert_eq!(watch.held.heartbeats_missed, 1);
    }

    #[test]
    fn a_login_that_fails_is_refused_broken_off_or_has_no_connection() {
        let control = Control::new();
        let mut watch = watch(&control);
        close(&mut watch, CloseCode::OVERLOADED, true);
        close(&mut watch, CloseCode::SERVER_ERROR, false);
        let no_port = io::Error::from(io::ErrorKind::AddrNotAvailable);
        tell(&mut watch, &ManyEvent::ConnectFailed(&no_port));
        close(&mut watch, CloseCode::SERVER_ERROR, false);
        let ramp = &watch.held.ramp;
        let refused = BTreeMap::from([(CloseCode::OVERLOADED.0, 1)]);
        assert_eq!(ramp.refused, refused);
        assert_eq!(ramp.broken_off, 1);
        assert_eq!((ramp.connect_failures, ramp.exhausted), (1, 1));
        assert!(watch.held.drops.is_empty());
    }

    #[test]
    fn what_must_not_happen_is_counted_and_the_end_of_a_session_ends_the_run() {
        let control = Control::new();
        let mut watch = watch(&control);
        let fault = Event::ProtocolFault(ProtocolFault::Version);
        tell(&mut watch, &ManyEvent::Session(fault));
        let leave = Event::Draining { leave_after_ms: 1 };
        tell(&mut watch, &ManyEvent::Session(leave));
        tell(&mut watch, &ManyEvent::TokenWanted);
        let held = &watch.held;
        assert_eq!((held.protocol_faults, held.drains), (1, 1));
        assert!(held.fault.is_some());
        assert_eq!(watch.tokenless, [CONN]);
        assert_eq!(control.obstacle(), None);
        let stop = Event::Closed {
            code: CloseCode::BANNED,
            by_peer: true,
            reconnect_after_ms: None,
            detail: "no",
        };
        tell(&mut watch, &ManyEvent::Session(stop));
        assert!(
            control
                .obstacle()
                .is_some_and(|text| text.contains("BANNED"))
        );
    }
}
