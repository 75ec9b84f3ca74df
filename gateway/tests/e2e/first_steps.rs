//! What a new user does: serve, look, make a token, chat, stop.

use crate::harness::{Child, Gateway, PATIENCE, Peer, Setup, eventually, quiet_port};
use portico_wire::{
    CloseCode, Op,
    message::{Drain, Hello},
};
use rustix::process::Signal;
use std::{net::TcpStream, time::Duration};

#[test]
fn serving_says_one_line_and_admin_pages_answer() {
    let gateway = Gateway::start();
    for path in ["/healthz", "/readyz"] {
        let page = gateway.get(path);
        assert_eq!(page.status, 200, "{path}: {}", page.body);
    }
    let version = gateway.get("/version").body;
    let version: serde_json::Value = serde_json::from_str(&version).expect("JSON");
    assert_eq!(version["name"], "portico");
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["protocol"], portico_wire::VERSION);
    let metrics = gateway.metrics();
    assert_eq!(metrics.get("portico_shards"), 2);
    assert_eq!(metrics.get("portico_ready"), 1);
    assert_eq!(metrics.get("portico_store_up"), 1);
    assert_eq!(gateway.get("/").status, 404);
    gateway.still_serves();

    // People are told what to do next, on the other stream.
    let help = gateway.child.err.text();
    let listen = gateway.listen.to_string();
    let data = gateway.setup().data().display().to_string();
    for part in [
        listen.as_str(),
        data.as_str(),
        "portico chat",
        "portico-loadgen",
    ] {
        assert!(help.contains(part), "{part:?} is not in:\n{help}");
    }
    let lines = gateway.stop().out;
    assert_eq!(lines.lines().count(), 1, "{lines}");
}

#[test]
fn a_token_from_the_command_line_logs_in() {
    let gateway = Gateway::start();
    let data = gateway.setup().data().display().to_string();
    let exit = Child::run(
        &[
            "token", "--data", &data, "--user", "7", "--device", "3", "--ttl", "15m",
        ],
        &[],
    );
    assert_eq!((exit.code, exit.err.as_str()), (Some(0), ""));
    let peer = Peer::login(gateway.connect(), &exit.out);
    assert_eq!((peer.welcome.user.0, peer.welcome.device.0), (7, 3));

    let exit = Child::run(&["token", "--data", "no such folder", "--user", "7"], &[]);
    assert_eq!((exit.code, exit.out.as_str()), (Some(1), ""));
    assert!(exit.err.contains("no such folder"), "{}", exit.err);
}

#[test]
fn two_people_chat_and_what_is_missed_waits() {
    let gateway = Gateway::start();
    let chat = |me: &str, peer: &str, more: &[&str]| {
        let data = gateway.setup().data().display().to_string();
        let target = gateway.listen.to_string();
        let mut arguments = vec!["chat", "--as", me, "--to", peer];
        arguments.extend(["--data", &data, "--target", &target]);
        arguments.extend(more);
        Child::portico(&arguments, &[])
    };
    let (mut one, mut two) = (chat("1", "2", &[]), chat("2", "1", &[]));
    one.out.wait_for("connected");
    two.out.wait_for("connected");
    one.type_line("hello two");
    two.out.wait_for("user 1: hello two");
    one.out.wait_for("✓ hello two");
    one.out.wait_for("✓✓ read hello two");
    two.type_line("hello one");
    one.out.wait_for("user 2: hello one");

    // Two goes away; what is written waits, and comes in its order, once.
    two.end_input();
    assert_eq!(two.wait().code, Some(0));
    for text in ["first", "second", "third"] {
        one.type_line(text);
    }
    one.out.wait_for("✓ third");
    let two = chat("2", "1", &["--follow"]);
    two.out.wait_for("user 1: third");
    let shown: Vec<_> = two
        .out
        .all()
        .iter()
        .filter_map(|line| Some(line.split_once("user 1: ")?.1.to_owned()))
        .collect();
    assert_eq!(shown, ["first", "second", "third"]);
    one.out.wait_for("✓✓ read third");

    // From a pipe: sent, and the end.
    let mut piped = chat("3", "2", &[]);
    piped.type_line("from a pipe");
    piped.end_input();
    let exit = piped.wait();
    assert_eq!(exit.code, Some(0), "{}", exit.err);
    two.out.wait_for("user 3: from a pipe");
}

#[test]
fn a_chat_over_tls_trusts_what_the_gateway_has_left_and_says_what_is_wrong() {
    let gateway = Setup::new()
        .set("tls.listen", "127.0.0.1:0")
        .set("tls.self_signed", true)
        .start();
    let data = gateway.setup().data().display().to_string();
    let chat = |target: String, more: &[&str]| {
        let mut arguments = vec!["chat", "--as", "1", "--to", "2"];
        arguments.extend(["--data", &data, "--target", &target]);
        arguments.extend(more);
        Child::portico(&arguments, &[])
    };
    let (tls, plain) = (gateway.tls().to_string(), gateway.listen.to_string());
    let mut talk = chat(tls.clone(), &["--tls"]);
    talk.out.wait_for("connected");
    talk.type_line("over TLS");
    talk.out.wait_for("✓ over TLS");
    talk.end_input();
    assert_eq!(talk.wait().code, Some(0));

    for (target, flags, part) in [
        (&plain, &["--tls"][..], "leave --tls out"),
        (&tls, &[], "add --tls"),
        (&tls, &["--tls", "--server-name", "a.example"], "a.example"),
    ] {
        let mut lost = chat(target.clone(), flags);
        lost.out.wait_for(part);
        lost.end_input();
        assert_ne!(lost.wait().code, Some(0));
    }
}

#[test]
fn a_chat_without_a_gateway_keeps_what_was_typed() {
    // An address that nobody else can get, or the chat would find somebody there.
    let setup = Setup::new().flag("--listen", quiet_port());
    let gateway = setup.start();
    let data = setup.data().display().to_string();
    let nobody = gateway.listen.to_string();
    gateway.stop();
    let arguments = [
        "chat", "--as", "1", "--to", "2", "--data", &data, "--target", &nobody,
    ];
    let mut chat = Child::portico(arguments, &[]);
    chat.type_line("for later");
    chat.end_input();
    let exit = chat.wait();
    assert_eq!(exit.code, Some(1));
    assert!(exit.err.contains("1 message not sent"), "{}", exit.err);

    let gateway = setup.start();
    let target = gateway.listen.to_string();
    let arguments = [
        "chat", "--as", "1", "--to", "2", "--data", &data, "--target", &target,
    ];
    let mut chat = Child::portico(arguments, &[]);
    chat.end_input();
    let exit = chat.wait();
    assert_eq!(exit.code, Some(0), "{}\n{}", exit.out, exit.err);
    assert_eq!(gateway.login(2, 1).message().text, "for later");
}

/// What a client and an operator see of SIGTERM and SIGINT.
fn drains(signal: Signal) {
    let setup = Setup::new()
        .set("drain.spread_ms", 700)
        .set("drain.deadline_ms", 1_500);
    let mut gateway = setup.start();
    let (mut stays, mut leaves) = (gateway.login(1, 1), gateway.login(2, 1));
    gateway.child.signal(signal);
    for peer in [&mut stays, &mut leaves] {
        let drain = peer.take("DRAIN", |frame| {
            (frame.known_op() == Some(Op::Drain)).then(|| frame.body.clone())
        });
        let drain = Drain::decode(&drain).expect("a Drain");
        assert_eq!(drain.spread_ms, 700);
        assert!((701..=1_500).contains(&drain.deadline_ms), "{drain:?}");
    }
    assert_eq!(gateway.get("/readyz").status, 503, "draining is not ready");
    assert_eq!(gateway.get("/healthz").status, 200);
    // Until the deadline it works for those who are there.
    stays.send(2, "one more");
    assert_eq!(leaves.receive().text, "one more");
    drop(leaves);
    assert_eq!(stays.closed(), CloseCode::DRAINING);
    let exit = gateway.child.wait();
    assert_eq!(exit.code, Some(0), "{}", exit.err);
    assert!(
        TcpStream::connect(gateway.listen).is_err(),
        "nobody listens"
    );

    // It was all stored.
    drop(gateway);
    assert_eq!(setup.start().login(2, 2).message().text, "one more");
}

#[test]
fn sigterm_drains() {
    drains(Signal::TERM);
}

#[test]
fn sigint_drains() {
    drains(Signal::INT);
}

#[test]
fn a_gateway_without_clients_stops_at_once() {
    let setup = Setup::new().set("drain.deadline_ms", 600_000);
    let gateway = setup.start();
    gateway.still_serves();
    gateway.stop();
}

#[test]
fn a_second_signal_ends_the_waiting() {
    let setup = Setup::new().set("drain.deadline_ms", 600_000);
    let mut gateway = setup.start();
    let mut peer = gateway.login(1, 1);
    peer.send(2, "accepted");
    gateway.child.signal(Signal::TERM);
    peer.take("DRAIN", |frame| {
        (frame.known_op() == Some(Op::Drain)).then_some(())
    });
    gateway.child.signal(Signal::TERM);
    gateway.child.wait_for(Duration::from_secs(10));
    peer.conn.expect_end(PATIENCE).expect("the connection ends");
    drop(gateway);
    assert_eq!(setup.start().login(2, 1).message().text, "accepted");
}

#[test]
fn the_memory_store_serves_too_and_forgets() {
    let setup = Setup::new().flag("--backend", "memory");
    let gateway = setup.start();
    let mut one = gateway.login(1, 1);
    one.send(2, "waits");
    let mut two = gateway.login(2, 1);
    assert_eq!(two.receive().text, "waits");
    gateway.still_serves();
    drop((one, two));
    gateway.stop();
    let gateway = setup.start();
    gateway.login(2, 1).has_no(Op::Deliver);
}

#[test]
fn a_login_can_be_resumed_across_a_restart() {
    let setup = Setup::new();
    let gateway = setup.start();
    let resume_token = gateway.login(1, 1).welcome.resume_token;
    assert!(!resume_token.is_empty());
    gateway.stop();
    let gateway = setup.start();
    let resumed = gateway.watch("portico_logins_resumed_total");
    let hello = Hello {
        resume_token: Some(&resume_token),
        ..Hello::default()
    };
    let peer = Peer::login_with(gateway.connect(), &hello);
    assert!(peer.welcome.resumed);
    assert_eq!((peer.welcome.user.0, peer.welcome.device.0), (1, 1));
    resumed.moves_by(1);
}

#[test]
fn settings_come_from_file_environment_and_flags() {
    let setup = Setup::new().set("session.heartbeat_s", 77);
    let file = setup.directory().join("portico.toml");
    std::fs::write(
        &file,
        "[server]\nshards = 1\nnode = \"from-file\"\n[session]\nheartbeat_s = 70\n",
    )
    .expect("a file");
    let setup = setup.flag("--config", file.display()).flag("--shards", 3);
    let gateway = setup.start();
    let peer = gateway.login(1, 1);
    assert_eq!(peer.welcome.node, "from-file");
    assert_eq!(
        peer.welcome.heartbeat_s, 77,
        "the environment wins over the file"
    );
    assert_eq!(
        gateway.metrics().get("portico_shards"),
        3,
        "flags win over all"
    );
    drop(peer);
    eventually("the session's end", || {
        (gateway.metrics().get("portico_sessions") == 0).then_some(())
    });
}
