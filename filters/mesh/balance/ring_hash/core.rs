//! Ketama-style ring: every endpoint owns the arcs that end at its points.

use std::sync::atomic::Ordering::Relaxed;

use crate::contract::mesh::{Endpoint, Pick};
use crate::mesh::balance::hash::Bound;
use crate::mesh::balance::pool::{PROBES, Policy, Tier};
use crate::mesh::chance::{Dice, mix};

/// Points of the heaviest endpoint: shares come out within some 6 % of ideal.
const POINTS: usize = 256;
/// Least points of the heaviest endpoint in huge sets.
const FEWEST: usize = 16;
/// Points of a ring, as far as `FEWEST` allows: 16 MiB.
const RING: usize = 1 << 20;
/// Steps along the ring before the scan takes over. A point belongs to a random endpoint, so few steps suffice.
const STEPS: usize = 4 * PROBES;

/// The policy.
pub struct Ring {
    /// See `loadFactor`.
    pub load_factor: f64,
}

impl Policy for Ring {
    type Table = Box<[(u64, u32)]>;

    fn prepare(&self, tier: &Tier) -> Self::Table {
        // The number of points follows from an endpoint's own weight and the heaviest one, not from the set's size: who
        // stays keeps its points.
        let heaviest = tier.endpoints.iter().map(|e| e.weight.load(Relaxed)).max().unwrap_or(1).max(1);
        let most = (RING / tier.endpoints.len()).clamp(FEWEST, POINTS) as u64;
        let mut ring: Vec<(u64, u32)> = Vec::new();
        for (i, e) in (0u32..).zip(&tier.endpoints) {
            let points = (most * u64::from(e.weight.load(Relaxed)) / u64::from(heaviest)).max(1);
            ring.extend((0..points).map(|k| (mix(e.id ^ mix(k + 1)), i)));
        }
        ring.sort_unstable();
        ring.into()
    }

    fn choose(
        &self,
        ring: &Self::Table,
        tier: &Tier,
        cx: &Pick<'_>,
        dice: &mut Dice,
        fit: &dyn Fn(&Endpoint) -> bool,
    ) -> Option<usize> {
        // A request without the key goes anywhere, not to whoever owns the hash of nothing.
        let hash = cx.hash.unwrap_or_else(|| dice.roll());
        let bound = Bound::of(tier, self.load_factor, cx.now);
        let start = ring.partition_point(|(point, _)| *point < hash);
        let mut loaded = None;
        for step in 0..STEPS.min(ring.len()) {
            let i = ring[(start + step) % ring.len()].1 as usize;
            let e = &tier.endpoints[i];
            if fit(e) {
                if bound.admits(e) {
                    return Some(i);
                }
                loaded = loaded.or(Some(i));
            }
        }
        // Everybody near is over the bound: the owner after all.
        loaded
    }
}
