//! What a run is like, drawn from its seed: how many of everything, how far apart, how often what
//! goes wrong.

use crate::random::Random;
use portico_core::Limits;

/// What kind of life. Without one the seed chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Nothing breaks but connections, now and then.
    Calm,
    /// Everything breaks.
    Rough,
    /// As rough, and every queue is so short that it fills.
    SmallLimits,
    /// Many users; they all come back at once, and all write to one.
    Storm,
}

impl Preset {
    pub const ALL: [Self; 4] = [Self::Calm, Self::Rough, Self::SmallLimits, Self::Storm];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Rough => "rough",
            Self::SmallLimits => "small-limits",
            Self::Storm => "storm",
        }
    }
}

/// What may be done or broken next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Say,
    /// Several messages in a row to one user.
    SayMuch,
    SayEphemeral,
    MarkRead,
    AskReceipts,
    /// A connection breaks, and both ends learn of it sooner or later.
    Cut,
    /// The network swallows everything from now on, and says nothing.
    Vanish,
    /// The device has another network: a new connection while the old one is up.
    Roam,
    /// An app ends without a word and is started again.
    Crash,
    /// The same, from an older copy of its disk.
    Restore,
    /// A device is gone for good.
    Bury,
    /// A device stands still: it neither reads nor looks at its clock.
    Freeze,
    /// A device does not read, but is alive.
    Deafen,
    /// A device that was never here comes.
    Appear,
    /// The gateway dies.
    Kill,
    /// The gateway dies after some of the next effects.
    KillSoon,
    Drain,
    StepClock,
    StallStore,
    /// The store fails more often for a while.
    FailStore,
    /// The store gives up, until the gateway is started anew.
    PoisonStore,
    AuthOutage,
    /// Resume tokens of before are worth nothing.
    ForgetResume,
    FailMoves,
    /// Every connection breaks.
    CutAll,
    /// Everybody writes to one.
    AllToOne,
}

const EVERYDAY: &[(Act, u64)] = &[
    (Act::Say, 400),
    (Act::SayMuch, 40),
    (Act::SayEphemeral, 60),
    (Act::MarkRead, 80),
    (Act::AskReceipts, 20),
    (Act::Cut, 30),
    (Act::Roam, 10),
    (Act::Appear, 15),
    (Act::Crash, 10),
];

const ROUGH: &[(Act, u64)] = &[
    (Act::Cut, 40),
    (Act::Vanish, 20),
    (Act::Roam, 10),
    (Act::Crash, 50),
    (Act::Restore, 12),
    (Act::Bury, 2),
    (Act::Freeze, 15),
    (Act::Deafen, 20),
    (Act::Kill, 12),
    (Act::KillSoon, 20),
    (Act::Drain, 3),
    (Act::StepClock, 10),
    (Act::StallStore, 10),
    (Act::FailStore, 25),
    (Act::PoisonStore, 2),
    (Act::AuthOutage, 6),
    (Act::ForgetResume, 6),
    (Act::FailMoves, 8),
    (Act::CutAll, 3),
    (Act::AllToOne, 5),
];

const STORM: &[(Act, u64)] = &[
    (Act::CutAll, 12),
    (Act::AllToOne, 25),
    (Act::Kill, 5),
    (Act::Deafen, 20),
    (Act::SayMuch, 60),
    (Act::FailStore, 8),
];

/// How the store behaves. Shares are in thousandths, of commands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StoreMood {
    /// Answered `Overloaded`, not applied.
    pub(crate) overloaded: u64,
    /// Answered `Unavailable`, not applied: the request was lost.
    pub(crate) unavailable: u64,
    /// Applied and answered `Unknown`: the reply was lost.
    pub(crate) unknown_applied: u64,
    /// Not applied and answered `Unknown`.
    pub(crate) unknown_lost: u64,
    /// The answer comes late, by up to [`Plan::late_us`].
    pub(crate) late: u64,
}

/// See the head of this file. Times are in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) preset: Preset,
    pub(crate) shards: u16,
    pub(crate) shards_max: u16,
    pub(crate) users: u64,
    pub(crate) devices_max: u64,
    /// Of each user, how many devices are not there at the start.
    pub(crate) latecomers: bool,
    pub(crate) limits: Limits,
    /// Between two acts, on average.
    pub(crate) pace_us: u64,
    /// A shard collects for so long before it sends and reads.
    pub(crate) turn_us: u64,
    /// A piece of a stream is on its way so long at most, usually.
    pub(crate) network_us: u64,
    /// In thousandths: a piece takes up to a hundred times as long.
    pub(crate) laggard: u64,
    /// In thousandths: what is written at once arrives in pieces.
    pub(crate) torn: u64,
    /// What the kernel holds for a client that does not read, in bytes.
    pub(crate) socket_bytes: usize,
    pub(crate) mesh_us: u64,
    pub(crate) commit_us: u64,
    /// Commands in one commit.
    pub(crate) commit_max: usize,
    pub(crate) late_us: u64,
    /// Answers of one lane may overtake each other.
    pub(crate) reorder: bool,
    pub(crate) mood: StoreMood,
    /// While it fails.
    pub(crate) foul_mood: StoreMood,
    /// Clients may have so much unacknowledged.
    pub(crate) receive_max: u32,
    acts: Vec<(Act, u64)>,
    weight: u64,
}

impl Plan {
    pub(crate) fn draw(preset: Option<Preset>, random: &mut Random) -> Self {
        let drawn = [
            Preset::Calm,
            Preset::Rough,
            Preset::Rough,
            Preset::Rough,
            Preset::SmallLimits,
            Preset::SmallLimits,
            Preset::Storm,
        ];
        let drawn = random.pick(&drawn);
        let preset = preset.unwrap_or(drawn);
        let rough = preset != Preset::Calm;
        let small = preset == Preset::SmallLimits;
        let storm = preset == Preset::Storm;
        let shards_max = random.between(1, 5) as u16;
        let mut limits = if small {
            Limits::test_min()
        } else {
            Limits::default()
        };
        if random.one_in(6) {
            // Every login reads the store.
            limits.absent_max = 0;
        }
        if storm {
            limits.logins_per_s = random.pick(&[20, 100, 1_000]);
        }
        let mut acts = Vec::new();
        let mut add = |table: &[(Act, u64)], random: &mut Random| {
            for &(act, weight) in table {
                // Some seeds know nothing of some acts, others of little else.
                let weight = weight * random.pick(&[0, 1, 1, 1, 3]);
                acts.push((act, weight));
            }
        };
        acts_of(preset).iter().for_each(|table| add(table, random));
        // Whatever else happens, something is said.
        acts.push((Act::Say, 200));
        let weight = acts.iter().map(|(_, weight)| weight).sum();
        let mood = if rough && random.one_in(2) {
            StoreMood {
                overloaded: random.pick(&[0, 5, 20]),
                unavailable: random.pick(&[0, 5, 20]),
                unknown_applied: random.pick(&[0, 5, 20]),
                unknown_lost: random.pick(&[0, 5, 20]),
                late: random.pick(&[0, 20, 100]),
            }
        } else {
            StoreMood::default()
        };
        let foul_mood = StoreMood {
            overloaded: random.pick(&[0, 100, 300]),
            unavailable: random.pick(&[0, 100, 300]),
            unknown_applied: random.pick(&[0, 100, 300]),
            unknown_lost: random.pick(&[0, 100, 300]),
            late: random.pick(&[0, 200]),
        };
        Self {
            preset,
            shards: random.between(1, u64::from(shards_max)) as u16,
            shards_max,
            users: if storm {
                random.between(8, 24)
            } else {
                random.between(2, 6)
            },
            devices_max: if storm { 1 } else { random.between(1, 3) },
            latecomers: random.one_in(2),
            limits,
            pace_us: random.pick(&[2_000, 20_000, 100_000, 400_000]),
            turn_us: random.pick(&[0, 20, 200, 2_000]),
            network_us: random.pick(&[50, 1_000, 40_000]),
            laggard: random.pick(&[0, 5, 50]),
            torn: random.pick(&[0, 20, 300]),
            socket_bytes: if small {
                random.pick(&[256, 2_000])
            } else {
                random.pick(&[4_000, 60_000])
            },
            mesh_us: random.pick(&[0, 20, 3_000]),
            commit_us: random.pick(&[20, 1_000, 20_000]),
            commit_max: random.pick(&[1, 4, 512]),
            late_us: random.pick(&[50_000, 2_000_000, 15_000_000]),
            reorder: random.one_in(3),
            mood,
            foul_mood,
            receive_max: random.pick(&[1, 2, 8, 64, 256]),
            acts,
            weight,
        }
    }

    pub(crate) fn act(&self, random: &mut Random) -> Act {
        let mut at = random.below(self.weight);
        for &(act, weight) in &self.acts {
            if at < weight {
                return act;
            }
            at -= weight;
        }
        Act::Say
    }

    /// How long a piece of a stream is on its way.
    pub(crate) fn network_delay(&self, random: &mut Random) -> u64 {
        let most = if random.per_mille(self.laggard) {
            self.network_us * 100
        } else {
            self.network_us
        };
        1 + random.below(most)
    }
}

const fn acts_of(preset: Preset) -> &'static [&'static [(Act, u64)]] {
    match preset {
        Preset::Calm => &[EVERYDAY],
        Preset::Rough | Preset::SmallLimits => &[EVERYDAY, ROUGH],
        Preset::Storm => &[EVERYDAY, STORM],
    }
}
