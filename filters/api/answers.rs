//! What filters that keep answers in memory share: room bounded in bytes, and what an answer's head takes of it.

use std::hash::Hash;

use http::HeaderMap;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

/// Room for so many bytes, as `weighter` counts them, of answers of at most `largest`.
pub fn bounded<K, V, W>(memory: u64, largest: u64, weighter: W) -> Cache<K, V, W>
where
    K: Eq + Hash + Clone,
    V: Clone,
    W: Weighter<K, V> + Clone,
{
    // A shard must have room for several of the largest answers, or they would never be kept.
    let shards = usize::try_from(memory / (largest.max(4096) * 4)).unwrap_or(1).clamp(1, 16);
    let options = OptionsBuilder::new()
        .shards(shards)
        .weight_capacity(memory)
        .estimated_items_capacity(usize::try_from(memory >> 14).unwrap_or(1024).clamp(16, 4096))
        .build()
        .expect("both capacities are given");
    Cache::with_options(options, weighter, Default::default(), DefaultLifecycle::default())
}

/// Bytes that the fields of an answer take.
pub fn head_weight(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}
