//! Timers of a session: the greeting, heartbeats, and whatever else has its time.

use super::{Alarm, Session, config::Now, event::Event};
use portico_wire::CloseCode;

/// A PING must be followed by a frame within this.
const PONG_US: u64 = 10_000_000;
/// How much earlier than promised a PING may go out, and how much later than due a connection may
/// be given up: what lets a driver of many sessions do them in one go.
const HEARTBEAT_SLACK_US: u64 = 1_000_000;
/// The former is also at most one part in this many of the interval.
const HEARTBEAT_SLACK_DIVISOR: u64 = 16;

impl Session {
    /// When to call [`Self::on_timeout`], in monotonic microseconds.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        if !self.phase.is_connected() {
            return None;
        }
        if !self.phase.is_welcome() {
            return Some(self.alarm_at_us);
        }
        let others = [
            self.inbox.ack_at_us(),
            self.requests.next_timeout(),
            self.renewal().next_us(),
        ];
        others.into_iter().flatten().chain([self.alarm_at_us]).min()
    }

    /// When [`Self::on_timeout`] is best called, from and to: at any moment between the two it does
    /// what is due, so that a driver of many sessions can serve those that overlap in one go. The
    /// end is [`Self::next_timeout`], or later where nothing is lost by waiting.
    #[must_use]
    pub fn next_timeout_window(&self) -> Option<(u64, u64)> {
        let at_us = self.next_timeout()?;
        if at_us != self.alarm_at_us {
            return Some((at_us, at_us));
        }
        match self.alarm {
            Alarm::Ping => Some((at_us.saturating_sub(self.ping_slack_us()), at_us)),
            Alarm::Greeting | Alarm::Pong => {
                let others = [
                    self.inbox.ack_at_us(),
                    self.requests.next_timeout(),
                    self.renewal().next_us(),
                ];
                let latest_us = at_us.saturating_add(HEARTBEAT_SLACK_US);
                let latest_us = others.into_iter().flatten().fold(latest_us, u64::min);
                Some((at_us, latest_us.max(at_us)))
            }
        }
    }

    /// Heartbeats, late acknowledgements, second attempts.
    pub fn on_timeout(&mut self, now: Now, on_event: &mut dyn FnMut(Event<'_>)) {
        let slack_us = match self.alarm {
            Alarm::Ping => self.ping_slack_us(),
            Alarm::Greeting | Alarm::Pong => 0,
        };
        let is_due = self.alarm_at_us <= now.mono_us.saturating_add(slack_us);
        if self.phase.is_connected() && is_due {
            match self.alarm {
                Alarm::Ping => {
                    let next_s = u32::from(self.ping_interval_s);
                    self.requests.ping(&mut self.output, next_s);
                    self.set_alarm(Alarm::Pong, now.mono_us.saturating_add(PONG_US));
                }
                Alarm::Greeting => {
                    self.give_up(now, CloseCode::IDLE_TIMEOUT, "no answer to HELLO", on_event);
                }
                Alarm::Pong => {
                    self.give_up(now, CloseCode::IDLE_TIMEOUT, "no answer to PING", on_event);
                }
            }
        }
        if self.phase.is_welcome() {
            let mut renewal = self.renewal();
            renewal.tell(now, on_event);
            self.set_renewal(renewal);
        }
        self.flush(now, on_event);
    }

    /// Ends the wait for a sign of life. The promised interval runs from the PING.
    pub(super) const fn alive(&mut self) {
        if matches!(self.alarm, Alarm::Pong) {
            let asked_us = self.alarm_at_us.saturating_sub(PONG_US);
            let at_us = asked_us.saturating_add(self.ping_interval_us());
            self.set_alarm(Alarm::Ping, at_us);
        }
    }

    const fn ping_interval_us(&self) -> u64 {
        self.ping_interval_s as u64 * 1_000_000
    }

    fn ping_slack_us(&self) -> u64 {
        HEARTBEAT_SLACK_US.min(self.ping_interval_us() / HEARTBEAT_SLACK_DIVISOR)
    }

    pub(super) const fn set_alarm(&mut self, alarm: Alarm, at_us: u64) {
        self.alarm = alarm;
        self.alarm_at_us = at_us;
    }
}
