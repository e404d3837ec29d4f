//! Cells by caller, bounded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::core::{Meter, Rate};
use super::saved::{Form, Persist, Table};
use super::slots::{Slots, Writer};
use crate::api::caller::{Id, Key};
use crate::contract::metrics::{Counter, Gauge};
use crate::contract::{Moment, now};

const SHARDS: usize = 64;
/// How many cells are looked at to find one that can be forgotten.
const SAMPLE: usize = 16;

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
    /// A caller that is known is found and charged without a lock: one pointer, a look or two, one compare-and-swap.
    shards: Box<[Slots]>,
    /// Of [`Key::ALL`]: reached without a lock.
    all: AtomicU64,
    per_shard: usize,
    /// The rate the cells were last charged at; `None` for a calendar. Contended by reloads and saves only.
    rate: Mutex<Option<Rate>>,
    /// What an earlier process counted and nobody has asked for yet. Contended only on first sight of a caller.
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
            shards: (0..shards).map(|_| Slots::default()).collect(),
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
        let shard = self.shard(key);
        if let Some(cell) = shard.find(key).value() {
            return act(cell);
        }
        // Not under the lock: it may take an expression and a digest.
        let id = id();
        let earlier = || self.earlier.lock().remove(&id).unwrap_or(0);
        let room = |shard: &Slots, writer: &mut Writer| self.make_room(shard, writer, meter);
        let (cell, new) = shard.enter(key, id, self.per_shard, room, earlier);
        if new {
            self.tracks.keys.add(1);
        }
        act(&cell.value)
    }

    /// Acts on the cell of a key, or on what it would be.
    pub fn look<T>(&self, key: Key, id: impl FnOnce() -> Id, act: impl FnOnce(&AtomicU64) -> T) -> T {
        if key == Key::ALL {
            return act(&self.all);
        }
        if let Some(cell) = self.shard(key).find(key).value() {
            return act(cell);
        }
        act(&AtomicU64::new(self.earlier.lock().get(&id()).copied().unwrap_or(0)))
    }

    /// Acts on the cell of a key if it is still there.
    pub fn amend(&self, key: Key, act: impl FnOnce(&AtomicU64)) {
        if key == Key::ALL {
            return act(&self.all);
        }
        if let Some(cell) = self.shard(key).find(key).value() {
            act(cell);
        }
    }

    fn shard(&self, key: Key) -> &Slots {
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
            shard.each(|cell| retune(&cell.value));
        }
        self.earlier.lock().values_mut().for_each(|tat| *tat = before.retuned(*tat, rate, now));
    }

    /// Forgets full buckets, which changes nothing; if there are none, the fullest of a few. That one gains at most its
    /// refill, where refusing new keys would let one flood of keys shut out everybody else.
    fn make_room(&self, shard: &Slots, writer: &mut Writer, meter: Meter) {
        let sample = shard.sample(writer, SAMPLE);
        let fullest = sample.iter().min_by_key(|cell| meter.debt(cell.value.load(Relaxed)));
        let Some(fullest) = fullest else { return };
        // Looking at all of them is worth it only where a sample says that some are full.
        let gone = if meter.is_full(fullest.value.load(Relaxed)) {
            shard.retain(writer, |value| !meter.is_full(value))
        } else {
            Slots::forget(writer, fullest);
            self.tracks.evicted.inc();
            1
        };
        self.tracks.keys.add(-i64::try_from(gone).unwrap_or(0));
    }

    /// Keys remembered.
    pub fn len(&self) -> usize {
        self.shards.iter().map(Slots::len).sum()
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
            shard.each(|cell| values.push((cell.id, cell.value.load(Relaxed))));
        }
        Table::of(form, values, now())
    }
}
