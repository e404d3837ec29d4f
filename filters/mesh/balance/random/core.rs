//! Draws until something fits.

use crate::contract::mesh::{Endpoint, Pick};
use crate::mesh::balance::pool::{PROBES, Policy, Tier};
use crate::mesh::chance::Dice;

/// The policy.
pub struct Random;

impl Policy for Random {
    type Table = ();
    fn prepare(&self, _: &Tier) {}
    fn choose(
        &self,
        (): &(),
        tier: &Tier,
        cx: &Pick<'_>,
        dice: &mut Dice,
        fit: &dyn Fn(&Endpoint) -> bool,
    ) -> Option<usize> {
        (0..PROBES).find_map(|_| {
            let i = tier.draw(dice);
            let e = &tier.endpoints[i];
            (fit(e) && tier.ramped(e, cx.now, dice)).then_some(i)
        })
    }
}
