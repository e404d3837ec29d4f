//! Incoming calls that are under way, by trace id: what an application calls through a mesh listener on behalf of one of
//! them is tied to it by the trace context that applications pass on anyway, and inherits its deadline.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use onehop_filters::contract::Moment;
use parking_lot::Mutex;
use smallvec::SmallVec;

/// A power of two.
const SHARDS: usize = 64;

/// A call's number, and when it must be over.
type Call = (u64, Moment);
/// Nearly always one call. A client may have several under way in one trace.
type Calls = SmallVec<[Call; 1]>;

/// See the module. There is one only where some route has `carry.deadline`.
pub struct Incoming {
    /// Each is contended by requests whose trace ids fall on it, for a look at a map.
    shards: [Mutex<HashMap<u128, Calls, foldhash::fast::RandomState>>; SHARDS],
    /// Trace ids are the callers' to choose: they must not be able to choose the shard, too.
    seed: foldhash::quality::RandomState,
    numbers: AtomicU64,
}

impl Default for Incoming {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            seed: foldhash::quality::RandomState::default(),
            numbers: AtomicU64::new(0),
        }
    }
}

/// A call that is under way, until it is dropped.
pub struct UnderWay {
    incoming: Arc<Incoming>,
    trace_id: u128,
    number: u64,
}

impl Incoming {
    /// A call begins.
    #[must_use]
    pub fn enter(self: &Arc<Self>, trace_id: u128, deadline: Moment) -> UnderWay {
        let number = self.numbers.fetch_add(1, Relaxed);
        self.shard(trace_id).lock().entry(trace_id).or_default().push((number, deadline));
        UnderWay { incoming: self.clone(), trace_id, number }
    }

    /// When whatever is done for the calls of a trace must be over; `None` if none is under way. Of several the latest
    /// counts: nobody is cut short because of a call that somebody else made in the same trace.
    #[must_use]
    pub fn deadline(&self, trace_id: u128) -> Option<Moment> {
        self.shard(trace_id).lock().get(&trace_id)?.iter().map(|(_, deadline)| *deadline).max()
    }

    fn shard(&self, trace_id: u128) -> &Mutex<HashMap<u128, Calls, foldhash::fast::RandomState>> {
        #[expect(clippy::cast_possible_truncation, reason = "any bits will do")]
        let hash = self.seed.hash_one(trace_id) as usize;
        &self.shards[hash % SHARDS]
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut shard = self.incoming.shard(self.trace_id).lock();
        if let Some(calls) = shard.get_mut(&self.trace_id) {
            calls.retain(|(number, _)| *number != self.number);
            if calls.is_empty() {
                shard.remove(&self.trace_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_while_it_is_under_way() {
        let incoming = Arc::new(Incoming::default());
        assert_eq!(incoming.deadline(7), None);
        let first = incoming.enter(7, Moment(100));
        let second = incoming.enter(7, Moment(50));
        let other = incoming.enter(8, Moment(900));
        assert_eq!((incoming.deadline(7), incoming.deadline(8)), (Some(Moment(100)), Some(Moment(900))));
        drop(first);
        assert_eq!(incoming.deadline(7), Some(Moment(50)));
        drop((second, other));
        assert_eq!((incoming.deadline(7), incoming.deadline(8)), (None, None));
        assert!(incoming.shards.iter().all(|shard| shard.lock().is_empty()), "nothing is left behind");
    }
}
