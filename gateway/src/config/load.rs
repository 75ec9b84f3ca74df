//! From the four sources to checked settings.

use super::{
    Config, ConfigError, KNOBS, Origin, Settings,
    knobs::Knob,
    value::{Given, NotAllowed},
};
use portico_gateway::RingSizes;
use portico_wire::limits::FRAME_BYTES_TO_CLIENT_MAX;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Names the configuration file where no flag does.
const FILE_VARIABLE: &str = "PORTICO_CONFIG";
const PREFIX: &str = "PORTICO_";

/// Reads environment variables: the real ones, or a test's.
pub(crate) trait Env {
    /// All variables whose name begins with `prefix`.
    fn variables(&self, prefix: &str) -> Vec<(String, String)>;
}

/// The environment of this process.
#[derive(Debug)]
pub(crate) struct ProcessEnv;

impl Env for ProcessEnv {
    fn variables(&self, prefix: &str) -> Vec<(String, String)> {
        std::env::vars_os()
            .map(|(name, value)| {
                let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
                (text(name), text(value))
            })
            .filter(|(name, _)| name.starts_with(prefix))
            .collect()
    }
}

/// What settings are made from, besides the defaults.
pub(crate) struct Sources<'a> {
    /// `--config`.
    pub(crate) file: Option<PathBuf>,
    pub(crate) env: &'a dyn Env,
    /// (key, name of the flag, value).
    pub(crate) flags: Vec<(&'static str, &'static str, String)>,
}

impl std::fmt::Debug for Sources<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}

impl Config {
    pub(crate) fn load(sources: Sources<'_>) -> Result<Self, ConfigError> {
        let Sources { file, env, flags } = sources;
        let mut settings = Settings::default();
        let mut variables = env.variables(PREFIX);
        // The order of the environment means nothing, but which error comes first should not vary.
        variables.sort();
        let named = variables
            .iter()
            .find(|(name, _)| name == FILE_VARIABLE)
            .map(|(_, path)| PathBuf::from(path));
        if let Some(path) = file.or(named) {
            read_file(&mut settings, &path)?;
        }
        for (name, value) in &variables {
            read_variable(&mut settings, name, value)?;
        }
        for (key, flag, value) in &flags {
            let origin = Origin::Flag(flag);
            let knob = Knob::find(key).ok_or_else(|| unknown(key, origin.clone()))?;
            set(&mut settings, knob, &Given::Plain(value), origin)?;
        }
        check(&mut settings)?;
        Ok(Self(settings))
    }
}

fn read_file(settings: &mut Settings, path: &Path) -> Result<(), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            detail: error.to_string().trim_end().to_owned(),
        })?;
    read_table(settings, "", &table, path)
}

/// Sections nest one deep in the table of knobs; deeper ones end as unknown keys.
fn read_table(
    settings: &mut Settings,
    section: &str,
    table: &Table,
    path: &Path,
) -> Result<(), ConfigError> {
    for (name, value) in table {
        let key = if section.is_empty() {
            name.clone()
        } else {
            format!("{section}.{name}")
        };
        let origin = Origin::File(path.to_owned());
        match (Knob::find(&key), value) {
            (Some(knob), _) => set(settings, knob, &Given::Typed(value), origin)?,
            (None, Value::Table(inner)) if Knob::is_section(&key) || !inner.is_empty() => {
                read_table(settings, &key, inner, path)?;
            }
            (None, _) => return Err(unknown(&key, origin)),
        }
    }
    Ok(())
}

fn read_variable(settings: &mut Settings, name: &str, value: &str) -> Result<(), ConfigError> {
    let origin = Origin::Environment(name.to_owned());
    match KNOBS.iter().find(|knob| knob.variable() == name) {
        Some(knob) => set(settings, knob, &Given::Plain(value), origin),
        None if name == FILE_VARIABLE || is_of_orchestrator(name) => Ok(()),
        None => Err(ConfigError::UnknownKey {
            nearest: nearest(name, KNOBS.iter().map(Knob::variable)),
            key: name.to_owned(),
            origin,
        }),
    }
}

/// Kubernetes gives each container such variables for a service named `portico`.
fn is_of_orchestrator(name: &str) -> bool {
    name.starts_with("PORTICO_SERVICE_") || name.starts_with("PORTICO_PORT")
}

fn set(
    settings: &mut Settings,
    knob: &Knob,
    given: &Given<'_>,
    origin: Origin,
) -> Result<(), ConfigError> {
    let slot = (knob.slot)(settings);
    let allowed = slot.allowed(knob.bounds);
    slot.set(given, knob.bounds)
        .map_err(|NotAllowed| ConfigError::BadValue {
            key: knob.key,
            value: given.show(),
            origin,
            allowed,
        })
}

/// What single values cannot show.
fn check(settings: &mut Settings) -> Result<(), ConfigError> {
    let limits = &settings.limits;
    let session = &settings.session;
    let (drain, ring) = (&settings.drain, &settings.ring);
    let room = limits
        .outbox_bytes_soft
        .saturating_add(limits.page_bytes_max as usize)
        .saturating_add(FRAME_BYTES_TO_CLIENT_MAX);
    let server = &settings.server;
    let same_port = server.listen == server.admin && server.listen.port() != 0;
    let tls = &settings.tls;
    let tls_port = tls.listen.filter(|address| address.port() != 0);
    let certified = tls.cert.is_some() || tls.self_signed;
    let rules = [
        (
            session.heartbeat_min_s <= session.heartbeat_s,
            ("session.heartbeat_min_s", "session.heartbeat_s"),
            "the first may not be greater",
        ),
        (
            session.heartbeat_s <= session.heartbeat_max_s,
            ("session.heartbeat_s", "session.heartbeat_max_s"),
            "the first may not be greater",
        ),
        (
            room <= limits.outbox_bytes_max,
            ("limits.outbox_bytes_soft", "limits.outbox_bytes_max"),
            "between them a page (limits.page_bytes_max) and one frame of 65536 bytes must fit, \
             or a reader that keeps up could be closed as slow",
        ),
        (
            limits.store_requests_soft <= limits.store_requests_max,
            ("limits.store_requests_soft", "limits.store_requests_max"),
            "the first may not be greater",
        ),
        (
            limits.store_bytes_soft <= limits.store_bytes_max,
            ("limits.store_bytes_soft", "limits.store_bytes_max"),
            "the first may not be greater",
        ),
        (
            ring.completions == RingSizes::AUTO || ring.submissions <= ring.completions,
            ("ring.submissions", "ring.completions"),
            "the first may not be greater",
        ),
        (
            drain.spread_ms <= drain.deadline_ms,
            ("drain.spread_ms", "drain.deadline_ms"),
            "clients that leave last would meet the deadline",
        ),
        (
            !same_port,
            ("server.listen", "server.admin"),
            "clients and operators need two ports",
        ),
        (
            server.allow_plaintext || server.listen.ip().is_loopback(),
            ("server.listen", "server.allow_plaintext"),
            "what goes through this port can be read on its way: keep it on 127.0.0.1 and let clients \
             come through TLS (--tls-listen), or say --allow-plaintext",
        ),
        (
            tls_port.is_none_or(|address| address != server.listen),
            ("tls.listen", "server.listen"),
            "TLS and plain text need two ports",
        ),
        (
            tls_port.is_none_or(|address| address != server.admin),
            ("tls.listen", "server.admin"),
            "clients and operators need two ports",
        ),
        (
            tls.cert.is_some() == tls.key.is_some(),
            ("tls.cert", "tls.key"),
            "a certificate and its key come together",
        ),
        (
            !(tls.cert.is_some() && tls.self_signed),
            ("tls.cert", "tls.self_signed"),
            "it is one or the other",
        ),
        (
            tls.listen.is_none() || certified,
            ("tls.listen", "tls.cert"),
            "TLS needs a certificate: --tls-cert FILE --tls-key FILE, or --tls-self-signed to try it out",
        ),
        (
            tls.listen.is_some() || !certified,
            ("tls.listen", "tls.self_signed"),
            "a certificate is of no use without a port: --tls-listen ADDR, such as 0.0.0.0:7443",
        ),
        (
            tls.client_ca.is_some() || !tls.client_required,
            ("tls.client_ca", "tls.client_required"),
            "name the authorities that sign the certificates of clients",
        ),
    ];
    for (holds, (left, right), rule) in rules {
        if !holds {
            return Err(ConfigError::BadCombination {
                left,
                left_value: shown(settings, left),
                right,
                right_value: shown(settings, right),
                rule,
            });
        }
    }
    Ok(())
}

fn shown(settings: &mut Settings, key: &str) -> String {
    Knob::find(key).map_or_else(String::new, |knob| (knob.slot)(settings).show())
}

fn unknown(key: &str, origin: Origin) -> ConfigError {
    ConfigError::UnknownKey {
        nearest: nearest(key, KNOBS.iter().map(|knob| knob.key.to_owned())),
        key: key.to_owned(),
        origin,
    }
}

/// The known name that looks most like this one, if any looks like it at all. The same last part
/// in another section counts as close: that is what moved settings look like.
fn nearest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let last = |text: &str| text.rsplit('.').next().unwrap_or_default().to_owned();
    known
        .map(|candidate| {
            let moved = last(&candidate) == last(name);
            let distance = if moved { 1 } else { edits(name, &candidate) };
            (distance, candidate)
        })
        .min()
        .filter(|(distance, _)| *distance <= 2.max(name.len() / 4))
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance of two short texts.
fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = i;
        let mut beside = i + 1;
        for (b, above) in right.iter().zip(row.iter_mut().skip(1)) {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = *above;
            *above = replaced.min(diagonal + 1).min(beside + 1);
            beside = *above;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (left, right, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("listen", "listen", 0),
            ("lsiten", "listen", 2),
        ] {
            assert_eq!(edits(left, right), expected, "{left} {right}");
        }
    }
}
