//! A balancer in front: it says where a client comes from before the handshake, and that source is
//! counted before the handshake costs anything.

use super::client::{TlsClient, setup, trust};
use crate::limits::proxy_header;
use portico_wire::encode::put_ping;
use std::io::Write;

#[test]
fn a_balancer_speaks_before_the_handshake() {
    let gateway = setup()
        .set("server.shards", 1)
        .set("server.proxy_from", "127.0.0.1")
        .set("rates.source_opens_per_s", 1)
        .set("rates.source_opens_burst", 10)
        .start();
    let trust = trust(&gateway);
    let connect = |header: &[u8]| {
        let mut client = TlsClient::connect(gateway.tls(), &trust);
        // In two pieces, the second together with what the client says first.
        let (begin, rest) = header.split_at(header.len() / 2);
        client.tcp.write_all(begin).expect("it reads");
        client.tcp.write_all(rest).expect("it reads");
        client
    };
    let is_open = |mut client: TlsClient| {
        let mut ping = Vec::new();
        put_ping(&mut ping, 7, 60);
        let open = client.shake_hands().is_ok() && client.write(&ping).is_ok();
        open && client.read().is_ok_and(|pong| pong.len() == 16)
    };
    let near = proxy_header([192, 0, 2, 1]);
    let opened = (0..15).filter(|_| is_open(connect(&near))).count();
    assert!((10..15).contains(&opened), "{opened}");
    assert!(is_open(connect(&proxy_header([203, 0, 113, 5]))));
    let text = b"PROXY TCP4 192.0.2.1 127.0.0.1 4660 7443\r\n";
    assert!(!is_open(connect(text)));
    assert!(!is_open(connect(b"")), "a handshake without the header");
    let count = |result: &str| {
        let series = format!("portico_proxy_headers_total{{result=\"{result}\"}}");
        gateway.await_metric(&series, |count| count > 0)
    };
    assert_eq!((count("version_1"), count("invalid")), (1, 1));
    gateway.await_metric("portico_accept_refused_total", |count| count > 0);
    gateway.stop();
}
