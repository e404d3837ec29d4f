//! Cells by caller, bounded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::core::{MOVED, Meter, Rate};
use super::saved::{Form, Persist, Table};
use super::slots::{Bounds, Slots};
use crate::api::caller::{Id, Key};
use crate::contract::metrics::{Counter, Gauge};
use crate::contract::{Moment, now};

const SHARDS: usize = 64;
/// Of a cell that stands in no table.
const STAYS: &str = "only cells of tables move";

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
        // A file may say anything.
        earlier.values_mut().for_each(|value| *value = (*value).min(MOVED - 1));
        Self {
            shards: (0..shards).map(|_| Slots::default()).collect(),
            all: AtomicU64::new(earlier.remove(&Id::default()).unwrap_or(0)),
            per_shard: max_keys.div_ceil(shards).max(1),
            rate: Mutex::new(rate),
            earlier: Mutex::new(earlier),
            tracks,
        }
    }

    /// Acts on the cell of a key, which is made at first use. `id`: the key's caller, asked for only then. The act gives
    /// `None` for a cell that is [`MOVED`], and is then asked again.
    pub fn with<T>(&self, key: Key, meter: Meter, id: impl FnOnce() -> Id, act: impl Fn(&AtomicU64) -> Option<T>) -> T {
        if key == Key::ALL {
            return act(&self.all).expect(STAYS);
        }
        let shard = self.shard(key);
        if let Some(given) = shard.find(key, &act) {
            return given;
        }
        // Not under the lock: it may take an expression and a digest.
        let id = id();
        let bounds = Bounds { most: self.per_shard, is_full: |v: u64| meter.is_full(v), debt: |v: u64| meter.debt(v) };
        let earlier = || self.earlier.lock().remove(&id).unwrap_or(0);
        let entered = shard.enter((key, id), bounds, earlier, act);
        let gone = i64::try_from(entered.forgotten).unwrap_or(0);
        if entered.new && gone != 1 {
            self.tracks.keys.add(1 - gone);
        }
        if entered.evicted {
            self.tracks.evicted.inc();
        }
        entered.given
    }

    /// Acts on the cell of a key, or on what it would be.
    pub fn look<T>(&self, key: Key, id: impl FnOnce() -> Id, act: impl Fn(&AtomicU64) -> Option<T>) -> T {
        self.amend(key, &act).unwrap_or_else(|| {
            let earlier = self.earlier.lock().get(&id()).copied().unwrap_or(0);
            act(&AtomicU64::new(earlier)).expect(STAYS)
        })
    }

    /// Acts on the cell of a key if it is still there.
    pub fn amend<T>(&self, key: Key, act: impl Fn(&AtomicU64) -> Option<T>) -> Option<T> {
        if key == Key::ALL {
            return act(&self.all);
        }
        let shard = self.shard(key);
        shard.find(key, &act).or_else(|| shard.find_settled(key, act))
    }

    fn shard(&self, key: Key) -> &Slots {
        &self.shards[key.spread() % self.shards.len()]
    }

    /// Moves every cell to a new rate. Each keeps the number of units it has used.
    pub fn retune(&self, rate: Rate, now: Moment) {
        let mut current = self.rate.lock();
        let Some(before) = current.replace(rate).filter(|before| *before != rate) else { return };
        let retune = |cell: &AtomicU64| {
            let retuned = |tat| (tat != MOVED).then(|| before.retuned(tat, rate, now));
            let _ = cell.fetch_update(Relaxed, Relaxed, retuned);
        };
        retune(&self.all);
        for shard in &self.shards {
            shard.each(|_, cell| retune(cell));
        }
        self.earlier.lock().values_mut().for_each(|tat| *tat = before.retuned(*tat, rate, now));
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
            shard.each(|id, cell| values.push((*id, cell.load(Relaxed))));
        }
        Table::of(form, values, now())
    }
}
