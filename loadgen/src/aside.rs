//! Commands beside the measuring ones: servers that this program is measured against, or that
//! others are compared with.

use crate::{floor, sink};
use anyhow::Context;
use clap::{Args, Subcommand};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener},
    process, thread,
    time::Duration,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Aside {
    /// Copies bytes from senders to receivers and parses nothing: what a machine costs with no
    /// gateway in it (for --protocol relay)
    Floor {
        #[command(flatten)]
        serve: Serve,
    },
    /// Speaks as much of Portico's protocol as clients need to log in, and discards what they send
    /// or answers it after a known time: to measure and test this program itself. Checks no
    /// signatures
    Sink {
        #[command(flatten)]
        serve: Serve,
        #[command(flatten)]
        behaviour: sink::Behaviour,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where to listen; port 0: a free one, which the first line on standard output names
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Processor to run on
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    /// End when standard input ends, so that whoever started this need not stop it
    #[arg(long)]
    until_eof: bool,
}

impl Aside {
    /// Serves until a signal or the end of standard input ends the process.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        crate::process::raise_open_file_limit().context("cannot raise the open file limit")?;
        match self {
            Self::Floor { serve } => floor::run(serve.listen()?, serve.served()),
            Self::Sink { serve, behaviour } => {
                sink::run(serve.listen()?, serve.served(), *behaviour)
            }
        }
    }
}

impl Serve {
    fn listen(&self) -> anyhow::Result<TcpListener> {
        if let Some(cpu) = self.cpu {
            let mut set = CpuSet::new();
            anyhow::ensure!(cpu < CpuSet::MAX_CPU, "--cpu {cpu} is no processor");
            set.set(cpu);
            sched_setaffinity(None, &set)
                .with_context(|| format!("cannot run on processor {cpu} (see --cpu)"))?;
        }
        let listener = TcpListener::bind(self.listen);
        let listener =
            listener.with_context(|| format!("cannot listen on {} (see --listen)", self.listen))?;
        // The standard library asks for 128: too few when thousands log in.
        rustix::net::listen(&listener, BACKLOG).context("cannot lengthen the queue of logins")?;
        Ok(listener)
    }

    const fn served(&self) -> Served {
        Served {
            until_eof: self.until_eof,
        }
    }
}

const BACKLOG: i32 = 4_096;

/// What is said and watched once a server listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    until_eof: bool,
}

impl Served {
    /// Says where the server listens.
    pub(crate) fn ready(self, address: SocketAddr) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "listening on {address}")
            .and_then(|()| out.flush())
            .context("cannot say on standard output where this listens")?;
        if self.until_eof {
            thread::Builder::new()
                .name("until-eof".to_owned())
                .spawn(|| {
                    let mut byte = [0];
                    loop {
                        match io::stdin().read(&mut byte) {
                            Ok(0) => process::exit(0),
                            Ok(_) => {}
                            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                            Err(_) => process::exit(0),
                        }
                        // Who writes to it does not keep this busy.
                        thread::sleep(Duration::from_millis(1));
                    }
                })
                .context("cannot watch standard input (--until-eof)")?;
        }
        Ok(())
    }
}
