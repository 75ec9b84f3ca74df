//! What is measured: where it listens, which process it is, and the key that it trusts.

use crate::{
    cli::Args,
    plan::{Plan, Protocol},
    process,
    tls::{self, Trust},
};
use anyhow::{Context, bail};
use portico_client::mint::SigningKey;
use std::{
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::Duration,
};

/// To see whether anything listens at all.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub address: SocketAddr,
    /// It is this machine: both ends of every connection take its memory.
    pub is_local: bool,
    /// The process to account for, if there is one to look at.
    pub pid: Option<u32>,
}

impl Target {
    pub(crate) fn find(args: &Args, plan: &Plan, trust: Option<&Trust>) -> anyhow::Result<Self> {
        let address = resolve(&args.target(plan))?;
        let is_local = probe(address, plan.protocol, trust)?;
        let listener = || is_local.then(|| process::find_listener(address)).flatten();
        Ok(Self {
            address,
            is_local,
            pid: args.server_pid.or_else(listener),
        })
    }
}

pub(crate) fn load_key(args: &Args) -> anyhow::Result<SigningKey> {
    let key_file = args.key_file();
    SigningKey::load(&key_file).with_context(|| {
        format!(
            "no usable signing key at {}; --data names the gateway's data directory, --key-file a \
             key",
            key_file.display()
        )
    })
}

/// The address of a target at which something listens.
pub(crate) fn reach(
    target: &str,
    protocol: Protocol,
    trust: Option<&Trust>,
) -> anyhow::Result<SocketAddr> {
    let address = resolve(target)?;
    probe(address, protocol, trust)?;
    Ok(address)
}

fn resolve(target: &str) -> anyhow::Result<SocketAddr> {
    target
        .to_socket_addrs()
        .with_context(|| format!("--target {target} is not HOST:PORT of a known host"))?
        .next()
        .with_context(|| format!("--target {target} has no address"))
}

/// The usual mistake deserves a plain answer, before anything else is complained about. True if the
/// target is this machine: then the connection has the same address at both ends.
fn probe(target: SocketAddr, protocol: Protocol, trust: Option<&Trust>) -> anyhow::Result<bool> {
    match TcpStream::connect_timeout(&target, PROBE_TIMEOUT) {
        Ok(stream) => {
            let own = stream.local_addr().map(|own| own.ip());
            drop(stream);
            if let Some(trust) = trust {
                tls::preflight(&target.to_string(), trust)?;
            }
            Ok(target.ip().is_loopback() || own.is_ok_and(|own| own == target.ip()))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let hint = match protocol {
                Protocol::Portico if trust.is_some() => {
                    "; start it with `portico serve --tls-listen ADDR`".to_owned()
                }
                Protocol::Portico => "; start it with `cargo run --release`".to_owned(),
                Protocol::Relay => {
                    format!("; start it with `portico-loadgen floor --listen {target}`")
                }
                other => format!("; is the server there that speaks {other} (see --target)?"),
            };
            bail!("nothing listens on {target}{hint}")
        }
        Err(error) => Err(error).with_context(|| format!("cannot connect to {target}")),
    }
}
