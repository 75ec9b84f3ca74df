//! The program `portico`.
//!
//! Parses the command line, and hands over to one function per command. Answers go to standard
//! output; what people should read while the gateway runs goes to standard error.

mod admin;
mod cli;
mod config;
mod limits;
mod manager;
mod personal;
mod probe;
mod revoke;
mod sealed;
mod serve;
mod stored;
mod telemetry;

use clap::{Parser, error::ErrorKind};
use cli::{
    Cli, Command, ConfigArgs, DeviceCommand, LimitsArgs, ServeArgs, StoreCommand, TokenArgs,
    UserCommand,
};
use config::{Config, ConfigError, CoreDumps, Env, ProcessEnv, Sources};
use portico_client::{
    chat::{self, ChatOptions},
    mint::SigningKey,
};
use portico_wire::ids::{DeviceId, UserId};
use std::{
    fmt::Display,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// EX_USAGE of sysexits: the command line or the configuration is wrong.
const BAD_USE: u8 = 64;

/// Why a command did not do what it was told.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The user has to change something in what was asked.
    Use(String),
    Runtime(String),
    /// The answer is given, and is not that all is well; with a sentence if there is none.
    Verdict(Option<String>, u8),
}

impl Failure {
    pub(crate) fn runtime(error: impl Display) -> Self {
        Self::Runtime(error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Use(error.to_string())
    }
}

impl From<probe::Refusal> for Failure {
    fn from(refusal: probe::Refusal) -> Self {
        match refusal {
            probe::Refusal::Cpu { .. } => Self::Use(refusal.to_string()),
            other => Self::runtime(other),
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed stream is no reason to fail.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(BAD_USE),
            };
        }
    };
    let done = match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => load(&args).and_then(|config| {
            sealed::seal(config.server.core_dumps).map_err(Failure::runtime)?;
            serve::serve(&config)
        }),
        Command::Token(args) => token(&args),
        Command::Device(DeviceCommand::Revoke(args)) => revoke::revoke(args),
        Command::Chat(args) => chat(args),
        Command::Config(args) => configuration(args),
        Command::Probe(args) => load(&args).and_then(|config| {
            let machine = probe::look(&config)?;
            answer(&machine.to_string())
        }),
        Command::Limits(args) => limits(&args),
        Command::Store(StoreCommand::Check(args)) => stored::check(args),
        Command::Store(StoreCommand::Salvage(args)) => stored::salvage(args),
        Command::User(UserCommand::Export(args)) => personal::export(args),
        Command::User(UserCommand::Erase(args)) => personal::erase(args),
        Command::Metrics => answer(&admin::table()),
        Command::Version => answer(&format!(
            "portico {} (commit {}, protocol {})\n",
            admin::VERSION,
            admin::COMMIT,
            portico_wire::VERSION
        )),
    };
    let (message, code) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Use(message)) => (message, ExitCode::from(BAD_USE)),
        Err(Failure::Runtime(message)) => (message, ExitCode::FAILURE),
        Err(Failure::Verdict(None, code)) => return ExitCode::from(code),
        Err(Failure::Verdict(Some(message), code)) => (message, ExitCode::from(code)),
    };
    let _ = writeln!(io::stderr(), "portico: {message}");
    code
}

fn load(args: &ServeArgs) -> Result<Config, Failure> {
    Ok(Config::load(Sources {
        file: args.config.clone(),
        env: &ProcessEnv,
        flags: args.settings(),
    })?)
}

fn limits(args: &LimitsArgs) -> Result<(), Failure> {
    let form = if args.json {
        limits::Form::Json
    } else {
        limits::Form::Text
    };
    let (report, enough) = limits::report(&load(&args.serve)?, args.connections, form)?;
    answer(&report)?;
    if enough {
        return Ok(());
    }
    let lacking = "so many connections need more than there is";
    Err(Failure::Runtime(lacking.to_owned()))
}

/// The data directory for commands beside a gateway: flag, environment, default.
fn data_dir(flag: Option<String>) -> PathBuf {
    let named = flag.or_else(|| {
        let variables = ProcessEnv.variables("PORTICO_DATA");
        let exact = |(name, _): &(String, String)| name == "PORTICO_DATA";
        variables.into_iter().find(exact).map(|(_, value)| value)
    });
    named.map_or_else(|| config::Settings::default().server.data, PathBuf::from)
}

fn token(args: &TokenArgs) -> Result<(), Failure> {
    sealed::seal(CoreDumps::Never).map_err(Failure::runtime)?;
    let path = data_dir(args.data.clone()).join(portico_gateway::AUTH_KEY_FILE);
    let key = SigningKey::load(&path).map_err(|error| {
        Failure::Runtime(format!(
            "{}: {error} (`portico serve` makes one; is --data the gateway's directory?)",
            path.display()
        ))
    })?;
    let now_unix_s = unix_s()?;
    let (user, device) = (UserId(args.user), DeviceId(args.device));
    let token = key.token(user, device, args.generation, args.ttl.0, now_unix_s);
    answer(&format!("{token}\n"))
}

fn unix_s() -> Result<u64, Failure> {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|since| since.as_secs())
        .map_err(|_| Failure::Runtime("the clock stands before 1970".to_owned()))
}

fn chat(args: cli::ChatArgs) -> Result<(), Failure> {
    let data = data_dir(args.data.clone());
    sealed::seal(CoreDumps::Never).map_err(Failure::runtime)?;
    let options = ChatOptions {
        device: DeviceId(args.device),
        target: args.target().to_owned(),
        tls: args.tls(&data)?,
        data,
        color: args.color(),
        follow: args.follow,
        ..ChatOptions::new(UserId(args.me), UserId(args.to))
    };
    chat::run(options).map_err(Failure::runtime)
}

fn configuration(args: ConfigArgs) -> Result<(), Failure> {
    if let Some(file) = args.check {
        Config::load(Sources {
            file: Some(file.clone()),
            env: &ProcessEnv,
            flags: Vec::new(),
        })?;
        return answer(&format!("{} is good\n", file.display()));
    }
    // The only other thing the command line lets through.
    debug_assert!(args.print_default);
    answer(&config::default_file())
}

/// Prints to standard output. A reader that has gone (`portico metrics | head`) is no failure.
fn answer(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::runtime(error)),
        _ => Ok(()),
    }
}
