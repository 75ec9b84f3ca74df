//! The bytes: frames and bodies, as `portico-wire` reads them.

use flatbuffers::{Follow, Verifiable};
use portico_wire::{
    BodyError, FrameError, Op,
    encode::Encoder,
    fb, frame,
    limits::{FRAME_BYTES_BEFORE_WELCOME_MAX, FRAME_BYTES_DEFAULT_MAX, FRAME_BYTES_MIN},
    message::{
        Close, Drain, Envelope, ErrorReply, Hello, ReceiptsGet, Welcome,
        group::{Group, GroupCreate, GroupEdit, GroupEvent, GroupGet},
        people,
    },
    next_frame,
    verify::{Scope, root},
};
use std::fmt::{self, Debug, Write};

/// First byte of a `bodies` input that stands for the plaintext table, which no operation has.
pub const PLAINTEXT: u8 = 255;

/// A stream of frames under both limits.
pub fn frame(data: &[u8]) {
    follow(data, FRAME_BYTES_BEFORE_WELCOME_MAX);
    follow(data, FRAME_BYTES_DEFAULT_MAX);
}

/// A first byte that names an operation, then what is to be its body.
pub fn bodies(data: &[u8]) {
    if let Some((op, body)) = data.split_first() {
        body_of(*op, body);
    }
}

/// Proves that the machinery finds things: a run that does not end with a crash within seconds is
/// blind, and so are the others.
pub fn canary(data: &[u8]) {
    assert!(!data.starts_with(b"PTC1"), "the canary was found");
}

/// Reads frames until the bytes end or go wrong. Every frame is a frame under any chunking: its
/// proper prefixes ask for more, and what follows it changes nothing.
fn follow(data: &[u8], max_bytes: usize) {
    let mut rest = data;
    loop {
        let found = match next_frame(rest, max_bytes) {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) => {
                assert!(error.close_code().0 >= 4_000);
                return still_wrong(rest, max_bytes, error);
            }
        };
        let bytes = found.bytes();
        assert!((FRAME_BYTES_MIN..=max_bytes).contains(&bytes.len()));
        assert!(rest.starts_with(bytes));
        assert_eq!(next_frame(bytes, max_bytes), Ok(Some(found)));
        for end in [0, 3, 4, 15, bytes.len() / 2, bytes.len() - 1] {
            assert_eq!(
                next_frame(&bytes[..end.min(bytes.len() - 1)], max_bytes),
                Ok(None)
            );
        }
        touch(&found);
        body_of(found.op(), found.body());
        rest = &rest[bytes.len()..];
    }
}

/// More bytes never mend a bad frame.
fn still_wrong(rest: &[u8], max_bytes: usize, error: FrameError) {
    let mut longer = rest.to_vec();
    longer.extend_from_slice(&[0; 32]);
    assert_eq!(next_frame(&longer, max_bytes), Err(error));
}

fn touch(found: &frame::Frame<'_>) {
    let _ = (
        found.corr(),
        found.aux(),
        found.is_request(),
        found.seq_header(),
    );
    let routed = found.flags().contains(frame::Flags::ROUTED);
    assert_eq!(found.route().is_some(), routed);
    let _ = found.route().and_then(|route| route.msg_id.unix_ms());
    assert!(found.body().len() + frame::BASE_END <= found.bytes().len());
    show(found);
}

/// Opens a body as the table of its operation and reads all of it. The match has a row for every
/// operation, so that a new one is fuzzed from its first day.
fn body_of(op: u8, body: &[u8]) {
    let Some(op) = Op::from_u8(op) else {
        if op == PLAINTEXT {
            table::<fb::Content<'_>>(body);
        }
        return;
    };
    match op {
        Op::Ping
        | Op::Pong
        | Op::Ack
        | Op::Done
        | Op::SyncGap
        | Op::Synced
        | Op::ClientState
        | Op::Sent
        | Op::Receipt
        | Op::Signal
        | Op::NotifyPrefsGet
        | Op::PrivacyGet => {}
        Op::Hello => {
            table::<fb::Hello<'_>>(body);
            hello(body);
        }
        Op::Welcome => {
            table::<fb::Welcome<'_>>(body);
            welcome(body);
        }
        Op::Error => {
            table::<fb::ErrorReply<'_>>(body);
            value(ErrorReply::decode(body));
        }
        Op::Close => {
            table::<fb::Close<'_>>(body);
            value(Close::decode(body));
        }
        Op::Drain => {
            table::<fb::Drain<'_>>(body);
            value(Drain::decode(body));
        }
        Op::Reauth => table::<fb::Reauth<'_>>(body),
        Op::RegStart => table::<fb::RegStart<'_>>(body),
        Op::RegConfirm => table::<fb::RegConfirm<'_>>(body),
        Op::Tokens => table::<fb::Tokens<'_>>(body),
        Op::TokenRefresh => table::<fb::TokenRefresh<'_>>(body),
        Op::Send | Op::Deliver => {
            table::<fb::Envelope<'_>>(body);
            envelope(body);
        }
        Op::History => table::<fb::HistoryGet<'_>>(body),
        Op::HistoryEnd => table::<fb::HistoryEnd<'_>>(body),
        Op::DevicesStale => table::<fb::DevicesStale<'_>>(body),
        Op::ReceiptsGet => {
            table::<fb::ReceiptsGet<'_>>(body);
            receipts_get(body);
        }
        Op::SendMulti => table::<fb::Message<'_>>(body),
        Op::Revoke => table::<fb::Revoke<'_>>(body),
        Op::ConversationsGet => table::<fb::ConversationsGet<'_>>(body),
        Op::Conversation => table::<fb::Conversation<'_>>(body),
        Op::PresenceSub => {
            table::<fb::PresenceSub<'_>>(body);
            value(people::PresenceSub::decode(body));
        }
        Op::Presence => {
            table::<fb::Presence<'_>>(body);
            value(people::Presence::decode(body));
        }
        Op::GroupCreate => {
            table::<fb::GroupCreate<'_>>(body);
            group_create(body);
        }
        Op::GroupEdit => {
            table::<fb::GroupEdit<'_>>(body);
            group_edit(body);
        }
        Op::GroupGet => {
            table::<fb::GroupGet<'_>>(body);
            group_get(body);
        }
        Op::Group => {
            table::<fb::Group<'_>>(body);
            group(body);
        }
        Op::GroupEvent => {
            table::<fb::GroupEvent<'_>>(body);
            group_event(body);
        }
        Op::KeysUpload => table::<fb::KeysUpload<'_>>(body),
        Op::KeysFetch => table::<fb::KeysFetch<'_>>(body),
        Op::KeyBundles => table::<fb::KeyBundles<'_>>(body),
        Op::KeysLow => table::<fb::KeysLow<'_>>(body),
        Op::DevicesGet => table::<fb::DevicesGet<'_>>(body),
        Op::Devices => table::<fb::Devices<'_>>(body),
        Op::DeviceLink => table::<fb::DeviceLink<'_>>(body),
        Op::DeviceRevoke => table::<fb::DeviceRevoke<'_>>(body),
        Op::DevicesChanged => table::<fb::DevicesChanged<'_>>(body),
        Op::DeviceRename => table::<fb::DeviceRename<'_>>(body),
        Op::IdentityLogGet => table::<fb::IdentityLogGet<'_>>(body),
        Op::IdentityLog => table::<fb::IdentityLog<'_>>(body),
        Op::UploadOpen => table::<fb::UploadOpen<'_>>(body),
        Op::UploadTicket => table::<fb::UploadTicket<'_>>(body),
        Op::UploadDone => table::<fb::UploadDone<'_>>(body),
        Op::DownloadOpen => table::<fb::DownloadOpen<'_>>(body),
        Op::DownloadTicket => table::<fb::DownloadTicket<'_>>(body),
        Op::MediaReady => table::<fb::MediaReady<'_>>(body),
        Op::PushSet => table::<fb::PushSet<'_>>(body),
        Op::NotifyPrefs => table::<fb::NotifyPrefs<'_>>(body),
        Op::ContactsEdit => {
            table::<fb::ContactsEdit<'_>>(body);
            value(people::ContactsEdit::decode(body));
        }
        Op::ContactsGet => {
            table::<fb::ContactsGet<'_>>(body);
            value(people::ContactsGet::decode(body));
        }
        Op::Contacts => {
            table::<fb::Contacts<'_>>(body);
            value(people::Contacts::decode(body));
        }
        Op::PrivacySet | Op::Privacy => {
            table::<fb::Privacy<'_>>(body);
            value(people::Privacy::decode(body));
        }
        Op::ProfileSet | Op::Profile => table::<fb::Profile<'_>>(body),
        Op::ProfilesGet => table::<fb::ProfilesGet<'_>>(body),
        Op::UsersLookup => table::<fb::UsersLookup<'_>>(body),
        Op::Users => table::<fb::Users<'_>>(body),
        Op::Call => table::<fb::Call<'_>>(body),
        Op::TurnGet => table::<fb::TurnGet<'_>>(body),
        Op::Turn => table::<fb::Turn<'_>>(body),
    }
}

/// A body that verifies for one reader verifies for every reader that allows more, and reading
/// every field of it is safe.
fn table<'a, T>(body: &'a [u8])
where
    T: Follow<'a> + Verifiable + 'a,
    T::Inner: Debug,
{
    let opened =
        [Scope::Server, Scope::ServerLarge, Scope::Client].map(|scope| root::<T>(body, scope));
    assert!(opened.is_sorted_by_key(Result::is_ok));
    let [_, _, widest] = opened;
    match widest {
        // The generated Debug reads every field, and nested tables to the bottom.
        Ok(table) => show(table),
        Err(error) => assert_eq!(error, BodyError::Malformed),
    }
}

fn value<T: Debug>(decoded: Result<T, BodyError>) -> Option<T> {
    decoded.inspect(|value| show(value)).ok()
}

/// What was read, written and read again is the same value.
fn hello(body: &[u8]) {
    let Some(read) = value(Hello::decode(body)) else {
        return;
    };
    let mut out = Vec::new();
    Encoder::new().hello(&mut out, 1, &read);
    assert!(out.len() <= FRAME_BYTES_BEFORE_WELCOME_MAX);
    assert_eq!(Hello::decode(&out[frame::BASE_END..]), Ok(read));
}

fn welcome(body: &[u8]) {
    let Some(read) = value(Welcome::decode(body)) else {
        return;
    };
    let mut out = Vec::new();
    Encoder::new().welcome(&mut out, 1, &read);
    assert_eq!(Welcome::decode(&out[frame::BASE_END..]), Ok(read));
}

/// An Envelope is forwarded as it is; only clients read it. Written anew it may be a little longer
/// than the limit, where the reader's form shared bytes.
fn envelope(body: &[u8]) {
    let Some(read) = value(Envelope::decode(body)) else {
        return;
    };
    let mut encoder = Encoder::new();
    match Envelope::decode(encoder.envelope(&read)) {
        Ok(again) => assert_eq!(again, read),
        Err(error) => assert_eq!(error, BodyError::TooLong),
    }
}

fn receipts_get(body: &[u8]) {
    let Some(read) = value(ReceiptsGet::decode(body)) else {
        return;
    };
    let mut out = Vec::new();
    Encoder::new().receipts_get(&mut out, 1, &read);
    assert_eq!(ReceiptsGet::decode(&out[frame::BASE_END..]), Ok(read));
}

fn group_create(body: &[u8]) {
    let Some(read) = value(GroupCreate::decode(body)) else {
        return;
    };
    let mut out = Vec::new();
    let route = frame::RouteHeader::default();
    Encoder::new().group_create(&mut out, frame::Flags::NONE, 1, &route, &read);
    assert_eq!(GroupCreate::decode(&out[frame::ROUTE_END..]), Ok(read));
}

fn group_edit(body: &[u8]) {
    let Some(read) = value(GroupEdit::decode(body)) else {
        return;
    };
    let mut out = Vec::new();
    let route = frame::RouteHeader::default();
    Encoder::new().group_edit(&mut out, frame::Flags::NONE, 1, &route, &read);
    assert_eq!(GroupEdit::decode(&out[frame::ROUTE_END..]), Ok(read));
}

fn group_get(body: &[u8]) {
    let Some(read) = value(GroupGet::decode(body)) else {
        return;
    };
    let mut out = Vec::new();
    Encoder::new().group_get(&mut out, 1, &read);
    assert_eq!(GroupGet::decode(&out[frame::BASE_END..]), Ok(read));
}

fn group(body: &[u8]) {
    let Some(read) = value(Group::decode(body)) else {
        return;
    };
    let mut out = Vec::new();
    Encoder::new().group(&mut out, 1, false, &read);
    assert_eq!(Group::decode(&out[frame::BASE_END..]), Ok(read));
}

fn group_event(body: &[u8]) {
    let Some(read) = value(GroupEvent::decode(body)) else {
        return;
    };
    let mut encoder = Encoder::new();
    assert_eq!(GroupEvent::decode(encoder.group_event(&read)), Ok(read));
}

/// Formats a value and throws the text away.
fn show(value: impl Debug) {
    struct Nowhere;
    impl Write for Nowhere {
        fn write_str(&mut self, _: &str) -> fmt::Result {
            Ok(())
        }
    }
    write!(Nowhere, "{value:?}").expect("writing nowhere cannot fail");
}
