//! Parts of the driver for the benches, which are a crate of their own: letters between shards, and
//! the table of sockets. Hidden from the documentation, and nothing an embedder may rely on: the
//! alternative was to make the parts themselves public.

use super::{
    LETTERS_PER_TURN,
    mailbox::Mail,
    mesh::{Letter, Mesh, Outbox},
    ring::{Ring, RingSizes, Slot},
    socket::{Sockets, State},
};
use portico_core::{ShardId, ShardMessage};
use portico_wire::ids::ConvSeq;
use std::{error::Error, sync::Arc};

/// The queues between some shards.
#[derive(Clone, Debug)]
pub struct BareMesh(Arc<Mesh>);

impl BareMesh {
    /// So many shards on so many threads.
    ///
    /// # Errors
    /// If the system gives no pipe to wake a thread with.
    pub fn new(shards: usize, threads: usize) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(Self(Arc::new(Mesh::new(shards, threads)?)))
    }

    /// A shard's end. To be made on the thread that uses it, as its ring must be.
    ///
    /// # Errors
    /// If the kernel gives no ring.
    pub fn end(&self, shard: u16) -> Result<MeshEnd, Box<dyn Error + Send + Sync>> {
        let sizes = RingSizes {
            submissions: 64,
            completions: 256,
            buffers: 2,
            buffer_bytes: 64,
        };
        let (shard, mut ring) = (ShardId(shard), Ring::new(&sizes, 1)?);
        self.0.set_ring(shard, ring.handle()?);
        ring.watch(self.0.bell(shard));
        Ok(MeshEnd {
            shard,
            ring,
            outbox: Outbox::new(self.0.clone(), shard),
            mail: Mail::new(self.0.shards()),
            mesh: self.0.clone(),
        })
    }
}

/// A shard that does nothing but write and read letters, in the way the driver does.
#[derive(Debug)]
pub struct MeshEnd {
    shard: ShardId,
    mesh: Arc<Mesh>,
    ring: Ring,
    outbox: Outbox,
    mail: Mail,
}

impl MeshEnd {
    /// Writes a letter: the answer to a direct message, with a number that [`Self::read`] finds.
    pub fn write(&mut self, to: u16, number: u64) {
        let letter = Letter::Message(ShardMessage::DirectDone {
            token: number,
            result: Ok(ConvSeq(number)),
        });
        self.outbox.post(ShardId(to), letter);
    }

    /// Tells receivers of new letters, and wakes those that sleep. True if every letter has found
    /// room.
    ///
    /// # Errors
    /// If the ring fails.
    pub fn flush(&mut self) -> Result<bool, Box<dyn Error + Send + Sync>> {
        if self.outbox.flush(&mut self.ring) > 0 {
            self.ring.submit_and_reap()?;
            self.drop_completions();
        }
        Ok(self.outbox.waiting() == 0)
    }

    /// Reads what has come, a turn's worth at most, and returns how many letters that were.
    pub fn read(&mut self, mut each: impl FnMut(u64)) -> usize {
        self.mesh.take_mail(self.shard, &mut self.mail);
        let mut count = 0;
        let mut next = 0;
        while let Some(from) = self.mail.next(next) {
            next = usize::from(from.0) + 1;
            for _ in 0..LETTERS_PER_TURN {
                let Some(letter) = self.mesh.take_letter(from, self.shard) else {
                    self.mail.done(from);
                    break;
                };
                if let Letter::Message(ShardMessage::DirectDone { token, .. }) = letter {
                    each(token);
                    count += 1;
                }
            }
        }
        count
    }

    /// Sleeps until there is a letter.
    ///
    /// # Errors
    /// If the ring fails.
    pub fn block(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
        if self.mail.is_empty() && self.mesh.announce_block(self.shard) {
            self.ring.submit_and_wait()?;
        }
        self.mesh.unblocked(self.shard);
        self.drop_completions();
        Ok(())
    }

    fn drop_completions(&mut self) {
        while self.ring.next_completion().is_some() {}
    }
}

/// The driver's table with so many connections at rest.
#[derive(Debug)]
pub struct BareSockets(Sockets);

impl BareSockets {
    #[must_use]
    pub fn at_rest(connections: u32) -> Self {
        let mut sockets = Sockets::with_capacity(connections as usize);
        for slot in 0..connections {
            sockets.occupy(Slot(slot), State::Open);
        }
        Self(sockets)
    }

    #[must_use]
    pub const fn in_use(&self) -> usize {
        self.0.in_use()
    }
}
