//! Who a client is that has shown a certificate.
//!
//! A certificate that names a user is a login: HELLO needs no token beside it. A token that is there
//! all the same is judged as ever, and has to name the same user, and the same device if the
//! certificate names one: a stolen token is worth nothing to whoever has another certificate. A device
//! that was revoked needs such a token, since a certificate does not say what it comes after.

use portico_core::{AuthError, Credentials, Grant};
use portico_tls::Client;
use portico_wire::ids::{DeviceId, UserId};

/// `ask` is the authenticator, and `vouch` what it says of a device without a token.
pub(in crate::driver) fn authenticate(
    client: Option<Client>,
    credentials: &Credentials,
    ask: impl FnOnce(&Credentials) -> Result<Grant, AuthError>,
    vouch: impl FnOnce(UserId, DeviceId) -> Result<u32, AuthError>,
) -> Result<Grant, AuthError> {
    let Some(client) = client else {
        return ask(credentials);
    };
    let token = credentials.token.as_deref().unwrap_or_default();
    if !token.is_empty() || credentials.resume_token.is_some() {
        let grant = ask(credentials)?;
        if grant.user != client.user {
            return Err(AuthError::Invalid);
        }
        return match client.device {
            Some(device) if device != grant.device => Err(AuthError::WrongDevice),
            _ => Ok(grant),
        };
    }
    let claimed = Some(credentials.device).filter(|device| device.0 != 0);
    let device = match (client.device, claimed) {
        (Some(named), Some(claimed)) if named != claimed => return Err(AuthError::WrongDevice),
        (named, claimed) => named.or(claimed).ok_or(AuthError::Invalid)?,
    };
    Ok(Grant {
        user: client.user,
        device,
        resumed: false,
        // The certificate is shown again at the next login.
        resume_token: Vec::new(),
        resume_ttl_s: 0,
        // A connection outlives its certificate.
        expires_unix_s: 0,
        epoch: vouch(client.user, device)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(device: Option<u16>) -> Client {
        Client {
            user: UserId(7),
            device: device.map(DeviceId),
        }
    }

    fn hello(token: &str, device: u16) -> Credentials {
        Credentials {
            token: Some(token.to_owned()).filter(|token| !token.is_empty()),
            resume_token: None,
            device: DeviceId(device),
        }
    }

    /// Believes tokens of the form `user device`.
    fn ask(credentials: &Credentials) -> Result<Grant, AuthError> {
        let token = credentials.token.as_deref().ok_or(AuthError::Invalid)?;
        let (user, device) = token.split_once(' ').ok_or(AuthError::Invalid)?;
        Ok(Grant {
            user: UserId(user.parse().map_err(|_| AuthError::Invalid)?),
            device: DeviceId(device.parse().map_err(|_| AuthError::Invalid)?),
            ..Grant::default()
        })
    }

    #[track_caller]
    fn check(
        client: Option<Client>,
        credentials: &Credentials,
        expected: Result<(u64, u16), AuthError>,
    ) {
        let found = authenticate(client, credentials, ask, |_, _| Ok(4));
        let found = found.map(|grant| (grant.user.0, grant.device.0));
        assert_eq!(found, expected, "{client:?} {credentials:?}");
    }

    #[test]
    fn a_certificate_is_a_login_for_its_user_and_device() {
        check(Some(client(Some(3))), &hello("", 0), Ok((7, 3)));
        check(Some(client(Some(3))), &hello("", 3), Ok((7, 3)));
        check(Some(client(None)), &hello("", 5), Ok((7, 5)));
        let wrong = Err(AuthError::WrongDevice);
        check(Some(client(Some(3))), &hello("", 4), wrong);
        check(Some(client(None)), &hello("", 0), Err(AuthError::Invalid));
    }

    #[test]
    fn a_revoked_device_needs_a_token_beside_its_certificate() {
        let revoked = |_, _| Err(AuthError::Revoked);
        let alone = authenticate(Some(client(Some(2))), &hello("", 0), ask, revoked);
        assert_eq!(alone, Err(AuthError::Revoked));
        let beside = authenticate(Some(client(Some(2))), &hello("7 2", 0), ask, revoked);
        assert!(beside.is_ok());
        let good = authenticate(Some(client(Some(2))), &hello("", 0), ask, |_, _| Ok(4));
        assert_eq!(good.map(|grant| grant.epoch), Ok(4));
    }

    #[test]
    fn a_token_beside_it_has_to_agree() {
        check(Some(client(None)), &hello("7 2", 0), Ok((7, 2)));
        check(Some(client(Some(2))), &hello("7 2", 0), Ok((7, 2)));
        let invalid = Err(AuthError::Invalid);
        check(Some(client(None)), &hello("8 2", 0), invalid);
        check(Some(client(None)), &hello("forged", 0), invalid);
        let wrong = Err(AuthError::WrongDevice);
        check(Some(client(Some(3))), &hello("7 2", 0), wrong);
    }

    #[test]
    fn without_a_certificate_the_token_decides() {
        check(None, &hello("8 1", 0), Ok((8, 1)));
        check(None, &hello("", 1), Err(AuthError::Invalid));
    }
}
