//! What does not work, and what is said about it.

use crate::{
    Setup, session,
    support::{
        front::{Faults, Front, Identity},
        server::{PATIENCE, Server, plain_identity},
    },
    trusting,
};
use portico_client::{
    Client, OwnedEvent, RawConnection, TlsClient, TlsError,
    many::{Clock, Many, ManyConfig, ManyEvent},
};
use std::{net::SocketAddr, time::Instant};

/// What the raw connection says, and then both drivers.
fn refusal(address: SocketAddr, tls: &TlsClient) -> TlsError {
    let error = RawConnection::connect_tls(&address.to_string(), tls).unwrap_err();
    let refused = TlsError::within(&error).expect("an error of TLS").clone();
    let client = Client::connect_tls(address.to_string(), session(1), tls.clone()).unwrap();
    let closed = client.wait_for(PATIENCE, |event| {
        matches!(event, OwnedEvent::Closed { .. }).then_some(())
    });
    assert_eq!(closed, Some(()));
    assert_eq!(client.tls_failure().as_ref(), Some(&refused));
    assert_eq!(of_many(address, Some(tls.clone())), refused);
    refused
}

fn of_many(address: SocketAddr, tls: Option<TlsClient>) -> TlsError {
    let mut config = ManyConfig::new(address, Clock::start());
    config.tls = tls;
    let mut many = Many::new(config).unwrap();
    many.add(session(1));
    let begun = Instant::now();
    let mut refused = None;
    while refused.is_none() {
        assert!(begun.elapsed() < PATIENCE);
        many.turn(10_000, &mut |_, _, event| {
            if let ManyEvent::ConnectFailed(error) = event {
                refused = TlsError::within(error).cloned();
            }
        })
        .unwrap();
    }
    refused.unwrap()
}

fn of_identity(shown: &Identity, tls: &TlsClient, faults: Faults) -> TlsError {
    let server = Server::start(plain_identity);
    let front = Front::start(shown, server.address, faults);
    refusal(front.address, tls)
}

#[test]
fn a_certificate_that_does_not_do_is_refused_for_its_reason() {
    let none = Faults::default();
    let own = Identity::self_signed();
    let stranger = of_identity(&Identity::signed(), &trusting(&own), none);
    assert_eq!(stranger, TlsError::UnknownIssuer);
    // The server has made a new one of the same name.
    let renewed = of_identity(&Identity::self_signed(), &trusting(&own), none);
    assert_eq!(renewed, TlsError::UnknownIssuer);
    assert!(renewed.sentence().contains("--tls-ca"));
    let expired = Identity::expired();
    let expired = of_identity(&expired, &trusting(&expired), none);
    assert_eq!(expired, TlsError::Expired);
    let authority = Identity::authority();
    let authority = of_identity(&authority, &trusting(&authority), none);
    assert_eq!(authority, TlsError::Authority);
    let named = trusting(&own).named("chat.example.org").unwrap();
    let wrong = of_identity(&own, &named, none);
    assert!(matches!(wrong, TlsError::WrongName { .. }), "{wrong:?}");
    let sentence = wrong.sentence();
    for part in ["chat.example.org", "localhost", "--server-name"] {
        assert!(sentence.contains(part), "{sentence}");
    }
}

#[test]
fn a_certificate_of_an_authority_does_by_the_name_it_is_for() {
    let identity = Identity::signed();
    let server = Server::start(plain_identity);
    let front = Front::start(&identity, server.address, Faults::default());
    let tls = trusting(&identity);
    let address = front.address.to_string();
    let error = RawConnection::connect_tls(&address, &tls).unwrap_err();
    assert!(matches!(
        TlsError::within(&error),
        Some(TlsError::WrongName { .. })
    ));
    let named = tls.named("localhost").unwrap();
    let mut raw = RawConnection::connect_tls(&address, &named).unwrap();
    let welcome = raw.hello("1:1").unwrap();
    assert_eq!(welcome.user.0, 1);
}

#[test]
fn a_server_of_another_protocol_is_refused() {
    let own = Identity::self_signed();
    let no_protocol = Faults {
        no_protocol: true,
        ..Faults::default()
    };
    let refused = of_identity(&own, &trusting(&own), no_protocol);
    assert_eq!(refused, TlsError::OtherProtocol);
}

#[test]
fn a_port_without_tls_and_a_client_without_it_are_told_apart() {
    let setup = Setup::new(Faults::default());
    // The gateway in memory takes no bytes that are no frame: here is one that answers with some.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // It has heard a greeting that it does not understand.
            let _ = std::io::Read::read(&mut stream, &mut [0; 1_024]);
            let _ = std::io::Write::write_all(&mut stream, &[16, 0, 0, 0, 5, 0, 0, 0]);
        }
    });
    let plain = refusal(address, &setup.tls);
    assert_eq!(plain, TlsError::NotTls);
    assert!(plain.sentence().contains("leave --tls out"));

    let client = Client::connect(setup.address(), session(1)).unwrap();
    let closed = client.wait_for(PATIENCE, |event| {
        matches!(event, OwnedEvent::Closed { .. }).then_some(())
    });
    assert_eq!(closed, Some(()));
    let failure = client.tls_failure().expect("the reason");
    assert_eq!(failure, TlsError::TlsWanted);
    assert!(failure.sentence().contains("add --tls"));
    assert_eq!(of_many(setup.front.address, None), TlsError::TlsWanted);
}

#[test]
fn a_handshake_may_be_cut_at_any_byte() {
    let setup = Setup::new(Faults::default());
    drop(RawConnection::connect_tls(&setup.address(), &setup.tls).unwrap());
    let whole = setup.front.bytes_to_client();
    assert!(whole > 500, "{whole}");
    let identity = Identity::self_signed();
    let tls = trusting(&identity);
    let mut cut = 0;
    // The ticket, which comes last, is not part of it; before that every byte is.
    let mut opened = 0;
    while cut < whole {
        let faults = Faults {
            cut_after: Some(cut),
            ..Faults::default()
        };
        let front = Front::start(&identity, setup.server.address, faults);
        match RawConnection::connect_tls(&front.address.to_string(), &tls) {
            Ok(_) => opened += 1,
            Err(error) => {
                assert_eq!(TlsError::within(&error), Some(&TlsError::CutOff), "{cut}");
                assert_eq!(opened, 0, "after {cut} bytes");
            }
        }
        cut += 1;
    }
    assert!(opened < whole / 2, "{opened} of {whole}");
    // The driver of many, at some of them.
    for cut in [0, 1, 100, whole / 2] {
        let faults = Faults {
            cut_after: Some(cut),
            ..Faults::default()
        };
        let front = Front::start(&identity, setup.server.address, faults);
        let refused = of_many(front.address, Some(tls.clone()));
        assert_eq!(refused, TlsError::CutOff, "{cut}");
    }
}
