use std::collections::HashMap;

use super::*;
use crate::contract::mesh::Address;
use crate::mesh::bed;

/// Anything that fits, evenly.
struct Any;

impl Policy for Any {
    type Table = ();
    fn prepare(&self, _: &Tier) {}
    fn choose(
        &self,
        (): &(),
        tier: &Tier,
        _: &Pick<'_>,
        dice: &mut Dice,
        fit: &dyn Fn(&Endpoint) -> bool,
    ) -> Option<usize> {
        (0..PROBES).map(|_| tier.draw(dice)).find(|i| fit(&tier.endpoints[*i]))
    }
}

fn cx(seed: u64, tried: &[u64]) -> Pick<'_> {
    Pick { now: Moment(1_000_000_000), seed, hash: None, tried }
}

fn counts(pool: &Pool<Any>, picks: u64, tried: &[u64]) -> HashMap<u64, u64> {
    let mut seen = HashMap::new();
    for seed in 0..picks {
        if let Some(e) = pool.pick(&cx(seed, tried)) {
            *seen.entry(e.id).or_default() += 1;
        }
    }
    seen
}

fn eject(e: &Endpoint) {
    e.state.ejected_until.store(u64::MAX, Relaxed);
}

#[test]
fn nothing_to_pick_from_is_none() {
    let pool = Pool::new(Any, &[], Rules::default());
    assert!(pool.pick(&cx(1, &[])).is_none());
    let drained = bed::endpoints(&[0, 0]);
    assert!(Pool::new(Any, &drained, Rules::default()).pick(&cx(1, &[])).is_none());
}

#[test]
fn unavailable_and_drained_are_skipped() {
    let set = bed::endpoints(&[1, 1, 1, 0, 1]);
    let pool = Pool::new(Any, &set, Rules::default());
    eject(&set[0]);
    set[4].state.health.store(2, Relaxed);
    // Two of four offered are available: exactly half, no panic.
    let seen = counts(&pool, 2000, &[]);
    assert_eq!(seen.len(), 2);
    assert!(seen.contains_key(&set[1].id) && seen.contains_key(&set[2].id));
}

#[test]
fn below_the_threshold_all_are_used() {
    let set = bed::endpoints(&[1, 1, 1]);
    let pool = Pool::new(Any, &set, Rules::default());
    eject(&set[0]);
    eject(&set[1]);
    assert_eq!(counts(&pool, 2000, &[]).len(), 3, "one of three available: panic");
    let closed = Pool::new(Any, &set, Rules { panic: 0.0, ..Rules::default() });
    assert_eq!(counts(&closed, 2000, &[]).len(), 1, "panic is off");
    eject(&set[2]);
    assert_eq!(counts(&closed, 100, &[]).len(), 0);
    assert_eq!(counts(&pool, 2000, &[]).len(), 3);
    set[0].state.draining.store(true, Relaxed);
    assert_eq!(counts(&pool, 2000, &[]).len(), 2, "a draining one not even in panic");
}

#[test]
fn what_was_tried_is_avoided_while_another_is_available() {
    let set = bed::endpoints(&[1, 1, 1]);
    let pool = Pool::new(Any, &set, Rules::default());
    let tried = [set[0].id, set[1].id];
    assert_eq!(counts(&pool, 500, &tried).into_keys().collect::<Vec<_>>(), [set[2].id]);
    let all: Vec<u64> = set.iter().map(|e| e.id).collect();
    assert_eq!(counts(&pool, 500, &all).len(), 3, "all were tried: any again");
}

#[test]
fn a_tier_waits_until_the_one_before_has_nothing() {
    let tier = |n: u32| Arc::new(Endpoint::new(n.into(), Address::Unix("/x".into()), "".into(), n / 10, 1));
    let set: Vec<_> = [1, 2, 11, 12].map(tier).into();
    let pool = Pool::new(Any, &set, Rules { panic: 0.0, ..Rules::default() });
    let firsts = |seen: HashMap<u64, u64>| {
        let mut ids: Vec<u64> = seen.into_keys().collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(firsts(counts(&pool, 500, &[])), [1, 2]);
    eject(&set[0]);
    assert_eq!(firsts(counts(&pool, 500, &[])), [2]);
    assert_eq!(firsts(counts(&pool, 500, &[2])), [11, 12], "tried all of the first tier");
    eject(&set[1]);
    assert_eq!(firsts(counts(&pool, 500, &[])), [11, 12]);
    let panicking = Pool::new(Any, &set, Rules::default());
    assert_eq!(firsts(counts(&panicking, 500, &[])), [11, 12], "a dead tier gives way, panic or not");
}

#[test]
fn draws_follow_the_weights() {
    let set = bed::endpoints(&[1, 2, 7]);
    let pool = Pool::new(Any, &set, Rules::default());
    let seen = counts(&pool, 100_000, &[]);
    for (e, share) in set.iter().zip([0.1, 0.2, 0.7]) {
        let ratio = seen[&e.id] as f64 / 100_000.0 / share;
        assert!((0.95..1.05).contains(&ratio), "{ratio}");
    }
}

#[test]
fn newcomers_start_slowly() {
    let set = bed::endpoints(&[1, 1]);
    let rules = Rules { slow_start: Duration::from_secs(30), ..Rules::default() };
    let tier = Tier::new(set.to_vec(), rules);
    set[1].state.joined.store(1, Relaxed);
    let share = |at: u64| {
        let mut dice = Dice::new(at);
        (0..10_000).filter(|_| tier.ramped(&set[1], Moment(at * 1_000_000_000), &mut dice)).count()
    };
    assert!((800..1200).contains(&share(0)) && (4700..5300).contains(&share(15)), "{} {}", share(0), share(15));
    assert_eq!(share(31), 10_000);
    assert!((0..100).all(|s| tier.ramped(&set[0], Moment(1), &mut Dice::new(s))), "there from the start: no ramp");
}

#[test]
fn a_large_set_finds_its_only_available_endpoint() {
    let set = bed::endpoints(&vec![1; 10_000]);
    let pool = Pool::new(Any, &set, Rules { panic: 0.0, ..Rules::default() });
    set.iter().skip(1).for_each(|e| eject(e));
    assert_eq!(counts(&pool, 20, &[]).into_keys().collect::<Vec<_>>(), [set[0].id]);
}
