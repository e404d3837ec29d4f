//! Outstanding tries over weight, over two choices (Mitzenmacher 2001).

use std::sync::atomic::Ordering::Relaxed;

use crate::contract::mesh::{Endpoint, Pick};
use crate::mesh::balance::pool::{Policy, Tier, two_choices};
use crate::mesh::chance::Dice;

/// The policy.
pub struct LeastRequest;

impl Policy for LeastRequest {
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
        two_choices(tier, cx.now, dice, fit, less_busy)
    }
}

/// Outstanding per weight, compared crosswise: no division, no rounding.
fn less_busy(a: &Endpoint, b: &Endpoint) -> bool {
    let load = |e: &Endpoint| (u64::from(e.state.inflight.load(Relaxed)), u64::from(e.weight.load(Relaxed)));
    let ((busy_a, weight_a), (busy_b, weight_b)) = (load(a), load(b));
    busy_a * weight_b < busy_b * weight_a
}
