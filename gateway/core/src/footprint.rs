//! Memory that the tables of a shard take, from the sizes of what is in them. For whoever finds out
//! what a machine can hold.
//!
//! # Does not
//! Count what a connection holds only while it has something to do: bytes to send, messages that are
//! not acknowledged, a login.

use crate::{absent::Known, conn::Conn, timer};

/// The slot of a connection.
pub const SLOT_BYTES: usize = size_of::<Conn>();
/// Its place in the timer wheel.
pub const TIMER_BYTES: usize = timer::LINK_BYTES;
/// A device that is remembered while it is away; `Limits::absent_max` bounds them.
pub const ABSENT_BYTES: usize = size_of::<Known>();

/// A place of the table of users, the index of a connection, with its control byte.
const USER_BYTES: usize = size_of::<u32>() + 1;
/// The table grows when more than so many of eight places are taken.
const USERS_OF_EIGHT: usize = 7;

/// The table that finds the connections of so many users.
#[must_use]
pub const fn user_table_bytes(users: usize) -> usize {
    let places = users.saturating_mul(8).div_ceil(USERS_OF_EIGHT);
    places.next_power_of_two().saturating_mul(USER_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_users_doubles_when_seven_of_eight_places_are_taken() {
        let per_place = |users| user_table_bytes(users) / USER_BYTES;
        assert_eq!(per_place(14), 16);
        assert_eq!(per_place(15), 32);
        assert_eq!(per_place(28_672), 32_768);
        assert_eq!(per_place(28_673), 65_536);
    }
}
