//! An allocator that counts, per thread: how often memory was asked for, and how many bytes of it
//! are live.
//!
//! # Why it is sound
//! Every call is passed on to the system's allocator as it came, and its answer is returned as it
//! is: what [`GlobalAlloc`] asks of an implementation holds because it holds for [`System`]. The
//! counters are plain cells of the calling thread. They are set up at compile time and have nothing
//! to drop, so that using them neither allocates nor fails, whenever in a thread's life it happens.

#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// To be set as `#[global_allocator]` by the program that wants to know.
#[derive(Debug)]
pub(crate) struct Counting;

/// What this thread has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Requests for memory; one that grows or shrinks what is there counts too.
    pub(crate) allocations: u64,
    /// Asked for and not given back. Below zero where a thread frees what another has allocated.
    pub(crate) live_bytes: i64,
}

thread_local! {
    static COUNTED: Cell<Counted> = const {
        Cell::new(Counted {
            allocations: 0,
            live_bytes: 0,
        })
    };
}

/// Of the calling thread.
pub(crate) fn counted() -> Counted {
    COUNTED.get()
}

fn count(allocations: u64, bytes: i64) {
    let Counted {
        allocations: so_far,
        live_bytes,
    } = COUNTED.get();
    COUNTED.set(Counted {
        allocations: so_far + allocations,
        live_bytes: live_bytes + bytes,
    });
}

/// No object is larger than `isize::MAX` bytes.
const fn signed(bytes: usize) -> i64 {
    bytes as i64
}

// SAFETY: see the module's head. No method unwinds: the counters are of 64 bits and cannot
// overflow, and the cells are there for as long as the thread runs.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, signed(layout.size()));
        // SAFETY: the caller's promise about `layout` is the one that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, signed(layout.size()));
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, -signed(layout.size()));
        // SAFETY: `pointer` came from `System` by one of these methods, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(1, signed(new_size) - signed(layout.size()));
        // SAFETY: as in `dealloc`, and the caller's promise about `new_size` is the one that
        // `System` asks for.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}
