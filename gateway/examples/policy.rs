//! A gateway in one's own program that says who may write to whom: nobody to somebody who has blocked
//! him.
//!
//! ```sh
//! cargo run -p portico-gateway --example policy
//! ```

use portico_client::{Client, OwnedEvent, Session, SessionConfig, SessionState};
use portico_gateway::{
    Denial, DeviceId, Gateway, GatewayOptions, Policy, StaticAuthenticator, Stores, UserId,
    Verdict,
    backend::{Limits, memory::Store},
};
use portico_wire::ErrorCode;
use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

/// Who has blocked whom. Each shard has a clone, and all of them share one list: it is read for every
/// message and written hardly ever. A larger program would hand each shard its part.
#[derive(Clone, Debug, Default)]
struct Blocks(Arc<RwLock<BTreeSet<(UserId, UserId)>>>);

impl Blocks {
    fn block(&self, by: UserId, whom: UserId) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.insert((by, whom));
    }
}

impl Policy for Blocks {
    fn may_message(&mut self, from: UserId, to: UserId) -> Verdict {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if all.contains(&(to, from)) {
            Verdict::Deny(Denial::Forbidden)
        } else {
            Verdict::Allow
        }
    }
}

/// Visible to the tests, which run it, too.
pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let authenticator = StaticAuthenticator::new()
        .allow("token of 1", UserId(1), DeviceId(1))
        .allow("token of 2", UserId(2), DeviceId(1));
    let options = GatewayOptions {
        listen: "127.0.0.1:0".parse()?,
        shards: 2,
        ..GatewayOptions::default()
    };
    let store = Store::new();
    let stores = Stores {
        messages: store.messages(Limits::default()),
        records: store.records(Limits::default()),
    };
    let blocks = Blocks::default();
    let gateway = Gateway::start_with_policy(options, stores, Arc::new(authenticator), &blocks)?;
    let address = gateway.local_addr().to_string();

    let log_in = |user: u64| {
        let token = format!("token of {user}");
        let config = SessionConfig::new(UserId(user), DeviceId(1), token);
        let session = Session::new(config, SessionState::default(), user);
        Client::connect(address.as_str(), session)
    };
    let (one, two) = (log_in(1)?, log_in(2)?);
    let patience = Duration::from_secs(10);

    one.send_text(UserId(2), "hello from 1")?;
    let heard = two.wait_for(patience, |event| {
        matches!(event, OwnedEvent::Message { .. }).then_some(())
    });
    heard.ok_or("the message did not arrive")?;

    // From one message to the next, on a running gateway.
    blocks.block(UserId(2), UserId(1));
    one.send_text(UserId(2), "are you there?")?;
    let code = one.wait_for(patience, |event| match event {
        OwnedEvent::Refused { code, .. } => Some(*code),
        _ => None,
    });
    if code != Some(ErrorCode::FORBIDDEN) {
        return Err(format!("it was not refused: {code:?}").into());
    }
    println!("2 has blocked 1, and 1 was told");
    one.close();
    two.close();
    gateway.stop(patience)?;
    Ok(())
}
