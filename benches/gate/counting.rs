//! An allocator that counts. The one place in this workspace that is not safe code.
#![allow(unsafe_code, reason = "GlobalAlloc is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static EVERYWHERE: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Const and without a destructor: reading it allocates nothing, at any time of a thread's life.
    static HERE: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, with a count of every block it gives and every block it moves.
pub struct Counting;

/// Allocations of the calling thread so far.
pub fn here() -> u64 {
    HERE.get()
}

/// Allocations of every thread so far.
pub fn everywhere() -> u64 {
    EVERYWHERE.load(Relaxed)
}

fn count() {
    EVERYWHERE.fetch_add(1, Relaxed);
    HERE.set(HERE.get() + 1);
}

// SAFETY: every call goes to `System` with the arguments it came with, so its contract is the caller's. Counting touches
// an atomic and a const thread-local without a destructor: neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}
