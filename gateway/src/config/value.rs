//! Values as they are written: parsing, what is allowed, and printing back.

use super::{BackendKind, CoreDumps, LogFormat, LogLevel};
use portico_gateway::{Network, TlsOptions, is_key_url};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};
use toml::Value;

/// The place of one setting, by its type.
pub(super) enum Slot<'a> {
    U16(&'a mut u16),
    U32(&'a mut u32),
    U64(&'a mut u64),
    Usize(&'a mut usize),
    /// Powers of two, or `auto`, which is 0.
    Power16(&'a mut u16),
    Power32(&'a mut u32),
    Address(&'a mut SocketAddr),
    /// Nowhere, or an address, whose port may be left to this one.
    MaybeAddress(&'a mut Option<SocketAddr>),
    Path(&'a mut PathBuf),
    /// None is empty.
    MaybePath(&'a mut Option<PathBuf>),
    Paths(&'a mut Vec<PathBuf>),
    Name(&'a mut String),
    /// As long as addresses are.
    Text(&'a mut String),
    /// Where keys are fetched from.
    KeyUrl(&'a mut String),
    Backend(&'a mut BackendKind),
    CoreDumps(&'a mut CoreDumps),
    /// A number, or `auto`.
    Count(&'a mut Option<u16>),
    Cpus(&'a mut Vec<u16>),
    Networks(&'a mut Vec<Network>),
    Switch(&'a mut bool),
    Level(&'a mut LogLevel),
    Format(&'a mut LogFormat),
}

/// A value as it was given.
pub(super) enum Given<'a> {
    /// By the file, which knows types.
    Typed(&'a Value),
    /// By the environment or a flag.
    Plain(&'a str),
}

/// What a setting may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) min: u64,
    pub(super) max: u64,
    pub(super) unit: &'static str,
}

/// The value is not what it may be; the caller knows the rest.
#[derive(Debug)]
pub(super) struct NotAllowed;

/// Greatest CPU number that can be named.
const CPU_MAX: u16 = 4_095;
const NAME_BYTES_MAX: usize = 64;
const TLS_PORT: u16 = TlsOptions::PORT;
const TEXT_BYTES_MAX: usize = 1_024;
/// Leaves a number to the gateway.
const AUTO: &str = "auto";
const BACKENDS: [(&str, BackendKind); 2] = [
    ("embedded", BackendKind::Embedded),
    ("memory", BackendKind::Memory),
];
const CORE_DUMPS: [(&str, CoreDumps); 2] =
    [("never", CoreDumps::Never), ("allowed", CoreDumps::Allowed)];
const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
const FORMATS: [(&str, LogFormat); 2] =
    [("text", LogFormat::Text), ("journal", LogFormat::Journal)];

impl Slot<'_> {
    /// Takes the value if it is allowed; otherwise nothing changes.
    pub(super) fn set(self, given: &Given<'_>, bounds: Bounds) -> Result<(), NotAllowed> {
        match self {
            Self::U16(slot) => number(given, bounds, slot),
            Self::U32(slot) => number(given, bounds, slot),
            Self::U64(slot) => number(given, bounds, slot),
            Self::Usize(slot) => number(given, bounds, slot),
            Self::Power16(slot) => power_or_auto(given, bounds, slot),
            Self::Power32(slot) => power_or_auto(given, bounds, slot),
            Self::Count(slot) => {
                if given.text() == Some(AUTO) {
                    *slot = None;
                    return Ok(());
                }
                let mut count = 0;
                number(given, bounds, &mut count)?;
                *slot = Some(count);
                Ok(())
            }
            Self::Address(slot) => put(slot, given.text().and_then(|text| text.parse().ok())),
            Self::MaybeAddress(slot) => put(slot, given.text().and_then(maybe_address)),
            Self::Path(slot) => put(slot, given.text().and_then(path)),
            Self::MaybePath(slot) => put(slot, given.text().and_then(maybe_path)),
            Self::Paths(slot) => put(
                slot,
                given
                    .list()
                    .and_then(|all| all.into_iter().map(path).collect()),
            ),
            Self::Name(slot) => put(slot, given.text().and_then(name)),
            Self::Text(slot) => put(
                slot,
                given.text().and_then(|text| ascii(text, TEXT_BYTES_MAX)),
            ),
            Self::KeyUrl(slot) => {
                let url = given.text().filter(|text| is_key_url(text));
                put(slot, url.map(str::to_owned))
            }
            Self::Backend(slot) => put(slot, choice(given, &BACKENDS)),
            Self::CoreDumps(slot) => put(slot, choice(given, &CORE_DUMPS)),
            Self::Level(slot) => put(slot, choice(given, &LEVELS)),
            Self::Format(slot) => put(slot, choice(given, &FORMATS)),
            Self::Cpus(slot) => put(slot, given.text().and_then(cpu_list)),
            Self::Networks(slot) => put(
                slot,
                given
                    .list()
                    .and_then(|all| all.into_iter().map(|text| text.parse().ok()).collect()),
            ),
            Self::Switch(slot) => put(slot, given.switch()),
        }
    }

    /// In words, for messages and for the printed file.
    pub(super) fn allowed(&self, bounds: Bounds) -> String {
        let Bounds { min, max, unit } = bounds;
        let space = if unit.is_empty() { "" } else { " " };
        match self {
            Self::U16(_) | Self::U32(_) | Self::U64(_) | Self::Usize(_) => {
                format!("{min} to {max}{space}{unit}")
            }
            Self::Power16(_) | Self::Power32(_) => {
                format!("a power of two from {min} to {max}{space}{unit}, or \"{AUTO}\"")
            }
            Self::Count(_) => format!("{min} to {max}{space}{unit}, or \"{AUTO}\""),
            Self::Address(_) => {
                "an IP address and a port, such as 127.0.0.1:7400 or [::]:7400".to_owned()
            }
            Self::MaybeAddress(_) => format!(
                "an IP address, and a port unless it is {TLS_PORT}, such as 0.0.0.0 or [::]:8443; \
                 empty is off"
            ),
            Self::Path(_) => "a path".to_owned(),
            Self::MaybePath(_) => "a path, or nothing".to_owned(),
            Self::Switch(_) => "true or false".to_owned(),
            Self::Paths(_) => "a list of paths (in the environment separated by commas)".to_owned(),
            Self::Networks(_) => {
                "a list of networks, such as 10.0.0.0/8 or 2001:db8::/32 (in the environment \
                 separated by commas)"
                    .to_owned()
            }
            Self::Name(_) => format!("at most {NAME_BYTES_MAX} printable ASCII characters"),
            Self::Text(_) => format!("at most {TEXT_BYTES_MAX} printable ASCII characters"),
            Self::KeyUrl(_) => "an https:// address without a name and password in it (http:// on \
                                this machine only), or \"\""
                .to_owned(),
            Self::Backend(_) => names(&BACKENDS),
            Self::CoreDumps(_) => names(&CORE_DUMPS),
            Self::Level(_) => names(&LEVELS),
            Self::Format(_) => names(&FORMATS),
            Self::Cpus(_) => format!(
                "\"all\", or numbers and ranges without repetition, such as 0,2,4-7, up to {CPU_MAX}"
            ),
        }
    }

    /// The value as TOML.
    pub(super) fn show(&self) -> String {
        match self {
            Self::U16(value) => value.to_string(),
            Self::U32(value) => value.to_string(),
            Self::U64(value) => value.to_string(),
            Self::Usize(value) => value.to_string(),
            Self::Power16(0) | Self::Power32(0) | Self::Count(None) => quoted(AUTO),
            Self::Power16(value) => value.to_string(),
            Self::Power32(value) => value.to_string(),
            Self::Count(Some(count)) => count.to_string(),
            Self::Address(value) => quoted(&value.to_string()),
            Self::MaybeAddress(value) => {
                quoted(&value.map_or_else(String::new, |address| address.to_string()))
            }
            Self::Path(value) => quoted(&value.display().to_string()),
            Self::MaybePath(value) => {
                let shown = value.as_ref().map(|path| path.display().to_string());
                quoted(&shown.unwrap_or_default())
            }
            Self::Switch(value) => value.to_string(),
            Self::Paths(value) => {
                let all: Vec<_> = value
                    .iter()
                    .map(|path| quoted(&path.display().to_string()))
                    .collect();
                format!("[{}]", all.join(", "))
            }
            Self::Networks(value) => {
                let all: Vec<_> = value.iter().map(|net| quoted(&net.to_string())).collect();
                format!("[{}]", all.join(", "))
            }
            Self::Name(value) | Self::Text(value) | Self::KeyUrl(value) => quoted(value),
            Self::Backend(value) => quoted(name_of(**value, &BACKENDS)),
            Self::CoreDumps(value) => quoted(name_of(**value, &CORE_DUMPS)),
            Self::Level(value) => quoted(name_of(**value, &LEVELS)),
            Self::Format(value) => quoted(name_of(**value, &FORMATS)),
            Self::Cpus(value) if value.is_empty() => quoted("all"),
            Self::Cpus(value) => {
                let all: Vec<_> = value.iter().map(u16::to_string).collect();
                quoted(&all.join(","))
            }
        }
    }
}

impl Given<'_> {
    /// The value as a message shows it.
    pub(super) fn show(&self) -> String {
        match self {
            Self::Typed(value) => value.to_string(),
            Self::Plain(text) => quoted(text),
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Typed(value) => value.as_str(),
            Self::Plain(text) => Some(text),
        }
    }

    fn list(&self) -> Option<Vec<&str>> {
        match self {
            Self::Typed(value) => value.as_array()?.iter().map(Value::as_str).collect(),
            Self::Plain("") => Some(Vec::new()),
            Self::Plain(text) => Some(text.split(',').collect()),
        }
    }

    fn switch(&self) -> Option<bool> {
        match self {
            Self::Typed(value) => value.as_bool(),
            Self::Plain(text) => text.parse().ok(),
        }
    }

    fn number(&self) -> Option<u64> {
        match self {
            Self::Typed(value) => u64::try_from(value.as_integer()?).ok(),
            // Digits only: what `parse` takes besides is a sign.
            Self::Plain(text) if text.starts_with('+') => None,
            Self::Plain(text) => text.parse().ok(),
        }
    }
}

fn put<T>(slot: &mut T, value: Option<T>) -> Result<(), NotAllowed> {
    *slot = value.ok_or(NotAllowed)?;
    Ok(())
}

fn number<T: TryFrom<u64>>(
    given: &Given<'_>,
    bounds: Bounds,
    slot: &mut T,
) -> Result<(), NotAllowed> {
    let value = given
        .number()
        .filter(|value| (bounds.min..=bounds.max).contains(value))
        .and_then(|value| T::try_from(value).ok());
    put(slot, value)
}

/// 0 and the word mean the same.
fn power_or_auto<T: TryFrom<u64> + Default>(
    given: &Given<'_>,
    bounds: Bounds,
    slot: &mut T,
) -> Result<(), NotAllowed> {
    match given.number() {
        Some(0) => *slot = T::default(),
        None if given.text() == Some(AUTO) => *slot = T::default(),
        Some(value) if value.is_power_of_two() => return number(given, bounds, slot),
        Some(_) | None => return Err(NotAllowed),
    }
    Ok(())
}

fn choice<T: Copy>(given: &Given<'_>, from: &[(&str, T)]) -> Option<T> {
    let text = given.text()?;
    from.iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
}

fn name_of<T: Copy + PartialEq>(value: T, from: &[(&'static str, T)]) -> &'static str {
    from.iter()
        .find(|(_, candidate)| *candidate == value)
        .map_or("", |(name, _)| name)
}

fn names<T>(from: &[(&str, T)]) -> String {
    let all: Vec<_> = from.iter().map(|(name, _)| quoted(name)).collect();
    all.join(" or ")
}

fn path(text: &str) -> Option<PathBuf> {
    // The second is what is left of a name that is not UTF-8: another file than was meant.
    let broken = ['\0', char::REPLACEMENT_CHARACTER];
    (!text.is_empty() && !text.contains(broken)).then(|| PathBuf::from(text))
}

fn maybe_path(text: &str) -> Option<Option<PathBuf>> {
    match text {
        "" => Some(None),
        text => path(text).map(Some),
    }
}

fn maybe_address(text: &str) -> Option<Option<SocketAddr>> {
    if text.is_empty() {
        return Some(None);
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let with_port = || {
        let ip: IpAddr = bare.unwrap_or(text).parse().ok()?;
        Some(SocketAddr::new(ip, TLS_PORT))
    };
    text.parse().ok().or_else(with_port).map(Some)
}

fn name(text: &str) -> Option<String> {
    ascii(text, NAME_BYTES_MAX)
}

fn ascii(text: &str, bytes_max: usize) -> Option<String> {
    let fits = text.len() <= bytes_max && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    fits.then(|| text.to_owned())
}

/// `all`, or `0,2,4-7`. In the order given, because shards are placed in that order.
fn cpu_list(text: &str) -> Option<Vec<u16>> {
    if text == "all" {
        return Some(Vec::new());
    }
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (cpu(first)?, cpu(last)?);
        if first > last {
            return None;
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return None;
            }
            cpus.push(cpu);
        }
    }
    Some(cpus)
}

fn cpu(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|cpu| digits && *cpu <= CPU_MAX)
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_keep_their_order_and_repeat_nothing() {
        assert_eq!(cpu_list("all"), Some(vec![]));
        assert_eq!(cpu_list("3"), Some(vec![3]));
        assert_eq!(cpu_list("8,0-2"), Some(vec![8, 0, 1, 2]));
        for bad in [
            "", ",", "1,", "1,1", "0-3,2", "3-1", "-1", "1-", "a", "1 ", "4096", "0-9999", "+1",
        ] {
            assert_eq!(cpu_list(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_address_may_leave_its_port_to_the_usual_one() {
        let address = |text: &str| text.parse::<SocketAddr>().ok();
        for (text, expected) in [
            ("", None),
            ("0.0.0.0", address("0.0.0.0:7443")),
            ("127.0.0.1:0", address("127.0.0.1:0")),
            ("::", address("[::]:7443")),
            ("[::1]", address("[::1]:7443")),
            ("[::1]:1", address("[::1]:1")),
        ] {
            assert_eq!(maybe_address(text), Some(expected), "{text}");
        }
        for bad in [
            "localhost",
            "7443",
            ":7443",
            "1.2.3.4:",
            "1.2.3",
            "[::1",
            "off",
        ] {
            assert_eq!(maybe_address(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_are_short_and_printable() {
        assert_eq!(name("edge 1"), Some("edge 1".to_owned()));
        assert_eq!(name(&"x".repeat(65)), None);
        assert_eq!(name("a\nb"), None);
        assert_eq!(name("\u{1b}[31m"), None);
        assert_eq!(name("ü"), None);
    }
}
