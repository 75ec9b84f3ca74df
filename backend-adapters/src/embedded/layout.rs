//! The bytes of the store: keys and values, written down once.
//!
//! Numbers are big-endian, so that the order of keys is the order of numbers. Every value begins
//! with the version of its layout. Keys of up to 20 bytes are kept inline by the engine, which is
//! why a conversation appears in keys as the first 96 bits of a keyed hash: the full id is in the
//! value, and readers pass over what is not theirs. `docs/BACKENDS.md` has the tables; the tests
//! below hold each row as bytes, so the format cannot change unnoticed.
//!
//! # Invariants
//! * Decoding never panics: anything but the exact layout is `None`, a damaged row.
//! * A key of one kind has one length.

use crate::messages::{Entry, EntryMeta, InboxRef, Watermark};
use crate::records::{Row, Table, Version};
use bytes::Bytes;
use portico_wire::ids::{ConvId, ConvSeq, DeviceId, MsgId, Seq, UserId};
use siphasher::sip128::SipHasher24;

/// The format of the store as a whole, in `meta`. A store with a greater one is not opened.
pub(super) const FORMAT: u32 = 1;

/// Names of keyspaces. Those of months follow the prefixes.
pub(super) const ENTRY_PREFIX: &str = "entry-";
pub(super) const INBOX_PREFIX: &str = "inbox-";
pub(super) const CURSOR: &str = "cursor";
pub(super) const MARK: &str = "mark";
pub(super) const FAN_OUT: &str = "fanout";
pub(super) const RECORD: &str = "record";
pub(super) const TAKEN: &str = "taken";
pub(super) const META: &str = "meta";

/// Keys in `meta`.
pub(super) const META_FORMAT: &str = "format";
pub(super) const META_STORE_ID: &str = "store_id";
pub(super) const META_HASH_KEY: &str = "hash_key";
pub(super) const META_CLOCK: &str = "clock";

/// Version of every value layout below; they are counted one by one from here on.
const V1: u8 = 1;

/// The head of an entry, before its body.
const ENTRY_HEAD: usize = 56;

/// Hashes conversations for keys, under a key of the store's own: nobody outside can choose ids
/// that collide.
#[derive(Clone)]
pub(super) struct ConvHash(SipHasher24);

/// The first 96 bits.
pub(super) type H12 = [u8; 12];

/// See [`conv_key`].
pub(super) type ConvKey = [u8; 20];

/// See [`inbox_key`].
pub(super) type InboxKey = [u8; 16];

/// See [`inbox_value`].
pub(super) type InboxValue = [u8; 25];

/// See [`cursor_key`].
pub(super) type CursorKey = [u8; 12];

impl ConvHash {
    pub(super) fn new(key: &[u8; 16]) -> Self {
        Self(SipHasher24::new_with_key(key))
    }

    pub(super) fn h12(&self, conv: ConvId) -> H12 {
        let hash = self.0.hash(&conv.to_bytes()).as_bytes();
        std::array::from_fn(|i| hash[i])
    }
}

// Keys.

/// `h12(conv)`, then a conversation's number, or a user. Entries, fan-out markers, watermarks.
pub(super) fn conv_key(h12: &H12, number: u64) -> ConvKey {
    let mut key = [0; 20];
    let (head, tail) = key.split_at_mut(12);
    head.copy_from_slice(h12);
    tail.copy_from_slice(&number.to_be_bytes());
    key
}

/// The number at the end of a [`conv_key`].
pub(super) fn conv_key_number(key: &[u8]) -> Option<u64> {
    let (_, number) = key.split_first_chunk::<12>()?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

/// A user, then a position in the inbox.
pub(super) fn inbox_key(user: UserId, seq: Seq) -> InboxKey {
    (u128::from(user.0) << 64 | u128::from(seq.0)).to_be_bytes()
}

pub(super) fn inbox_key_seq(key: &[u8]) -> Option<Seq> {
    let key: [u8; 16] = key.try_into().ok()?;
    Some(Seq(u128::from_be_bytes(key) as u64))
}

pub(super) fn inbox_key_user(key: &[u8]) -> Option<UserId> {
    let (user, _) = key.split_first_chunk::<8>()?;
    Some(UserId(u64::from_be_bytes(*user)))
}

/// A user, then a device in 4 bytes.
pub(super) fn cursor_key(user: UserId, device: DeviceId) -> CursorKey {
    let mut key = [0; 12];
    let (head, tail) = key.split_at_mut(8);
    head.copy_from_slice(&user.0.to_be_bytes());
    tail.copy_from_slice(&u32::from(device.0).to_be_bytes());
    key
}

pub(super) fn cursor_key_device(key: &[u8]) -> Option<DeviceId> {
    let (_, device) = key.split_first_chunk::<8>()?;
    let device = u32::from_be_bytes(device.try_into().ok()?);
    Some(DeviceId(u16::try_from(device).ok()?))
}

/// A table, then the key of the record.
pub(super) fn record_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(2 + key.len());
    stored.extend(table.0.to_be_bytes());
    stored.extend(key);
    stored
}

// Values.

/// Reads fields one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The fields after the version, if it is the expected one.
    fn of(value: &'a [u8], version: u8) -> Option<Self> {
        let mut fields = Self(value);
        (fields.u8()? == version).then_some(fields)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn conv(&mut self) -> Option<ConvId> {
        self.take().map(ConvId::from_bytes)
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }

    fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// Writes into `out`, which the caller reuses.
pub(super) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    out.clear();
    out.reserve(ENTRY_HEAD + entry.body.len());
    let meta = &entry.meta;
    out.extend([V1, meta.op, meta.kind, meta.flags]);
    out.extend(meta.ttl_s.to_be_bytes());
    out.extend(entry.conv.to_bytes());
    out.extend(entry.sender.0.to_be_bytes());
    out.extend(u32::from(entry.device.0).to_be_bytes());
    out.extend(entry.msg_id.to_bytes());
    let len = u32::try_from(entry.body.len()).unwrap_or(u32::MAX);
    out.extend(len.to_be_bytes());
    out.extend_from_slice(&entry.body);
}

/// The value of an entry without its body; `None` if it cannot be read or belongs to another
/// conversation.
pub(super) fn redacted(value: &[u8], conv: ConvId) -> Option<Vec<u8>> {
    let entry = EntryView::parse(value).filter(|entry| entry.conv == conv)?;
    let (head, _) = value.split_at_checked(value.len() - entry.body.len())?;
    let (head, _length) = head.split_at_checked(ENTRY_HEAD - 4)?;
    let mut redacted = head.to_vec();
    redacted.extend(0_u32.to_be_bytes());
    Some(redacted)
}

/// An entry whose body is still in the store's own bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EntryView<'a> {
    pub(super) meta: EntryMeta,
    pub(super) conv: ConvId,
    pub(super) sender: UserId,
    pub(super) device: DeviceId,
    pub(super) msg_id: MsgId,
    pub(super) body: &'a [u8],
}

impl<'a> EntryView<'a> {
    pub(super) fn parse(value: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::of(value, V1)?;
        let meta = EntryMeta {
            op: fields.u8()?,
            kind: fields.u8()?,
            flags: fields.u8()?,
            ttl_s: fields.u32()?,
        };
        let conv = fields.conv()?;
        let sender = UserId(fields.u64()?);
        let device = DeviceId(u16::try_from(fields.u32()?).ok()?);
        let msg_id = MsgId::from_bytes(fields.take()?);
        let body_len = usize::try_from(fields.u32()?).ok()?;
        let body = fields.bytes(body_len)?;
        fields.end()?;
        Some(Self {
            meta,
            conv,
            sender,
            device,
            msg_id,
            body,
        })
    }

    /// The body is copied: a slice would keep the whole block of the cache alive.
    pub(super) fn to_entry(&self, conv_seq: ConvSeq) -> Entry {
        Entry {
            conv: self.conv,
            conv_seq,
            sender: self.sender,
            device: self.device,
            msg_id: self.msg_id,
            meta: self.meta,
            body: Bytes::copy_from_slice(self.body),
        }
    }
}

pub(super) fn inbox_value(reference: &InboxRef) -> InboxValue {
    let mut value = [V1; 25];
    let (conv, seq) = value[1..].split_at_mut(16);
    conv.copy_from_slice(&reference.conv.to_bytes());
    seq.copy_from_slice(&reference.conv_seq.0.to_be_bytes());
    value
}

pub(super) fn parse_inbox(value: &[u8]) -> Option<(ConvId, ConvSeq)> {
    let mut fields = Fields::of(value, V1)?;
    let place = (fields.conv()?, ConvSeq(fields.u64()?));
    fields.end()?;
    Some(place)
}

pub(super) fn cursor_value(seq: Seq) -> [u8; 9] {
    let mut value = [V1; 9];
    value[1..].copy_from_slice(&seq.0.to_be_bytes());
    value
}

pub(super) fn parse_cursor(value: &[u8]) -> Option<Seq> {
    let mut fields = Fields::of(value, V1)?;
    let seq = Seq(fields.u64()?);
    fields.end()?;
    Some(seq)
}

pub(super) fn mark_value(conv: ConvId, water: &Watermark) -> [u8; 41] {
    let mut value = [V1; 41];
    let mut rest = &mut value[1..];
    let mut put = |field: &[u8]| {
        if let Some((place, after)) = std::mem::take(&mut rest).split_at_mut_checked(field.len()) {
            place.copy_from_slice(field);
            rest = after;
        }
    };
    put(&conv.to_bytes());
    put(&water.delivered.0.to_be_bytes());
    put(&water.delivered_at_s.to_be_bytes());
    put(&water.read.0.to_be_bytes());
    put(&water.read_at_s.to_be_bytes());
    value
}

pub(super) fn parse_mark(user: UserId, value: &[u8]) -> Option<(ConvId, Watermark)> {
    let mut fields = Fields::of(value, V1)?;
    let conv = fields.conv()?;
    let water = Watermark {
        user,
        delivered: ConvSeq(fields.u64()?),
        delivered_at_s: fields.u32()?,
        read: ConvSeq(fields.u64()?),
        read_at_s: fields.u32()?,
    };
    fields.end()?;
    Some((conv, water))
}

pub(super) fn fan_out_value(conv: ConvId) -> [u8; 17] {
    let mut value = [V1; 17];
    value[1..].copy_from_slice(&conv.to_bytes());
    value
}

pub(super) fn parse_fan_out(value: &[u8]) -> Option<ConvId> {
    let mut fields = Fields::of(value, V1)?;
    let conv = fields.conv()?;
    fields.end()?;
    Some(conv)
}

pub(super) fn record_value(version: Version, value: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(9 + value.len());
    stored.push(V1);
    stored.extend(version.0.to_be_bytes());
    stored.extend(value);
    stored
}

pub(super) fn parse_record(value: &[u8]) -> Option<(Version, &[u8])> {
    let mut fields = Fields::of(value, V1)?;
    let version = Version(fields.u64()?);
    Some((version, fields.0))
}

/// What a `TakeOne` got, and when.
pub(super) fn taken_value(at_s: u32, row: Option<&Row>) -> Vec<u8> {
    let mut stored = vec![V1];
    stored.extend(at_s.to_be_bytes());
    if let Some(row) = row {
        let key_len = u16::try_from(row.key.len()).unwrap_or(u16::MAX);
        stored.extend(row.version.0.to_be_bytes());
        stored.extend(key_len.to_be_bytes());
        stored.extend_from_slice(&row.key);
        stored.extend_from_slice(&row.value);
    }
    stored
}

pub(super) fn parse_taken(value: &[u8]) -> Option<(u32, Option<Row>)> {
    let mut fields = Fields::of(value, V1)?;
    let at_s = fields.u32()?;
    if fields.0.is_empty() {
        return Some((at_s, None));
    }
    let version = Version(fields.u64()?);
    let key_len = usize::from(fields.u16()?);
    let key = Bytes::copy_from_slice(fields.bytes(key_len)?);
    let value = Bytes::copy_from_slice(fields.0);
    let row = Row {
        key,
        value,
        version,
    };
    Some((at_s, Some(row)))
}

#[cfg(test)]
mod tests {
    //! One row of each kind, as bytes. A test that fails here means that stores in the field can
    //! no longer be read: give the layout a new version instead.

    use super::*;
    use portico_wire::ids::GroupId;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn conv() -> ConvId {
        ConvId::direct(UserId(0x1122), UserId(0x3344))
    }

    #[test]
    fn keys_are_written_as_documented() {
        let hash = ConvHash::new(&[7; 16]);
        let h12 = hash.h12(conv());
        assert_eq!(hex(&h12), "7d610044f9b9694e7f4e8426");
        assert_eq!(
            hex(&conv_key(&h12, 0x0102_0304_0506_0708)),
            format!("{}0102030405060708", hex(&h12))
        );
        assert_eq!(
            hex(&inbox_key(UserId(0x11), Seq(0x22))),
            "00000000000000110000000000000022"
        );
        assert_eq!(
            hex(&cursor_key(UserId(0x11), DeviceId(0x22))),
            "000000000000001100000022"
        );
        assert_eq!(hex(&record_key(Table(0x0102), b"abc")), "0102616263");
    }

    #[test]
    fn values_are_written_as_documented() {
        let entry = Entry {
            conv: conv(),
            conv_seq: ConvSeq(1),
            sender: UserId(0x1122),
            device: DeviceId(0x55),
            msg_id: MsgId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
            meta: EntryMeta {
                op: 34,
                kind: 2,
                flags: 3,
                ttl_s: 0x0405_0607,
            },
            body: Bytes::from_static(b"hello"),
        };
        let mut value = Vec::new();
        put_entry(&mut value, &entry);
        assert_eq!(
            hex(&value),
            "0122020304050607\
             00000000000011220000000000003344\
             0000000000001122\
             00000055\
             0102030405060708090a0b0c0d0e0f10\
             00000005\
             68656c6c6f"
        );
        let view = EntryView::parse(&value).expect("parses");
        assert_eq!(view.to_entry(ConvSeq(1)), entry);

        let group = ConvId::Group(GroupId(0x77));
        let reference = InboxRef {
            user: UserId(1),
            seq: Seq(2),
            conv: group,
            conv_seq: ConvSeq(0x99),
        };
        let value = inbox_value(&reference);
        assert_eq!(
            hex(&value),
            "01000000000000000000000000000000770000000000000099"
        );
        assert_eq!(parse_inbox(&value), Some((group, ConvSeq(0x99))));

        let value = cursor_value(Seq(0x1234));
        assert_eq!(hex(&value), "010000000000001234");
        assert_eq!(parse_cursor(&value), Some(Seq(0x1234)));

        let water = Watermark {
            user: UserId(9),
            delivered: ConvSeq(0xa),
            delivered_at_s: 0xb,
            read: ConvSeq(0xc),
            read_at_s: 0xd,
        };
        let value = mark_value(group, &water);
        assert_eq!(
            hex(&value),
            "01\
             00000000000000000000000000000077\
             000000000000000a0000000b\
             000000000000000c0000000d"
        );
        assert_eq!(parse_mark(UserId(9), &value), Some((group, water)));

        let value = fan_out_value(group);
        assert_eq!(hex(&value), "0100000000000000000000000000000077");
        assert_eq!(parse_fan_out(&value), Some(group));

        let value = record_value(Version(0x42), b"value");
        assert_eq!(hex(&value), "01000000000000004276616c7565");
        assert_eq!(parse_record(&value), Some((Version(0x42), &b"value"[..])));

        let row = Row {
            key: Bytes::from_static(b"key"),
            value: Bytes::from_static(b"val"),
            version: Version(0x42),
        };
        let value = taken_value(0x0a0b_0c0d, Some(&row));
        assert_eq!(hex(&value), "010a0b0c0d000000000000004200036b657976616c");
        assert_eq!(parse_taken(&value), Some((0x0a0b_0c0d, Some(row))));
        let value = taken_value(5, None);
        assert_eq!(hex(&value), "0100000005");
        assert_eq!(parse_taken(&value), Some((5, None)));
    }

    #[test]
    fn damaged_rows_are_noticed_at_every_length() {
        let mut entry = Vec::new();
        let whole = Entry {
            conv: conv(),
            conv_seq: ConvSeq(1),
            sender: UserId(1),
            device: DeviceId(1),
            msg_id: MsgId(1),
            meta: EntryMeta::default(),
            body: Bytes::from_static(b"body"),
        };
        put_entry(&mut entry, &whole);
        for len in 0..entry.len() {
            assert_eq!(EntryView::parse(&entry[..len]), None, "cut to {len}");
        }
        let longer = [entry.as_slice(), b"x"].concat();
        assert_eq!(EntryView::parse(&longer), None);
        entry[0] = 2;
        assert_eq!(EntryView::parse(&entry), None, "an unknown version");

        for len in 0..9 {
            assert_eq!(parse_cursor(&cursor_value(Seq(5))[..len]), None);
            assert_eq!(parse_record(&record_value(Version(1), b"")[..len]), None);
        }
        for len in 0..25 {
            let reference = InboxRef {
                user: UserId(1),
                seq: Seq(1),
                conv: conv(),
                conv_seq: ConvSeq(1),
            };
            assert_eq!(parse_inbox(&inbox_value(&reference)[..len]), None);
        }
        for len in 0..41 {
            let mark = mark_value(conv(), &Watermark::none(UserId(1)));
            assert_eq!(parse_mark(UserId(1), &mark[..len]), None);
        }
        for len in 0..17 {
            assert_eq!(parse_fan_out(&fan_out_value(conv())[..len]), None);
        }
        for key in [&[0; 11][..], &[0; 13], &[0xff; 12]] {
            assert_eq!(cursor_key_device(key), None);
        }
        assert_eq!(conv_key_number(&[0; 19]), None);
        assert_eq!(inbox_key_seq(&[0; 17]), None);
    }
}
