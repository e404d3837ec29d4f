//! An allocator that counts. The one place in this workspace that is not safe code.
#![allow(unsafe_code, reason = "GlobalAlloc is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

static EVERYWHERE: AtomicU64 = AtomicU64::new(0);
/// Bytes in use, and the most there were since [`from_here`].
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

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

/// Bytes in use now.
pub fn live() -> usize {
    LIVE.load(Relaxed)
}

/// The most bytes that were in use at once since [`from_here`].
pub fn peak() -> usize {
    PEAK.load(Relaxed)
}

/// Begins a new peak.
pub fn from_here() {
    PEAK.store(live(), Relaxed);
}

/// What a block takes: the system's allocator rounds up to 16 bytes and keeps a header of 8.
fn block(size: usize) -> usize {
    (size + 8).next_multiple_of(16).max(32)
}

fn took(size: usize) {
    let live = LIVE.fetch_add(block(size), Relaxed) + block(size);
    PEAK.fetch_max(live, Relaxed);
}

fn gave(size: usize) {
    LIVE.fetch_sub(block(size), Relaxed);
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
        took(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        took(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        gave(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        took(size);
        gave(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}
