//! Runs lives: one seed, or many until one fails.

use clap::{Parser, builder::PossibleValuesParser, builder::TypedValueParser};
use portico_sim::{Canary, Options, Outcome, Preset, run, run_printed};
use std::{
    cell::Cell,
    num::NonZeroUsize,
    panic,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

/// The whole of Portico in one thread under virtual time, everything from one seed.
#[derive(Debug, Parser)]
#[command(name = "portico-sim", version)]
struct Args {
    /// The life to live.
    #[arg(long, conflicts_with = "seeds", default_value_t = 0)]
    seed: u64,
    /// So many lives, one seed after the other.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first of them.
    #[arg(long, default_value_t = 0, requires = "seeds")]
    from: u64,
    /// Events before the faults stop.
    #[arg(long, default_value_t = Options::default().steps)]
    steps: u64,
    /// What kind of life; without it the seed chooses.
    #[arg(long, value_parser = presets())]
    preset: Option<Preset>,
    /// Something to break on purpose: the checker must find it.
    #[arg(long, value_parser = canaries())]
    canary: Option<Canary>,
    /// Threads for many lives.
    #[arg(long, default_value = "1", requires = "seeds")]
    jobs: NonZeroUsize,
    /// Does not stop at the first life that fails.
    #[arg(long, requires = "seeds")]
    keep_going: bool,
    /// Tells what happens.
    #[arg(long, conflicts_with = "seeds")]
    trace: bool,
}

fn presets() -> impl TypedValueParser<Value = Preset> {
    let named = |name: String| Preset::ALL.into_iter().find(|preset| preset.name() == name);
    PossibleValuesParser::new(Preset::ALL.map(Preset::name))
        .try_map(move |name| named(name).ok_or("no such kind"))
}

fn canaries() -> impl TypedValueParser<Value = Canary> {
    let named = |name: String| Canary::ALL.into_iter().find(|canary| canary.name() == name);
    PossibleValuesParser::new(Canary::ALL.map(Canary::name))
        .try_map(move |name| named(name).ok_or("no such canary"))
}

impl Args {
    const fn options(&self) -> Options {
        Options {
            steps: self.steps,
            preset: self.preset,
            canary: self.canary,
        }
    }
}

thread_local! {
    /// The life of this thread, for a panic.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

fn main() -> ExitCode {
    let args = Args::parse();
    let options = args.options();
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        usual(info);
        if let Some(seed) = SEED.get() {
            eprintln!("seed {seed} broke down\n{}", replay(seed, &options));
        }
    }));
    match args.seeds {
        Some(count) => many(&args, count),
        None => one(&args),
    }
}

/// The command that lives a life again.
fn replay(seed: u64, options: &Options) -> String {
    let mut command = format!(
        "replay: cargo run --release -p portico-sim -- --seed {seed} --steps {}",
        options.steps
    );
    if let Some(preset) = options.preset {
        command += &format!(" --preset {}", preset.name());
    }
    if let Some(canary) = options.canary {
        command += &format!(" --canary {}", canary.name());
    }
    command + " --trace"
}

fn one(args: &Args) -> ExitCode {
    println!("seed {}", args.seed);
    SEED.set(Some(args.seed));
    let options = args.options();
    let outcome = if args.trace {
        run_printed(args.seed, &options)
    } else {
        run(args.seed, &options)
    };
    println!(
        "{} steps, {:.1} s of virtual time, {} messages, trace {:016x}",
        outcome.steps,
        outcome.time_us as f64 / 1e6,
        outcome.messages,
        outcome.hash
    );
    match report(&outcome, &options) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Says what failed, if something did. True if nothing.
fn report(outcome: &Outcome, options: &Options) -> bool {
    let Some(failure) = &outcome.failure else {
        return true;
    };
    println!("seed {} failed: {failure}", outcome.seed);
    print!("{}", failure.story);
    println!("{}", replay(outcome.seed, options));
    false
}

fn many(args: &Args, count: u64) -> ExitCode {
    let options = args.options();
    let last = args.from.saturating_add(count);
    println!("seeds {} to {}", args.from, last.saturating_sub(1));
    let begun = Instant::now();
    let next = AtomicU64::new(args.from);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Total::default());
    let live = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= last {
                return;
            }
            SEED.set(Some(seed));
            let outcome = run(seed, &options);
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.add(&outcome);
            if !report(&outcome, &options) && !args.keep_going {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..args.jobs.get() {
            scope.spawn(live);
        }
    });
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} lives, {} failed; {} steps, {} messages, {:.0} s of virtual time; {:.1} s, {:.0} lives/s; trace {:016x}",
        total.lives,
        total.failed,
        total.steps,
        total.messages,
        total.time_us as f64 / 1e6,
        seconds,
        total.lives as f64 / seconds,
        total.hash
    );
    if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[derive(Debug, Default)]
struct Total {
    lives: u64,
    failed: u64,
    steps: u64,
    messages: u64,
    time_us: u64,
    /// Of all lives, in whatever order they ended.
    hash: u64,
}

impl Total {
    const fn add(&mut self, outcome: &Outcome) {
        self.lives += 1;
        self.failed += outcome.failure.is_some() as u64;
        self.steps += outcome.steps;
        self.messages += outcome.messages as u64;
        self.time_us += outcome.time_us;
        self.hash = self.hash.wrapping_add(outcome.hash);
    }
}
