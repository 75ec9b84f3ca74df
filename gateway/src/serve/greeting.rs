//! What a person sees who has started a gateway: what there is, and what to type next.

use super::Addresses;
use crate::{
    admin::VERSION,
    config::{BackendKind, Config, Settings},
    limits,
    probe::{self, Machine},
};
use portico_gateway::footprint;
use std::{
    fmt::Write as _,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

const MIB: u64 = 1 << 20;

pub(super) fn print(config: &Config, machine: &Machine, addresses: Addresses) {
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "portico".to_owned());
    let text = text(config, machine, addresses, &program);
    let _ = io::stderr().write_all(text.as_bytes());
}

fn text(config: &Settings, machine: &Machine, addresses: Addresses, program: &str) -> String {
    let Addresses { listen, admin, tls } = addresses;
    let tls = match tls {
        Some(address) if config.tls.self_signed => format!(
            "\n  tls      {address} (clients trust {})",
            config
                .server
                .data
                .join(super::tls::CERTIFICATE_FILE)
                .display()
        ),
        Some(address) => format!("\n  tls      {address}"),
        None => String::new(),
    };
    let data = config.server.data.display();
    let kept = match config.server.backend {
        BackendKind::Embedded => "embedded store, each message synced to disk",
        BackendKind::Memory => "keys only: the memory backend forgets messages at the end",
    };
    let mut target = String::new();
    let defaults = Settings::default().server;
    if listen != defaults.listen {
        let _ = write!(target, " --target {}", reachable(listen));
    }
    if config.server.data != defaults.data {
        let _ = write!(target, " --data {data}");
    }
    format!(
        "Portico {VERSION} serves\n\
         \n  clients  {listen}{tls}\
         \n  admin    http://{admin}/ with healthz, readyz, metrics, version\
         \n  shards   {} on CPUs {}\
         \n  kernel   Linux {}, io_uring with everything that is needed\
         \n  data     {data} ({kept})\
         \n  memory   at most {} MiB in queues, and one message for each client that does not read\
         \n\
         \nTo chat, in two terminals:\
         \n  {program} chat --as 1 --to 2{target}\
         \n  {program} chat --as 2 --to 1{target}\
         \nTo measure:\
         \n  cargo run --release -p portico-loadgen -- smoke{target}\
         \n\n",
        machine.shards,
        probe::list(&machine.cpus),
        machine.features.kernel,
        queue_bytes_max(config, machine).div_ceil(MIB),
    )
}

/// What all queues can hold together.
fn queue_bytes_max(config: &Settings, machine: &Machine) -> u64 {
    let places = footprint::of_shard(&machine.ring, 0, usize::from(machine.shards));
    let places: u64 = places.iter().map(|part| part.bytes).sum();
    limits::shard_queue_bytes_max(config, machine.shards)
        .saturating_add(places)
        .saturating_mul(u64::from(machine.shards))
        .saturating_add(limits::store_queue_bytes_max(config))
}

/// An address that a client on this machine can connect to.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use portico_gateway::{Features, RingSizes};

    fn machine(shards: u16) -> Machine {
        let cpus = vec![0, 1, 2, 5];
        Machine {
            features: Features {
                kernel: "6.12.0".to_owned(),
                recommended: true,
            },
            ring: RingSizes::auto().resolve(usize::from(shards), cpus.len()),
            cpus,
            shards,
            locked_bytes: 0,
            locked_bytes_max: None,
            open_files_max: 0,
            fewer: None,
        }
    }

    fn greet(change: impl FnOnce(&mut Settings), listen: &str) -> String {
        let mut settings = Settings::default();
        change(&mut settings);
        let addresses = Addresses {
            listen: listen.parse().unwrap(),
            admin: SocketAddr::from(([127, 0, 0, 1], 7480)),
            tls: settings.tls.listen,
        };
        text(&settings, &machine(4), addresses, "./portico")
    }

    #[test]
    fn the_defaults_need_no_flags() {
        let text = greet(|_| {}, "127.0.0.1:7400");
        for line in [
            "  clients  127.0.0.1:7400",
            "  shards   4 on CPUs 0-2,5",
            "  ./portico chat --as 1 --to 2",
            "  cargo run --release -p portico-loadgen -- smoke",
            "  data     ./portico-data (embedded store, each message synced to disk)",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn other_addresses_and_directories_are_part_of_what_to_type() {
        let change = |settings: &mut Settings| settings.server.data = "/srv/portico".into();
        let text = greet(change, "0.0.0.0:9000");
        let flags = "--target 127.0.0.1:9000 --data /srv/portico\n";
        assert_eq!(text.matches(flags).count(), 3, "{text}");
    }

    #[test]
    fn the_tls_port_is_told_with_what_clients_have_to_trust() {
        let change = |settings: &mut Settings| {
            settings.tls.listen = Some(SocketAddr::from(([0, 0, 0, 0], 7443)));
            settings.tls.self_signed = true;
        };
        let text = greet(change, "127.0.0.1:7400");
        let line = "  tls      0.0.0.0:7443 (clients trust ./portico-data/tls-cert.pem)";
        assert!(text.lines().any(|found| found == line), "{text}");
    }

    #[test]
    fn memory_counts_every_queue_and_grows_with_each_setting() {
        let of = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            queue_bytes_max(&settings, &machine(3))
        };
        let usual = of(|_| {});
        assert!(usual < 2 << 30, "{usual}");
        type Change = fn(&mut Settings);
        let grown: [(Change, u64); 11] = [
            (|s| s.limits.store_bytes_max += 64 << 20, 3 * (64 + 8)),
            (|s| s.limits.store_requests_max += 1 << 20, 3 * 300),
            (|s| s.limits.sign_ins_max += 1 << 16, 3 * 128),
            (|s| s.limits.absent_max += 1 << 20, 3 * 24),
            (|s| s.limits.unsaved_max += 1 << 20, 3 * 100),
            (|s| s.limits.groups_bytes_max += 300 << 20, 300),
            (|s| s.limits.fan_outs_max += 1 << 20, 3 * 500),
            (|s| s.limits.outboxes_bytes_max += 300 << 20, 300),
            (|s| s.shard.unread_bytes_max += 64 << 20, 3 * 64),
            (|s| s.store.bytes_max += 64 << 20, 2 * 64),
            (|s| s.store.cache_bytes += 64 << 20, 64),
        ];
        for (at, (change, mib)) in grown.into_iter().enumerate() {
            let more = (of(change) - usual) >> 20;
            assert!(more >= mib, "setting {at}: {more} MiB more, not {mib}");
        }
    }
}
