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

/// The points in order, and where each stretch of the ring begins among them: points are spread evenly, so a look-up is two
/// steps, whatever their number.
pub struct Table {
    points: Box<[(u64, u32)]>,
    /// By the upper bits of a point; one more than there are stretches.
    starts: Box<[u32]>,
    shift: u32,
}

impl Table {
    /// Points per stretch.
    const STRETCH: usize = 4;

    fn new(loose: &[(u64, u32)]) -> Self {
        let bits = (loose.len() / Self::STRETCH).next_power_of_two().ilog2().max(1);
        let shift = u64::BITS - bits;
        let stretch = |point: u64| usize::try_from(point >> shift).expect("at most 2^24 stretches");
        let mut starts = vec![0u32; (1 << bits) + 1];
        loose.iter().for_each(|(point, _)| starts[stretch(*point) + 1] += 1);
        for i in 1..starts.len() {
            starts[i] += starts[i - 1];
        }
        let mut next = starts.clone();
        let mut points = vec![(0, 0); loose.len()];
        for (point, owner) in loose {
            let at = &mut next[stretch(*point)];
            points[*at as usize] = (*point, *owner);
            *at += 1;
        }
        starts.windows(2).for_each(|ends| points[ends[0] as usize..ends[1] as usize].sort_unstable());
        Self { points: points.into(), starts: starts.into(), shift }
    }

    /// The first point not before `hash`; the number of points if there is none.
    fn first(&self, hash: u64) -> usize {
        let stretch = usize::try_from(hash >> self.shift).expect("at most 2^24 stretches");
        let (from, to) = (self.starts[stretch] as usize, self.starts[stretch + 1] as usize);
        from + self.points[from..to].partition_point(|(point, _)| *point < hash)
    }
}

impl Policy for Ring {
    type Table = Table;

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
        Table::new(&ring)
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
        let start = ring.first(hash);
        let points = &ring.points;
        let mut loaded = None;
        for step in 0..STEPS.min(points.len()) {
            let i = points[(start + step) % points.len()].1 as usize;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_up_finds_what_a_search_of_all_points_finds() {
        for n in [1usize, 2, 7, 100, 5000] {
            let loose: Vec<(u64, u32)> = (0u32..).take(n).map(|i| (mix(u64::from(i)), i)).collect();
            let table = Table::new(&loose);
            let mut sorted = loose;
            sorted.sort_unstable();
            assert_eq!(*table.points, *sorted);
            let near = sorted.iter().flat_map(|(p, _)| [p.wrapping_sub(1), *p, p.wrapping_add(1)]);
            for hash in near.chain([0, u64::MAX]) {
                assert_eq!(table.first(hash), sorted.partition_point(|(point, _)| *point < hash), "{hash}");
            }
        }
    }
}
