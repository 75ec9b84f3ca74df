//! Receive buffers that the kernel picks when bytes arrive, so that a waiting connection owns none.
//!
//! Both areas are anonymous maps. They are registered with the ring for its whole life and unmapped
//! by [`super::Ring`] only after its last request has completed.

use super::{RingError, completion::Lent};
use io_uring::{IoUring, types::BufRingEntry};
use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering},
};

/// The only buffer group of a ring.
pub(super) const GROUP: u16 = 1;

#[derive(Debug)]
pub(super) struct Provided {
    entries: Map,
    memory: Map,
    count: u16,
    size: u32,
    /// Of the entries written so far; the kernel knows those up to the last [`Self::publish`].
    tail: u16,
}

impl Provided {
    /// Pages become resident with their first use.
    pub(super) fn register(io: &IoUring, count: u16, size: u32) -> Result<Self, RingError> {
        if !count.is_power_of_two() || size == 0 {
            return Err(RingError::BadSize("receive buffers"));
        }
        let entries = Map::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Map::new(usize::from(count) * size as usize)?;
        let address = entries.start.as_ptr() as u64;
        // SAFETY: the area is page-aligned, large enough for `count` entries, zeroed, and outlives
        // the ring's requests: the owner unmaps it after the last one.
        unsafe {
            io.submitter()
                .register_buf_ring_with_flags(address, count, GROUP, 0)
        }
        .map_err(|error| RingError::from_register("a ring of receive buffers", error))?;
        let mut provided = Self {
            entries,
            memory,
            count,
            size,
            tail: 0,
        };
        (0..count).for_each(|buffer| provided.write_entry(buffer));
        provided.publish();
        Ok(provided)
    }

    pub(super) const fn count(&self) -> u16 {
        self.count
    }

    pub(super) const fn size(&self) -> usize {
        self.size as usize
    }

    /// Takes what a completion says at its word only within the bounds of this ring.
    pub(super) fn lent(&self, buffer: u16, len: usize) -> Option<Lent> {
        let fits = buffer < self.count && len <= self.size();
        fits.then_some(Lent {
            buffer,
            from: 0,
            len: len as u32,
        })
    }

    pub(super) fn bytes(&self, lent: &Lent) -> &[u8] {
        let start = usize::from(lent.buffer) * self.size() + lent.from as usize;
        // SAFETY: `Lent` is made by `lent` alone, which checked both numbers against this ring's
        // sizes, and one is made per completion; `skip` moves its start within it. From that completion until `give_back`, which
        // consumes the value, the kernel does not write to the buffer.
        unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr().add(start), lent.len()) }
    }

    pub(super) fn bytes_mut(&mut self, lent: &Lent) -> &mut [u8] {
        let start = usize::from(lent.buffer) * self.size() + lent.from as usize;
        // SAFETY: as in `bytes`; and `self` is borrowed for as long as the slice is, so that there is
        // no other slice of it.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start.as_ptr().add(start), lent.len()) }
    }

    /// The kernel sees it after the next [`Self::publish`].
    pub(super) fn give_back(&mut self, lent: Lent) {
        self.write_entry(lent.buffer);
    }

    /// Shows the returned buffers to the kernel; once per batch.
    pub(super) fn publish(&mut self) {
        let base = self.entries.start.as_ptr().cast::<BufRingEntry>();
        // SAFETY: `base` is the start of the registered ring. Its tail is a 16-bit field that the
        // kernel only reads and this thread alone writes; it lies in writable memory, so the cast
        // from the const pointer is sound.
        unsafe {
            let tail = BufRingEntry::tail(base).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    fn write_entry(&mut self, buffer: u16) {
        let place = usize::from(self.tail & (self.count - 1));
        let start = usize::from(buffer) * self.size();
        // SAFETY: `place` is below `count`, the number of entries in the map; at most `count`
        // buffers exist, so the entry is one that the kernel has consumed. `start` lies inside
        // `memory`, as `buffer` is below `count`. The fields are set one by one because the tail of
        // the ring shares the memory of the first entry.
        unsafe {
            let base = self.entries.start.as_ptr().cast::<BufRingEntry>();
            let entry = &mut *base.add(place);
            entry.set_addr(self.memory.start.as_ptr().add(start) as u64);
            entry.set_len(self.size);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
    }
}

/// A private anonymous map, unmapped when dropped.
#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    len: usize,
}

impl Map {
    fn new(len: usize) -> Result<Self, RingError> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE;
        // SAFETY: an anonymous map at an address of the kernel's choice touches no memory in use.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { start, len }),
            _ => Err(RingError::Create(std::io::Error::last_os_error())),
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the map, and no reference into it outlives the
        // owner (`Provided::bytes` borrows it).
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
