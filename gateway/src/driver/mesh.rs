//! What crosses threads: bounded queues between shards, and each shard's desk, where storage threads
//! and the embedder leave things for it.
//!
//! # The parked flag
//! Shards that share a thread are a *crew*, and block together. A crew that is about to block says
//! so, looks at its queues once more, and blocks only if they are empty ([`Parked::announce`]).
//! Whoever put something into a queue looks at the flag afterwards, and the one that takes it down
//! wakes the crew ([`Parked::claim`]). Each side writes before it reads, with a full fence between
//! (Dekker): at least one of them sees the other, so no letter is left lying while its reader
//! sleeps.
//!
//! Which queues have letters is said by the receiver's [`Mailbox`].
//!
//! # Invariants
//! - A queue between two shards is bounded, by the number of letters and by what they hold. What finds
//!   it full stays with the sender, in order, and
//!   the sender stops reading from its clients until it is gone. No spin, no drop.
//! - The desk's own queues are bounded by what is in flight: a storage answer takes the place of its
//!   request.

use super::{
    mailbox::{Mail, Mailbox},
    ring::{Bell, Ring, RingError, RingHandle, Slot},
    tls::Link,
};
use crossbeam::{
    queue::{ArrayQueue, SegQueue},
    utils::CachePadded,
};
use portico_backend::{Completion, Sink, messages::Messages, records::Records};
use portico_core::{Revocation, Session, ShardId, ShardMessage};
use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    },
};

/// Letters that one shard may have waiting for another, at most and at least; in between, all that
/// wait for one shard are bounded by [`LETTERS_INTO_SHARD`].
const LETTERS_PER_PAIR_MAX: usize = 4_096;
const LETTERS_PER_PAIR_MIN: usize = 16;
const LETTERS_INTO_SHARD: usize = 4_096;
/// Letters that hold no more than this are bounded by their number alone.
const SMALL_LETTER_BYTES: usize = 128;
/// What larger ones that wait for one shard may hold together; one of any size at least.
const LARGE_LETTERS_BYTES_MAX: usize = 1 << 20;

/// From one shard to another.
#[derive(Debug)]
pub(super) enum Letter {
    Message(ShardMessage),
    /// The socket sits in the receiver's table already.
    Adopt(Box<Adoption>),
    /// So does this one, but its session has ended meanwhile.
    Discard(Slot),
}

const _: () = assert!(
    size_of::<Letter>() <= 96,
    "thousands of letters are allocated per pair of shards"
);

#[derive(Debug)]
pub(super) struct Adoption {
    pub(super) slot: Slot,
    pub(super) session: Session,
    pub(super) unread: Vec<u8>,
    /// Of a connection that came in through TLS.
    pub(super) link: Option<Box<Link>>,
}

impl Letter {
    /// What counts against [`LARGE_LETTERS_BYTES_MAX`].
    fn large_bytes(&self) -> usize {
        let bytes = match self {
            Self::Message(message) => message.body_bytes(),
            Self::Adopt(adoption) => {
                let session = &adoption.session;
                let link = adoption.link.as_ref().map_or(0, |link| link.queued_bytes());
                let session = session.unsent.len() + session.resume_token.len();
                adoption.unread.len() + session + link
            }
            Self::Discard(_) => 0,
        };
        if bytes > SMALL_LETTER_BYTES { bytes } else { 0 }
    }
}

/// From the embedder to a shard.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Stop accepting, ask the clients to leave.
    Drain { spread_ms: u32, deadline_ms: u32 },
    /// These sessions end.
    Revoke(Revocation),
    /// End now, whatever is open.
    Stop,
}

/// See the module's head.
#[derive(Debug, Default)]
struct Parked(AtomicBool);

impl Parked {
    /// The reader is about to block. Returns whether it may: `is_empty` looks at all it would be
    /// woken for.
    fn announce(&self, is_empty: impl FnOnce() -> bool) -> bool {
        // Relaxed: the fence orders this store before the look at the queues. It pairs with the
        // fence in `claim`.
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if is_empty() {
            return true;
        }
        self.withdraw();
        false
    }

    /// The reader runs again. A wake that is on its way does no harm.
    fn withdraw(&self) {
        // Relaxed: a writer that still sees the flag wakes in vain, nothing more.
        self.0.store(false, Ordering::Relaxed);
    }

    /// For whoever only watches.
    fn is_announced(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// A writer has put something in. True if it has to wake the reader.
    fn claim(&self) -> bool {
        // The push before must not sink below the look at the flag.
        fence(Ordering::SeqCst);
        // The plain load keeps the line shared while nobody sleeps. Relaxed: a swap that returns
        // true leads to a system call, and the reader looks at its queues after that anyway.
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

/// Shards that share a thread, as others see them.
#[derive(Debug)]
struct Crew {
    parked: CachePadded<Parked>,
    bell: Bell,
}

/// A shard as others see it.
#[derive(Debug)]
struct Desk {
    ring: OnceLock<RingHandle>,
    mailbox: Mailbox,
    /// Of large letters to this shard, in all its queues.
    large_bytes: CachePadded<AtomicUsize>,
    stored: SegQueue<Answers>,
    orders: SegQueue<Order>,
    /// Has nothing more to do for anybody, after a drain.
    drained: AtomicBool,
}

/// Shared by all shards of a gateway, and by those who send to them.
#[derive(Debug)]
pub(crate) struct Mesh {
    shards: usize,
    /// Shard `n` belongs to crew `n % crews.len()`.
    crews: Vec<Crew>,
    /// By receiver, then by sender.
    queues: Vec<ArrayQueue<Letter>>,
    desks: Vec<Desk>,
}

impl Mesh {
    /// `crews` threads share `shards` shards evenly; at most as many as there are shards.
    pub(crate) fn new(shards: usize, crews: usize) -> Result<Self, RingError> {
        Self::with_queues(shards, crews, letters_per_pair(shards))
    }

    fn with_queues(
        shards: usize,
        crews: usize,
        letters_per_pair: usize,
    ) -> Result<Self, RingError> {
        let queue = |pair: usize| {
            // A shard sends nothing to itself.
            let own = pair / shards == pair % shards;
            ArrayQueue::new(if own { 1 } else { letters_per_pair })
        };
        let crew = |_| {
            Ok(Crew {
                parked: CachePadded::default(),
                bell: Bell::new()?,
            })
        };
        let desk = |_| Desk {
            ring: OnceLock::new(),
            mailbox: Mailbox::new(shards),
            large_bytes: CachePadded::default(),
            stored: SegQueue::new(),
            orders: SegQueue::new(),
            drained: AtomicBool::new(false),
        };
        let crews = crews.clamp(1, shards.max(1));
        Ok(Self {
            shards,
            crews: (0..crews).map(crew).collect::<Result<_, RingError>>()?,
            queues: (0..shards * shards).map(queue).collect(),
            desks: (0..shards).map(desk).collect(),
        })
    }

    pub(crate) const fn shards(&self) -> usize {
        self.shards
    }

    /// From any thread.
    pub(crate) fn order(&self, shard: usize, order: Order) {
        self.desks[shard].orders.push(order);
        self.call(ShardId(shard as u16));
    }

    /// Each shard says where its ring is, once, before any of them runs.
    pub(super) fn set_ring(&self, shard: ShardId, handle: RingHandle) {
        // A second call would be a fault of the start, and the first handle stays right.
        let _ = self.desk(shard).ring.set(handle);
    }

    pub(super) fn ring(&self, shard: ShardId) -> Option<&RingHandle> {
        self.desks.get(usize::from(shard.0))?.ring.get()
    }

    /// Of the shard's crew.
    pub(super) fn bell(&self, shard: ShardId) -> &Bell {
        &self.crew(shard).bell
    }

    /// True if the crew of this shard may block. What is put in from now on wakes it.
    pub(super) fn announce_block(&self, shard: ShardId) -> bool {
        let crew = self.crew(shard);
        crew.parked.announce(|| {
            let first = usize::from(shard.0) % self.crews.len();
            let mut desks = self.desks.iter().skip(first).step_by(self.crews.len());
            desks.all(Desk::is_empty)
        })
    }

    pub(super) fn unblocked(&self, shard: ShardId) {
        self.crew(shard).parked.withdraw();
    }

    /// Threads of shards. Shard `n` is of thread `n` modulo their number.
    pub(crate) const fn crews(&self) -> usize {
        self.crews.len()
    }

    /// Does the thread block or sleep, and can it be woken?
    pub(crate) fn is_parked(&self, crew: usize) -> bool {
        let found = self.crews.get(crew);
        found.is_some_and(|crew| crew.parked.is_announced())
    }

    /// Has anybody left something for this shard?
    pub(super) fn has_news(&self, shard: ShardId) -> bool {
        !self.desk(shard).is_empty()
    }

    /// Looks into each queue: for the end of a drain, when the last letter counts.
    pub(super) fn has_letters(&self, shard: ShardId) -> bool {
        let first = usize::from(shard.0) * self.shards;
        let queues = &self.queues[first..first + self.shards];
        queues.iter().any(|queue| !queue.is_empty())
    }

    /// Adds whoever has written since the last look.
    pub(super) fn take_mail(&self, shard: ShardId, mail: &mut Mail) {
        self.desk(shard).mailbox.take(mail);
    }

    pub(super) fn take_letter(&self, from: ShardId, to: ShardId) -> Option<Letter> {
        let letter = self.queue(from, to).pop()?;
        self.desk(to).release(letter.large_bytes());
        Some(letter)
    }

    /// Bytes of large letters that wait for this shard.
    pub(super) fn large_bytes(&self, shard: ShardId) -> usize {
        self.desk(shard).large_bytes.load(Ordering::Relaxed)
    }

    /// Gives the letter back if the queue has no room for it.
    fn put_letter(&self, from: ShardId, to: ShardId, letter: Letter) -> Result<(), Letter> {
        let (desk, bytes) = (self.desk(to), letter.large_bytes());
        if !desk.reserve(bytes) {
            return Err(letter);
        }
        let put = self.queue(from, to).push(letter);
        if put.is_err() {
            desk.release(bytes);
        }
        put
    }

    pub(super) fn take_stored(&self, shard: ShardId) -> Option<Answers> {
        self.desk(shard).stored.pop()
    }

    pub(super) fn take_order(&self, shard: ShardId) -> Option<Order> {
        self.desk(shard).orders.pop()
    }

    pub(super) fn set_drained(&self, shard: ShardId, drained: bool) {
        // Release, and Acquire at the reader: whoever sees the flag also sees the letters that
        // were sent before it was set.
        self.desk(shard).drained.store(drained, Ordering::Release);
    }

    pub(super) fn all_drained(&self) -> bool {
        let drained = |desk: &Desk| desk.drained.load(Ordering::Acquire);
        self.desks.iter().all(drained)
    }

    /// Something was left for this shard by a thread that has no ring.
    fn call(&self, shard: ShardId) {
        let crew = self.crew(shard);
        if crew.parked.claim() {
            crew.bell.ring();
        }
    }

    fn crew_of(&self, shard: ShardId) -> usize {
        usize::from(shard.0) % self.crews.len()
    }

    fn crew(&self, shard: ShardId) -> &Crew {
        &self.crews[self.crew_of(shard)]
    }

    fn desk(&self, shard: ShardId) -> &Desk {
        &self.desks[usize::from(shard.0)]
    }

    fn queue(&self, from: ShardId, to: ShardId) -> &ArrayQueue<Letter> {
        &self.queues[usize::from(to.0) * self.shards + usize::from(from.0)]
    }
}

/// What letters into one of so many shards can hold beside their places in the queues.
pub(super) fn letter_bytes_max(shards: usize) -> usize {
    let letters = letters_per_pair(shards) * shards.saturating_sub(1);
    let large = if letters > 0 {
        LARGE_LETTERS_BYTES_MAX
    } else {
        0
    };
    letters * (ShardMessage::BOXED_BYTES + SMALL_LETTER_BYTES) + large
}

fn letters_per_pair(shards: usize) -> usize {
    let per_pair = LETTERS_INTO_SHARD / shards.max(1);
    per_pair.clamp(LETTERS_PER_PAIR_MIN, LETTERS_PER_PAIR_MAX)
}

/// Memory of the queues into one of so many shards. They have their full size from the start.
pub(super) fn queue_bytes(shards: usize) -> usize {
    // Each place has a number beside the letter.
    letters_per_pair(shards) * shards.saturating_sub(1) * size_of::<(usize, Letter)>()
}

impl Desk {
    /// Takes room for a large letter. Two that meet at the bound may both be refused: they are tried
    /// again. Relaxed: the number stands for no memory that is written.
    fn reserve(&self, bytes: usize) -> bool {
        if bytes == 0 {
            return true;
        }
        let before = self.large_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = before == 0 || before + bytes <= LARGE_LETTERS_BYTES_MAX;
        if !fits {
            self.release(bytes);
        }
        fits
    }

    fn release(&self, bytes: usize) {
        if bytes > 0 {
            self.large_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn is_empty(&self) -> bool {
        self.mailbox.is_empty() && self.stored.is_empty() && self.orders.is_empty()
    }
}

/// Answers of an adapter, given at once.
#[derive(Debug)]
pub(super) enum Answers {
    Messages(Vec<Completion<Messages>>),
    Records(Vec<Completion<Records>>),
}

/// Where a shard's storage answers arrive, from the threads of an adapter.
#[derive(Debug)]
pub(super) struct StoreDesk {
    pub(super) mesh: Arc<Mesh>,
    pub(super) shard: ShardId,
}

impl Sink<Messages> for StoreDesk {
    fn complete(&self, batch: Vec<Completion<Messages>>) {
        self.take(Answers::Messages(batch));
    }
}

impl Sink<Records> for StoreDesk {
    fn complete(&self, batch: Vec<Completion<Records>>) {
        self.take(Answers::Records(batch));
    }
}

impl StoreDesk {
    fn take(&self, answers: Answers) {
        self.mesh.desk(self.shard).stored.push(answers);
        self.mesh.call(self.shard);
    }
}

/// A shard's letters on their way out.
#[derive(Debug)]
pub(super) struct Outbox {
    mesh: Arc<Mesh>,
    shard: ShardId,
    /// By receiver: what found the queue full.
    waiting: Vec<VecDeque<Letter>>,
    waiting_count: usize,
    /// Receivers with something new in this turn, and whether each is among them.
    told: Vec<ShardId>,
    is_told: Vec<bool>,
}

impl Outbox {
    pub(super) fn new(mesh: Arc<Mesh>, shard: ShardId) -> Self {
        let shards = mesh.shards();
        Self {
            mesh,
            shard,
            waiting: (0..shards).map(|_| VecDeque::new()).collect(),
            waiting_count: 0,
            told: Vec::new(),
            is_told: vec![false; shards],
        }
    }

    /// True if the letter found room at once.
    pub(super) fn post(&mut self, to: ShardId, letter: Letter) -> bool {
        self.tell(to);
        let waiting = &mut self.waiting[usize::from(to.0)];
        let refused = if waiting.is_empty() {
            self.mesh.put_letter(self.shard, to, letter).err()
        } else {
            Some(letter)
        };
        match refused {
            None => true,
            Some(letter) => {
                waiting.push_back(letter);
                self.waiting_count += 1;
                false
            }
        }
    }

    fn tell(&mut self, to: ShardId) {
        if !std::mem::replace(&mut self.is_told[usize::from(to.0)], true) {
            self.told.push(to);
        }
    }

    /// Tries again what waits, then tells each receiver once, and wakes those that sleep. Returns
    /// the wakes.
    pub(super) fn flush(&mut self, ring: &mut Ring) -> u64 {
        if self.waiting_count > 0 {
            self.post_waiting();
        }
        let mut wakes = 0;
        let own = self.mesh.crew_of(self.shard);
        let mut told = std::mem::take(&mut self.told);
        for to in told.drain(..) {
            self.is_told[usize::from(to.0)] = false;
            self.mesh.desk(to).mailbox.raise(self.shard);
            let crew = self.mesh.crew_of(to);
            // One's own crew is awake: it is running this.
            if crew != own && self.mesh.crews[crew].parked.claim() {
                // Its first shard's ring is the one it blocks in.
                if let Some(handle) = self.mesh.ring(ShardId(crew as u16)) {
                    ring.wake(handle);
                }
                wakes += 1;
            }
        }
        self.told = told;
        wakes
    }

    fn post_waiting(&mut self) {
        for to in 0..self.waiting.len() {
            let shard = ShardId(to as u16);
            while let Some(letter) = self.waiting[to].pop_front() {
                if let Err(letter) = self.mesh.put_letter(self.shard, shard, letter) {
                    self.waiting[to].push_front(letter);
                    break;
                }
                self.waiting_count -= 1;
                self.tell(shard);
            }
        }
    }

    /// Letters that wait for room.
    pub(super) const fn waiting(&self) -> usize {
        self.waiting_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::ring::{Completion as RingCompletion, RingSizes};
    use portico_backend::messages::Reply;
    use portico_wire::ids::{DeviceId, MsgId, UserId};
    use std::{
        sync::{Barrier, mpsc},
        thread,
        time::Duration,
    };

    const LETTERS: u32 = 1_000_000;
    const QUEUE: usize = 64;

    /// A shard that does nothing but read and write letters, and blocks without a timeout: a wake
    /// that is lost leaves it blocked for ever.
    struct Reader {
        id: ShardId,
        mesh: Arc<Mesh>,
        ring: Ring,
        outbox: Outbox,
        mail: Mail,
    }

    impl Reader {
        fn new(id: u16, mesh: &Arc<Mesh>) -> Self {
            let sizes = RingSizes {
                submissions: 8,
                completions: 64,
                buffers: 2,
                buffer_bytes: 64,
            };
            let (id, mut ring) = (ShardId(id), Ring::new(&sizes, 1).unwrap());
            mesh.set_ring(id, ring.handle().unwrap());
            ring.watch(mesh.bell(id));
            Self {
                id,
                ring,
                outbox: Outbox::new(mesh.clone(), id),
                mail: Mail::new(mesh.shards()),
                mesh: mesh.clone(),
            }
        }

        /// As the driver does it.
        fn block(&mut self) {
            self.outbox.flush(&mut self.ring);
            if self.outbox.waiting() == 0 && self.mesh.announce_block(self.id) {
                self.ring.submit_and_wait().unwrap();
            } else {
                self.ring.submit_and_reap().unwrap();
            }
            self.mesh.unblocked(self.id);
            self.mesh.bell(self.id).quiet();
            while let Some(completion) = self.ring.next_completion() {
                assert!(
                    matches!(
                        completion,
                        RingCompletion::Woken
                            | RingCompletion::Rung { last: false }
                            | RingCompletion::Nothing
                    ),
                    "{completion:?}"
                );
            }
        }

        fn take(&mut self, from: u16) -> Option<u32> {
            self.mesh.take_mail(self.id, &mut self.mail);
            match self.mesh.take_letter(ShardId(from), self.id) {
                Some(Letter::Discard(Slot(number))) => Some(number),
                Some(other) => panic!("{other:?}"),
                None => {
                    self.mail.done(ShardId(from));
                    None
                }
            }
        }
    }

    /// Runs in a thread and must come to its end.
    fn in_time(name: &str, run: impl FnOnce() + Send + 'static) {
        let (done, ended) = mpsc::channel();
        let thread = thread::Builder::new().name(name.to_owned());
        let running = thread.spawn(move || {
            run();
            let _ = done.send(());
        });
        let ended = ended.recv_timeout(Duration::from_secs(120));
        assert_ne!(
            ended,
            Err(mpsc::RecvTimeoutError::Timeout),
            "a wake was lost"
        );
        running.unwrap().join().unwrap();
    }

    #[test]
    fn no_letter_is_lost_or_overtaken_and_no_wake_either() {
        let mesh = Arc::new(Mesh::with_queues(2, 2, QUEUE).unwrap());
        let made = Arc::new(Barrier::new(2));
        let (echo_mesh, echo_made) = (mesh.clone(), made.clone());
        let echo = thread::spawn(move || {
            let mut echo = Reader::new(1, &echo_mesh);
            echo_made.wait();
            let mut next = 0;
            while next < LETTERS {
                echo.block();
                while let Some(number) = echo.take(0) {
                    assert_eq!(number, next, "in order");
                    next += 1;
                    echo.outbox.post(ShardId(0), Letter::Discard(Slot(number)));
                }
            }
            // What is left of the last burst.
            // Without a block: nobody writes any more.
            loop {
                echo.outbox.flush(&mut echo.ring);
                echo.ring.submit_and_reap().unwrap();
                if echo.outbox.waiting() == 0 {
                    break;
                }
            }
        });
        in_time("mesh-stress", move || {
            let mut sender = Reader::new(0, &mesh);
            made.wait();
            let (mut sent, mut back, mut random) = (0, 0, 1_u32);
            while back < LETTERS {
                // Bursts from one letter to several times what the queue holds, and each one is
                // waited for: both sides block thousands of times.
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let burst = (1 + (random >> 24)).min(LETTERS - sent);
                for _ in 0..burst {
                    sender.outbox.post(ShardId(1), Letter::Discard(Slot(sent)));
                    sent += 1;
                }
                while back < sent {
                    sender.block();
                    while let Some(number) = sender.take(1) {
                        assert_eq!(number, back, "in order");
                        back += 1;
                    }
                }
            }
            echo.join().unwrap();
        });
    }

    #[test]
    fn storage_threads_wake_a_shard_that_blocks() {
        const BATCHES: u64 = 50_000;
        let mesh = Arc::new(Mesh::with_queues(1, 1, QUEUE).unwrap());
        let (request_tx, requests) = mpsc::sync_channel::<u64>(64);
        let desk = StoreDesk {
            mesh: mesh.clone(),
            shard: ShardId(0),
        };
        let store = thread::spawn(move || {
            for token in requests {
                let completion: Completion<Messages> = Completion {
                    token,
                    result: Ok(Reply::Done),
                };
                desk.complete(vec![completion]);
            }
        });
        in_time("desk-stress", move || {
            let mut shard = Reader::new(0, &mesh);
            let (mut asked, mut answered) = (0, 0);
            while answered < BATCHES {
                while asked < BATCHES && asked < answered + 1 + asked % 5 {
                    request_tx.send(asked).unwrap();
                    asked += 1;
                }
                shard.block();
                while let Some(Answers::Messages(batch)) = mesh.take_stored(ShardId(0)) {
                    for completion in batch {
                        assert_eq!(completion.token, answered);
                        answered += 1;
                    }
                }
            }
            drop(request_tx);
            store.join().unwrap();
        });
    }

    /// Letters with bodies are bounded in bytes, whatever their number; small ones pass meanwhile only
    /// from other shards, since order is kept.
    #[test]
    fn large_letters_wait_with_their_sender_as_soon_as_they_hold_too_much() {
        let mesh = Arc::new(Mesh::with_queues(2, 2, 4_096).unwrap());
        let mut sender = Reader::new(0, &mesh);
        let mut receiver = Reader::new(1, &mesh);
        let large = |bytes: usize| {
            let draft = portico_core::Draft {
                op: 34,
                sender: UserId(1),
                device: DeviceId(1),
                conv: portico_wire::ids::ConvId::direct(UserId(1), UserId(2)),
                epoch: 0,
                msg_id: MsgId::from_parts(0, 1),
                kind: 0,
                flags: 0,
                ttl_s: 0,
                body: vec![0; bytes].into(),
            };
            Letter::Message(ShardMessage::Ephemeral(Box::new(draft)))
        };
        let fit = LARGE_LETTERS_BYTES_MAX / 60_000;
        for _ in 0..fit {
            assert!(sender.outbox.post(ShardId(1), large(60_000)));
        }
        assert!(mesh.large_bytes(ShardId(1)) <= LARGE_LETTERS_BYTES_MAX);
        assert!(!sender.outbox.post(ShardId(1), large(60_000)));
        assert!(!sender.outbox.post(ShardId(1), Letter::Discard(Slot(1))));
        sender.outbox.flush(&mut sender.ring);
        assert_eq!(sender.outbox.waiting(), 2);
        let mut taken = 0;
        while sender.outbox.waiting() > 0 || receiver.mesh.has_letters(ShardId(1)) {
            while receiver.mesh.take_letter(ShardId(0), ShardId(1)).is_some() {
                taken += 1;
            }
            sender.outbox.flush(&mut sender.ring);
        }
        assert_eq!(taken, fit + 2);
        assert_eq!(mesh.large_bytes(ShardId(1)), 0);
        // One that alone is larger than the bound passes, alone.
        assert!(
            sender
                .outbox
                .post(ShardId(1), large(LARGE_LETTERS_BYTES_MAX + 1))
        );
        assert!(!sender.outbox.post(ShardId(1), large(1_000)));
        receiver.mesh.take_mail(ShardId(1), &mut receiver.mail);
    }

    #[test]
    fn a_full_queue_keeps_letters_with_their_sender() {
        let mesh = Arc::new(Mesh::with_queues(2, 2, 4).unwrap());
        let mut sender = Reader::new(0, &mesh);
        let mut receiver = Reader::new(1, &mesh);
        let fits: Vec<bool> = (0..7)
            .map(|number| {
                sender
                    .outbox
                    .post(ShardId(1), Letter::Discard(Slot(number)))
            })
            .collect();
        assert_eq!(fits, [true, true, true, true, false, false, false]);
        assert_eq!(sender.outbox.waiting(), 3);
        assert_eq!(receiver.take(0), Some(0));
        assert!(
            !sender.outbox.post(ShardId(1), Letter::Discard(Slot(7))),
            "room is for those who wait"
        );
        sender.outbox.flush(&mut sender.ring);
        assert_eq!(sender.outbox.waiting(), 3);
        let mut next = 1;
        while next < 8 {
            while let Some(number) = receiver.take(0) {
                assert_eq!(number, next);
                next += 1;
            }
            sender.outbox.flush(&mut sender.ring);
        }
        assert_eq!(sender.outbox.waiting(), 0);
    }
}
