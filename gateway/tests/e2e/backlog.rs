//! Large backlogs: an inbox in which very many messages wait, and very many users with something
//! waiting. Neither keeps the gateway from starting, and a replay takes no more memory than a page
//! and the client's own window.
//!
//! The numbers are those of a debug build; `PORTICO_E2E_BACKLOG=1000000`, in a release build, makes
//! the backlog a million of each.

use crate::harness::{Gateway, PATIENCE, Setup, wall_us};
use portico_backend::{
    Completion, Request, Sink,
    embedded::{self, Options},
    messages::{Cmd, Entry, EntryMeta, InboxRef, Messages, Refs},
};
use portico_client::plain_envelope;
use portico_wire::{
    Op,
    encode::put_ack,
    ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId},
    message::Hello,
};
use std::{
    env, fs,
    os::unix::fs::DirBuilderExt,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

/// Messages that wait for one user, and users for whom one waits.
const WAITING: u64 = 50_000;
const BUSY_USER: u64 = 1;
const FIRST_USER: u64 = 1_000;
const SENDER: u64 = 500;
/// What a client asks to have unacknowledged.
const WINDOW: u32 = 64;
/// What the replay of one connection may add to the process: a page, the store's cache of what is
/// read, and what its allocator keeps of either.
const REPLAY_BYTES_MAX: u64 = 96 << 20;
/// From the start of the process to its ready line.
const START_MAX: Duration = Duration::from_secs(2);
/// In a debug build, beside other tests.
const START_DEBUG_MAX: Duration = Duration::from_secs(10);
const BATCH: usize = 512;

fn waiting() -> u64 {
    env::var("PORTICO_E2E_BACKLOG").map_or(WAITING, |text| {
        text.parse().expect("PORTICO_E2E_BACKLOG is a number")
    })
}

struct Answers(Mutex<mpsc::Sender<usize>>);

impl Sink<Messages> for Answers {
    fn complete(&self, batch: Vec<Completion<Messages>>) {
        for completion in &batch {
            assert!(completion.result.is_ok(), "{:?}", completion.result);
        }
        let sender = self.0.lock().expect("nobody panics with it");
        sender.send(batch.len()).expect("the test waits");
    }
}

/// Fills a store as a gateway would: a message for each of `users`, in their order.
fn fill(setup: &Setup, users: impl Iterator<Item = u64>) {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(setup.data()).expect("a data directory");
    let store = embedded::open(Options::new(setup.data().join("store"))).expect("a new store");
    let (sender, answers) = mpsc::channel();
    let sink: Arc<dyn Sink<Messages>> = Arc::new(Answers(Mutex::new(sender)));
    // An hour ago, two numbers to a message.
    let mut seq = wall_us() - 3_600_000_000;
    let mut open = 0;
    let mut batch = Vec::with_capacity(BATCH);
    let mut users = users.peekable();
    let mut token = 0;
    while let Some(user) = users.next() {
        (seq, token) = (seq + 2, token + 1);
        let conv = ConvId::direct(UserId(SENDER), UserId(user));
        let conv_seq = ConvSeq(seq);
        let entry = Entry {
            conv,
            conv_seq,
            sender: UserId(SENDER),
            device: DeviceId(1),
            msg_id: MsgId::new_v7(seq / 1_000, u128::from(token)),
            meta: EntryMeta {
                op: Op::Deliver as u8,
                ..EntryMeta::default()
            },
            body: plain_envelope(&format!("{token:0100}")).into(),
        };
        let reference = InboxRef {
            user: UserId(user),
            seq: Seq(seq + 1),
            conv,
            conv_seq,
        };
        batch.push(Request {
            token,
            lane: 0,
            deadline: Instant::now() + Duration::from_secs(60),
            cmd: Cmd::Append {
                entry,
                refs: Refs::from_buf([reference]),
                fan_out: false,
            },
        });
        if batch.len() == BATCH || users.peek().is_none() {
            open += batch.len();
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
            store.messages.submit(full, &sink).expect("it has room");
            while open > 8 * BATCH || (users.peek().is_none() && open > 0) {
                open -= answers.recv_timeout(PATIENCE).expect("answers");
            }
        }
    }
    store
        .close(Instant::now() + PATIENCE)
        .expect("it closes in order");
}

/// Starts it, and says how long that took and what it holds then.
fn start(setup: &Setup) -> (Gateway, u64) {
    let begun = Instant::now();
    let gateway = setup.start();
    let took = begun.elapsed();
    let resident = gateway.process().resident_bytes();
    println!("ready after {took:.2?}, resident {} MiB", resident >> 20);
    let allowed = if cfg!(debug_assertions) {
        START_DEBUG_MAX
    } else {
        START_MAX
    };
    assert!(took <= allowed, "{took:?}");
    (gateway, resident)
}

#[test]
fn an_inbox_with_very_many_waiting_messages_is_replayed_by_pages() {
    let count = waiting();
    let setup = Setup::new();
    fill(&setup, std::iter::repeat_n(BUSY_USER, count as usize));
    let (gateway, before) = start(&setup);
    let token = gateway.token(BUSY_USER, 1);
    let mut conn = gateway.connect();
    let hello = Hello {
        token: Some(&token),
        receive_max: WINDOW,
        ..Hello::default()
    };
    conn.hello_with(&hello).expect("WELCOME");
    let begun = Instant::now();
    let (mut next, mut last, mut peak) = (0, Seq(0), 0);
    let mut acks = Vec::new();
    let replayed = loop {
        let frame = conn.expect_frame(PATIENCE).expect("a frame");
        match frame.known_op() {
            Some(Op::Deliver) => {
                let route = frame.route.expect("DELIVER is routed");
                assert!(route.seq > last, "in order");
                (next, last) = (next + 1, route.seq);
                let text = format!("{next:0100}");
                assert!(frame.body.ends_with(text.as_bytes()) || find(&frame.body, &text));
                if next % u64::from(WINDOW / 2) == 0 || next == count {
                    acks.clear();
                    put_ack(&mut acks, last, WINDOW);
                    conn.write_bytes(&acks).expect("it reads");
                }
                if next % 2_000 == 0 {
                    peak = peak.max(gateway.process().resident_bytes());
                }
            }
            Some(Op::Synced) => break frame.seq.arg,
            other => panic!("{other:?}"),
        }
    };
    println!(
        "{count} messages in {:.2?}, resident {} MiB at most",
        begun.elapsed(),
        peak >> 20
    );
    assert_eq!((next, u64::from(replayed)), (count, count));
    let grown = peak.saturating_sub(before);
    assert!(
        grown <= REPLAY_BYTES_MAX,
        "the process grew by {grown} bytes"
    );
    gateway.has_stored_acks(count);
    assert_eq!(gateway.metrics().get("portico_pages_waiting"), 0);
    // What was acknowledged does not come again.
    drop(conn);
    let mut again = gateway.login(BUSY_USER, 1);
    again.has_no(Op::Deliver);
}

fn find(body: &[u8], text: &str) -> bool {
    let wanted = text.as_bytes();
    body.windows(wanted.len()).any(|window| window == wanted)
}

#[test]
fn very_many_users_with_waiting_messages_are_no_burden() {
    let count = waiting();
    let setup = Setup::new();
    fill(&setup, FIRST_USER..FIRST_USER + count);
    let (gateway, before) = start(&setup);
    // Those of every part of the store.
    for at in 0..200 {
        let user = FIRST_USER + at * (count - 1) / 199;
        let mut peer = gateway.login(user, 1);
        let message = peer.receive();
        assert_eq!(message.text, format!("{:0100}", user - FIRST_USER + 1));
        peer.has_no(Op::Deliver);
    }
    let grown = gateway.process().resident_bytes().saturating_sub(before);
    println!("after 200 logins {} MiB more", grown >> 20);
    assert!(
        grown <= REPLAY_BYTES_MAX,
        "the process grew by {grown} bytes"
    );
    gateway.still_serves();
}
