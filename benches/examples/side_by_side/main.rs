//! Gateways and the floor, measured side by side: all of them run the whole time, and each gets a
//! few rounds of messages in turn. What the machine does to one turn it does to the turns beside
//! it, so that their ratio stays when times drift by tens of percent within a minute.
//!
//! ```text
//! cargo build --release --workspace
//! cargo run --release -p portico-benches --example side_by_side -- \
//!     SCENARIO [BIN] [TURNS] [ANOTHER...]
//! ```
//!
//! `SCENARIO` is one of
//! - `floor`: one shard beside the floor, processor 0, one socket per user in both;
//! - `across`: two shards on processor 0 (a crew), pairs within a shard beside pairs across;
//! - `threads`: the same with a processor for each, the clients on both.
//!
//! `BIN` is the folder of the built programs (`target/release`), `TURNS` how many turns each gets
//! (40). `ANOTHER` is a `portico` of another build, to be measured beside the first in `floor`.
//!
//! A round: each of 500 senders sends a burst to its receiver in one write, then every receiver
//! takes what came and answers as little as the protocol asks for. Printed per server and burst:
//! the median CPU time of a message and its smallest tenth, and the median of the ratios to the
//! first server of the same turn. Server CPU time is that of all threads (`schedstat`).

mod pairs;
mod servers;

use pairs::Pairs;
use servers::{Server, pin};
use std::{error::Error, path::PathBuf, time::Duration};

type Fault = Box<dyn Error>;

/// Pairs of a sender and a receiver.
const PAIRS: usize = 500;
/// Messages that leave in one write.
const BURSTS: [usize; 2] = [1, 10];
/// Messages of a turn, about: some tens of milliseconds on the machine this was made on.
const TURN_MESSAGES: usize = 2_000;
/// For acknowledgements of the round before to be accounted where they belong.
const SETTLE: Duration = Duration::from_millis(3);

struct Entrant {
    name: String,
    server: usize,
    pairs: Pairs,
    us: Vec<f64>,
}

fn main() -> Result<(), Fault> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let scenario = args.first().map_or("", String::as_str);
    let bin = PathBuf::from(args.get(1).map_or("target/release", String::as_str));
    let turns: usize = args.get(2).map_or(Ok(40), |text| text.parse())?;
    let portico = bin.join("portico");
    let (servers, mut entrants) = match scenario {
        "floor" => {
            let mut servers = vec![
                Server::floor(&bin.join("portico-loadgen"), &[0])?,
                Server::gateway(&portico, 1, &[0])?,
            ];
            for another in args.iter().skip(3) {
                servers.push(Server::gateway(another.as_ref(), 1, &[0])?);
            }
            let mut entrants = vec![Entrant::new("floor", 0, Pairs::floor(&servers[0], PAIRS)?)];
            for (at, server) in servers.iter().enumerate().skip(1) {
                let pairs = Pairs::gateway(server, PAIRS, 0, |_, _| true)?;
                entrants.push(Entrant::new(&server.name, at, pairs));
            }
            pin(&[1])?;
            (servers, entrants)
        }
        "across" | "threads" => {
            let cpus: &[usize] = if scenario == "across" { &[0] } else { &[0, 1] };
            let server = Server::gateway(&portico, 2, cpus)?;
            let within = Pairs::gateway(&server, PAIRS, 0, |one, other| one == other)?;
            let across = Pairs::gateway(&server, PAIRS, 1, |one, other| one != other)?;
            if scenario == "across" {
                pin(&[1])?;
            }
            let entrants = vec![
                Entrant::new("within", 0, within),
                Entrant::new("across", 0, across),
            ];
            (vec![server], entrants)
        }
        _ => return Err("name a scenario: floor, across or threads".into()),
    };
    for burst in BURSTS {
        let rounds = TURN_MESSAGES.div_ceil(PAIRS * burst);
        for turn in 0..=turns {
            for entrant in &mut entrants {
                let server = &servers[entrant.server];
                let before_us = server.cpu_us()?;
                for _ in 0..rounds {
                    entrant.pairs.round(burst)?;
                }
                std::thread::sleep(SETTLE);
                let us = (server.cpu_us()? - before_us) / (rounds * PAIRS * burst) as f64;
                // The first turn fills caches and pools.
                if turn > 0 {
                    entrant.us.push(us);
                }
            }
        }
        print(burst, &mut entrants);
    }
    Ok(())
}

impl Entrant {
    fn new(name: &str, server: usize, pairs: Pairs) -> Self {
        Self {
            name: name.to_owned(),
            server,
            pairs,
            us: Vec::new(),
        }
    }
}

/// A table, after which the entrants may begin anew.
fn print(burst: usize, entrants: &mut [Entrant]) {
    println!("burst {burst:<18}  median us   least tenth   ratio");
    let first = entrants[0].us.clone();
    for entrant in entrants {
        let mut us = std::mem::take(&mut entrant.us);
        let mut ratios: Vec<f64> = us.iter().zip(&first).map(|(us, of)| us / of).collect();
        us.sort_by(f64::total_cmp);
        ratios.sort_by(f64::total_cmp);
        let (Some(median), Some(ratio)) = (us.get(us.len() / 2), ratios.get(ratios.len() / 2))
        else {
            continue;
        };
        let least = us[us.len() / 10];
        println!(
            "{:<24}  {median:>9.2}   {least:>11.2}   {ratio:>5.3}",
            entrant.name
        );
    }
}
