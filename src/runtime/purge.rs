//! Memory that idle connections gave back, given back to the system.
//!
//! An allocator keeps what is freed for the next allocation. After a burst of connections that is right; once many of them
//! have gone idle it is most of what they cost. So a worker that has parked many connections asks its allocator, once
//! they have settled, to let go. So does the control thread when a configuration that was replaced is gone. Nothing wakes
//! up for it otherwise.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::Duration;

/// Parked connections that are worth a purge.
const MANY: u32 = 100;
/// How long a burst gets to settle.
const SETTLE: Duration = Duration::from_millis(500);

static PURGE: OnceLock<fn()> = OnceLock::new();

thread_local! {
    static PARKED: Cell<u32> = const { Cell::new(0) };
}

/// Names the allocator's own purge, for the calling thread's memory. The first call counts; without one nothing happens.
pub fn with(purge: fn()) {
    let _ = PURGE.set(purge);
}

/// Gives back what the calling thread freed. For the control thread, once a configuration has replaced another.
pub fn now() {
    if let Some(purge) = PURGE.get() {
        purge();
    }
}

/// A connection of the calling worker went idle and freed its buffers.
pub fn parked() {
    let parked = PARKED.get() + 1;
    PARKED.set(parked);
    if parked == MANY
        && let Some(purge) = PURGE.get()
    {
        tokio::spawn(async move {
            tokio::time::sleep(SETTLE).await;
            PARKED.set(0);
            purge();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    static PURGES: AtomicU32 = AtomicU32::new(0);

    #[tokio::test]
    async fn a_burst_is_followed_by_one_purge() {
        with(|| {
            PURGES.fetch_add(1, Relaxed);
        });
        for _ in 0..3 * MANY {
            parked();
        }
        tokio::time::sleep(SETTLE * 2).await;
        assert_eq!(PURGES.load(Relaxed), 1);
        for _ in 1..MANY {
            parked();
        }
        tokio::time::sleep(SETTLE * 2).await;
        assert_eq!(PURGES.load(Relaxed), 1, "a few are not worth it");
    }
}
