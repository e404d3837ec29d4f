use std::collections::HashMap;

use super::super::zones::Mode;
use super::*;
use crate::contract::mesh::Address;
use crate::contract::metrics::Registry;
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

fn endpoint(n: u64, zone: &str, priority: u32) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(n, Address::Unix("/x".into()), zone.into(), priority, 1))
}

/// Share of picks, in percent, by what `of` says of an endpoint. Another moment each time: shares are counted anew.
fn shares<P: Policy>(pool: &Pool<P>, at: u64, of: impl Fn(&Endpoint) -> String) -> HashMap<String, u32> {
    const PICKS: u32 = 20_000;
    let mut seen = HashMap::<String, u32>::new();
    for seed in 0..u64::from(PICKS) {
        let cx = Pick { now: Moment(at * 1_000_000_000), seed, hash: None, tried: &[] };
        *seen.entry(pool.pick(&cx).map_or_else(String::new, |e| of(&e))).or_default() += 1;
    }
    seen.into_iter().map(|(what, n)| (what, (f64::from(n) * 100.0 / f64::from(PICKS)).round() as u32)).collect()
}

fn close(seen: &HashMap<String, u32>, due: &[(&str, u32)]) {
    let fits = due.iter().all(|(what, n)| seen.get(*what).copied().unwrap_or_default().abs_diff(*n) <= 1);
    let sum: u32 = due.iter().map(|(_, n)| n).sum();
    assert!(fits && sum == 100, "{seen:?}, due {due:?}");
}

#[test]
fn a_priority_passes_on_what_it_cannot_carry() {
    let set: Vec<_> = (0..10).map(|n| endpoint(n, "", 0)).chain((10..20).map(|n| endpoint(n, "", 1))).collect();
    let pool = Pool::new(Any, &set, Rules::default());
    let by_priority = |at| shares(&pool, at, |e| e.priority.to_string());
    close(&by_priority(1), &[("0", 100)]);
    set[..2].iter().for_each(|e| eject(e));
    close(&by_priority(2), &[("0", 100)]);
    set[..6].iter().for_each(|e| eject(e));
    // Four of ten, with room for 1.4 times as much. The next priority can take the rest, so this is no panic.
    close(&by_priority(3), &[("0", 56), ("1", 44)]);
    let ill = shares(&pool, 3, |e| e.available(Moment(1)).to_string());
    close(&ill, &[("true", 100)]);
    set[..10].iter().for_each(|e| eject(e));
    close(&by_priority(4), &[("1", 100)]);
    assert_eq!(counts(&pool, 500, &(10..19).collect::<Vec<_>>()).into_keys().collect::<Vec<_>>(), [19]);
}

#[test]
fn panic_is_for_each_priority_and_said() {
    let set: Vec<_> = (0..10).map(|n| endpoint(n, "", 0)).chain((10..20).map(|n| endpoint(n, "", 1))).collect();
    let metrics = Registry::default();
    let alarm = Alarm {
        service: "stock".into(),
        picks: metrics.counter("a_total", "", &[]),
        levels: metrics.gauge("b", "", &[]),
    };
    let pool = Pool::new(Any, &set, Rules { alarm: Some(alarm.clone()), ..Rules::default() });
    // 28 % and 42 % of the load can be carried: together too little, so each uses all it has.
    set[..8].iter().chain(&set[10..17]).for_each(|e| eject(e));
    let seen = shares(&pool, 1, |e| format!("{} {}", e.priority, e.available(Moment(1))));
    close(&seen, &[("0 false", 32), ("0 true", 8), ("1 false", 42), ("1 true", 18)]);
    assert_eq!(alarm.levels.value(), 2);
    assert!(alarm.picks.value() > 10_000);
    set.iter().for_each(|e| e.state.ejected_until.store(0, Relaxed));
    shares(&pool, 2, |e| e.priority.to_string());
    assert_eq!(alarm.levels.value(), 0, "well again");

    let closed = Pool::new(Any, &set, Rules { panic: 0.0, alarm: Some(alarm.clone()), ..Rules::default() });
    set.iter().for_each(|e| eject(e));
    assert!(closed.pick(&cx(1, &[])).is_none(), "panic is off: rather nobody");
    assert_eq!(alarm.levels.value(), 0);
    for seed in 0..100 {
        assert!(pool.pick(&cx(seed, &[])).is_some());
        assert_eq!(alarm.levels.value(), 1, "said once, not with every pick");
    }
    drop(pool);
    assert_eq!(alarm.levels.value(), 0, "a set that is replaced takes its alarm along");
}

#[test]
fn a_single_priority_panics_and_calms_down() {
    let set = bed::endpoints(&[1, 1, 1]);
    let levels = Registry::default().gauge("b", "", &[]);
    let picks = Registry::default().counter("a_total", "", &[]);
    let alarm = Alarm { service: "stock".into(), picks, levels: levels.clone() };
    let pool = Pool::new(Any, &set, Rules { alarm: Some(alarm), ..Rules::default() });
    eject(&set[0]);
    counts(&pool, 100, &[]);
    assert_eq!(levels.value(), 0, "two of three are enough");
    eject(&set[1]);
    counts(&pool, 100, &[]);
    assert_eq!(levels.value(), 1);
    eject(&set[2]);
    counts(&pool, 100, &[]);
    assert_eq!(levels.value(), 1);
    set.iter().for_each(|e| e.state.ejected_until.store(0, Relaxed));
    counts(&pool, 1, &[]);
    assert_eq!(levels.value(), 0);
}

fn zoned(mode: Mode, min_endpoints: u32) -> Rules {
    let zones = ZoneRules { own: "a".into(), mode, min_endpoints, callers: None };
    Rules { zones: Some(zones), ..Rules::default() }
}

fn in_zones(a: u64, b: u64, c: u64) -> Vec<Arc<Endpoint>> {
    let zone = |zone: &'static str, from: u64, n: u64| (from..from + n).map(move |n| endpoint(n, zone, 0));
    zone("a", 0, a).chain(zone("b", 100, b)).chain(zone("c", 200, c)).collect()
}

#[test]
fn the_own_zone_gets_what_it_can_bear() {
    let set = in_zones(4, 4, 4);
    let pool = Pool::new(Any, &set, zoned(Mode::Balanced, 6));
    let by_zone = |at| shares(&pool, at, |e| e.zone.to_string());
    close(&by_zone(1), &[("a", 100)]);
    // Nothing but endpoints that are down is needed to spill; two of ten are a fifth, a third of the callers are here.
    set[..2].iter().for_each(|e| eject(e));
    close(&by_zone(2), &[("a", 60), ("b", 20), ("c", 20)]);
    set[..4].iter().for_each(|e| eject(e));
    close(&by_zone(3), &[("b", 50), ("c", 50)]);
    // Five are left: too few to share out by zone.
    set[..7].iter().for_each(|e| eject(e));
    set[0].state.ejected_until.store(0, Relaxed);
    let few = Pool::new(Any, &set, Rules { panic: 0.0, ..zoned(Mode::Balanced, 7) });
    close(&shares(&few, 4, |e| e.zone.to_string()), &[("a", 17), ("b", 16), ("c", 67)]);
}

#[test]
fn local_mode_keeps_the_zone_as_long_as_it_is_well() {
    let set = in_zones(10, 5, 5);
    let pool = Pool::new(Any, &set, zoned(Mode::Local, 1));
    let by_zone = |at| shares(&pool, at, |e| e.zone.to_string());
    close(&by_zone(1), &[("a", 100)]);
    set[..5].iter().for_each(|e| eject(e));
    close(&by_zone(2), &[("a", 70), ("b", 15), ("c", 15)]);
    set[..10].iter().for_each(|e| eject(e));
    close(&by_zone(3), &[("b", 50), ("c", 50)]);
    // What was tried in the own zone is avoided, even if that means to leave it.
    set[9].state.ejected_until.store(0, Relaxed);
    assert!(counts(&pool, 200, &[9]).keys().all(|id| *id >= 100));
}

#[test]
fn zones_count_within_a_priority_and_not_in_panic() {
    let mut set = in_zones(4, 4, 0);
    set.extend((300..310).map(|n| endpoint(n, "a", 1)));
    let pool = Pool::new(Any, &set, zoned(Mode::Local, 1));
    close(&shares(&pool, 1, |e| format!("{} {}", e.priority, e.zone)), &[("0 a", 100)]);
    set[..4].iter().for_each(|e| eject(e));
    // Half of the priority: 70 % stays in it, in the other zone.
    close(&shares(&pool, 2, |e| format!("{} {}", e.priority, e.zone)), &[("0 b", 70), ("1 a", 30)]);
    let alone = Pool::new(Any, &set[..8], zoned(Mode::Local, 1));
    eject(&set[4]);
    close(&shares(&alone, 3, |e| e.zone.to_string()), &[("a", 50), ("b", 50)]);
}

#[test]
fn without_the_own_zone_there_is_nothing_to_prefer() {
    for set in [in_zones(0, 5, 5), in_zones(10, 0, 0)] {
        let pool = Pool::new(Any, &set, zoned(Mode::Local, 1));
        assert!(pool.division.is_none(), "one part: nothing to divide");
        assert_eq!(counts(&pool, 2000, &[]).len(), 10);
    }
}

#[test]
fn a_key_keeps_its_priority_while_some_spill() {
    let set: Vec<_> = (0..10).map(|n| endpoint(n, "", 0)).chain((10..20).map(|n| endpoint(n, "", 1))).collect();
    let pool = Pool::new(Any, &set, Rules::default());
    set[..5].iter().for_each(|e| eject(e));
    let priority = |key: u64, seed: u64| {
        let cx = Pick { now: Moment(1_000_000_000), seed, hash: Some(mix(key)), tried: &[] };
        pool.pick(&cx).expect("some are available").priority
    };
    let spilled = (0..2000).filter(|key| priority(*key, 1) == 1).count();
    assert!((500..700).contains(&spilled), "30 % of the keys: {spilled}");
    assert!((0..200).all(|key| (2..10).all(|seed| priority(key, seed) == priority(key, 1))));
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
