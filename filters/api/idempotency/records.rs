//! What became of requests with a key.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::api::answers::{bounded, head_weight};
use crate::contract::{Moment, now};

/// SHA-256 of caller and key, or of a request.
pub type Digest = [u8; 32];

/// A request that ran.
pub struct Record {
    /// Of the request itself.
    pub print: Digest,
    /// What came of it.
    pub outcome: Outcome,
    until: Moment,
}

/// What came of a request.
pub enum Outcome {
    /// Its answer.
    Answered { status: StatusCode, headers: HeaderMap, body: Bytes },
    /// Nobody knows whether it ran.
    Unknown,
    /// It ran, but its answer could not be kept.
    NotKept,
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<Digest, Arc<Record>> for ByWeight {
    fn weight(&self, _: &Digest, record: &Arc<Record>) -> u64 {
        let answer = match &record.outcome {
            Outcome::Answered { headers, body, .. } => body.len() + head_weight(headers),
            Outcome::Unknown | Outcome::NotKept => 0,
        };
        (256 + answer) as u64
    }
}

/// The records of one route.
pub struct Records {
    done: Cache<Digest, Arc<Record>, ByWeight>,
    /// Held for a look-up; only requests with a key come here.
    running: Mutex<HashMap<Digest, Digest>>,
}

/// What is known of a key.
pub enum Known {
    /// Nothing: the caller runs it.
    New(Box<Claim>),
    /// It runs right now.
    Running,
    /// It ran.
    Done(Arc<Record>),
    /// It belongs to another request.
    Mismatch,
}

impl Records {
    /// Room for so many bytes of answers of at most `largest`.
    pub fn new(memory: u64, largest: u64) -> Self {
        let done = bounded(memory, largest, ByWeight);
        Self { done, running: Mutex::default() }
    }

    /// Looks a key up, and claims it if it is new. `unresolved`: what is remembered if nobody says what came of it.
    pub fn claim(self: &Arc<Self>, key: Digest, print: Digest, ttl: Duration, unresolved: Option<Outcome>) -> Known {
        // Under the lock throughout: of two requests at the same time, one is new.
        let mut running = self.running.lock();
        if let Some(record) = self.done.get(&key) {
            if now() < record.until {
                return if record.print == print { Known::Done(record) } else { Known::Mismatch };
            }
            self.done.remove(&key);
        }
        match running.entry(key) {
            Place::Occupied(other) if *other.get() != print => Known::Mismatch,
            Place::Occupied(_) => Known::Running,
            Place::Vacant(place) => {
                place.insert(print);
                Known::New(Box::new(Claim { records: self.clone(), key, print, ttl, unresolved }))
            }
        }
    }
}

/// The right to run the request of a key. Dropped unresolved, the request's outcome is what was last said of it.
pub struct Claim {
    records: Arc<Records>,
    key: Digest,
    print: Digest,
    ttl: Duration,
    unresolved: Option<Outcome>,
}

impl Claim {
    /// It ran, and this is its answer.
    pub fn answered(mut self, status: StatusCode, headers: HeaderMap, body: Bytes) {
        self.unresolved = Some(Outcome::Answered { status, headers, body });
    }

    /// It provably did not run, or may run again: the key is as new.
    pub fn release(mut self) {
        self.unresolved = None;
    }

    /// It ran; unless more is said, its answer could not be kept.
    pub fn ran(&mut self) {
        self.unresolved = Some(Outcome::NotKept);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut running = self.records.running.lock();
        if let Some(outcome) = self.unresolved.take() {
            let record = Record { print: self.print, outcome, until: now() + self.ttl };
            self.records.done.insert(self.key, Arc::new(record));
        }
        running.remove(&self.key);
    }
}
