//! Places in flight, by caller. The map holds callers that have something in flight and no others.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use foldhash::fast::FixedState;
use parking_lot::Mutex;

use crate::api::caller::Key;

const SHARDS: usize = 64;

/// See the module. Lives on across reloads.
pub struct Slots {
    /// Workers contend for a shard only when callers of one shard come or go at the same moment, for one look-up.
    shards: [Mutex<HashMap<Key, u32, FixedState>>; SHARDS],
    /// Of [`Key::ALL`]: without a lock.
    all: AtomicU32,
}

impl Default for Slots {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), all: AtomicU32::new(0) }
    }
}

/// A place in flight, free again when it is dropped.
pub struct Permit {
    slots: Arc<Slots>,
    key: Key,
}

impl Slots {
    /// A place, if fewer than `limit` are taken.
    pub fn enter(slots: &Arc<Self>, key: Key, limit: u32) -> Option<Permit> {
        let entered = if key == Key::ALL {
            slots.all.fetch_update(Relaxed, Relaxed, |n| (n < limit).then_some(n + 1)).is_ok()
        } else {
            let mut shard = slots.shard(key).lock();
            let taken = shard.entry(key).or_default();
            let free = *taken < limit;
            *taken += u32::from(free);
            free
        };
        entered.then(|| Permit { slots: slots.clone(), key })
    }

    /// Places taken.
    pub fn taken(&self, key: Key) -> u32 {
        if key == Key::ALL {
            return self.all.load(Relaxed);
        }
        self.shard(key).lock().get(&key).copied().unwrap_or(0)
    }

    fn shard(&self, key: Key) -> &Mutex<HashMap<Key, u32, FixedState>> {
        &self.shards[key.spread() % SHARDS]
    }

    fn leave(&self, key: Key) {
        if key == Key::ALL {
            self.all.fetch_sub(1, Relaxed);
            return;
        }
        if let Entry::Occupied(mut taken) = self.shard(key).lock().entry(key) {
            *taken.get_mut() -= 1;
            if *taken.get() == 0 {
                taken.remove();
            }
        }
    }

    /// Callers with anything in flight.
    #[cfg(test)]
    pub fn callers(&self) -> usize {
        self.shards.iter().map(|s| s.lock().len()).sum()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.slots.leave(self.key);
    }
}
