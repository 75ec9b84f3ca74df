//! Tells the service manager that the shards are well, as long as they are.
//!
//! A thread of shards that fails ends the process by itself. One that hangs is found here: it neither
//! goes round nor sleeps. The store is not looked at: what waits for it is told to clients and on
//! `/readyz`, and a restart would not help.

use crate::manager::Manager;
use portico_gateway::{Meter, Pulse};
use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

/// Looks within the time that the manager waits.
const LOOKS: u32 = 4;
/// So many of them without a sign of life: a thread that has just been woken has not gone round yet.
const LOOKS_IN_VAIN: u32 = 3;

/// Looks until it is dropped.
#[derive(Debug)]
pub(super) struct Watchdog {
    _over: Option<mpsc::Sender<()>>,
}

impl Watchdog {
    /// Does nothing if the manager does not wait for signs of life.
    pub(super) fn start(manager: &Arc<Manager>, meter: Meter) -> io::Result<Self> {
        let Some(within) = manager.watchdog() else {
            return Ok(Self { _over: None });
        };
        let (over, is_over) = mpsc::channel();
        let manager = manager.clone();
        thread::Builder::new()
            .name("portico-watchdog".to_owned())
            .spawn(move || watch(&manager, &meter, within / LOOKS, &is_over))?;
        Ok(Self { _over: Some(over) })
    }
}

fn watch(manager: &Manager, meter: &Meter, every: Duration, is_over: &mpsc::Receiver<()>) {
    let mut looks = Looks::default();
    loop {
        match looks.hangs(&meter.pulses()) {
            None => manager.alive(),
            Some(thread) => tracing::error!(thread, "a thread of shards hangs"),
        }
        if is_over.recv_timeout(every) != Err(mpsc::RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// What was seen of each thread, and how often nothing new.
#[derive(Debug, Default)]
struct Looks(Vec<(Pulse, u32)>);

impl Looks {
    /// The first thread that hangs.
    fn hangs(&mut self, pulses: &[Pulse]) -> Option<usize> {
        if self.0.len() != pulses.len() {
            self.0 = pulses.iter().map(|pulse| (*pulse, 0)).collect();
            return None;
        }
        for ((last, in_vain), pulse) in self.0.iter_mut().zip(pulses) {
            let alive = pulse.sleeps || pulse.turns != last.turns;
            *in_vain = if alive { 0 } else { in_vain.saturating_add(1) };
            *last = *pulse;
        }
        self.0
            .iter()
            .position(|(_, in_vain)| *in_vain >= LOOKS_IN_VAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn awake(turns: u64) -> Pulse {
        Pulse {
            turns,
            sleeps: false,
        }
    }

    const ASLEEP: Pulse = Pulse {
        turns: 9,
        sleeps: true,
    };

    #[test]
    fn a_thread_that_neither_goes_round_nor_sleeps_hangs() {
        let mut looks = Looks::default();
        for turns in 9..20 {
            assert_eq!(looks.hangs(&[ASLEEP, awake(turns)]), None);
        }
        for _ in 1..LOOKS_IN_VAIN {
            assert_eq!(looks.hangs(&[ASLEEP, awake(19)]), None);
        }
        assert_eq!(looks.hangs(&[ASLEEP, awake(19)]), Some(1));
        // It was only late.
        assert_eq!(looks.hangs(&[ASLEEP, awake(20)]), None);
    }

    #[test]
    fn a_thread_that_has_just_been_woken_does_not_hang() {
        let mut looks = Looks::default();
        for _ in 0..10 {
            assert_eq!(looks.hangs(&[awake(9)]), None);
            assert_eq!(looks.hangs(&[awake(9)]), None);
            assert_eq!(looks.hangs(&[ASLEEP]), None);
        }
    }
}
