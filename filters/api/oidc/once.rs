//! Words that count once: states of logins, ids of logout tokens. Pure and bounded.

use std::collections::{HashSet, VecDeque};

/// Most words remembered; the oldest are forgotten first.
const MOST: usize = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub struct Once {
    seen: HashSet<String>,
    order: VecDeque<(u64, String)>,
}

impl Once {
    /// Whether the word is new at `now`; it is remembered for `seconds`.
    pub fn is_new(&mut self, word: &str, now: u64, seconds: u64) -> bool {
        while let Some((until, _)) = self.order.front()
            && (*until <= now || self.order.len() >= MOST)
        {
            let (_, old) = self.order.pop_front().expect("there is a first one");
            self.seen.remove(&old);
        }
        if !self.seen.insert(word.to_owned()) {
            return false;
        }
        self.order.push_back((now + seconds, word.to_owned()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_counts_once_while_it_is_remembered() {
        let mut once = Once::default();
        assert!(once.is_new("a", 100, 10) && !once.is_new("a", 109, 10) && once.is_new("a", 110, 10));
    }

    #[test]
    fn memory_is_bounded() {
        let mut once = Once::default();
        for n in 0..MOST * 2 {
            assert!(once.is_new(&n.to_string(), 100, 10));
        }
        assert!(once.seen.len() <= MOST && once.order.len() == once.seen.len());
        assert!(!once.is_new(&(MOST * 2 - 1).to_string(), 100, 10));
    }
}
