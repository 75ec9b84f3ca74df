//! GROUP_GET of all groups of a user: its list is read in pages, each group's home is asked, and the
//! answers go out as the client takes them.

use super::{
    GroupAnswer, GroupError, GroupPurpose,
    ask::{For, GroupWish},
    record,
};
use crate::{
    conn::ConnId,
    error::Refusal,
    ops::Tokens,
    shard::{Shard, Turn},
    store::{RecordCmd, StoreCmd, StoreError, StoreReply},
    stored::Purpose,
};
use bytes::Bytes;
use portico_wire::{
    Flags, Frame, Op,
    encode::{put_body, put_done},
    ids::GroupId,
};
use std::collections::VecDeque;

/// Groups of a listing whose homes are asked at once.
const AT_ONCE_MAX: usize = 16;
const PAGE_MAX: u32 = 128;

/// A listing on its way to a client.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) conn: ConnId,
    corr: u32,
    /// Of the page that was read.
    groups: VecDeque<GroupId>,
    /// The key from which the next page starts; `None`: there is none.
    after: Option<Bytes>,
    reading: bool,
    asked: usize,
    listed: u32,
    failed: Option<Refusal>,
}

impl Shard {
    pub(crate) fn list_groups(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        if let Err(why) = self.may_ask(id) {
            return self.refuse(id, true, frame.corr(), frame.op(), why, cx);
        }
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        conn.requests += 1;
        let token = self.listings.insert(Listing {
            conn: id,
            corr: frame.corr(),
            groups: VecDeque::new(),
            after: Some(Bytes::new()),
            reading: false,
            asked: 0,
            listed: 0,
            failed: None,
        });
        self.continue_listing(token, cx);
    }

    /// The kernel has taken something of this connection: there may be room for more of a listing.
    pub(crate) fn continue_listings_of(&mut self, id: ConnId, cx: &mut Turn<'_>) {
        let of = |listing: &Listing| listing.conn == id;
        if let Some(token) = self.listings.find(of) {
            self.continue_listing(token, cx);
        }
    }

    fn continue_listing(&mut self, token: u64, cx: &mut Turn<'_>) {
        let Some(conn) = self.listings.get(token).map(|listing| listing.conn) else {
            return;
        };
        let Some((user, roomy)) = self.conn(conn).map(|conn| (conn.user, self.has_room(conn)))
        else {
            // Its client has gone.
            self.listings.remove(token);
            return;
        };
        let mut ask = Vec::new();
        let mut page = None;
        if let Some(listing) = self.listings.get_mut(token) {
            let going_on = listing.failed.is_none();
            while going_on && roomy && listing.asked < AT_ONCE_MAX {
                let Some(group) = listing.groups.pop_front() else {
                    break;
                };
                listing.asked += 1;
                ask.push(group);
            }
            if going_on && roomy && listing.groups.is_empty() && !listing.reading {
                page = listing.after.take();
                listing.reading = page.is_some();
            }
        }
        for group in ask {
            let wish = GroupWish::Get {
                known_epoch: 0,
                listed: true,
            };
            self.ask_home(For::Listing(token), user, group, wish, cx);
        }
        if let Some(after) = page {
            let cmd = RecordCmd::Scan {
                table: record::MEMBERSHIPS,
                prefix: record::membership_prefix(user),
                after,
                limit: PAGE_MAX,
            };
            let purpose = Purpose::Group(GroupPurpose::List(token));
            self.submit(purpose, StoreCmd::Record(cmd), cx);
        }
        self.end_listing(token, cx);
    }

    fn end_listing(&mut self, token: u64, cx: &mut Turn<'_>) {
        let Some(listing) = self.listings.get(token) else {
            return;
        };
        let more = listing.after.is_some() || !listing.groups.is_empty();
        let open = listing.reading || listing.asked > 0;
        if open || (more && listing.failed.is_none()) {
            return;
        }
        let Some(Listing {
            conn,
            corr,
            listed,
            failed,
            ..
        }) = self.listings.remove(token)
        else {
            return;
        };
        self.release_request(conn, cx);
        match failed {
            None => self.write(conn, cx, |out, _| put_done(out, corr, listed)),
            Some(why) => self.refuse(conn, true, corr, Op::GroupGet as u8, why, cx),
        }
    }

    pub(crate) fn on_listed(
        &mut self,
        token: u64,
        result: Result<StoreReply, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(listing) = self.listings.get_mut(token) else {
            return;
        };
        listing.reading = false;
        match result {
            Ok(StoreReply::Records(rows)) => {
                listing.after = rows.last().map(|row| row.key.clone());
                let groups = rows.iter().filter_map(|row| record::group_of_key(&row.key));
                listing.groups.extend(groups);
            }
            Ok(_) => listing.failed = Some(Refusal::Store(StoreError::Invalid)),
            Err(error) => listing.failed = Some(Refusal::Store(error)),
        }
        self.continue_listing(token, cx);
    }

    pub(crate) fn on_listed_group(
        &mut self,
        token: u64,
        answer: Result<GroupAnswer, Refusal>,
        cx: &mut Turn<'_>,
    ) {
        let Some(listing) = self.listings.get_mut(token) else {
            return;
        };
        listing.asked -= 1;
        let (conn, corr) = (listing.conn, listing.corr);
        match answer {
            Ok(GroupAnswer::Group(body)) => {
                listing.listed += 1;
                let flags = Flags::REPLY | Flags::MORE;
                self.write(conn, cx, |out, _| {
                    put_body(out, Op::Group as u8, flags, corr, 0, &body);
                });
            }
            // It has left meanwhile, or an edit that failed half-way had added it.
            Ok(GroupAnswer::Marks(..))
            | Err(Refusal::Group(GroupError::NotMember | GroupError::NotFound)) => {}
            Err(why) => listing.failed = Some(why),
        }
        self.continue_listing(token, cx);
    }
}

/// The listings of this shard; few at a time.
pub(crate) type Listings = Tokens<Listing>;
