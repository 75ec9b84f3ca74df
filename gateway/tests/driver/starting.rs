//! What start refuses, and says.

use crate::support::*;
use portico_gateway::{
    Gateway, GatewayOptions, StartError,
    backend::{Backend, Limits, memory::Store, messages::Messages},
};
use portico_wire::ids::{DeviceId, Seq, UserId};
use std::{
    sync::{Arc, mpsc},
    time::{Instant, SystemTime},
};

fn refusal(options: GatewayOptions) -> StartError {
    match Gateway::start(options, stores(memory()), Arc::new(Trusting)) {
        Ok(gateway) => panic!("{gateway:?} started"),
        Err(error) => error,
    }
}

#[test]
fn an_address_in_use_is_named() {
    let _turn = together();
    let gateway = start(options(2));
    let taken = GatewayOptions {
        listen: gateway.local_addr(),
        ..options(1)
    };
    let error = refusal(taken);
    assert!(matches!(error, StartError::AddressInUse(_)), "{error:?}");
    let sentence = format!("address in use: {}", gateway.local_addr());
    assert_eq!(error.to_string(), sentence);
    gateway.stop(PATIENCE).unwrap();
}

#[test]
fn a_port_is_free_again_after_the_end() {
    let _turn = together();
    let gateway = start(options(2));
    let listen = gateway.local_addr();
    let _client = Client::login(listen, 1);
    drop(gateway);
    let gateway = start(GatewayOptions {
        listen,
        ..options(2)
    });
    Client::login(listen, 1);
    gateway.stop(PATIENCE).unwrap();
}

#[test]
fn nonsense_is_refused() {
    let _turn = together();
    let elsewhere = GatewayOptions {
        listen: "192.0.2.1:7400".parse().unwrap(),
        ..options(1)
    };
    assert!(matches!(refusal(elsewhere), StartError::Listen { .. }));
    let no_cpu = GatewayOptions {
        cpus: vec![0, 100_000],
        ..options(1)
    };
    assert!(matches!(refusal(no_cpu), StartError::NoSuchCpu(100_000)));
    assert!(matches!(
        refusal(options(5_000)),
        StartError::TooManyShards(5_000)
    ));
    let mut odd_ring = options(2);
    odd_ring.ring.buffers = 100;
    let error = refusal(odd_ring);
    assert!(matches!(error, StartError::Shard { .. }), "{error:?}");
}

/// A ceiling far ahead would make the gateway issue numbers of the future for days.
#[test]
fn a_store_from_the_future_is_refused() {
    let _turn = together();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now_us = now.unwrap().as_micros() as u64;
    let day_us = 24 * 3_600 * 1_000_000;
    for (ahead_us, refused) in [
        (day_us - 60_000_000, false),
        (3 * day_us + 60_000_000, true),
    ] {
        let store = Store::new();
        let messages: Arc<dyn Backend<Messages>> = store.messages(Limits::default());
        set_cursor(&messages, now_us + ahead_us);
        match Gateway::start(options(1), stores(messages), Arc::new(Trusting)) {
            Ok(gateway) => {
                assert!(!refused);
                let mut client = Client::login(gateway.local_addr(), 1);
                client.send(1, 1, b"after all that was issued");
                client.until(&Got::Sent { corr: 1 });
                drop(client);
                gateway.stop(PATIENCE).unwrap();
            }
            Err(error) => {
                assert!(refused, "{error}");
                assert!(error.to_string().contains("72 hours ahead"), "{error}");
            }
        }
    }
}

/// The greatest number in the store is what a cursor says.
fn set_cursor(messages: &Arc<dyn Backend<Messages>>, seq: u64) {
    use portico_gateway::backend::{Completion, Request, Sink, messages::Cmd};
    struct Done(mpsc::SyncSender<()>);
    impl Sink<Messages> for Done {
        fn complete(&self, batch: Vec<Completion<Messages>>) {
            assert!(batch[0].result.is_ok());
            self.0.send(()).unwrap();
        }
    }
    let (done, is_done) = mpsc::sync_channel(1);
    let request = Request {
        token: 1,
        lane: 0,
        deadline: Instant::now() + PATIENCE,
        cmd: Cmd::SetCursors {
            cursors: vec![(UserId(1), DeviceId(9), Seq(seq))],
        },
    };
    let sink: Arc<dyn Sink<Messages>> = Arc::new(Done(done));
    messages.submit(vec![request], &sink).unwrap();
    is_done.recv_timeout(PATIENCE).unwrap();
}

#[path = "../../examples/custom_backend.rs"]
mod custom_backend;

/// It fails unless a message crosses the gateway.
#[test]
fn the_example_with_its_own_backend_runs() {
    let _turn = together();
    custom_backend::main().unwrap();
}

#[path = "../../examples/policy.rs"]
mod policy;

/// Rules of an embedding program: who may write to whom.
#[test]
fn a_gateway_with_a_policy_of_its_own_serves() {
    let _turn = together();
    policy::main().unwrap();
}
