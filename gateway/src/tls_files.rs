//! The files that TLS is served with, and how they are read again while the gateway serves.
//!
//! # Invariants
//! - What cannot be used changes nothing: the gateway goes on with what it had, and says so once.
//! - Connections and sessions that exist stay as they are; new ones get what was read last.
//! - Without a file for it, the secret of tickets is made once and kept over reloads.

use portico_tls::{
    Acceptor, ClientMap, Clients, Identity, Settings, SettingsError, TicketSecret, UnixTime,
};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Where certificates and secrets lie.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// PEM: the server's certificate, then those between it and the authority.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// Random bytes that nodes share to open each other's tickets. None: a secret of this process.
    pub ticket_secret: Option<PathBuf>,
    pub clients: Option<ClientFiles>,
}

/// Which certificates of clients are accepted.
#[derive(Clone, Debug)]
pub struct ClientFiles {
    /// PEM: the authorities that sign them.
    pub authorities: PathBuf,
    /// Who shows none is refused.
    pub required: bool,
    /// Who they are.
    pub map: Arc<dyn ClientMap>,
}

/// What reading the files has come to, for operators. Shared with whoever asks.
#[derive(Debug, Default)]
pub struct TlsStatus {
    expires_unix_s: AtomicU64,
    reloaded: AtomicU64,
    failed: AtomicU64,
}

impl TlsStatus {
    /// When the certificate in use ends; 0 if its dates cannot be read.
    #[must_use]
    pub fn expires_unix_s(&self) -> u64 {
        self.expires_unix_s.load(Ordering::Relaxed)
    }

    /// Times new files came into use.
    #[must_use]
    pub fn reloaded(&self) -> u64 {
        self.reloaded.load(Ordering::Relaxed)
    }

    /// Times the files could not be used.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// What tells one state of a file from another, whatever links lead to it: device, inode, size,
/// time of change. None if it is not there.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// The files in use. See the [module](self).
#[derive(Debug)]
pub struct TlsReloader {
    files: TlsFiles,
    tickets: TicketSecret,
    acceptor: Acceptor,
    status: Arc<TlsStatus>,
    seen: Vec<Stamp>,
}

impl TlsReloader {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// A file that cannot be read or used; nothing serves then.
    pub fn open(files: TlsFiles) -> Result<Self, SettingsError> {
        let seen = stamps(&files);
        let tickets = match &files.ticket_secret {
            Some(file) => TicketSecret::read(file)?,
            None => TicketSecret::random()?,
        };
        let settings = read(&files, tickets.clone())?;
        let status = Arc::new(TlsStatus::default());
        note_dates(&settings.identity, &status);
        Ok(Self {
            acceptor: Acceptor::new(&settings)?,
            files,
            tickets,
            status,
            seen,
        })
    }

    /// Makes sessions with what was read last, also after this is gone.
    #[must_use]
    pub fn acceptor(&self) -> Acceptor {
        self.acceptor.clone()
    }

    #[must_use]
    pub fn status(&self) -> Arc<TlsStatus> {
        self.status.clone()
    }

    /// Reads the files again if one of them has changed. True if they came into use.
    pub fn reload_if_changed(&mut self) -> bool {
        stamps(&self.files) != self.seen && self.reload()
    }

    /// Reads the files again. True if they came into use.
    pub fn reload(&mut self) -> bool {
        self.seen = stamps(&self.files);
        match self.try_reload() {
            Ok(()) => {
                self.status.reloaded.fetch_add(1, Ordering::Relaxed);
                let certificate = self.files.certificate.display();
                tracing::info!(%certificate, "the TLS files were read again; new connections get them");
                true
            }
            Err(error) => {
                self.status.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "the TLS files cannot be used; the gateway goes on with those it had");
                false
            }
        }
    }

    fn try_reload(&mut self) -> Result<(), SettingsError> {
        let tickets = match &self.files.ticket_secret {
            Some(file) => TicketSecret::read(file)?,
            None => self.tickets.clone(),
        };
        let settings = read(&self.files, tickets)?;
        self.acceptor.reload(&settings)?;
        note_dates(&settings.identity, &self.status);
        self.tickets = settings.tickets;
        Ok(())
    }
}

fn read(files: &TlsFiles, tickets: TicketSecret) -> Result<Settings, SettingsError> {
    let identity = Identity::read(&files.certificate, &files.key)?;
    let clients = files.clients.as_ref();
    let clients = clients.map(|clients| {
        let map = clients.map.clone();
        Clients::read(&clients.authorities, clients.required, map)
    });
    Ok(Settings {
        clients: clients.transpose()?,
        ..Settings::new(identity, tickets)
    })
}

fn note_dates(identity: &Identity, status: &TlsStatus) {
    let ends_s = identity.validity().map_or(0, |dates| dates.not_after_s);
    status.expires_unix_s.store(ends_s, Ordering::Relaxed);
    if let Some(warning) = identity.warning(UnixTime::now()) {
        tracing::warn!("{warning}");
    }
}

fn stamps(files: &TlsFiles) -> Vec<Stamp> {
    let named: [Option<&Path>; 4] = [
        Some(&files.certificate),
        Some(&files.key),
        files.ticket_secret.as_deref(),
        files
            .clients
            .as_ref()
            .map(|clients| clients.authorities.as_path()),
    ];
    named.into_iter().flatten().map(stamp).collect()
}

fn stamp(file: &Path) -> Stamp {
    let data = fs::metadata(file).ok()?;
    Some((
        data.dev(),
        data.ino(),
        data.size(),
        data.mtime(),
        data.mtime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use portico_tls::{UriNames, self_signed};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn write(folder: &Path) {
        let made = self_signed(&["localhost"], UnixTime::now()).unwrap();
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("cert.pem"), made.certificate).unwrap();
        let key = folder.join("key.pem");
        fs::write(&key, made.key).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn files(folder: &Path) -> TlsFiles {
        TlsFiles {
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
            ticket_secret: None,
            clients: None,
        }
    }

    #[test]
    fn changed_files_come_into_use_and_bad_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path());
        let mut reloader = TlsReloader::open(files(folder.path())).unwrap();
        let status = reloader.status();
        assert!(status.expires_unix_s() > UnixTime::now().as_secs());
        assert!(!reloader.reload_if_changed(), "nothing has changed");
        write(folder.path());
        assert!(reloader.reload_if_changed());
        let key = folder.path().join("key.pem");
        fs::write(&key, "half a k").unwrap();
        assert!(!reloader.reload_if_changed());
        assert!(!reloader.reload_if_changed(), "and it is said once");
        assert_eq!((status.reloaded(), status.failed()), (1, 1));
        fs::remove_file(&key).unwrap();
        assert!(!reloader.reload_if_changed());
        write(folder.path());
        assert!(reloader.reload_if_changed());
        assert_eq!((status.reloaded(), status.failed()), (2, 2));
    }

    /// As an orchestrator does it: the folder behind a link is exchanged.
    #[test]
    fn a_link_that_points_elsewhere_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("1"), folder.path().join("2"));
        write(&first);
        write(&second);
        let link = folder.path().join("now");
        symlink(&first, &link).unwrap();
        let mut reloader = TlsReloader::open(files(&link)).unwrap();
        assert!(!reloader.reload_if_changed());
        let next = folder.path().join("next");
        symlink(&second, &next).unwrap();
        fs::rename(&next, &link).unwrap();
        assert!(reloader.reload_if_changed());
    }

    #[test]
    fn what_is_missing_at_the_start_is_named() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path());
        let absent = folder.path().join("absent");
        let with_secret = TlsFiles {
            ticket_secret: Some(absent.clone()),
            ..files(folder.path())
        };
        let with_clients = TlsFiles {
            clients: Some(ClientFiles {
                authorities: absent.clone(),
                required: true,
                map: Arc::new(UriNames),
            }),
            ..files(folder.path())
        };
        for files in [files(&absent), with_secret, with_clients] {
            let error = TlsReloader::open(files).unwrap_err().to_string();
            assert!(error.contains(&absent.display().to_string()), "{error}");
        }
    }
}
