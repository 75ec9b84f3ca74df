//! What operators may have done through the admin port.
//!
//! # Invariants
//! - Nothing is looked at before it is known that whoever asks may ask; the answer to others is one
//!   and the same.

use super::Subject;
use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header::AUTHORIZATION},
};
use std::sync::Arc;

pub(super) const REVOKE: &str = "/devices/revoke";

/// `POST /devices/revoke?user=U&device=D`, taken apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) user: u64,
    /// `None`: all devices.
    pub(crate) device: Option<u16>,
    /// The method and the target, as they were signed, and the signature.
    pub(crate) request: &'a str,
    pub(crate) authorization: &'a str,
}

/// Why it is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    /// Whoever asks has not the secret, or has asked the same before.
    Unauthorised,
    /// It could not be done; it may have been.
    NotNow(String),
}

/// What is signed, and sent.
pub(crate) fn request(user: u64, device: Option<u16>) -> String {
    let device = device.map_or_else(String::new, |device| format!("&device={device}"));
    format!("POST {REVOKE}?user={user}{device}")
}

pub(super) async fn revoke(
    State(subject): State<Arc<dyn Subject>>,
    uri: Uri,
    headers: HeaderMap,
) -> (StatusCode, String) {
    let authorization = headers.get(AUTHORIZATION);
    let authorization = authorization.and_then(|value| value.to_str().ok());
    let Some(authorization) = authorization.map(str::to_owned) else {
        return unauthorised();
    };
    let Some((user, device)) = uri.query().and_then(parse) else {
        let answer = "say user=U, and device=D for one of its devices only\n";
        return (StatusCode::BAD_REQUEST, answer.to_owned());
    };
    // It waits for the store, which may take its time: this thread has others to serve.
    let done = tokio::task::spawn_blocking(move || {
        subject.grant(&Wish {
            user,
            device,
            request: &request(user, device),
            authorization: &authorization,
        })
    })
    .await;
    match done {
        Ok(Ok(answer)) => (StatusCode::OK, answer),
        Ok(Err(Denial::Unauthorised)) => unauthorised(),
        Ok(Err(Denial::NotNow(why))) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        Err(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "it was not done to its end\n".to_owned(),
        ),
    }
}

fn unauthorised() -> (StatusCode, String) {
    let answer = "this needs the key in the data directory: `portico device revoke` has it\n";
    (StatusCode::UNAUTHORIZED, answer.to_owned())
}

/// `user=U`, or `user=U&device=D`, and nothing else.
fn parse(query: &str) -> Option<(u64, Option<u16>)> {
    let (user, device) = match query.split_once('&') {
        Some((user, device)) => (user, Some(device.strip_prefix("device=")?)),
        None => (query, None),
    };
    let user = number(user.strip_prefix("user=")?)?;
    let device = match device {
        Some(device) => Some(u16::try_from(number(device)?).ok()?),
        None => None,
    };
    Some((user, device))
}

fn number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_spelt_in_one_way() {
        assert_eq!(parse("user=7"), Some((7, None)));
        assert_eq!(parse("user=7&device=3"), Some((7, Some(3))));
        for bad in [
            "",
            "user=",
            "user=07",
            "user=0",
            "user=+7",
            "user=7&",
            "device=3",
            "device=3&user=7",
            "user=7&device=0",
            "user=7&device=65536",
            "user=7&device=3&x=1",
            "user=18446744073709551616",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        for (user, device) in [(7, None), (7, Some(3))] {
            let text = request(user, device);
            let query = text.split_once('?').map(|(_, query)| query);
            assert_eq!(query.and_then(parse), Some((user, device)));
        }
    }
}
