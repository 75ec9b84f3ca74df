//! The command line.

use crate::Failure;
use clap::{Args, Parser, Subcommand, ValueEnum};
use portico_client::{CERTIFICATE_FILE, TlsClient, chat::Color};
use std::path::{Path, PathBuf};

/// Longest life of a token that `portico token` makes.
const TTL_S_MAX: u64 = 365 * 86_400;

/// More than any machine holds.
const CONNECTIONS_MAX: u64 = 1_000_000_000;

/// Portico, a messaging gateway.
#[derive(Debug, Parser)]
#[command(
    name = "portico",
    args_conflicts_with_subcommands = true,
    disable_version_flag = true,
    after_help = "Without a command, `portico` serves.\n\
                  Exit codes: 0 done, 1 failed, 64 bad use or bad configuration."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the gateway (the default).
    Serve(ServeArgs),
    /// Print an access token, signed with the key in the data directory.
    Token(TokenArgs),
    /// End what a device, or all devices of a user, may do with the tokens they have.
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Chat in the terminal.
    Chat(ChatArgs),
    /// Print the default configuration, or check a file.
    Config(ConfigArgs),
    /// Report whether this machine can serve, and with what.
    Probe(ServeArgs),
    /// Report how many connections this machine can hold, what bounds them, and what they cost.
    Limits(LimitsArgs),
    /// Look at the embedded store while no gateway runs, or save what can be read of a damaged one.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Hand out what the embedded store holds of a user, or erase it, while no gateway runs.
    #[command(subcommand)]
    User(UserCommand),
    /// Print every metric and what it means.
    Metrics,
    /// Print the version.
    Version,
}

/// Values stay text here: they are judged where those of the file and the environment are.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ServeArgs {
    /// Where clients connect; port 0 takes a free one [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Let --listen be an address that others can reach
    #[arg(long)]
    allow_plaintext: bool,
    /// Where clients connect with TLS; needs a certificate [default port: 7443]
    #[arg(long, value_name = "ADDR")]
    tls_listen: Option<String>,
    /// Certificate chain (PEM), read again when it changes
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// Make a certificate, tls-cert.pem in the data directory, for trying it out
    #[arg(long)]
    tls_self_signed: bool,
    /// Where /healthz, /readyz, /metrics and /version answer [default: 127.0.0.1:7480]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// Directory of keys and of the embedded store [default: ./portico-data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// embedded or memory [default: embedded]
    #[arg(long, value_name = "KIND")]
    backend: Option<String>,
    /// Tables of connections; those beyond the CPUs share threads [default: one per CPU]
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// CPUs to pin them to, such as 0,2,4-7 [default: all]
    #[arg(long, value_name = "LIST")]
    cpus: Option<String>,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl ServeArgs {
    /// (key of the setting, name of the flag, value), for what was given.
    pub(crate) fn settings(&self) -> Vec<(&'static str, &'static str, String)> {
        let switch = |on: bool| on.then(|| "true".to_owned());
        [
            ("server.listen", "listen", &self.listen),
            (
                "server.allow_plaintext",
                "allow-plaintext",
                &switch(self.allow_plaintext),
            ),
            ("tls.listen", "tls-listen", &self.tls_listen),
            ("tls.cert", "tls-cert", &self.tls_cert),
            ("tls.key", "tls-key", &self.tls_key),
            (
                "tls.self_signed",
                "tls-self-signed",
                &switch(self.tls_self_signed),
            ),
            ("server.admin", "admin", &self.admin),
            ("server.data", "data", &self.data),
            ("server.backend", "backend", &self.backend),
            ("server.shards", "shards", &self.shards),
            ("server.cpus", "cpus", &self.cpus),
        ]
        .into_iter()
        .filter_map(|(key, flag, value)| Some((key, flag, value.clone()?)))
        .collect()
    }
}

#[derive(Args, Debug)]
pub(crate) struct LimitsArgs {
    /// Say what so many connections need; the exit code is 1 if it is not there
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=CONNECTIONS_MAX))]
    pub(crate) connections: Option<u64>,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Report what the store holds and whether its files are whole. Changes nothing.
    #[command(
        after_help = "Exit codes: 0 sound, 1 torn by a crash (the next start mends it), 2 damaged, \
                      3 could not look."
    )]
    Check(CheckArgs),
    /// Copy everything that can be read into a new data directory, and report what was lost.
    #[command(after_help = "Exit codes: 0 all was saved, 2 not all, 3 could not save.")]
    Salvage(SalvageArgs),
}

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// Data directory of the gateway [default: ./portico-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<String>,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct SalvageArgs {
    /// Data directory of the gateway [default: ./portico-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<String>,
    /// New data directory; must not exist, or be empty
    #[arg(long, value_name = "NEW")]
    pub(crate) out: String,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Write what the store holds of a user as lines of JSON: the messages that the user may see,
    /// watermarks, cursors, contacts and settings. The gateway must not run.
    Export(ExportArgs),
    /// Take what a user has said out of the store, in every month and from every file, and the user's
    /// inbox and settings with it. The gateway must not run. What stays is that something was said.
    Erase(EraseArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// The user
    #[arg(long, value_name = "U", value_parser = user)]
    pub(crate) user: u64,
    /// Data directory of the gateway [default: ./portico-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<String>,
    /// Write into a new file instead of standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct EraseArgs {
    /// The user
    #[arg(long, value_name = "U", value_parser = user)]
    pub(crate) user: u64,
    /// Data directory of the gateway [default: ./portico-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<String>,
    /// Do it: nothing brings back what was erased
    #[arg(long)]
    pub(crate) yes: bool,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct TokenArgs {
    /// Data directory of the gateway [default: ./portico-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<String>,
    /// User to log in as
    #[arg(long, value_name = "U", value_parser = user)]
    pub(crate) user: u64,
    /// Device to log in as
    #[arg(long, value_name = "D", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) device: u16,
    /// How long the token is good: a number and s, m, h or d
    #[arg(long, value_name = "T", default_value = "24h", value_parser = ttl)]
    pub(crate) ttl: Ttl,
    /// Generation of the device, as `portico device revoke` said
    #[arg(long, value_name = "G", default_value_t = 0)]
    pub(crate) generation: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Raise a device's generation: its sessions end within a second, and no token from before is
    /// accepted again. Works beside a running gateway, and on its data directory when none runs.
    Revoke(RevokeArgs),
}

#[derive(Args, Debug)]
pub(crate) struct RevokeArgs {
    /// The user
    #[arg(long, value_name = "U", value_parser = user)]
    pub(crate) user: u64,
    /// One device; without it, all of the user's
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) device: Option<u16>,
    /// The gateway's admin port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7480")]
    pub(crate) admin: std::net::SocketAddr,
    /// Data directory of the gateway [default: ./portico-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ChatArgs {
    /// Your user
    #[arg(long = "as", value_name = "U", value_parser = user)]
    pub(crate) me: u64,
    /// The user to chat with
    #[arg(long, value_name = "U", value_parser = user)]
    pub(crate) to: u64,
    /// Your device
    #[arg(long, value_name = "D", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) device: u16,
    /// The gateway, as host:port [default: 127.0.0.1:7400, with --tls 127.0.0.1:7443]
    #[arg(long, value_name = "ADDR")]
    target: Option<String>,
    /// Speak TLS
    #[arg(long)]
    tls: bool,
    /// Certificate to trust (PEM): an authority's, or the gateway's own if it is self-signed
    /// [default: tls-cert.pem in the data directory, where `serve --tls-self-signed` leaves it]
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_ca: Option<PathBuf>,
    /// Whose certificate is expected [default: the host of --target]
    #[arg(long, value_name = "NAME", requires = "tls", alias = "tls-name")]
    server_name: Option<String>,
    /// Data directory of the gateway: its key signs you in, and your place in the chat is kept there
    /// [default: ./portico-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<String>,
    /// Stay after the end of the input
    #[arg(long)]
    pub(crate) follow: bool,
    /// Colours: auto (on a terminal, unless NO_COLOR is set), always, never
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = ColorWhen::Auto)]
    color: ColorWhen,
    /// The same as --color never
    #[arg(long, conflicts_with = "color")]
    no_color: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ColorWhen {
    Auto,
    Always,
    Never,
}

impl ChatArgs {
    pub(crate) const fn color(&self) -> Color {
        match self.color {
            _ if self.no_color => Color::Never,
            ColorWhen::Auto => Color::Auto,
            ColorWhen::Always => Color::Always,
            ColorWhen::Never => Color::Never,
        }
    }

    pub(crate) fn target(&self) -> &str {
        match (&self.target, self.tls) {
            (Some(target), _) => target,
            (None, false) => "127.0.0.1:7400",
            (None, true) => "127.0.0.1:7443",
        }
    }

    /// Whom to trust, if TLS is wanted.
    pub(crate) fn tls(&self, data: &Path) -> Result<Option<TlsClient>, Failure> {
        if !self.tls {
            return Ok(None);
        }
        let own = data.join(CERTIFICATE_FILE);
        let trusted = TlsClient::trusting(self.tls_ca.as_ref().unwrap_or(&own));
        let client = match &self.server_name {
            Some(name) => trusted.and_then(|client| client.named(name)),
            None => trusted,
        };
        client
            .map(Some)
            .map_err(|error| Failure::Use(error.sentence()))
    }
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct ConfigArgs {
    /// Print a file with every setting, its default, range and reason
    #[arg(long)]
    pub(crate) print_default: bool,
    /// Check a file, with the environment as it is
    #[arg(long, value_name = "FILE")]
    pub(crate) check: Option<PathBuf>,
}

/// Seconds that a token lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ttl(pub(crate) u64);

fn user(text: &str) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|user| portico_wire::ids::UserId(*user).is_valid())
        .ok_or_else(|| format!("allowed is 1 to {}", u64::MAX - 1))
}

fn ttl(text: &str) -> Result<Ttl, String> {
    let allowed = || "allowed is 1s to 365d: a number and s, m, h or d".to_owned();
    let unit_s = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3_600,
        Some('d') => 86_400,
        _ => return Err(allowed()),
    };
    text.get(..text.len() - 1)
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse::<u64>().ok())
        .and_then(|count| count.checked_mul(unit_s))
        .filter(|seconds| (1..=TTL_S_MAX).contains(seconds))
        .map(Ttl)
        .ok_or_else(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serving_is_the_default_and_takes_the_same_flags() {
        let bare = parse("portico --listen 127.0.0.1:0 --shards 2").unwrap();
        assert!(bare.command.is_none());
        let named = parse("portico serve --listen 127.0.0.1:0 --shards 2").unwrap();
        let Some(Command::Serve(serve)) = named.command else {
            panic!("not serve");
        };
        assert_eq!(bare.serve.settings(), serve.settings());
        assert_eq!(
            serve.settings(),
            [
                ("server.listen", "listen", "127.0.0.1:0".to_owned()),
                ("server.shards", "shards", "2".to_owned()),
            ]
        );
        assert!(parse("portico").unwrap().serve.settings().is_empty());
        // Flags before a command would be lost.
        assert!(parse("portico --shards 2 serve").is_err());
    }

    #[test]
    fn limits_are_asked_for_the_settings_of_serve() {
        let line = "portico limits --connections 5 --json --shards 3 --config c";
        let Some(Command::Limits(limits)) = parse(line).unwrap().command else {
            panic!("not limits");
        };
        assert_eq!((limits.connections, limits.json), (Some(5), true));
        let shards = ("server.shards", "shards", "3".to_owned());
        assert_eq!(limits.serve.settings(), [shards]);
        assert_eq!(limits.serve.config, Some(PathBuf::from("c")));
    }

    #[test]
    fn every_flag_of_serve_is_a_setting() {
        let all = parse(
            "portico --listen a --admin b --data c --backend d --shards e --cpus f --config g \
             --allow-plaintext --tls-listen h --tls-cert i --tls-key j --tls-self-signed",
        )
        .unwrap();
        let settings = all.serve.settings();
        assert_eq!(settings.len(), 11);
        for (key, flag, _) in settings {
            let name = flag.replace('-', "_");
            let named = match name.strip_prefix("tls_") {
                Some(name) => format!("tls.{name}"),
                None => format!("server.{name}"),
            };
            assert_eq!(key, named);
            assert!(crate::config::KNOBS.iter().any(|knob| knob.key == key));
        }
        assert_eq!(all.serve.config, Some(PathBuf::from("g")));
    }

    #[test]
    fn a_chat_over_tls_has_a_port_and_a_trust_of_its_own() {
        let chat = |line: &str| match parse(line).unwrap().command {
            Some(Command::Chat(chat)) => chat,
            other => panic!("{other:?}"),
        };
        let plain = chat("portico chat --as 1 --to 2");
        assert_eq!(plain.target(), "127.0.0.1:7400");
        assert!(matches!(plain.tls(Path::new("d")), Ok(None)));
        let tls = chat("portico chat --as 1 --to 2 --tls --server-name a");
        assert_eq!(tls.target(), "127.0.0.1:7443");
        for (line, file) in [
            ("--tls", "d/tls-cert.pem"),
            ("--tls --tls-ca x/ca.pem", "x/ca.pem"),
        ] {
            let refused = chat(&format!("portico chat --as 1 --to 2 {line}")).tls(Path::new("d"));
            let Err(Failure::Use(text)) = refused else {
                panic!("{refused:?}");
            };
            assert!(text.contains(file) && text.contains("--tls-ca"), "{text}");
        }
        assert!(parse("portico chat --as 1 --to 2 --tls-ca x").is_err());
    }

    #[test]
    fn times_to_live_have_a_unit_and_a_range() {
        for (text, seconds) in [
            ("30s", 30),
            ("15m", 900),
            ("24h", 86_400),
            ("365d", TTL_S_MAX),
        ] {
            assert_eq!(ttl(text), Ok(Ttl(seconds)));
        }
        for bad in [
            "",
            "s",
            "15",
            "0s",
            "-1m",
            "+1m",
            "1.5h",
            "366d",
            "1w",
            "15 m",
            "m15",
            "1ü",
            "99999999999999999999d",
        ] {
            assert!(ttl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users_and_devices_have_a_range() {
        assert!(parse("portico token --user 1 --device 65535").is_ok());
        for bad in [
            "portico token",
            "portico token --user 0",
            "portico token --user 18446744073709551615",
            "portico token --user 1 --device 0",
            "portico token --user 1 --device 65536",
            "portico chat --as 1",
            "portico config",
            "portico config --print-default --check x",
            "portico limits --connections 0",
            "portico limits --connections 1000000001",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
