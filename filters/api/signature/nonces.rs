//! Nonces that were used, for as long as a signature with them could be sent again. Pure: given the time.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;

use crate::contract::Moment;

/// Parts that are locked apart.
const SHARDS: usize = 16;

/// A bounded memory of nonces. Only what a good signature carried gets in, so strangers cannot fill it.
pub struct Nonces {
    /// A part is locked for one look-up; workers contend only for the same part.
    shards: [Mutex<Shard>; SHARDS],
    window: Duration,
    /// Per part and generation.
    most: usize,
}

/// Two generations, each as long as the window: what was put in is there for one window at least and four at most.
struct Shard {
    since: Moment,
    current: HashSet<u128, foldhash::fast::RandomState>,
    previous: HashSet<u128, foldhash::fast::RandomState>,
}

/// What became of a nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    First,
    Again,
    /// No room to remember it.
    Full,
}

impl Nonces {
    pub fn new(window: Duration, most: u32) -> Self {
        let shard = || Shard { since: Moment::ZERO, current: HashSet::default(), previous: HashSet::default() };
        Self {
            shards: std::array::from_fn(|_| Mutex::new(shard())),
            window,
            most: (most as usize).div_ceil(SHARDS).max(1),
        }
    }

    /// Uses a nonce, by the hash of it and of its key.
    pub fn take(&self, nonce: u128, now: Moment) -> Use {
        let mut shard = self.shards[(nonce % SHARDS as u128) as usize].lock();
        let age = now.since(shard.since);
        if age >= self.window {
            let gone = std::mem::take(&mut shard.current);
            shard.previous = if age >= self.window * 2 { HashSet::default() } else { gone };
            shard.since = now;
        }
        if shard.current.contains(&nonce) || shard.previous.contains(&nonce) {
            return Use::Again;
        }
        if shard.current.len() >= self.most {
            return Use::Full;
        }
        shard.current.insert(nonce);
        Use::First
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let nonces = Nonces::new(Duration::from_secs(10), 32);
        let at = |s| Moment::ZERO + Duration::from_secs(s);
        // The same part.
        let nonce = |n: u128| n * SHARDS as u128;
        assert_eq!(nonces.take(nonce(1), at(100)), Use::First);
        assert_eq!(nonces.take(nonce(2), at(100)), Use::First);
        assert_eq!(nonces.take(nonce(3), at(101)), Use::Full, "never forgotten to make room");
        assert_eq!(nonces.take(nonce(1), at(102)), Use::Again);
        assert_eq!(nonces.take(nonce(3), at(110)), Use::First);
        assert_eq!(nonces.take(nonce(1), at(131)), Use::First, "long forgotten");
    }

    /// Takes nonces at these pauses and holds each verdict against what was seen.
    fn walk(steps: &[(u128, u64)]) -> Result<(), TestCaseError> {
        let window = Duration::from_secs(10);
        let nonces = Nonces::new(window, 100_000);
        let mut last: HashMap<u128, Moment> = HashMap::new();
        let mut now = Moment::ZERO;
        for &(nonce, pause) in steps {
            now = now + Duration::from_millis(pause);
            match nonces.take(nonce, now) {
                Use::First => {
                    let again = last.insert(nonce, now).is_some_and(|at| now.since(at) < window);
                    prop_assert!(!again, "{nonce} at {now:?}");
                }
                Use::Again => {
                    let at = last.get(&nonce).copied();
                    prop_assert!(at.is_some_and(|at| now.since(at) < window * 4));
                }
                Use::Full => prop_assert!(false),
            }
        }
        Ok(())
    }

    /// A case that once failed.
    #[test]
    fn a_nonce_comes_back_late_among_others() {
        let first = [(0, 2177), (0, 1149), (0, 2671), (0, 476), (24, 3527), (0, 600), (0, 1264)];
        let then = [(0, 1883), (0, 1574), (0, 3627), (24, 2570), (0, 3336), (0, 3213), (24, 1933)];
        walk(&[first, then].concat()).expect("it holds");
    }

    proptest! {
        /// Within a window no nonce is good twice.
        #[test]
        fn none_is_good_twice_within_the_window(steps in proptest::collection::vec((0u128..40, 0u64..4000), 0..200)) {
            walk(&steps)?;
        }
    }
}
