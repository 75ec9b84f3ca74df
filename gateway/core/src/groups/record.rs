//! A group and the groups of a user as they are stored.
//!
//! ```text
//! table 16, key: group 8           format 1, flags 1 (1 = deleted), type 1, 0, max_members 2, rules 4,
//!                                  created_s 4, created_by 8, epoch 8, members 2, former 2, title 2,
//!                                  sealed_info 2, invite 1, 0; then
//!                                  per member: user 8, role 1, since 7
//!                                  per former member: user 8, from 8, to 8
//!                                  title, sealed_info, invite
//! table 17, key: user 8, group 8   format 1
//! ```
//! Numbers are big-endian. The version of a group's record is its epoch.

use super::group::{Former, Group, Standing};
use crate::store::Table;
use bytes::{BufMut, Bytes, BytesMut};
use portico_wire::{
    ids::{ConvSeq, GroupId, UserId},
    message::group::{GroupRules, Role},
};

pub(crate) const GROUPS: Table = Table(16);
/// The groups of each user.
pub(crate) const MEMBERSHIPS: Table = Table(17);

const FORMAT: u8 = 1;
const DELETED: u8 = 1;
const HEAD_BYTES: usize = 40;

pub(crate) fn group_key(group: GroupId) -> Bytes {
    Bytes::copy_from_slice(&group.0.to_be_bytes())
}

pub(crate) fn membership_key(user: UserId, group: GroupId) -> Bytes {
    let mut key = BytesMut::with_capacity(16);
    key.put_u64(user.0);
    key.put_u64(group.0);
    key.freeze()
}

/// What all keys of a user's memberships begin with.
pub(crate) fn membership_prefix(user: UserId) -> Bytes {
    Bytes::copy_from_slice(&user.0.to_be_bytes())
}

/// The group that a key of [`MEMBERSHIPS`] names.
pub(crate) fn group_of_key(key: &[u8]) -> Option<GroupId> {
    let group = key.get(8..)?.first_chunk::<8>()?;
    Some(GroupId(u64::from_be_bytes(*group)))
}

pub(crate) const fn membership_value() -> Bytes {
    Bytes::from_static(&[FORMAT])
}

/// Lengths are bounded by the limits of the wire, and the number of members by 16 bits.
pub(crate) fn write(group: &Group) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD_BYTES + group.bytes());
    out.put_u8(FORMAT);
    out.put_u8(if group.deleted { DELETED } else { 0 });
    out.put_u8(group.group_type);
    out.put_u8(0);
    out.put_u16(group.max_members);
    out.put_u32(group.rules.0);
    out.put_u32(group.created_s);
    out.put_u64(group.created_by.0);
    out.put_u64(group.epoch);
    out.put_u16(group.standings.len() as u16);
    out.put_u16(group.former.len() as u16);
    out.put_u16(group.title.len() as u16);
    out.put_u16(group.sealed_info.len() as u16);
    out.put_u8(group.invite.len() as u8);
    out.put_u8(0);
    for (user, standing) in group.members() {
        out.put_u64(user.0);
        out.put_u64(standing.0);
    }
    for left in &group.former {
        out.put_u64(left.user.0);
        out.put_u64(left.from.0);
        out.put_u64(left.to.0);
    }
    out.put_slice(group.title.as_bytes());
    out.put_slice(&group.sealed_info);
    out.put_slice(group.invite.as_bytes());
    out.freeze()
}

/// `None`: not a record that this version wrote.
pub(crate) fn read(mut bytes: &[u8], shards: u16) -> Option<Group> {
    let input = &mut bytes;
    let (format, flags) = (u8_of(input)?, u8_of(input)?);
    if format != FORMAT {
        return None;
    }
    let mut group = Group::none(shards);
    group.deleted = flags & DELETED != 0;
    group.group_type = u8_of(input)?;
    u8_of(input)?;
    group.max_members = u16_of(input)?;
    group.rules = GroupRules(u32_of(input)?);
    group.created_s = u32_of(input)?;
    group.created_by = UserId(u64_of(input)?);
    group.epoch = u64_of(input)?;
    let (members, former) = (u16_of(input)?, u16_of(input)?);
    let (title, info) = (u16_of(input)?, u16_of(input)?);
    let invite = u8_of(input)?;
    u8_of(input)?;
    let mut rows: Vec<(UserId, Role, ConvSeq)> = Vec::with_capacity(usize::from(members));
    for _ in 0..members {
        let (user, standing) = (UserId(u64_of(input)?), Standing(u64_of(input)?));
        rows.push((user, standing.role(), standing.since()));
    }
    group.former.reserve_exact(usize::from(former));
    for _ in 0..former {
        group.former.push(Former {
            user: UserId(u64_of(input)?),
            from: ConvSeq(u64_of(input)?),
            to: ConvSeq(u64_of(input)?),
        });
    }
    group.title = text_of(input, usize::from(title))?.into();
    group.sealed_info = slice_of(input, usize::from(info))?.into();
    group.invite = text_of(input, usize::from(invite))?.into();
    group.set_members(&rows, shards);
    Some(group)
}

fn slice_of<'a>(input: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(bytes)?;
    *input = rest;
    Some(taken)
}

fn text_of<'a>(input: &mut &'a [u8], bytes: usize) -> Option<&'a str> {
    std::str::from_utf8(slice_of(input, bytes)?).ok()
}

fn array_of<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    slice_of(input, N)?.first_chunk::<N>().copied()
}

fn u8_of(input: &mut &[u8]) -> Option<u8> {
    array_of::<1>(input).map(u8::from_be_bytes)
}

fn u16_of(input: &mut &[u8]) -> Option<u16> {
    array_of::<2>(input).map(u16::from_be_bytes)
}

fn u32_of(input: &mut &[u8]) -> Option<u32> {
    array_of::<4>(input).map(u32::from_be_bytes)
}

fn u64_of(input: &mut &[u8]) -> Option<u64> {
    array_of::<8>(input).map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(members: u64) -> Group {
        let mut group = Group::none(3);
        group.epoch = 1_790_000_000_000_001;
        group.created_s = 1_790_000_000;
        group.created_by = UserId(1);
        group.rules = GroupRules::ALL;
        group.max_members = 300;
        group.group_type = 9;
        group.title = "trip".into();
        group.sealed_info = [1, 2, 3].into();
        group.invite = "code".into();
        group.former = vec![Former {
            user: UserId(77),
            from: ConvSeq(5),
            to: ConvSeq(6),
        }];
        let row = |user: u64| (UserId(user), Role((user % 3) as u8), ConvSeq(user << 20));
        let rows: Vec<_> = (1..=members).map(row).collect();
        group.set_members(&rows, 3);
        group
    }

    #[test]
    fn a_group_reads_back_as_written_on_any_number_of_shards() {
        for members in [0, 1, 1_024] {
            let group = group(members);
            let bytes = write(&group);
            assert_eq!(read(&bytes, 3).as_ref(), Some(&group));
            let elsewhere = read(&bytes, 7).expect("valid");
            assert_eq!(elsewhere.standing(UserId(1)), group.standing(UserId(1)));
            for cut in (0..bytes.len()).step_by(7) {
                assert_eq!(read(&bytes[..cut], 3), None, "cut at {cut}");
            }
        }
        let mut foreign = write(&group(1)).to_vec();
        foreign[0] = 2;
        assert_eq!(read(&foreign, 3), None);
    }

    #[test]
    fn a_member_takes_sixteen_bytes_in_memory_and_in_the_store() {
        let (few, many) = (group(24), group(1_024));
        assert_eq!(write(&many).len() - write(&few).len(), 1_000 * 16);
        assert_eq!(many.bytes() - few.bytes(), 1_000 * 16);
    }
}
