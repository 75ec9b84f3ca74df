//! Invite codes: nobody who does not know the gateway's key can guess one.

use portico_wire::ids::GroupId;

/// Characters of a code: 26 of 5 bits each hold 128 bits.
const CODE_CHARS: usize = 26;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The code of a group whose epoch this is. The key is fresh in each process, so that not even the
/// same group and epoch give the same code twice.
pub(crate) fn code(key: (u64, u64), group: GroupId, epoch: u64) -> String {
    let half = |which: u64| u128::from(sip(key, [group.0, epoch, which]));
    let mut bits = half(0) << 64 | half(1);
    let mut code = String::with_capacity(CODE_CHARS);
    for _ in 0..CODE_CHARS {
        code.push(char::from(ALPHABET[(bits & 31) as usize]));
        bits >>= 5;
    }
    code
}

/// Takes as long for every code of the same length.
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    let pairs = one.bytes().zip(other.bytes());
    let different = pairs.fold(0, |bits, (a, b)| bits | (a ^ b));
    one.len() == other.len() && different == 0
}

/// SipHash-2-4 of whole words.
fn sip((k0, k1): (u64, u64), words: [u64; 3]) -> u64 {
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let length = (words.len() as u64 * 8) << 56;
    for word in words.into_iter().chain([length]) {
        v[3] ^= word;
        round(&mut v);
        round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

const fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published vector of the input 0, 1, 2 ... 23 under the key 0, 1 ... 15.
    #[test]
    fn the_hash_is_the_one_that_was_published() {
        let word = |from: u8| u64::from_le_bytes(std::array::from_fn(|i| from + i as u8));
        let hash = sip((word(0), word(8)), [word(0), word(8), word(16)]);
        assert_eq!(hash, 0xb8ad_50c6_f649_af94);
    }

    #[test]
    fn codes_differ_by_key_group_and_epoch_and_are_compared_whole() {
        let one = code((1, 2), GroupId(3), 4);
        assert_eq!(one.len(), CODE_CHARS);
        for other in [
            code((1, 3), GroupId(3), 4),
            code((1, 2), GroupId(4), 4),
            code((1, 2), GroupId(3), 5),
        ] {
            assert!(!is_same(&one, &other));
        }
        assert!(is_same(&one, &one.clone()));
        assert!(!is_same(&one, &one[1..]) && !is_same(&one, ""));
    }
}
