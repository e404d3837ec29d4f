//! Which worker am I? The one place that knows, so that the threading model stays a configuration choice.

use std::cell::Cell;
use std::sync::OnceLock;

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(0) };
}
static SHARDS: OnceLock<usize> = OnceLock::new();

/// Fixes the number of workers for the life of the process. First call wins; call it before anything is built.
pub fn plan(workers: usize) {
    let _ = SHARDS.set(workers.max(1) + 1);
}

/// Shards that per-worker state is divided into: shard 0 belongs to the control thread (and every thread that is not a
/// worker), worker `n` has shard `n + 1`.
#[must_use]
pub fn shards() -> usize {
    *SHARDS.get_or_init(|| std::thread::available_parallelism().map_or(2, |n| n.get() + 1))
}

/// Shard of the calling thread, below [`shards`].
#[must_use]
pub fn shard() -> usize {
    SHARD.get()
}

/// Marks the calling thread as worker `n`. Called once, when a worker starts.
pub fn enter(n: usize) {
    SHARD.set(n % (shards() - 1) + 1);
}
