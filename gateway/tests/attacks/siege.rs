//! Bystanders, and how they fare while somebody attacks.

use crate::harness::{Gateway, Peer, Setup};
use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// From one user to the next, at the 99th percentile.
const P99_MAX: Duration = Duration::from_millis(50);
pub(crate) const ATTEMPTS: u32 = 5;
/// How long an attack goes on, and how many hops it must cover.
const SIEGE: Duration = Duration::from_secs(1);
const HOPS_MIN: usize = 200;
/// The bystanders. Four are on both shards but for one case in eight.
const RING: [u64; 4] = [81, 82, 83, 84];

/// Held by whoever attacks.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A gateway under attack, and nothing else beside it.
pub(crate) struct Ground {
    pub(crate) gateway: Gateway,
    _alone: MutexGuard<'static, ()>,
}

impl Ground {
    pub(crate) fn new(setup: &Setup) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            gateway: setup.start(),
            _alone: alone,
        }
    }

    /// Lets others attack while this one only waits.
    pub(crate) fn calm(self) -> Gateway {
        self.gateway
    }

    /// Runs the attack until one attempt has left the bystanders well; fails if none has.
    pub(crate) fn besiege(&self, mut attack: impl FnMut(&Siege)) {
        let mut seen = Vec::new();
        for _ in 0..ATTEMPTS {
            let hops = self.attempt(&mut attack);
            println!("bystanders: {hops}");
            if hops.p99 < P99_MAX {
                return;
            }
            seen.push(hops);
        }
        let seen: Vec<_> = seen.iter().map(ToString::to_string).collect();
        panic!("bystanders wait: {}", seen.join("; "));
    }

    fn attempt(&self, attack: &mut impl FnMut(&Siege)) -> Hops {
        let mut ring = RING.map(|user| self.gateway.login(user, 1));
        let siege = Siege {
            begun: Instant::now(),
            hops: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        };
        let times = thread::scope(|scope| {
            let bystanders = scope.spawn(|| {
                // Also when they are not served and fail: the attack need not go on then.
                let _gone = Over(&siege.over);
                let mut times = Vec::new();
                while !siege.over.load(Ordering::Relaxed) {
                    times.push(hop(&mut ring, times.len()));
                    siege.hops.store(times.len(), Ordering::Relaxed);
                }
                times
            });
            // Also when the attack fails by itself: the scope waits for the bystanders.
            let attacked = Over(&siege.over);
            attack(&siege);
            drop(attacked);
            bystanders.join().expect("the bystanders are served")
        });
        Hops::of(times)
    }
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn hop(ring: &mut [Peer; RING.len()], count: usize) -> Duration {
    let (from, to) = (count % RING.len(), (count + 1) % RING.len());
    let start = Instant::now();
    ring[from].send(RING[to], "all well");
    assert_eq!(ring[to].receive().text, "all well");
    start.elapsed()
}

/// What an attack asks whether to go on.
#[derive(Debug)]
pub(crate) struct Siege {
    begun: Instant,
    hops: AtomicUsize,
    over: AtomicBool,
}

impl Siege {
    pub(crate) fn goes_on(&self) -> bool {
        if self.over.load(Ordering::Relaxed) {
            return false;
        }
        self.begun.elapsed() < SIEGE || self.hops.load(Ordering::Relaxed) < HOPS_MIN
    }
}

struct Hops {
    count: usize,
    p50: Duration,
    p99: Duration,
    max: Duration,
}

impl Hops {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |share: usize| times[(times.len() - 1) * share / 100];
        Self {
            count: times.len(),
            p50: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

impl fmt::Display for Hops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            count,
            p50,
            p99,
            max,
        } = self;
        write!(
            f,
            "{count} hops, p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}"
        )
    }
}

/// How attacks are met unless they say otherwise.
pub(crate) fn setup() -> Setup {
    Setup::new().flag("--backend", "memory")
}

/// The bystanders alone, so that the others' figures can be compared.
#[test]
fn peace() {
    Ground::new(&setup()).besiege(|siege| {
        while siege.goes_on() {
            thread::sleep(Duration::from_millis(10));
        }
    });
}
