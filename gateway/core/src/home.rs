//! Which shard a user or a conversation belongs to: pure functions, the same on every shard.

use portico_wire::ids::{ConvId, UserId};

/// Index of a shard in its process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// The home of a user: its connections, inbox order and limits live there. Data is never placed by
/// it: the number of shards may change between two runs.
#[must_use]
pub fn user_home(user: UserId, shards: u16) -> ShardId {
    ShardId((spread(user.0) % u64::from(shards.max(1))) as u16)
}

/// The home of a conversation: the shard that gives its messages their order. For a direct
/// conversation the home of the smaller user, so that the path crosses shards once at most.
#[must_use]
pub fn conv_home(conv: ConvId, shards: u16) -> ShardId {
    match conv {
        ConvId::Direct(low, _) => user_home(low, shards),
        ConvId::Group(group) => user_home(UserId(group.0), shards),
        ConvId::Status(author) => user_home(author, shards),
    }
}

/// Finalizer of SplitMix64: neighbouring ids land on different shards, and on different places of a
/// table.
pub(crate) const fn spread(id: u64) -> u64 {
    let mut x = id.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_even_and_stable() {
        let mut counts = [0_u32; 8];
        for user in 1..=80_000 {
            counts[user_home(UserId(user), 8).0 as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)));
        let conv = ConvId::direct(UserId(70), UserId(7));
        assert_eq!(conv_home(conv, 8), user_home(UserId(7), 8));
    }
}
