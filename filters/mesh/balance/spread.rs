//! How requests are divided over priorities and zones: pure arithmetic over capacities.
//!
//! Spill is by percentage, never all or nothing: a part whose healthy share can still carry its load (given some room to
//! spare) keeps it, and only what it cannot carry goes on.

/// What a part of a set can carry, in weight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Capacity {
    /// All that discovery offers.
    pub offered: f64,
    /// What is available of it.
    pub available: f64,
}

impl Capacity {
    /// The share of its load that this part can carry, if it has `room` times the endpoints that the load needs.
    fn health(self, room: f64) -> f64 {
        if self.offered > 0.0 { (room * self.available / self.offered).min(1.0) } else { 0.0 }
    }
}

/// What each priority gets, most wanted first; all zero if nothing is available. Returns the health of all together, at
/// most 1 (Envoy's normalised total): below that no priority can make up for another.
pub fn over_priorities(tiers: &[Capacity], room: f64, shares: &mut [f64]) -> f64 {
    let total = tiers.iter().map(|tier| tier.health(room)).sum::<f64>().min(1.0);
    shares.fill(0.0);
    if total <= 0.0 {
        return 0.0;
    }
    let mut rest = 1.0f64;
    for (tier, share) in tiers.iter().zip(&mut *shares) {
        *share = rest.min(tier.health(room) / total);
        rest -= *share;
    }
    total
}

/// What each zone gets of what the caller's own zone (`own`) sends.
///
/// Every zone's callers are served at home as far as the zone's share of the available capacity goes; what is left over
/// goes where capacity is left over. `callers` is the share of all callers that run in the own zone; `None`: they are
/// spread evenly over the zones.
pub fn balanced(zones: &[Capacity], own: usize, callers: Option<f64>, shares: &mut [f64]) {
    let all: f64 = zones.iter().map(|zone| zone.available).sum();
    shares.fill(0.0);
    if all <= 0.0 {
        return;
    }
    #[expect(clippy::cast_precision_loss, reason = "zones are few")]
    let count = zones.len() as f64;
    let here = callers.unwrap_or(1.0 / count);
    let elsewhere = if zones.len() > 1 { (1.0 - here) / (count - 1.0) } else { 0.0 };
    let home = zones[own].available / all;
    shares[own] = if home >= here { 1.0 } else { home / here };
    let rest = 1.0 - shares[own];
    if rest <= 0.0 {
        return;
    }
    let spare = |zone: &Capacity| (zone.available / all - elsewhere).max(0.0);
    divide(zones, own, rest, spare, shares);
}

/// What each zone gets if the own one comes first: as much as its health allows, the rest by what is available elsewhere.
pub fn local_first(zones: &[Capacity], own: usize, room: f64, shares: &mut [f64]) {
    shares.fill(0.0);
    let elsewhere = zones.iter().enumerate().any(|(i, zone)| i != own && zone.available > 0.0);
    let home = zones[own].health(room);
    shares[own] = if elsewhere || home <= 0.0 { home } else { 1.0 };
    if elsewhere {
        divide(zones, own, 1.0 - shares[own], |zone| zone.available, shares);
    }
}

/// Divides `rest` over the other zones, in proportion to `part`.
fn divide(zones: &[Capacity], own: usize, rest: f64, part: impl Fn(&Capacity) -> f64, shares: &mut [f64]) {
    let others = || zones.iter().enumerate().filter(|(i, _)| *i != own);
    let sum: f64 = others().map(|(_, zone)| part(zone)).sum();
    for (i, zone) in others() {
        if sum > 0.0 {
            shares[i] = rest * part(zone) / sum;
        }
    }
    if sum <= 0.0 {
        // Nobody else has anything to spare: then it stays.
        shares[own] += rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(available: u32, offered: u32) -> Capacity {
        Capacity { offered: offered.into(), available: available.into() }
    }

    fn priorities(tiers: &[(u32, u32)]) -> Vec<u32> {
        let tiers: Vec<Capacity> = tiers.iter().map(|(a, o)| part(*a, *o)).collect();
        let mut shares = vec![0.0; tiers.len()];
        over_priorities(&tiers, 1.4, &mut shares);
        percent(&shares)
    }

    fn percent(shares: &[f64]) -> Vec<u32> {
        shares.iter().map(|s| (s * 100.0).round() as u32).collect()
    }

    /// The table in the documentation of Envoy's priority levels, which rounds the last figure down.
    #[test]
    fn priorities_spill_as_envoy_says() {
        for (first, second, third, due) in [
            (100, 100, 100, [100, 0, 0]),
            (72, 72, 100, [100, 0, 0]),
            (71, 71, 100, [99, 1, 0]),
            (50, 60, 100, [70, 30, 0]),
            (25, 100, 100, [35, 65, 0]),
            (25, 25, 100, [35, 35, 30]),
            (25, 25, 20, [36, 36, 29]),
            (0, 0, 0, [0, 0, 0]),
        ] {
            assert_eq!(priorities(&[(first, 100), (second, 100), (third, 100)]), due, "{first} {second} {third}");
        }
    }

    #[test]
    fn a_zone_keeps_what_its_share_can_bear() {
        let shares = |zones: &[u32], callers| {
            let zones: Vec<Capacity> = zones.iter().map(|n| part(*n, *n)).collect();
            let mut shares = vec![0.0; zones.len()];
            balanced(&zones, 0, callers, &mut shares);
            percent(&shares)
        };
        assert_eq!(shares(&[4, 4, 4], None), [100, 0, 0]);
        assert_eq!(shares(&[8, 2, 2], None), [100, 0, 0], "more than its callers need");
        // A third of the callers, a sixth of the endpoints: half stays, half goes where there is more than is needed.
        assert_eq!(shares(&[2, 4, 6], None), [50, 0, 50]);
        assert_eq!(shares(&[1, 5, 4], None), [30, 50, 20]);
        assert_eq!(shares(&[0, 5, 5], None), [0, 50, 50]);
        assert_eq!(shares(&[5, 5], Some(0.5)), [100, 0]);
        assert_eq!(shares(&[5, 5], Some(1.0)), [50, 50], "all callers are here");
        assert_eq!(shares(&[5], None), [100]);
    }

    #[test]
    fn local_first_spills_by_health() {
        let shares = |zones: &[(u32, u32)]| {
            let zones: Vec<Capacity> = zones.iter().map(|(a, o)| part(*a, *o)).collect();
            let mut shares = vec![0.0; zones.len()];
            local_first(&zones, 0, 1.4, &mut shares);
            percent(&shares)
        };
        assert_eq!(shares(&[(10, 10), (10, 10)]), [100, 0]);
        assert_eq!(shares(&[(8, 10), (10, 10)]), [100, 0], "within the room");
        assert_eq!(shares(&[(5, 10), (6, 10), (4, 10)]), [70, 18, 12]);
        assert_eq!(shares(&[(0, 10), (6, 10), (2, 10)]), [0, 75, 25]);
        assert_eq!(shares(&[(1, 10), (0, 10)]), [100, 0], "nobody else has anything");
    }

    proptest! {
        /// Callers of all zones together load every zone by its share of the capacity: none is pushed over it.
        #[test]
        fn no_zone_carries_more_than_its_share(counts in proptest::collection::vec(0u32..50, 1..6)) {
            let zones: Vec<Capacity> = counts.iter().map(|n| part(*n, *n)).collect();
            let all: f64 = counts.iter().map(|n| f64::from(*n)).sum();
            prop_assume!(all > 0.0);
            let mut load = vec![0.0; zones.len()];
            for own in 0..zones.len() {
                let mut shares = vec![0.0; zones.len()];
                balanced(&zones, own, None, &mut shares);
                prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{shares:?}");
                shares.iter().zip(&mut load).for_each(|(s, l)| *l += s / zones.len() as f64);
            }
            for (zone, load) in zones.iter().zip(&load) {
                prop_assert!((load - zone.available / all).abs() < 1e-9, "{counts:?}: {load:?}");
            }
        }
        #[test]
        fn shares_are_whole_and_the_dead_get_nothing(
            tiers in proptest::collection::vec((0u32..20, 0u32..20), 1..6),
            room in 1.0..3.0f64,
        ) {
            let tiers: Vec<Capacity> = tiers.iter().map(|(a, more)| part(*a, a + more)).collect();
            let mut shares = vec![0.0; tiers.len()];
            let total = over_priorities(&tiers, room, &mut shares);
            let sum: f64 = shares.iter().sum();
            let whole = if total > 0.0 { 1.0 } else { 0.0 };
            prop_assert!((sum - whole).abs() < 1e-9, "{:?}", shares);
            let mut local = vec![0.0; tiers.len()];
            local_first(&tiers, 0, room, &mut local);
            for (i, tier) in tiers.iter().enumerate().filter(|(_, t)| t.available == 0.0) {
                prop_assert_eq!(shares[i], 0.0);
                prop_assert_eq!(local[i], 0.0, "{:?}", tier);
            }
        }
    }
}
