//! Contacts, blocks and settings as their owner changes and reads them, at the owner's home.
//!
//! ```text
//!   CONTACTS_EDIT -> checks -> in line behind the user's other edits
//!     reads    the book (who is a contact), what the user allows
//!     writes   names of new contacts, then book and restrictions, then the names of removed ones go
//!   DONE once all of it is durable
//! ```
//! The names stand in a record each, because they are long; who is a contact stands in one, the
//! *book*, so that it can be counted and asked. The order of the writes makes every crash harmless: a
//! name without its place in the book is shown, as it was asked for, and the next edit of that
//! contact sets it right. Every edit may be repeated.
//!
//! # Invariants
//! - One edit of a user at a time. It takes effect as a whole or, where a write fails, in part; its
//!   sender is told, and repeats it.
//! - Book and restrictions are written only in the version in which they were read.

use crate::{
    conn::ConnId,
    error::Refusal,
    metrics::Counter,
    people::{RESTRICTIONS, Restrictions, Waiter, user_key},
    shard::{Shard, Turn, share},
    store::{Expect, Record, RecordCmd, StoreCmd, StoreError, Table},
    stored::Purpose,
};
use bytes::{BufMut, Bytes, BytesMut};
use portico_wire::{
    BodyError, Frame, Op,
    ids::UserId,
    limits::{
        BLOCKS_MAX, CONTACT_EDITS_MAX, CONTACT_NAME_BYTES_MAX, CONTACTS_MAX, CONTACTS_PAGE_MAX,
    },
    message::people::{Contact, ContactChange, Contacts, ContactsEdit, ContactsGet, Privacy, Who},
};
use std::mem;

/// Who is a contact of a user, and since when. The key is the user, 8 bytes, big-endian.
pub(crate) const BOOKS: Table = Table(33);
/// The names. The key is the owner and the contact, 8 bytes each, big-endian.
const NAMES: Table = Table(34);
/// Version of a record's value.
const FORMAT: u8 = 1;
const BOOK_ENTRY_BYTES: usize = 12;
/// Before the name: the format, and since when.
const NAME_HEAD_BYTES: usize = 5;
/// Edits that may be open, all shards together, and of each at least; more are refused as overloaded.
const EDITS_MAX: usize = 64;
const EDITS_MIN: usize = 2;
/// What one holds: names, and the lists that it changes.
pub(crate) const EDIT_BYTES_MAX: usize = 2 * CONTACT_EDITS_MAX * (CONTACT_NAME_BYTES_MAX + 64)
    + 2 * CONTACTS_MAX * BOOK_ENTRY_BYTES
    + 2 * BLOCKS_MAX * 8;
/// What the contacts of one page hold, which is below the largest frame to a client.
const PAGE_BYTES_MAX: usize = 60_000;
/// What a contact takes in a page beside its name.
const CONTACT_BYTES: usize = 56;

/// The contacts of a user, ascending, each with the second since when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Book {
    contacts: Vec<(UserId, u32)>,
    /// Of the record; 0: there is none.
    version: u64,
}

/// What the store has as a book; `None` if it cannot be read.
pub(crate) fn book_of(record: Option<&Record>) -> Option<Book> {
    let Some(record) = record else {
        return Some(Book::default());
    };
    let (&FORMAT, rest) = record.value.split_first()? else {
        return None;
    };
    let (entries, []) = rest.as_chunks::<BOOK_ENTRY_BYTES>() else {
        return None;
    };
    let entry = |bytes: &[u8; BOOK_ENTRY_BYTES]| {
        let (user, at_s) = bytes.split_first_chunk::<8>()?;
        let at_s = <[u8; 4]>::try_from(at_s).ok()?;
        Some((UserId(u64::from_be_bytes(*user)), u32::from_be_bytes(at_s)))
    };
    Some(Book {
        contacts: entries.iter().map(entry).collect::<Option<_>>()?,
        version: record.version,
    })
}

impl Book {
    pub(crate) fn users(&self) -> impl Iterator<Item = UserId> + '_ {
        self.contacts.iter().map(|(user, _)| *user)
    }

    fn encode(&self) -> Bytes {
        let mut value = BytesMut::with_capacity(1 + BOOK_ENTRY_BYTES * self.contacts.len());
        value.put_u8(FORMAT);
        for (user, at_s) in &self.contacts {
            value.put_u64(user.0);
            value.put_u32(*at_s);
        }
        value.freeze()
    }

    /// Since when this is a contact: from now on, unless it was one.
    fn add(&mut self, user: UserId, now_s: u32) -> u32 {
        match self.contacts.binary_search_by_key(&user, |(at, _)| *at) {
            Ok(at) => self.contacts[at].1,
            Err(at) => {
                self.contacts.insert(at, (user, now_s));
                now_s
            }
        }
    }

    fn remove(&mut self, user: UserId) {
        if let Ok(at) = self.contacts.binary_search_by_key(&user, |(at, _)| *at) {
            self.contacts.remove(at);
        }
    }
}

pub(crate) fn get_book(user: UserId) -> StoreCmd {
    StoreCmd::Record(RecordCmd::Get {
        table: BOOKS,
        key: user_key(user),
    })
}

fn name_key(owner: UserId, contact: UserId) -> Bytes {
    let mut key = BytesMut::with_capacity(16);
    key.put_u64(owner.0);
    key.put_u64(contact.0);
    key.freeze()
}

/// Edits of one of so many shards that may be open.
pub(crate) fn edits_max(shards: u16) -> usize {
    share(EDITS_MAX, shards).max(EDITS_MIN)
}

/// What an edit asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Contacts(Vec<(UserId, ContactChange, Bytes)>),
    Privacy(Privacy),
}

/// How far an edit has come, by what is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It waits for its turn, or for what the user allows.
    Waits,
    Book,
    Names,
    /// Book and restrictions.
    Lists,
    Removals,
}

/// An edit that is open.
#[derive(Debug)]
pub(crate) struct Edit {
    pub(crate) conn: ConnId,
    corr: u32,
    op: u8,
    change: Change,
    step: Step,
    /// Writes of this step that are under way, and the first error among them.
    left: usize,
    failed: Option<StoreError>,
    /// What is to be written in the next steps.
    book: Option<Book>,
    restrictions: Option<Restrictions>,
    removals: Vec<UserId>,
    /// Who is no longer blocked, and who is from now on.
    unblocked: Vec<UserId>,
    blocked: Vec<UserId>,
}

impl Edit {
    fn new(conn: ConnId, corr: u32, op: u8, change: Change) -> Self {
        Self {
            conn,
            corr,
            op,
            change,
            step: Step::Waits,
            left: 0,
            failed: None,
            book: None,
            restrictions: None,
            removals: Vec::new(),
            unblocked: Vec::new(),
            blocked: Vec::new(),
        }
    }

    fn needs_book(&self) -> bool {
        let of_book =
            |change: &ContactChange| matches!(*change, ContactChange::SET | ContactChange::REMOVE);
        match &self.change {
            Change::Contacts(edits) => edits.iter().any(|(_, change, _)| of_book(change)),
            Change::Privacy(_) => false,
        }
    }
}

/// A page that somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) conn: ConnId,
    corr: u32,
    kind: PageKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageKind {
    Contacts(ContactsGet),
    /// The answer to PRIVACY_GET.
    Privacy,
}

impl Shard {
    pub(crate) fn on_contacts_edit(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let edit = match ContactsEdit::decode(frame.body()) {
            Ok(edit) => edit,
            Err(BodyError::TooLong) => {
                let why = Refusal::EditTooLong;
                return self.refuse(id, frame.is_request(), frame.corr(), frame.op(), why, cx);
            }
            Err(_) => return self.on_malformed(id, frame, cx),
        };
        let Some(owner) = self.conn(id).map(|conn| conn.user) else {
            return;
        };
        let bad = edit.edits.iter().find_map(|edit| {
            if edit.change.0 > ContactChange::UNBLOCK.0 {
                Some(Refusal::BadContactChange)
            } else if !edit.user.is_valid() {
                Some(Refusal::NoSuchUser)
            } else if edit.user == owner {
                Some(Refusal::OwnContact)
            } else if edit.change != ContactChange::SET && !edit.sealed_name.is_empty() {
                Some(Refusal::NameWithoutSet)
            } else {
                None
            }
        });
        if let Some(why) = bad {
            return self.refuse(id, frame.is_request(), frame.corr(), frame.op(), why, cx);
        }
        let edits = edit
            .edits
            .iter()
            .map(|edit| {
                (
                    edit.user,
                    edit.change,
                    Bytes::copy_from_slice(edit.sealed_name),
                )
            })
            .collect();
        self.begin_people_edit(id, frame, Change::Contacts(edits), cx);
    }

    pub(crate) fn on_privacy_set(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let Ok(privacy) = Privacy::decode(frame.body()) else {
            return self.on_malformed(id, frame, cx);
        };
        let Privacy {
            last_seen,
            online,
            profile,
            group_add,
            findable,
            ..
        } = privacy;
        let whos = [last_seen, online, profile, group_add, findable];
        if findable == Who::CONTACTS || !whos.into_iter().all(Who::is_known) {
            let why = Refusal::BadPrivacy;
            return self.refuse(id, frame.is_request(), frame.corr(), frame.op(), why, cx);
        }
        self.begin_people_edit(id, frame, Change::Privacy(privacy), cx);
    }

    /// Puts an edit in line. It counts as a request of its connection whether it asks for an answer
    /// or not: it holds what it says.
    fn begin_people_edit(
        &mut self,
        id: ConnId,
        frame: Frame<'_>,
        change: Change,
        cx: &mut Turn<'_>,
    ) {
        let (request, corr, op) = (frame.is_request(), frame.corr(), frame.op());
        let requests_max = self.config.limits.requests_max;
        let full = self.people.edits_open >= edits_max(self.config.shards) || self.is_store_full();
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        let why = if u32::from(conn.requests) >= requests_max {
            Some(Refusal::TooManyRequests)
        } else if full {
            Some(Refusal::Overloaded)
        } else {
            None
        };
        if let Some(why) = why {
            return self.refuse(id, request, corr, op, why, cx);
        }
        conn.requests += 1;
        let owner = conn.user;
        let corr = if request { corr } else { 0 };
        self.people.edits_open += 1;
        let line = self.people.edits.entry(owner).or_default();
        line.push_back(Edit::new(id, corr, op, change));
        if line.len() == 1 {
            self.start_edit(owner, cx);
        }
    }

    /// The first in the user's line: what it changes is read.
    fn start_edit(&mut self, owner: UserId, cx: &mut Turn<'_>) {
        self.want(owner, Waiter::Edit, cx);
    }

    fn edit(&mut self, owner: UserId) -> Option<&mut Edit> {
        self.people.edits.get_mut(&owner)?.front_mut()
    }

    pub(crate) fn on_edit_ready(
        &mut self,
        owner: UserId,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        if let Err(error) = result {
            return self.end_edit(owner, Err(Refusal::Store(error)), cx);
        }
        let Some(edit) = self.edit(owner) else {
            return;
        };
        if edit.needs_book() {
            edit.step = Step::Book;
            return self.submit(Purpose::Book { user: owner }, get_book(owner), cx);
        }
        self.plan_edit(owner, None, cx);
    }

    pub(crate) fn on_book(
        &mut self,
        owner: UserId,
        result: Result<Option<Record>, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        match result.and_then(|record| book_of(record.as_ref()).ok_or(StoreError::Invalid)) {
            // Between the two answers what the user allows may have left the cache.
            Ok(book) if self.people.is_known(owner) => self.plan_edit(owner, Some(book), cx),
            Ok(_) => self.start_edit(owner, cx),
            Err(error) => self.end_edit(owner, Err(Refusal::Store(error)), cx),
        }
    }

    /// Everything is read: what the edit makes of it, and the first writes.
    fn plan_edit(&mut self, owner: UserId, book: Option<Book>, cx: &mut Turn<'_>) {
        let now_s = cx.now.wall_s();
        let before = self.people.find(owner).cloned().unwrap_or_default();
        let Some(edit) = self.edit(owner) else {
            return;
        };
        let mut after = before.clone();
        let mut names = Vec::new();
        let mut new_book = book.clone().unwrap_or_default();
        match &edit.change {
            Change::Privacy(privacy) => after.privacy = *privacy,
            Change::Contacts(edits) => {
                for (user, change, name) in edits {
                    match *change {
                        ContactChange::SET => {
                            let since_s = new_book.add(*user, now_s);
                            names.retain(|(other, _, _)| other != user);
                            names.push((*user, since_s, name.clone()));
                            edit.removals.retain(|other| other != user);
                        }
                        ContactChange::REMOVE => {
                            new_book.remove(*user);
                            names.retain(|(other, _, _)| other != user);
                            edit.removals.push(*user);
                        }
                        ContactChange::BLOCK => {
                            if let Err(at) = after.blocked.binary_search(user) {
                                after.blocked.insert(at, *user);
                            }
                        }
                        _ => {
                            if let Ok(at) = after.blocked.binary_search(user) {
                                after.blocked.remove(at);
                            }
                        }
                    }
                }
            }
        }
        // Who has more from a time of other limits may go down.
        let grows = |after: usize, before: usize, max: usize| after > max && after > before;
        let contacts = book.as_ref().map_or(0, |book| book.contacts.len());
        let why = if grows(new_book.contacts.len(), contacts, CONTACTS_MAX) {
            Some(Refusal::TooManyContacts)
        } else if grows(after.blocked.len(), before.blocked.len(), BLOCKS_MAX) {
            Some(Refusal::TooManyBlocks)
        } else {
            None
        };
        if let Some(why) = why {
            return self.end_edit(owner, Err(why), cx);
        }
        let missing = |from: &[UserId], of: &[UserId]| -> Vec<UserId> {
            let of = of.iter().filter(|user| from.binary_search(user).is_err());
            of.copied().collect()
        };
        edit.blocked = missing(&before.blocked, &after.blocked);
        edit.unblocked = missing(&after.blocked, &before.blocked);
        edit.book = book.filter(|book| *book != new_book).map(|_| new_book);
        edit.restrictions = (after != before).then_some(after);
        let puts = names.into_iter().map(|(user, since_s, name)| {
            let mut value = BytesMut::with_capacity(NAME_HEAD_BYTES + name.len());
            value.put_u8(FORMAT);
            value.put_u32(since_s);
            value.put_slice(&name);
            (NAMES, name_key(owner, user), Some(value.freeze()), 0)
        });
        let puts = puts.collect();
        self.write_step(owner, Step::Names, puts, cx);
    }

    /// Writes what a step has to write. `None` as value deletes; version 0 expects anything.
    fn write_step(
        &mut self,
        owner: UserId,
        step: Step,
        writes: Vec<(Table, Bytes, Option<Bytes>, u64)>,
        cx: &mut Turn<'_>,
    ) {
        let Some(edit) = self.edit(owner) else {
            return;
        };
        edit.step = step;
        edit.left = writes.len();
        if writes.is_empty() {
            return self.next_step(owner, cx);
        }
        for (table, key, value, read) in writes {
            let of_list = step == Step::Lists;
            let expect = match read {
                0 if of_list => Expect::Absent,
                0 => Expect::Any,
                version => Expect::Version(version),
            };
            let cmd = match value {
                Some(value) => RecordCmd::Put {
                    table,
                    key,
                    value,
                    expect,
                    version: self.seq.next(cx.now.wall_us),
                },
                None => RecordCmd::Delete { table, key, expect },
            };
            let purpose = Purpose::EditWrite { user: owner };
            self.submit(purpose, StoreCmd::Record(cmd), cx);
        }
    }

    pub(crate) fn on_edit_written(
        &mut self,
        owner: UserId,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let Some(edit) = self.edit(owner) else {
            return;
        };
        edit.left -= 1;
        edit.failed = edit.failed.or(result.err());
        if edit.left > 0 {
            return;
        }
        let failed = edit.failed;
        let lists = edit.step == Step::Lists;
        if lists && edit.restrictions.is_some() {
            // Also after a failure: it may be written.
            let restricted = edit
                .restrictions
                .as_ref()
                .is_some_and(|it| !it.is_default());
            self.people.outdate(owner, restricted || failed.is_some());
        } else if lists {
            // The settings may name contacts.
            let restricted = self.people.is_restricted(owner);
            self.people.outdate(owner, restricted);
        }
        match failed {
            Some(error) => self.end_edit(owner, Err(Refusal::Store(error)), cx),
            None => self.next_step(owner, cx),
        }
    }

    fn next_step(&mut self, owner: UserId, cx: &mut Turn<'_>) {
        let Some(edit) = self.edit(owner) else {
            return;
        };
        match edit.step {
            Step::Waits | Step::Book | Step::Names => {
                let mut writes = Vec::new();
                if let Some(book) = &edit.book {
                    writes.push((BOOKS, user_key(owner), Some(book.encode()), book.version));
                }
                if let Some(it) = &edit.restrictions {
                    let value = (!it.is_default()).then(|| it.encode());
                    writes.push((RESTRICTIONS, user_key(owner), value, it.version));
                }
                self.write_step(owner, Step::Lists, writes, cx);
            }
            Step::Lists => {
                let removals = mem::take(&mut edit.removals);
                let writes = removals
                    .into_iter()
                    .map(|user| (NAMES, name_key(owner, user), None, 0));
                let writes = writes.collect();
                self.write_step(owner, Step::Removals, writes, cx);
            }
            Step::Removals => self.end_edit(owner, Ok(()), cx),
        }
    }

    /// The sender is told, and the next in the user's line begins.
    fn end_edit(&mut self, owner: UserId, result: Result<(), Refusal>, cx: &mut Turn<'_>) {
        let Some(line) = self.people.edits.get_mut(&owner) else {
            return;
        };
        let Some(edit) = line.pop_front() else {
            return;
        };
        let more = !line.is_empty();
        if !more {
            self.people.edits.remove(&owner);
        }
        self.people.edits_open -= 1;
        self.release_request(edit.conn, cx);
        match result {
            Ok(()) => self.done(edit.conn, edit.corr, cx),
            Err(why) => self.refuse(edit.conn, edit.corr != 0, edit.corr, edit.op, why, cx),
        }
        if result.is_ok() {
            self.counters.bump(Counter::PeopleEdits);
            // Settings may name contacts, so that any edit may change who sees the user.
            let seen_otherwise = edit.restrictions.is_some() || edit.book.is_some();
            self.apply_blocks(owner, &edit.blocked, &edit.unblocked, cx);
            if seen_otherwise {
                self.want(owner, Waiter::Show { to: None }, cx);
            }
        }
        if more {
            self.start_edit(owner, cx);
        }
    }

    // ---- reading

    pub(crate) fn on_contacts_get(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        let Ok(get) = ContactsGet::decode(frame.body()) else {
            return self.on_malformed(id, frame, cx);
        };
        if get.limit == 0 {
            let why = Refusal::NoLimit;
            return self.refuse(id, frame.is_request(), frame.corr(), frame.op(), why, cx);
        }
        self.begin_page(id, frame, PageKind::Contacts(get), cx);
    }

    pub(crate) fn on_privacy_get(&mut self, id: ConnId, frame: Frame<'_>, cx: &mut Turn<'_>) {
        self.begin_page(id, frame, PageKind::Privacy, cx);
    }

    fn begin_page(&mut self, id: ConnId, frame: Frame<'_>, kind: PageKind, cx: &mut Turn<'_>) {
        let (corr, op) = (frame.corr(), frame.op());
        let full = self.is_store_full();
        let requests_max = self.config.limits.requests_max;
        let Some(conn) = self.conn_mut(id).filter(|_| frame.is_request()) else {
            return;
        };
        let why = if u32::from(conn.requests) >= requests_max {
            Some(Refusal::TooManyRequests)
        } else if full {
            Some(Refusal::Overloaded)
        } else {
            None
        };
        if let Some(why) = why {
            return self.refuse(id, true, corr, op, why, cx);
        }
        conn.requests += 1;
        let owner = conn.user;
        let page = Page {
            conn: id,
            corr,
            kind,
        };
        self.want(owner, Waiter::Page(page), cx);
    }

    pub(crate) fn on_page_ready(
        &mut self,
        owner: UserId,
        page: Page,
        result: Result<(), StoreError>,
        cx: &mut Turn<'_>,
    ) {
        if let Err(error) = result {
            return self.fail_page(page, error, cx);
        }
        let known = self.people.find(owner);
        match page.kind {
            PageKind::Privacy => {
                let privacy = known.map(|it| it.privacy).unwrap_or_default();
                self.release_request(page.conn, cx);
                self.write(page.conn, cx, |out, encoder| {
                    encoder.privacy(out, page.corr, &privacy);
                });
            }
            PageKind::Contacts(get) if get.blocked => {
                let blocked = known.map(|it| it.blocked.as_slice()).unwrap_or_default();
                let from = blocked.partition_point(|user| *user <= get.after);
                let limit = usize::from(get.limit.min(CONTACTS_PAGE_MAX));
                let contact = |user: &UserId| Contact {
                    user: *user,
                    blocked: true,
                    ..Contact::default()
                };
                let contacts = Contacts {
                    contacts: blocked[from..].iter().take(limit).map(contact).collect(),
                    more: blocked.len() - from > limit,
                };
                self.release_request(page.conn, cx);
                self.write(page.conn, cx, |out, encoder| {
                    encoder.contacts(out, page.corr, &contacts);
                });
            }
            PageKind::Contacts(get) => {
                let limit = u32::from(get.limit.min(CONTACTS_PAGE_MAX)) + 1;
                let cmd = StoreCmd::Record(RecordCmd::Scan {
                    table: NAMES,
                    prefix: user_key(owner),
                    after: name_key(owner, get.after),
                    limit,
                });
                self.submit(Purpose::Contacts { user: owner, page }, cmd, cx);
            }
        }
    }

    fn fail_page(&mut self, page: Page, error: StoreError, cx: &mut Turn<'_>) {
        let op = match page.kind {
            PageKind::Contacts(_) => Op::ContactsGet,
            PageKind::Privacy => Op::PrivacyGet,
        };
        self.release_request(page.conn, cx);
        let why = Refusal::Store(error);
        self.refuse(page.conn, true, page.corr, op as u8, why, cx);
    }

    /// The store has the contacts of a page, and one more if there is one.
    pub(crate) fn on_contacts(
        &mut self,
        owner: UserId,
        page: Page,
        result: Result<Vec<Record>, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let rows = match result {
            Ok(rows) => rows,
            Err(error) => return self.fail_page(page, error, cx),
        };
        let PageKind::Contacts(get) = page.kind else {
            return;
        };
        let limit = usize::from(get.limit.min(CONTACTS_PAGE_MAX));
        let mut contacts = Contacts::default();
        let mut bytes = 0;
        for row in &rows {
            let Some(mut contact) = contact_of(row) else {
                return self.fail_page(page, StoreError::Invalid, cx);
            };
            bytes += contact.sealed_name.len() + CONTACT_BYTES;
            if contacts.contacts.len() == limit || bytes > PAGE_BYTES_MAX {
                contacts.more = true;
                break;
            }
            contact.blocked = self.is_blocked(owner, contact.user);
            contacts.contacts.push(contact);
        }
        self.release_request(page.conn, cx);
        self.write(page.conn, cx, |out, encoder| {
            encoder.contacts(out, page.corr, &contacts);
        });
    }
}

fn contact_of(row: &Record) -> Option<Contact<'_>> {
    let user = <[u8; 8]>::try_from(row.key.get(8..)?).ok()?;
    let (head, sealed_name) = row.value.split_first_chunk::<NAME_HEAD_BYTES>()?;
    let [FORMAT, since_s @ ..] = *head else {
        return None;
    };
    Some(Contact {
        user: UserId(u64::from_be_bytes(user)),
        sealed_name,
        added_s: u32::from_be_bytes(since_s),
        blocked: false,
    })
}
