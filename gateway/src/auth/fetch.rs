//! Fetches one small document over HTTP/1.1, blocking: with TLS 1.3 from anywhere, without from
//! this machine only, because whoever can change the answer on its way can log in as anyone.
//!
//! # Does not
//! Follow redirects, keep connections, decompress, or read more than it was told to.

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{
    fmt, io,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// For all of it.
const PATIENCE: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 16 << 10;
const URL_BYTES_MAX: usize = 1_024;
/// Where systems keep the certificates of public authorities, in PEM.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("the name cannot be resolved: {0}")]
    Resolve(io::Error),
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("it took longer than {} s", PATIENCE.as_secs())]
    TooSlow,
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    #[error("{} holds no certificate that can be used", .0.display())]
    Roots(PathBuf),
    #[error("no list of authorities was found on this system: name one in auth.jwks_ca")]
    NoRoots,
    #[error("the answer is no HTTP/1.1")]
    NotHttp,
    #[error("the answer is {0}, not 200{hint}", hint = redirect_hint(*.0))]
    Status(u16),
    #[error("the answer is longer than allowed")]
    TooLong,
}

fn redirect_hint(status: u16) -> &'static str {
    if (300..400).contains(&status) {
        ": redirects are not followed, give the address it leads to"
    } else {
        ""
    }
}

/// An address of a document.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl Url {
    /// `None` if it is not an address this module would fetch from.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() > URL_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return None,
        };
        let start = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(start);
        // Credentials in an address end in logs; a fragment means nothing here.
        if authority.contains('@') || path.contains('#') || authority.contains('#') {
            return None;
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']')?;
                let port = if port.is_empty() {
                    None
                } else {
                    Some(port.strip_prefix(':')?)
                };
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, port)
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port {
            Some(port) => port.parse().ok().filter(|port| *port != 0)?,
            None if tls => 443,
            None => 80,
        };
        if host.is_empty() {
            return None;
        }
        let loopback = host == "localhost"
            || host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        if !tls && !loopback {
            return None;
        }
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        Some(Self {
            tls,
            host: host.to_owned(),
            port,
            path,
        })
    }
}

/// Without the path, which may hold a secret of the issuer's.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The document, if it is there and not longer than `bytes_max`. `roots` is a PEM file of the
/// authorities that are trusted; `None`: those of the system.
pub(super) fn fetch(
    url: &Url,
    roots: Option<&Path>,
    bytes_max: usize,
) -> Result<Vec<u8>, FetchError> {
    let deadline = Instant::now() + PATIENCE;
    let addresses: Vec<SocketAddr> = (url.host.as_str(), url.port)
        .to_socket_addrs()
        .map_err(FetchError::Resolve)?
        // `localhost` is what the system says it is.
        .filter(|address| url.tls || address.ip().is_loopback())
        .collect();
    let socket = connect(&addresses, deadline)?;
    let timed = Timed { socket, deadline };
    if !url.tls {
        return ask(timed, url, bytes_max);
    }
    let name = ServerName::try_from(url.host.clone())
        .map_err(|_| FetchError::Tls(rustls::Error::General("no valid name".to_owned())))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(FetchError::Tls)?
        .with_root_certificates(read_roots(roots)?)
        .with_no_client_auth();
    let session = ClientConnection::new(Arc::new(config), name).map_err(FetchError::Tls)?;
    ask(StreamOwned::new(session, timed), url, bytes_max)
}

fn connect(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, FetchError> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(FetchError::TooSlow);
        }
        match TcpStream::connect_timeout(address, left) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(FetchError::Connect(last))
}

fn read_roots(file: Option<&Path>) -> Result<RootCertStore, FetchError> {
    let path = match file {
        Some(path) => path,
        None => SYSTEM_ROOTS
            .iter()
            .map(Path::new)
            .find(|path| path.is_file())
            .ok_or(FetchError::NoRoots)?,
    };
    let unusable = || FetchError::Roots(path.to_owned());
    let mut store = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|_| unusable())?;
    store.add_parsable_certificates(certificates.flatten());
    if store.is_empty() {
        return Err(unusable());
    }
    Ok(store)
}

/// A socket whose reads and writes fail after a deadline.
struct Timed {
    socket: TcpStream,
    deadline: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(bytes)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

fn ask(mut stream: impl Read + Write, url: &Url, bytes_max: usize) -> Result<Vec<u8>, FetchError> {
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => FetchError::TooSlow,
        _ => FetchError::Broken(error),
    };
    let host = if url.host.contains(':') {
        format!("[{}]", url.host)
    } else {
        url.host.clone()
    };
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {host}:{}\r\nAccept: application/json\r\n\
         Accept-Encoding: identity\r\nUser-Agent: portico\r\nConnection: close\r\n\r\n",
        url.path, url.port
    );
    stream.write_all(request.as_bytes()).map_err(broken)?;
    stream.flush().map_err(broken)?;
    let mut answer = Vec::new();
    let mut piece = [0; 4_096];
    // The frame of chunks costs a few bytes each.
    let all_max = HEAD_BYTES_MAX + 2 * bytes_max;
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(piece.get(..count).unwrap_or_default()),
            // Many servers end TLS without saying so; the length of the body tells a cut one.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(broken(error)),
        }
        if answer.len() > all_max {
            return Err(FetchError::TooLong);
        }
    }
    body(&answer, bytes_max)
}

/// What an answer that is complete holds.
fn body(answer: &[u8], bytes_max: usize) -> Result<Vec<u8>, FetchError> {
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .filter(|end| *end <= HEAD_BYTES_MAX)
        .ok_or(FetchError::NotHttp)?;
    let (head, body) = answer.split_at(end);
    let body = body.get(4..).unwrap_or_default();
    let head = std::str::from_utf8(head).map_err(|_| FetchError::NotHttp)?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse::<u16>().ok())
        .ok_or(FetchError::NotHttp)?;
    if status != 200 {
        return Err(FetchError::Status(status));
    }
    let mut length = None;
    let mut chunked = false;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(FetchError::NotHttp)?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let count: usize = value.parse().map_err(|_| FetchError::NotHttp)?;
            if length.is_some_and(|other| other != count) {
                return Err(FetchError::NotHttp);
            }
            length = Some(count);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(FetchError::NotHttp);
            }
            chunked = true;
        }
    }
    let body = if chunked {
        dechunk(body).ok_or(FetchError::NotHttp)?
    } else {
        match length {
            Some(length) => body.get(..length).ok_or(FetchError::NotHttp)?.to_vec(),
            None => body.to_vec(),
        }
    };
    if body.len() > bytes_max {
        return Err(FetchError::TooLong);
    }
    Ok(body)
}

fn dechunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line_end = rest.windows(2).position(|two| two == b"\r\n")?;
        let line = std::str::from_utf8(rest.get(..line_end)?).ok()?;
        let digits = line.split(';').next()?.trim();
        if digits.starts_with('+') {
            return None;
        }
        let size = usize::from_str_radix(digits, 16).ok()?;
        rest = rest.get(line_end + 2..)?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let shown = |text: &str| Url::parse(text).map(|url| (url.to_string(), url.path));
        let is = |origin: &str, path: &str| Some((origin.to_owned(), path.to_owned()));
        for (text, expected) in [
            (
                "https://id.example/keys?x=1",
                is("https://id.example:443", "/keys?x=1"),
            ),
            (
                "https://id.example:8443",
                is("https://id.example:8443", "/"),
            ),
            ("https://id.example?x", is("https://id.example:443", "/?x")),
            ("http://127.0.0.1:80/a", is("http://127.0.0.1:80", "/a")),
            ("http://localhost/a", is("http://localhost:80", "/a")),
            ("http://[::1]:9/a", is("http://::1:9", "/a")),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
        for bad in [
            "",
            "id.example",
            "ftp://id.example/",
            "http://id.example/",
            "http://127.0.0.1.example/",
            "http://10.0.0.1/",
            "https://",
            "https://user:secret@id.example/",
            "https://id.example:0/",
            "https://id.example:70000/",
            "https://id.example/a b",
            "https://id.example/a\r\nX: y",
            "https://id.example/#a",
            "https://[::1/",
            "https://[id.example]/",
        ] {
            assert_eq!(Url::parse(bad), None, "{bad}");
        }
        let long = format!("https://id.example/{}", "a".repeat(URL_BYTES_MAX));
        assert_eq!(Url::parse(&long), None);
    }

    #[test]
    fn bodies_end_where_they_say() {
        let of = |text: &str| body(text.as_bytes(), 10).map_err(|error| error.to_string());
        let head = "HTTP/1.1 200 OK\r\n";
        for (rest, expected) in [
            ("\r\nabc", "abc"),
            ("Content-Length: 2\r\n\r\nabc", "ab"),
            ("content-length:0\r\n\r\n", ""),
            (
                "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n",
                "abc",
            ),
        ] {
            assert_eq!(of(&format!("{head}{rest}")), Ok(expected.into()), "{rest}");
        }
        for bad in [
            "Content-Length: 4\r\n\r\nabc",
            "Content-Length: 1\r\nContent-Length: 2\r\n\r\nabc",
            "Content-Length: -1\r\n\r\nabc",
            "nonsense\r\n\r\n",
            "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nab",
            "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab\r\n",
            "Transfer-Encoding: chunked\r\n\r\n2\r\nabX",
            "\r\n12345678901",
        ] {
            assert!(of(&format!("{head}{bad}")).is_err(), "{bad}");
        }
        assert!(
            of("HTTP/1.1 302 Found\r\n\r\n")
                .unwrap_err()
                .contains("redirects")
        );
        assert!(
            of("HTTP/1.1 404 Not Found\r\n\r\n")
                .unwrap_err()
                .contains("404")
        );
        assert!(of("SSH-2.0\r\n\r\n").is_err());
        assert!(of("").is_err());
    }
}
