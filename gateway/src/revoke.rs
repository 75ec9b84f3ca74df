//! `portico device revoke`: through the admin port of a gateway that runs, or on the store of one that
//! does not.

use crate::{
    Failure, admin, answer,
    cli::RevokeArgs,
    data_dir,
    stored::{FOLDER, next_step},
    unix_s,
};
use portico_gateway::{
    AdminKey, Revocations,
    backend::embedded::{self, OpenError},
};
use portico_wire::ids::{DeviceId, UserId};
use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(20);
const ANSWER_BYTES_MAX: u64 = 64 << 10;

pub(crate) fn revoke(args: RevokeArgs) -> Result<(), Failure> {
    let data = data_dir(args.data);
    let (user, device) = (args.user, args.device);
    let whom = match device {
        Some(device) => format!("device {device} of user {user}"),
        None => format!("all devices of user {user}"),
    };
    let (generation, how) = match through_gateway(args.admin, &data, user, device)? {
        Some(generation) => (generation, "and their sessions have ended"),
        None => (
            in_store(args.admin, &data, user, device)?,
            "in the store: no gateway runs here",
        ),
    };
    answer(&format!(
        "{whom}: generation {generation} from now on, {how}.\n\
         Tokens from before are refused. New ones need \"gen\": {generation}, as with \
         portico token --user {user} --device {} --generation {generation}\n",
        device.unwrap_or(1)
    ))
}

/// `None`: nobody listens there.
fn through_gateway(
    admin: SocketAddr,
    data: &Path,
    user: u64,
    device: Option<u16>,
) -> Result<Option<u32>, Failure> {
    let stream = match TcpStream::connect_timeout(&admin, PATIENCE) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => {
            return Err(Failure::Runtime(format!(
                "cannot reach the admin port {admin}: {error}"
            )));
        }
    };
    let key = AdminKey::open(data).map_err(|error| {
        Failure::Runtime(format!("{error} (is --data the gateway's directory?)"))
    })?;
    let request = admin::request(user, device);
    let authorization = key
        .authorization(&request, unix_s()?)
        .map_err(Failure::runtime)?;
    let (status, body) = ask(stream, &request, &authorization).map_err(|error| {
        Failure::Runtime(format!(
            "the admin port {admin} broke off: {error}; it may have been done, do it again"
        ))
    })?;
    let generation = body
        .trim()
        .strip_prefix("{\"generation\":")
        .and_then(|rest| rest.strip_suffix('}'))
        .and_then(|number| number.parse().ok());
    match (status, generation) {
        (200, Some(generation)) => Ok(Some(generation)),
        (401, _) => Err(Failure::Runtime(format!(
            "the gateway at {admin} has another key than {}: is --data its directory?",
            data.display()
        ))),
        _ => Err(Failure::Runtime(format!(
            "the admin port {admin} answered {status}: {}",
            body.trim()
        ))),
    }
}

fn ask(mut stream: TcpStream, request: &str, authorization: &str) -> io::Result<(u16, String)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let text = format!(
        "{request} HTTP/1.1\r\nHost: portico\r\nAuthorization: {authorization}\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    let parts = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    parts.ok_or_else(|| io::Error::other("the answer is no HTTP"))
}

fn in_store(
    admin: SocketAddr,
    data: &Path,
    user: u64,
    device: Option<u16>,
) -> Result<u32, Failure> {
    let folder = data.join(FOLDER);
    if !folder.is_dir() {
        return Err(Failure::Runtime(format!(
            "no gateway answers at {admin}, and {} holds no store: name the one with --admin or \
             the other with --data",
            data.display()
        )));
    }
    let store = embedded::open(embedded::Options::new(folder)).map_err(|error| {
        Failure::Runtime(match error {
            OpenError::InUse { .. } => format!(
                "a gateway runs on {}, and its admin port is not {admin}: name it with --admin",
                data.display()
            ),
            error => next_step(&error, data),
        })
    })?;
    let now_unix_s = unix_s()?;
    let revoked = Revocations::open(store.records.clone(), 0, now_unix_s)
        .map_err(|error| error.to_string())
        .and_then(|revocations| {
            let revoked = revocations.revoke(UserId(user), device.map(DeviceId), now_unix_s);
            revoked.map_err(|error| error.to_string())
        });
    let closed = store.close(Instant::now() + PATIENCE);
    let (generation, _) = revoked.map_err(Failure::Runtime)?;
    closed
        .map_err(|error| Failure::Runtime(format!("the store did not close in order: {error}")))?;
    Ok(generation)
}
