//! Whom a plan does something to, what, and when: fixed by its seed.

use crate::{plan::Plan, random::Random};
use std::collections::VecDeque;

/// What is done to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// It loses its connection, and may come back after so long.
    Cut {
        away_us: u64,
    },
    /// It leaves what comes in its socket.
    StopReading,
    ReadOn,
    /// It has been away since the beginning, and comes.
    Come,
}

/// The deeds of one worker, in the order of their times. Those of a plan that goes on cutting are
/// made as they are asked for, so that a long run needs no more memory than a short one.
#[derive(Debug)]
pub(super) struct Disturbances {
    start_us: u64,
    /// Times count from the start.
    listed: VecDeque<(u64, u32, Deed)>,
    endless: Option<Endless>,
    /// Those who are away from the beginning.
    absent: Vec<u32>,
}

#[derive(Debug)]
struct Endless {
    order: Vec<u32>,
    next: u64,
    per_s: f64,
    end_us: u64,
    away_us: u64,
}

impl Endless {
    fn next_us(&self) -> Option<u64> {
        let at_us = (self.next as f64 * 1e6 / self.per_s) as u64;
        (at_us < self.end_us).then_some(at_us)
    }
}

impl Disturbances {
    /// For `users` users from `first_user` on. The start is told by [`Self::start`].
    pub(super) fn new(plan: &Plan, first_user: u64, users: u32) -> Self {
        let mut random = Random::new(plan.seed.rotate_left(7) ^ first_user);
        let mut order: Vec<u32> = (0..users).collect();
        random.shuffle(&mut order);
        let chosen = |share: f64| (f64::from(users) * share).round() as usize;
        let us = |time: std::time::Duration| time.as_micros() as u64;
        let mut all = Self {
            start_us: u64::MAX,
            listed: VecDeque::new(),
            endless: None,
            absent: Vec::new(),
        };
        if let Some(storm) = plan.storm {
            let cut = Deed::Cut {
                away_us: us(storm.away),
            };
            let conns = order.iter().take(chosen(storm.share));
            let conns = conns.copied();
            all.listed
                .extend(conns.clone().map(|conn| (us(storm.at), conn, cut)));
            if let Some(presence) = plan.presence {
                all.listed
                    .extend(conns.map(|conn| (us(presence.again), conn, cut)));
            }
        }
        if let Some(slow) = plan.slow_readers {
            let conns = &order[..chosen(slow.share).min(order.len())];
            let (from_us, to_us) = (us(slow.at), us(slow.at + slow.lasts));
            let stop = conns.iter().map(|conn| (from_us, *conn, Deed::StopReading));
            let read_on = conns.iter().map(|conn| (to_us, *conn, Deed::ReadOn));
            all.listed.extend(stop.chain(read_on));
        }
        if let Some(mixed) = &plan.mixed {
            all.absent = order[..chosen(mixed.offline).min(order.len())].to_vec();
            let half_us = us(plan.duration) as f64 / 2.0;
            let mut come: Vec<_> = all
                .absent
                .iter()
                .map(|conn| {
                    let at_us = crate::random::unit(random.next()) * half_us;
                    (at_us as u64, *conn, Deed::Come)
                })
                .collect();
            come.sort_unstable_by_key(|(at_us, conn, _)| (*at_us, *conn));
            all.listed.extend(come);
        }
        if let Some(flap) = plan.flap.filter(|flap| flap.share > 0.0) {
            all.endless = Some(Endless {
                per_s: f64::from(users) * flap.share,
                order,
                next: 0,
                end_us: us(plan.duration),
                away_us: us(flap.away),
            });
        }
        all
    }

    /// The first message is due at `start_us`.
    pub(super) const fn start(&mut self, start_us: u64) {
        self.start_us = start_us;
    }

    /// Those who are not there at the beginning.
    pub(super) fn absent(&self) -> &[u32] {
        &self.absent
    }

    pub(super) fn next_us(&self) -> Option<u64> {
        let listed = self.listed.front().map(|(at_us, ..)| *at_us);
        let endless = self.endless.as_ref().and_then(Endless::next_us);
        let first = listed.into_iter().chain(endless).min()?;
        Some(self.start_us.saturating_add(first))
    }

    /// Takes the next deed if it is due.
    pub(super) fn pop_due(&mut self, now_us: u64) -> Option<(u32, Deed)> {
        if self.next_us()? > now_us {
            return None;
        }
        if let Some((_, conn, deed)) = self.listed.pop_front() {
            return Some((conn, deed));
        }
        let endless = self.endless.as_mut()?;
        let place = endless.next % endless.order.len() as u64;
        endless.next += 1;
        let cut = Deed::Cut {
            away_us: endless.away_us,
        };
        Some((endless.order[place as usize], cut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const START_US: u64 = 1_000;

    fn plan(name: &str, change: impl FnOnce(&mut Plan)) -> Plan {
        let mut plan = Plan::named(name).expect("built in");
        plan.duration = Duration::from_secs(10);
        change(&mut plan);
        plan
    }

    /// All deeds with their times after the start.
    fn deeds(plan: &Plan, users: u32) -> Vec<(u64, u32, Deed)> {
        let mut disturbances = Disturbances::new(plan, 500, users);
        disturbances.start(START_US);
        std::iter::from_fn(|| {
            let at_us = disturbances.next_us()?;
            assert_eq!(disturbances.pop_due(at_us - 1), None);
            let (conn, deed) = disturbances.pop_due(at_us)?;
            Some((at_us - START_US, conn, deed))
        })
        .collect()
    }

    fn distinct(deeds: &[(u64, u32, Deed)]) -> usize {
        let mut conns: Vec<u32> = deeds.iter().map(|(_, conn, _)| *conn).collect();
        conns.sort_unstable();
        conns.dedup();
        conns.len()
    }

    #[test]
    fn a_storm_cuts_its_share_at_once() {
        let plan = plan("storm", |plan| {
            let storm = plan.storm.as_mut().expect("storm");
            (storm.at, storm.share) = (Duration::from_secs(2), 0.25);
            storm.away = Duration::from_millis(5);
        });
        let deeds = deeds(&plan, 40);
        assert_eq!((deeds.len(), distinct(&deeds)), (10, 10));
        let cut = Deed::Cut { away_us: 5_000 };
        assert!(
            deeds
                .iter()
                .all(|(at_us, _, deed)| (*at_us, *deed) == (2_000_000, cut))
        );
    }

    #[test]
    fn slow_readers_read_on() {
        let plan = plan("slow-readers", |plan| {
            let slow = plan.slow_readers.as_mut().expect("slow readers");
            (slow.at, slow.lasts) = (Duration::from_secs(2), Duration::from_secs(3));
            slow.share = 0.1;
        });
        let deeds = deeds(&plan, 40);
        assert_eq!((deeds.len(), distinct(&deeds)), (8, 4));
        assert!(
            deeds[..4]
                .iter()
                .all(|deed| (deed.0, deed.2) == (2_000_000, Deed::StopReading))
        );
        assert!(
            deeds[4..]
                .iter()
                .all(|deed| (deed.0, deed.2) == (5_000_000, Deed::ReadOn))
        );
    }

    #[test]
    fn flapping_goes_through_all_in_turn_until_the_end() {
        let plan = plan("flap", |plan| {
            plan.flap.as_mut().expect("flap").share = 0.2;
        });
        let deeds = deeds(&plan, 40);
        // A fifth per second for ten seconds: everybody twice.
        assert_eq!((deeds.len(), distinct(&deeds)), (80, 40));
        assert_eq!((deeds[8].0, deeds[79].0), (1_000_000, 9_875_000));
        assert_eq!(deeds[3].1, deeds[43].1);
    }

    #[test]
    fn who_is_away_at_first_comes_within_the_first_half() {
        let plan = plan("mixed", |plan| {
            plan.mixed.as_mut().expect("mixed").offline = 0.5;
        });
        let absent = Disturbances::new(&plan, 500, 40).absent().to_vec();
        let deeds = deeds(&plan, 40);
        assert_eq!((absent.len(), deeds.len(), distinct(&deeds)), (20, 20, 20));
        assert!(deeds.iter().all(|(at_us, conn, deed)| {
            *at_us <= 5_000_000 && *deed == Deed::Come && absent.contains(conn)
        }));
        assert!(deeds.is_sorted_by_key(|(at_us, ..)| *at_us));
    }

    #[test]
    fn a_seed_fixes_them() {
        for name in ["storm", "slow-readers", "flap", "mixed"] {
            let of = |seed| deeds(&plan(name, |plan| plan.seed = seed), 40);
            assert_eq!(of(1), of(1), "{name}");
            assert_ne!(of(1), of(2), "{name}");
        }
        assert!(deeds(&plan("relay", |_| {}), 40).is_empty());
    }
}
