//! How much retries may add to a service's load: a share of its first tries over a sliding window, with a floor.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::contract::Moment;
use crate::contract::worker;

/// Length of the window in seconds, and its number of slots.
pub const WINDOW: u64 = 10;
const SLOTS: usize = 10;

/// Counts of one service. Outlives configs, so that a reload does not refill it.
pub struct Budget {
    /// First tries, one cache line and more per worker: counting never contends.
    begun: Box<[Shard]>,
    /// Retries. Contended only by requests that are about to be retried; exact for that.
    retried: Mutex<[(u64, u64); SLOTS]>,
}

/// Per second: its number in the upper half, a count in the lower.
#[repr(align(128))]
#[derive(Default)]
struct Shard([AtomicU64; SLOTS]);

const fn second(now: Moment) -> u64 {
    // From 1, so that an unused slot (0) is never of this window.
    now.0 / 1_000_000_000 + WINDOW
}

#[expect(clippy::cast_possible_truncation, reason = "below SLOTS")]
const fn slot(second: u64) -> usize {
    (second % SLOTS as u64) as usize
}

impl Budget {
    /// Nothing happened yet.
    pub fn new() -> Self {
        Self { begun: (0..worker::shards()).map(|_| Shard::default()).collect(), retried: Mutex::new([(0, 0); SLOTS]) }
    }
    /// A first try began.
    pub fn begin(&self, now: Moment) {
        let second = second(now) & u64::from(u32::MAX);
        let cell = &self.begun[worker::shard()].0[slot(second)];
        let word = cell.load(Relaxed);
        if word >> 32 == second {
            cell.fetch_add(1, Relaxed);
        } else {
            // A new second in an old slot. Only the threads without a worker share a shard; losing this race loses counts
            // of one second, which errs to fewer retries.
            let _ = cell.compare_exchange(word, second << 32 | 1, Relaxed, Relaxed);
        }
    }
    /// Takes one retry out of the budget, if it is in it.
    pub fn take(&self, now: Moment, percent: f64, min_per_second: u32) -> bool {
        let second = second(now);
        let alive = |of: u64| of + WINDOW > second && of <= second;
        let begun: u64 = self
            .begun
            .iter()
            .flat_map(|s| &s.0)
            .map(|cell| cell.load(Relaxed))
            .filter(|word| alive(word >> 32))
            .map(|word| word & u64::from(u32::MAX))
            .sum();
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let share = (begun as f64 * percent) as u64;
        let granted = share.max(u64::from(min_per_second) * WINDOW);
        let mut retried = self.retried.lock();
        let used: u64 = retried.iter().filter(|(of, _)| alive(*of)).map(|(_, n)| n).sum();
        if used >= granted {
            return false;
        }
        let cell = &mut retried[slot(second)];
        *cell = if cell.0 == second { (second, cell.1 + 1) } else { (second, 1) };
        true
    }
}
