//! Where users get their access tokens from.

use portico_client::mint::SigningKey;
use portico_wire::ids::{DeviceId, UserId};
use std::{fmt, time::Duration};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Tokens<'a> {
    /// Signed here, whenever one is wanted.
    Signed(&'a SigningKey),
    /// Signed elsewhere, once for each user.
    Given(&'a GivenTokens),
}

/// Those of consecutive users.
pub(crate) struct GivenTokens {
    pub first_user: u64,
    pub tokens: Vec<String>,
}

impl Tokens<'_> {
    /// For `user` on `device`, valid for `ttl` from `unix_s` on. A user who was given none has an
    /// empty one, which the gateway refuses.
    pub(crate) fn token(
        &self,
        user: UserId,
        device: DeviceId,
        ttl: Duration,
        unix_s: u64,
    ) -> String {
        match self {
            Self::Signed(key) => key.token(user, device, 0, ttl.as_secs(), unix_s),
            Self::Given(given) => {
                let index = user.0.checked_sub(given.first_user);
                let index = index.and_then(|index| usize::try_from(index).ok());
                let token = index.and_then(|index| given.tokens.get(index));
                token.cloned().unwrap_or_default()
            }
        }
    }
}

/// Without the tokens.
impl fmt::Debug for GivenTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GivenTokens")
            .field("first_user", &self.first_user)
            .field("tokens", &self.tokens.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_gets_the_token_made_for_it() {
        let given = GivenTokens {
            first_user: 100,
            tokens: vec!["a".to_owned(), "b".to_owned()],
        };
        let token = |user| {
            let tokens = Tokens::Given(&given);
            tokens.token(UserId(user), DeviceId(1), Duration::ZERO, 0)
        };
        assert_eq!([100, 101, 102, 99].map(token), ["a", "b", "", ""]);
        assert!(!format!("{given:?}").contains("\"a\""));
    }
}
