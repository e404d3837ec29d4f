//! The generic cell rate algorithm, pure, and the bounded map of its cells.
//!
//! A cell is one number: the theoretical arrival time (TAT), when the bucket will be full again. A charge moves it by the
//! emission interval, and is refused if that would carry it further than the burst tolerance beyond now. No windows, so
//! no double burst at their edges; no timer; one compare-and-swap.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use foldhash::fast::FixedState;
use parking_lot::Mutex;

use crate::contract::Moment;

/// A rate and a burst, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Time one request uses up.
    interval: u64,
    /// `burst` intervals.
    tolerance: u64,
}

/// What a charge gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Whether the request may pass.
    pub allowed: bool,
    /// Requests left at once.
    pub remaining: u64,
    /// Until one more is there if none is left, else until all are.
    pub reset: Duration,
}

impl Rate {
    /// `limit` requests per `per`, `burst` at once; at least one each.
    pub fn new(limit: u64, per: Duration, burst: u64) -> Self {
        let per = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        let interval = (per / limit.max(1)).max(1);
        Self { interval, tolerance: interval.saturating_mul(burst.max(1)) }
    }

    /// What a charge would give at `now`, and the TAT that would result.
    fn test(self, tat: u64, now: Moment) -> (Charge, u64) {
        let from = tat.max(now.0);
        let to = from.saturating_add(self.interval);
        let limit = now.0.saturating_add(self.tolerance);
        if to > limit {
            // After a limit was lowered the debt may be beyond the tolerance: then it takes longer.
            let reset = Duration::from_nanos(to - limit);
            return (Charge { allowed: false, remaining: 0, reset }, tat);
        }
        (self.state(to, now, true), to)
    }

    /// The state of a cell without a charge.
    fn state(self, tat: u64, now: Moment, allowed: bool) -> Charge {
        let debt = tat.saturating_sub(now.0);
        let remaining = self.tolerance.saturating_sub(debt) / self.interval;
        let reset =
            if remaining == 0 { debt.saturating_add(self.interval).saturating_sub(self.tolerance) } else { debt };
        Charge { allowed, remaining, reset: Duration::from_nanos(reset) }
    }

    /// Charges one request. Exact under concurrency: of any number of racing charges as many pass as the rate allows.
    pub fn charge(self, cell: &AtomicU64, now: Moment) -> Charge {
        let mut tat = cell.load(Relaxed);
        loop {
            let (charge, next) = self.test(tat, now);
            if !charge.allowed {
                return charge;
            }
            match cell.compare_exchange_weak(tat, next, Relaxed, Relaxed) {
                Ok(_) => return charge,
                Err(seen) => tat = seen,
            }
        }
    }

    /// What a charge would give.
    pub fn peek(self, cell: &AtomicU64, now: Moment) -> Charge {
        self.test(cell.load(Relaxed), now).0
    }

    /// Takes one charge back.
    pub fn refund(self, cell: &AtomicU64) {
        // The charge put the TAT at least one interval above zero.
        let _ = cell.fetch_update(Relaxed, Relaxed, |tat| Some(tat.saturating_sub(self.interval)));
    }

    /// The TAT that keeps the number of requests used when the rate becomes `other`: nothing is refilled or taken.
    fn retuned(self, tat: u64, other: Self, now: Moment) -> u64 {
        let debt = u128::from(tat.saturating_sub(now.0)) * u128::from(other.interval) / u128::from(self.interval);
        now.0.saturating_add(u64::try_from(debt).unwrap_or(u64::MAX))
    }
}

/// A key: 128 bits of keyed SipHash, so that nobody can make two keys meet, and keys take no memory of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64, u64);

static SEEDS: LazyLock<(RandomState, RandomState)> = LazyLock::new(|| (RandomState::new(), RandomState::new()));

impl Key {
    /// Of limits that count all requests together. Has a cell of its own, reached without a lock.
    pub const ALL: Self = Self(0, 0);

    /// Of anything.
    pub fn of(what: impl Hash) -> Self {
        Self(SEEDS.0.hash_one(&what), SEEDS.1.hash_one(&what))
    }
}

const SHARDS: usize = 64;

type Shard = Mutex<HashMap<Key, AtomicU64, FixedState>>;

/// Cells by key, bounded. Lives on across reloads.
pub struct Cells {
    /// Workers contend for a shard only when they serve keys of one shard at the same moment, and for a look-up and one
    /// compare-and-swap at most; never over a wait.
    shards: Box<[Shard]>,
    all: AtomicU64,
    per_shard: usize,
    /// The rate the cells were last charged at.
    rate: Mutex<Rate>,
}

impl Cells {
    pub fn new(rate: Rate, max_keys: usize) -> Self {
        // Few keys in one shard, so that the bound is exact where it is small.
        let shards = if max_keys < 64 * SHARDS { 1 } else { SHARDS };
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            all: AtomicU64::new(0),
            per_shard: max_keys.div_ceil(shards).max(1),
            rate: Mutex::new(rate),
        }
    }

    /// Acts on the cell of a key, which is made at first use.
    pub fn with<T>(&self, key: Key, now: Moment, act: impl FnOnce(&AtomicU64) -> T) -> T {
        if key == Key::ALL {
            return act(&self.all);
        }
        let mut cells = self.shard(key).lock();
        if let Some(cell) = cells.get(&key) {
            return act(cell);
        }
        if cells.len() >= self.per_shard {
            make_room(&mut cells, now);
        }
        act(cells.entry(key).or_default())
    }

    /// Acts on the cell of a key if there is one: an absent cell is a full bucket.
    pub fn look<T>(&self, key: Key, act: impl FnOnce(&AtomicU64) -> T) -> T {
        if key == Key::ALL {
            return act(&self.all);
        }
        match self.shard(key).lock().get(&key) {
            Some(cell) => act(cell),
            None => act(&AtomicU64::new(0)),
        }
    }

    fn shard(&self, key: Key) -> &Shard {
        &self.shards[usize::try_from(key.0 >> 32).unwrap_or(0) % self.shards.len()]
    }

    /// Moves every cell to a new rate. Each keeps the number of requests it has used.
    pub fn retune(&self, rate: Rate, now: Moment) {
        let mut current = self.rate.lock();
        if *current == rate {
            return;
        }
        let retune = |cell: &AtomicU64| {
            let _ = cell.fetch_update(Relaxed, Relaxed, |tat| Some(current.retuned(tat, rate, now)));
        };
        retune(&self.all);
        for shard in &self.shards {
            shard.lock().values().for_each(retune);
        }
        *current = rate;
    }

    /// Keys remembered.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().len()).sum()
    }
}

/// Forgets full buckets, which changes nothing; if there are none, the fullest of a few. That one gains at most its
/// refill, where refusing new keys would let one flood of keys shut out everybody else.
fn make_room(cells: &mut HashMap<Key, AtomicU64, FixedState>, now: Moment) {
    let before = cells.len();
    // Looking at all of them is worth it only where a sample says that some are full.
    let sampled: Option<(Key, u64)> =
        cells.iter().take(16).map(|(k, c)| (*k, c.load(Relaxed))).min_by_key(|(_, tat)| *tat);
    match sampled {
        Some((_, tat)) if tat <= now.0 => cells.retain(|_, c| c.load(Relaxed) > now.0),
        Some((fullest, _)) => {
            cells.remove(&fullest);
        }
        None => {}
    }
    debug_assert!(cells.len() < before, "there is room now");
}
