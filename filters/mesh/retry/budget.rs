//! How much retries may add to a service's load: a share of its first tries over a sliding window, with a floor.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use crate::contract::Moment;
use crate::contract::worker;

/// Parts of the window.
const SLOTS: usize = 10;

/// What the budget grants.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Share of first tries.
    pub percent: f64,
    /// A floor.
    pub min_per_second: u32,
    /// Over how long both are counted.
    pub window: Duration,
}

/// Counts of one service. Outlives configs, so that a reload does not refill it.
pub struct Budget {
    /// First tries, one cache line and more per worker: counting never contends.
    begun: Box<[Shard]>,
    /// Retries. Contended only by requests that are about to be retried; exact for that.
    retried: Mutex<[(u64, u64); SLOTS]>,
}

/// Per slot: its number in the upper half, a count in the lower.
#[repr(align(128))]
#[derive(Default)]
struct Shard([AtomicU64; SLOTS]);

/// Number of a slot of this window, in 31 bits, and from [`SLOTS`] on, so that an unused slot (0) is never of it.
fn number(now: Moment, window: Duration) -> u64 {
    let length = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX) / SLOTS as u64;
    now.0 / length.max(1) % (1 << 31) + SLOTS as u64
}

#[expect(clippy::cast_possible_truncation, reason = "below SLOTS")]
const fn slot(number: u64) -> usize {
    (number % SLOTS as u64) as usize
}

impl Budget {
    /// Nothing happened yet.
    pub fn new() -> Self {
        Self { begun: (0..worker::shards()).map(|_| Shard::default()).collect(), retried: Mutex::new([(0, 0); SLOTS]) }
    }
    /// A first try began.
    pub fn begin(&self, now: Moment, window: Duration) {
        let number = number(now, window);
        let cell = &self.begun[worker::shard()].0[slot(number)];
        let word = cell.load(Relaxed);
        if word >> 32 == number {
            cell.fetch_add(1, Relaxed);
        } else {
            // A new slot in an old cell. Only the threads without a worker share a shard; losing this race loses counts
            // of one slot, which errs to fewer retries.
            let _ = cell.compare_exchange(word, number << 32 | 1, Relaxed, Relaxed);
        }
    }
    /// Takes one retry out of the budget, if it is in it.
    pub fn take(&self, now: Moment, limits: &Limits) -> bool {
        let number = number(now, limits.window);
        let alive = |of: u64| of + SLOTS as u64 > number && of <= number;
        let begun: u64 = self
            .begun
            .iter()
            .flat_map(|s| &s.0)
            .map(|cell| cell.load(Relaxed))
            .filter(|word| alive(word >> 32))
            .map(|word| word & u64::from(u32::MAX))
            .sum();
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let (share, floor) = (
            (begun as f64 * limits.percent) as u64,
            (f64::from(limits.min_per_second) * limits.window.as_secs_f64()) as u64,
        );
        let granted = share.max(floor);
        let mut retried = self.retried.lock();
        let used: u64 = retried.iter().filter(|(of, _)| alive(*of)).map(|(_, n)| n).sum();
        if used >= granted {
            return false;
        }
        let cell = &mut retried[slot(number)];
        *cell = if cell.0 == number { (number, cell.1 + 1) } else { (number, 1) };
        true
    }
}
