//! A schedule made once per set, walked by one cursor per worker: no lock, no shared cache line.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::contract::mesh::{Endpoint, Pick};
use crate::contract::worker;
use crate::mesh::balance::pool::{PROBES, Policy, Tier};
use crate::mesh::chance::Dice;

/// Longest schedule; larger weights are scaled down to it.
const LONGEST: u64 = 1 << 16;

/// The policy.
pub struct RoundRobin;

/// The order of one tier.
pub struct Schedule {
    turns: Box<[u32]>,
    cursors: Box<[Cursor]>,
}

#[repr(align(128))]
struct Cursor(AtomicUsize);

impl Policy for RoundRobin {
    type Table = Schedule;

    fn prepare(&self, tier: &Tier) -> Schedule {
        let weights: Vec<u32> = tier.endpoints.iter().map(|e| e.weight.load(Relaxed)).collect();
        let turns = schedule(&weights);
        // Every worker of every instance starts elsewhere, else all of them send their first request to the same endpoint.
        let mut dice = Dice::fresh();
        let cursors = (0..worker::shards()).map(|_| Cursor(AtomicUsize::new(dice.below(turns.len().max(1))))).collect();
        Schedule { turns, cursors }
    }

    fn choose(
        &self,
        table: &Schedule,
        tier: &Tier,
        cx: &Pick<'_>,
        dice: &mut Dice,
        fit: &dyn Fn(&Endpoint) -> bool,
    ) -> Option<usize> {
        let at = table.cursors[worker::shard()].0.fetch_add(1, Relaxed) % table.turns.len();
        let mut turn = table.turns[at] as usize;
        for _ in 0..PROBES {
            let e = &tier.endpoints[turn];
            if fit(e) && tier.ramped(e, cx.now, dice) {
                return Some(turn);
            }
            // Not the next one in turn: it would get twice its share for as long as this one is down.
            turn = table.turns[dice.below(table.turns.len())] as usize;
        }
        None
    }
}

/// The k-th of `w` turns falls at (k + 1/2)/w of the round: as evenly spread as can be, heavy ones never in a burst.
fn schedule(weights: &[u32]) -> Box<[u32]> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let total: u64 = weights.iter().map(|w| u64::from(w / divisor)).sum();
    let longest = LONGEST.max(weights.len() as u64);
    let mut turns: Vec<(u64, u32)> = Vec::new();
    for (i, w) in (0u32..).zip(weights) {
        let mut share = u64::from(w / divisor);
        if total > longest {
            share = (share * longest / total).max(1);
        }
        turns.extend((0..share).map(|k| (((2 * k + 1) << 32) / (2 * share), i)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, i)| i).collect()
}

const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heavy_turns_are_spread() {
        let turns = schedule(&[5, 1, 1]);
        assert_eq!(turns.len(), 7);
        assert_eq!(turns.iter().filter(|t| **t == 0).count(), 5);
        let burst = turns.iter().chain(&turns).fold((0, 0), |(run, max), t| {
            let run = if *t == 0 { run + 1 } else { 0 };
            (run, max.max(run))
        });
        assert!(burst.1 <= 5 && turns.windows(4).all(|w| w.iter().any(|t| *t != 0)), "{turns:?}");
    }
    #[test]
    fn equal_weights_make_a_plain_round() {
        assert_eq!(&*schedule(&[100, 100, 100]), &[0, 1, 2]);
    }
    #[test]
    fn huge_weights_are_scaled() {
        let turns = schedule(&[u32::MAX, 1]);
        assert!(turns.len() as u64 <= LONGEST + 1);
        assert_eq!(turns.iter().filter(|t| **t == 1).count(), 1);
    }
}
