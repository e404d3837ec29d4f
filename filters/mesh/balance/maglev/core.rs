//! The Maglev table (Eisenbud et al., NSDI 2016, section 3.4).

use std::sync::atomic::Ordering::Relaxed;

use crate::contract::mesh::{Endpoint, Pick};
use crate::mesh::balance::hash::Bound;
use crate::mesh::balance::pool::{PROBES, Policy, Tier};
use crate::mesh::chance::{Dice, mix};

/// Slots of the table: a prime, so that every skip visits every slot.
const TABLE: usize = 65_537;
const EMPTY: u32 = u32::MAX;

/// The policy.
pub struct Maglev {
    /// See `loadFactor`.
    pub load_factor: f64,
}

impl Policy for Maglev {
    type Table = Box<[u32]>;

    fn prepare(&self, tier: &Tier) -> Self::Table {
        // By id, not in the order discovery told them: a shuffled answer must not move a key.
        let mut order: Vec<(u64, u32, u32)> =
            (0u32..).zip(&tier.endpoints).map(|(i, e)| (e.id, i, e.weight.load(Relaxed))).collect();
        order.sort_unstable();
        populate(&order)
    }

    fn choose(
        &self,
        table: &Self::Table,
        tier: &Tier,
        cx: &Pick<'_>,
        dice: &mut Dice,
        fit: &dyn Fn(&Endpoint) -> bool,
    ) -> Option<usize> {
        // A request without the key goes anywhere, not to whoever owns the hash of nothing.
        let mut hash = cx.hash.unwrap_or_else(|| dice.roll());
        let bound = Bound::of(tier, self.load_factor, cx.now);
        let mut loaded = None;
        for _ in 0..2 * PROBES {
            let i = table[slot(hash)] as usize;
            let e = &tier.endpoints[i];
            if fit(e) {
                if bound.admits(e) {
                    return Some(i);
                }
                loaded = loaded.or(Some(i));
            }
            // Where else the key belongs follows from the key: its second home is as stable as its first.
            hash = mix(hash ^ 0x9E37_79B9_7F4A_7C15);
        }
        loaded
    }
}

#[expect(clippy::cast_possible_truncation, reason = "below the table's length")]
const fn slot(hash: u64) -> usize {
    (hash % TABLE as u64) as usize
}

/// Every endpoint in turn takes the next free slot of its own permutation; lighter ones skip turns.
fn populate(endpoints: &[(u64, u32, u32)]) -> Box<[u32]> {
    struct Claim {
        at: usize,
        skip: usize,
        index: u32,
        share: f64,
        credit: f64,
    }
    let heaviest = endpoints.iter().map(|e| e.2).max().unwrap_or(1);
    let mut claims: Vec<Claim> = endpoints
        .iter()
        .map(|(id, index, weight)| Claim {
            at: slot(mix(*id)),
            skip: slot(mix(id.rotate_left(32) ^ 0xA5A5)) % (TABLE - 1) + 1,
            index: *index,
            share: f64::from(*weight) / f64::from(heaviest),
            credit: 0.0,
        })
        .collect();
    let mut table = vec![EMPTY; TABLE];
    let mut left = TABLE;
    while left > 0 && !claims.is_empty() {
        for c in &mut claims {
            c.credit += c.share;
            if c.credit < 1.0 || left == 0 {
                continue;
            }
            c.credit -= 1.0;
            while table[c.at] != EMPTY {
                c.at = (c.at + c.skip) % TABLE;
            }
            table[c.at] = c.index;
            left -= 1;
        }
    }
    table.into()
}
