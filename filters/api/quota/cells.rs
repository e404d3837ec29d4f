//! Cells by caller, bounded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use foldhash::fast::FixedState;
use parking_lot::Mutex;

use super::core::{Meter, Rate};
use super::saved::{Form, Persist, Table};
use crate::api::caller::{Id, Key};
use crate::contract::metrics::{Counter, Gauge};
use crate::contract::{Moment, now};

const SHARDS: usize = 64;

type Shard = HashMap<Key, Cell, FixedState>;

struct Cell {
    value: AtomicU64,
    /// Its caller, for what is saved.
    id: Id,
}

/// What cells are counted by.
#[derive(Clone)]
pub struct Tracks {
    /// Callers remembered.
    pub keys: Gauge,
    /// Callers forgotten although they owed something.
    pub evicted: Counter,
}

/// Cells by key. Lives on across reloads.
pub struct Cells {
    /// Workers contend for a shard only when they serve keys of one shard at the same moment, and for a look-up and one
    /// compare-and-swap at most; never over a wait.
    shards: Box<[Mutex<Shard>]>,
    /// Of [`Key::ALL`]: reached without a lock.
    all: AtomicU64,
    per_shard: usize,
    /// The rate the cells were last charged at; `None` for a calendar. Contended by reloads and saves only.
    rate: Mutex<Option<Rate>>,
    /// What an earlier process counted and nobody has asked for yet. Contended as `shards`, and only on first sight of a
    /// caller.
    earlier: Mutex<HashMap<Id, u64>>,
    tracks: Tracks,
}

impl Cells {
    /// `rate`: of a rolling window. `saved`: what an earlier process left.
    pub fn new(rate: Option<Rate>, max_keys: usize, saved: Table, tracks: Tracks) -> Self {
        // Few keys in one shard, so that the bound is exact where it is small.
        let shards = if max_keys < 64 * SHARDS { 1 } else { SHARDS };
        let mut earlier = saved.live(rate);
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            all: AtomicU64::new(earlier.remove(&Id::default()).unwrap_or(0)),
            per_shard: max_keys.div_ceil(shards).max(1),
            rate: Mutex::new(rate),
            earlier: Mutex::new(earlier),
            tracks,
        }
    }

    /// Acts on the cell of a key, which is made at first use. `id`: the key's caller, asked for only then.
    pub fn with<T>(&self, key: Key, meter: Meter, id: impl FnOnce() -> Id, act: impl FnOnce(&AtomicU64) -> T) -> T {
        if key == Key::ALL {
            return act(&self.all);
        }
        let mut cells = self.shard(key).lock();
        if let Some(cell) = cells.get(&key) {
            return act(&cell.value);
        }
        if cells.len() >= self.per_shard {
            self.make_room(&mut cells, meter);
        }
        let id = id();
        let value = self.earlier.lock().remove(&id).unwrap_or(0);
        self.tracks.keys.add(1);
        act(&cells.entry(key).or_insert(Cell { value: AtomicU64::new(value), id }).value)
    }

    /// Acts on the cell of a key, or on what it would be.
    pub fn look<T>(&self, key: Key, id: impl FnOnce() -> Id, act: impl FnOnce(&AtomicU64) -> T) -> T {
        if key == Key::ALL {
            return act(&self.all);
        }
        if let Some(cell) = self.shard(key).lock().get(&key) {
            return act(&cell.value);
        }
        act(&AtomicU64::new(self.earlier.lock().get(&id()).copied().unwrap_or(0)))
    }

    /// Acts on the cell of a key if it is still there.
    pub fn amend(&self, key: Key, act: impl FnOnce(&AtomicU64)) {
        if key == Key::ALL {
            return act(&self.all);
        }
        if let Some(cell) = self.shard(key).lock().get(&key) {
            act(&cell.value);
        }
    }

    fn shard(&self, key: Key) -> &Mutex<Shard> {
        &self.shards[key.spread() % self.shards.len()]
    }

    /// Moves every cell to a new rate. Each keeps the number of units it has used.
    pub fn retune(&self, rate: Rate, now: Moment) {
        let mut current = self.rate.lock();
        let Some(before) = current.replace(rate).filter(|before| *before != rate) else { return };
        let retune = |cell: &AtomicU64| {
            let _ = cell.fetch_update(Relaxed, Relaxed, |tat| Some(before.retuned(tat, rate, now)));
        };
        retune(&self.all);
        for shard in &self.shards {
            shard.lock().values().for_each(|cell| retune(&cell.value));
        }
        self.earlier.lock().values_mut().for_each(|tat| *tat = before.retuned(*tat, rate, now));
    }

    /// Forgets full buckets, which changes nothing; if there are none, the fullest of a few. That one gains at most its
    /// refill, where refusing new keys would let one flood of keys shut out everybody else.
    fn make_room(&self, cells: &mut Shard, meter: Meter) {
        let before = cells.len();
        // Looking at all of them is worth it only where a sample says that some are full.
        let sampled = cells.iter().take(16).map(|(k, c)| (*k, c.value.load(Relaxed)));
        match sampled.min_by_key(|(_, value)| meter.debt(*value)) {
            Some((_, value)) if meter.is_full(value) => cells.retain(|_, c| !meter.is_full(c.value.load(Relaxed))),
            Some((fullest, _)) => {
                cells.remove(&fullest);
                self.tracks.evicted.inc();
            }
            None => {}
        }
        let gone = before - cells.len();
        debug_assert!(gone > 0, "there is room now");
        self.tracks.keys.add(-i64::try_from(gone).unwrap_or(0));
    }

    /// Keys remembered.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().len()).sum()
    }
}

impl Drop for Cells {
    fn drop(&mut self) {
        self.tracks.keys.add(-i64::try_from(self.len()).unwrap_or(0));
    }
}

impl Persist for Cells {
    fn table(&self) -> Table {
        let form = self.rate.lock().map_or(Form::Calendar, |rate| Form::Rolling { interval: rate.parts() });
        let mut values: Vec<(Id, u64)> = self.earlier.lock().iter().map(|(id, value)| (*id, *value)).collect();
        values.push((Id::default(), self.all.load(Relaxed)));
        for shard in &self.shards {
            // One shard after the other: a worker waits for the copy of one, not of all.
            values.extend(shard.lock().values().map(|cell| (cell.id, cell.value.load(Relaxed))));
        }
        Table::of(form, values, now())
    }
}
