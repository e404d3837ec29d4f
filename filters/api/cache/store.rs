//! Where answers are kept: bounded by their size, per route, with one fetch at a time for what is missing.

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::watch;

use super::freshness::Freshness;
use crate::api::answers::{bounded, head_weight};
use crate::contract::{Moment, now};

/// Answers of one resource that are told apart by `Vary`; the oldest leaves first.
const MAX_VARIANTS: usize = 16;
/// What an answer costs beside its body, head and key.
const OVERHEAD: u64 = 512;
/// For how long what could not be kept is not waited for.
const PASS: Duration = Duration::from_secs(10);
const MAX_PASSES: usize = 10_000;

/// A kept answer.
pub struct Entry {
    /// Its status.
    pub status: StatusCode,
    /// Its fields, as the service sent them.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// For how long, and for whom, it stands.
    pub freshness: Freshness,
}

impl Entry {
    fn weight(&self) -> u64 {
        OVERHEAD + (self.body.len() + 2 * head_weight(&self.headers)) as u64
    }
}

/// All kept answers of one key.
struct Resource {
    variants: Vec<Arc<Entry>>,
    weight: u64,
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<Box<str>, Arc<Resource>> for ByWeight {
    fn weight(&self, key: &Box<str>, resource: &Arc<Resource>) -> u64 {
        resource.weight + key.len() as u64
    }
}

/// The answers of one route.
pub struct Store {
    kept: Cache<Box<str>, Arc<Resource>, ByWeight>,
    /// Keys that somebody is fetching right now. Held for a look-up, on misses only.
    flights: Mutex<HashMap<Box<str>, watch::Receiver<()>>>,
    /// Until when a key is not worth waiting for.
    passes: Cache<Box<str>, Moment>,
}

impl Store {
    /// A store of so many bytes for entries of at most `largest`.
    pub fn new(memory: u64, largest: u64) -> Self {
        Self { kept: bounded(memory, largest, ByWeight), flights: Mutex::default(), passes: Cache::new(MAX_PASSES) }
    }

    /// Kept answers of a key.
    pub fn variants(&self, key: &str) -> Vec<Arc<Entry>> {
        self.kept.get(key).map(|resource| resource.variants.clone()).unwrap_or_default()
    }

    /// Keeps an answer, in place of `instead` or of whatever answers the same request.
    pub fn put(&self, key: &str, entry: Arc<Entry>, instead: Option<&Arc<Entry>>) {
        let mut variants = self.variants(key);
        variants.retain(|old| {
            instead.is_none_or(|gone| !Arc::ptr_eq(old, gone)) && !entry.freshness.covers(&old.freshness)
        });
        if variants.len() == MAX_VARIANTS {
            variants.remove(0);
        }
        variants.push(entry);
        let weight = variants.iter().map(|entry| entry.weight()).sum();
        self.kept.insert(key.into(), Arc::new(Resource { variants, weight }));
    }

    /// Forgets keys and says how many.
    pub fn purge(&self, gone: impl Fn(&str) -> bool) -> u64 {
        let count = Cell::new(0);
        self.kept.retain(|key, resource| {
            let keep = !gone(key);
            if !keep {
                count.set(count.get() + resource.variants.len() as u64);
            }
            keep
        });
        count.get()
    }

    /// Forgets one key.
    pub fn remove(&self, key: &str) {
        self.kept.remove(key);
    }

    /// Bytes kept.
    pub fn weight(&self) -> u64 {
        self.kept.weight()
    }

    /// Fetches a key for all who ask: the first leads, the others wait for it.
    pub fn join(self: &Arc<Self>, key: &str) -> Join {
        match self.flights.lock().entry(key.into()) {
            Place::Occupied(flight) => Join::Wait(flight.get().clone()),
            Place::Vacant(place) => {
                let (landed, wait) = watch::channel(());
                place.insert(wait);
                Join::Lead(Flight { store: Arc::downgrade(self), key: key.into(), _landed: landed })
            }
        }
    }

    /// Remembers that the answers of a key are not kept: who asks next need not wait for another.
    pub fn pass(&self, key: &str) {
        self.passes.insert(key.into(), now() + PASS);
    }

    /// Whether answers of a key were lately not kept.
    pub fn passes(&self, key: &str) -> bool {
        self.passes.get(key).is_some_and(|until| now() < until)
    }
}

/// Who fetches.
pub enum Join {
    /// The caller.
    Lead(Flight),
    /// Somebody else; changes or closes once it is over.
    Wait(watch::Receiver<()>),
}

/// The right to fetch a key; dropped when the answer is kept, or will not be.
pub struct Flight {
    store: Weak<Store>,
    key: Box<str>,
    _landed: watch::Sender<()>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade() {
            store.flights.lock().remove(&self.key);
        }
    }
}
