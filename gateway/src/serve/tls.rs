//! TLS of the program: its files from the settings, a certificate for trying it out, and the thread
//! that looks whether the files have changed.

use crate::{Failure, config::Config};
use portico_gateway::{
    ClientFiles, TlsFiles, TlsOptions, TlsReloader, TlsStatus,
    tls::{Identity, UnixTime, UriNames, self_signed},
};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

/// How often the files are looked at: one call of the system for each.
const LOOK_EVERY: Duration = Duration::from_secs(2);
pub(super) const CERTIFICATE_FILE: &str = "tls-cert.pem";
const KEY_FILE: &str = "tls-key.pem";
/// A certificate of our own that ends sooner is made anew: three days, in seconds.
const LEFT_MIN_S: u64 = 3 * 86_400;

/// TLS as the settings want it.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) options: TlsOptions,
    reloader: TlsReloader,
}

impl Tls {
    /// None if it is off.
    pub(super) fn open(config: &Config) -> Result<Option<Self>, Failure> {
        let tls = &config.tls;
        let Some(listen) = tls.listen else {
            return Ok(None);
        };
        let (certificate, key) = match (&tls.cert, &tls.key) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            // Settings without both have `self_signed`.
            _ => {
                let data = &config.server.data;
                keep_self_signed(data, listen)?;
                (data.join(CERTIFICATE_FILE), data.join(KEY_FILE))
            }
        };
        let clients = tls.client_ca.as_ref().map(|authorities| ClientFiles {
            authorities: authorities.clone(),
            required: tls.client_required,
            map: Arc::new(UriNames),
        });
        let files = TlsFiles {
            certificate,
            key,
            ticket_secret: tls.ticket_secret.clone(),
            clients,
        };
        let reloader = TlsReloader::open(files).map_err(Failure::runtime)?;
        Ok(Some(Self {
            options: TlsOptions {
                listen,
                handshakes_per_turn: tls.handshakes_per_turn,
                handshake_ms: tls.handshake_ms,
                hibernate_after_s: tls.hibernate_after_s,
                ..TlsOptions::new(reloader.acceptor())
            },
            reloader,
        }))
    }

    pub(super) fn status(&self) -> Arc<TlsStatus> {
        self.reloader.status()
    }

    /// Looks at the files from now on. What is sent has them read in any case; when the sender is
    /// gone, the thread ends.
    pub(super) fn watch(self) -> Result<mpsc::Sender<()>, Failure> {
        let (order, ordered) = mpsc::channel();
        let mut reloader = self.reloader;
        thread::Builder::new()
            .name("portico-tls-files".to_owned())
            .spawn(move || {
                loop {
                    match ordered.recv_timeout(LOOK_EVERY) {
                        Ok(()) => reloader.reload(),
                        Err(mpsc::RecvTimeoutError::Timeout) => reloader.reload_if_changed(),
                        Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    };
                }
            })
            .map_err(|error| Failure::Runtime(format!("cannot start a thread: {error}")))?;
        Ok(order)
    }
}

/// Makes a certificate in the data directory, unless there is one that is good for some days.
fn keep_self_signed(data: &Path, listen: SocketAddr) -> Result<(), Failure> {
    let (certificate, key) = (data.join(CERTIFICATE_FILE), data.join(KEY_FILE));
    let now = UnixTime::now();
    let until_s = now.as_secs() + LEFT_MIN_S;
    let good = Identity::read(&certificate, &key).is_ok_and(|identity| {
        let dates = identity.validity();
        dates
            .is_some_and(|dates| dates.not_before_s <= now.as_secs() && until_s < dates.not_after_s)
    });
    if good {
        return Ok(());
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let listen = listen.ip();
    let listen = Some(listen).filter(|ip| !ip.is_unspecified() && !ip.is_loopback());
    let listen = listen.map(|ip| ip.to_string());
    let mut names = vec!["localhost", "127.0.0.1", "::1"];
    names.extend(Some(host.trim()).filter(|host| !host.is_empty() && *host != "localhost"));
    names.extend(listen.as_deref());
    let made = self_signed(&names, now).map_err(Failure::runtime)?;
    // The key first: a certificate is there only with its key.
    replace(&key, &made.key, 0o600)?;
    replace(&certificate, &made.certificate, 0o644)
}

/// Writes a file under another name, then gives it its own.
fn replace(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let fresh = path.with_extension("new");
    let written = || -> io::Result<()> {
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let options = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&fresh);
        let mut file = options?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    written().map_err(|error| Failure::Runtime(format!("cannot write {}: {error}", path.display())))
}
