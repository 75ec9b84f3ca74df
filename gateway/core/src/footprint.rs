//! Memory that the tables of a shard take, from the sizes of what is in them. For whoever finds out
//! what a machine can hold.
//!
//! # Does not
//! Count what a connection holds only while it has something to do: bytes to send, messages that are
//! not acknowledged, a login.

use crate::{
    Limits,
    absent::Known,
    conn::{Conn, ConnId},
    contacts, conversations,
    groups::FAN_OUT_ONE_IN,
    lane::Pending,
    login::Session,
    lookup,
    outgoing::Outgoing,
    pool, presence, rates, seen,
    shard::{PAGES_MIN, STUCK_ONE_IN, share},
    store::{Item, Marks},
    stored::InStore,
    timer,
};
use portico_wire::{
    ids::{ConvId, UserId},
    limits::{
        FRAME_BYTES_TO_CLIENT_MAX, PRESENCE_SUBS_MAX, RESUME_TOKEN_BYTES_MAX, TOKEN_BYTES_MAX,
    },
};

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

/// What stands in the lists of the core for a message on its way, beside its body: the attempt and its
/// deadline, the place in the lane, the request to the store and what waits in the driver with it.
const MESSAGE_BYTES: usize = size_of::<Outgoing>()
    + size_of::<Pending>()
    + size_of::<InStore>()
    + 2 * size_of::<(u64, u64)>()
    + STORE_REQUEST_BYTES;
/// A request on its way to the adapter.
const STORE_REQUEST_BYTES: usize = 320;
/// An operation that waits, or a message on its way to members, beside its body.
const GROUP_OP_BYTES: usize = 512;
/// A watermark in the three tables in which it stands, and who waits for it.
const MARK_BYTES: usize = 3 * size_of::<(ConvId, UserId, Marks)>() + size_of::<(ConnId, u32)>();

/// The most that each queue of one of so many shards can hold, those of the driver aside.
#[must_use]
pub fn of_queues(limits: &Limits, shards: u16) -> [(&'static str, usize); 14] {
    let pages = share(limits.pages_max, shards).max(PAGES_MIN);
    // The last entry of a page may be of any size.
    let page_bytes = limits.page_bytes_max as usize
        + FRAME_BYTES_TO_CLIENT_MAX
        + limits.page_entries_max as usize * size_of::<Item>();
    // What HELLO says, and the login that is kept meanwhile.
    let sign_in_bytes = TOKEN_BYTES_MAX + RESUME_TOKEN_BYTES_MAX + size_of::<Session>();
    let product = usize::saturating_mul;
    [
        ("bodies of messages without a fate", limits.store_bytes_max),
        (
            "settled ones behind them",
            limits.store_bytes_max / STUCK_ONE_IN,
        ),
        (
            "lists of messages",
            product(limits.store_requests_max, MESSAGE_BYTES),
        ),
        ("sign-ins", product(limits.sign_ins_max, sign_in_bytes)),
        (
            "devices that are away",
            product(limits.absent_max, ABSENT_BYTES),
        ),
        ("watermarks", product(limits.unsaved_max, MARK_BYTES)),
        (
            "sources and users whose rates are counted",
            product(2 * limits.rates.table_max, rates::PLACE_BYTES),
        ),
        (
            "presence",
            product(
                share(limits.presence_subs_max, shards).max(PRESENCE_SUBS_MAX),
                presence::SUBSCRIPTION_BYTES,
            )
            .saturating_add(product(
                share(limits.presence_left_max, shards),
                seen::LEFT_BYTES,
            )),
        ),
        (
            "settings and blocks, and what waits for them",
            share(limits.people_cache_bytes, shards)
                .saturating_add(product(limits.people_waiting_max, MESSAGE_BYTES)),
        ),
        (
            "edits of contacts and settings",
            product(contacts::edits_max(shards), contacts::EDIT_BYTES_MAX),
        ),
        ("pages", product(pages, page_bytes)),
        (
            "groups, and what is on its way to members",
            share(limits.groups_bytes_max, shards)
                .saturating_add(limits.store_bytes_max / FAN_OUT_ONE_IN)
                .saturating_add(product(
                    limits.group_ops_max + limits.fan_outs_max,
                    GROUP_OP_BYTES,
                )),
        ),
        (
            "lists of conversations",
            product(lookup::LISTS_MAX, conversations::LIST_BYTES),
        ),
        (
            "queued for clients, and kept for reuse",
            share(limits.outboxes_bytes_max, shards).saturating_add(pool::kept_bytes_max(shards)),
        ),
    ]
}

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
    fn what_shards_have_together_they_share_and_each_has_the_rest() {
        let sum = |shards| -> usize {
            let parts = of_queues(&Limits::default(), shards);
            parts.iter().map(|(_, bytes)| bytes).sum()
        };
        assert!(sum(53) < sum(2) && sum(2) < sum(1));
        assert!(
            of_queues(&Limits::default(), 1)
                .iter()
                .all(|part| part.1 > 0)
        );
        let wide = Limits {
            store_bytes_max: usize::MAX,
            unsaved_max: usize::MAX,
            ..Limits::default()
        };
        assert_eq!(of_queues(&wide, 1)[5].1, usize::MAX, "no overflow");
    }

    #[test]
    fn the_table_of_users_doubles_when_seven_of_eight_places_are_taken() {
        let per_place = |users| user_table_bytes(users) / USER_BYTES;
        assert_eq!(per_place(14), 16);
        assert_eq!(per_place(15), 32);
        assert_eq!(per_place(28_672), 32_768);
        assert_eq!(per_place(28_673), 65_536);
    }
}
