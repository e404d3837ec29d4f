//! What holds for every policy that hashes a key. A policy's own tests are one line: [`suite`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::contract::mesh::{Endpoint, Pick, Picker};
use crate::contract::{Entry, Moment, Role};
use crate::mesh::balance::pool::{Policy, Pool, Rules};
use crate::mesh::bed::{self, Bed};
use crate::mesh::chance::mix;

/// Every test, for one policy.
macro_rules! suite {
    ($new:expr, $entry:expr) => {
        #[test]
        fn only_the_keys_of_the_leaver_move() {
            $crate::mesh::balance::hashed_tests::only_the_keys_of_the_leaver_move($new);
        }
        #[test]
        fn order_does_not_matter_and_shares_are_fair() {
            $crate::mesh::balance::hashed_tests::order_does_not_matter_and_shares_are_fair($new);
        }
        #[test]
        fn weights_count() {
            $crate::mesh::balance::hashed_tests::weights_count($new);
        }
        #[test]
        fn a_key_whose_owner_is_down_has_one_other_home() {
            $crate::mesh::balance::hashed_tests::a_key_whose_owner_is_down_has_one_other_home($new);
        }
        #[test]
        fn a_hot_key_spills_over() {
            $crate::mesh::balance::hashed_tests::a_hot_key_spills_over($new);
        }
        #[test]
        fn without_a_key_any_endpoint_will_do() {
            $crate::mesh::balance::hashed_tests::without_a_key_any_endpoint_will_do($new);
        }
        #[test]
        fn sections() {
            $crate::mesh::balance::hashed_tests::sections(&$entry);
        }
    };
}
pub(crate) use suite;

const KEYS: u64 = 20_000;

/// A policy with the default load factor.
pub type New<P> = fn() -> P;

fn pool<P: Policy>(new: New<P>, set: &[Arc<Endpoint>]) -> Pool<P> {
    Pool::new(new(), set, Rules::default())
}

fn owners<P: Policy>(pool: &Pool<P>) -> Vec<u64> {
    (0..KEYS)
        .map(|k| {
            let cx = Pick { now: Moment(1), seed: k, hash: Some(mix(k + 1)), tried: &[] };
            pool.pick(&cx).expect("some are available").id
        })
        .collect()
}

pub fn only_the_keys_of_the_leaver_move<P: Policy>(new: New<P>) {
    for n in [5usize, 10, 50] {
        let set = bed::endpoints(&vec![1; n]);
        let before = owners(&pool(new, &set));
        let gone = set[n / 2].id;
        let rest: Vec<_> = set.iter().filter(|e| e.id != gone).cloned().collect();
        let after = owners(&pool(new, &rest));
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count() as f64 / KEYS as f64;
        let due = before.iter().filter(|id| **id == gone).count() as f64 / KEYS as f64;
        assert!(moved <= 1.3 / n as f64 && moved >= due, "{n}: moved {moved}, due {due}");
    }
}

pub fn order_does_not_matter_and_shares_are_fair<P: Policy>(new: New<P>) {
    let set = bed::endpoints(&[1; 10]);
    let mut shuffled = set.to_vec();
    shuffled.reverse();
    let owners_of = owners(&pool(new, &set));
    assert_eq!(owners_of, owners(&pool(new, &shuffled)));
    let mut shares = HashMap::<u64, u64>::new();
    owners_of.iter().for_each(|id| *shares.entry(*id).or_default() += 1);
    assert!(shares.len() == 10 && shares.values().all(|n| (1_500..2_500).contains(n)), "{shares:?}");
}

pub fn weights_count<P: Policy>(new: New<P>) {
    let set = bed::endpoints(&[1, 3]);
    let heavy = owners(&pool(new, &set)).iter().filter(|id| **id == set[1].id).count() as f64 / KEYS as f64;
    assert!((0.68..0.82).contains(&heavy), "{heavy}");
}

pub fn a_key_whose_owner_is_down_has_one_other_home<P: Policy>(new: New<P>) {
    let set = bed::endpoints(&[1; 10]);
    let pool = pool(new, &set);
    let before = owners(&pool);
    set[0].state.ejected_until.store(u64::MAX, Relaxed);
    let during = owners(&pool);
    assert!(before.iter().zip(&during).all(|(a, b)| a == b || *a == set[0].id), "others do not move");
    assert_eq!(during, owners(&pool));
}

pub fn a_hot_key_spills_over<P: Policy>(new: New<P>) {
    let set = bed::endpoints(&[1; 10]);
    let pool = pool(new, &set);
    for seed in 0..1000 {
        let cx = Pick { now: Moment(1), seed, hash: Some(42), tried: &[] };
        pool.pick(&cx).expect("all are available").state.inflight.fetch_add(1, Relaxed);
    }
    let most = set.iter().map(|e| e.state.inflight.load(Relaxed)).max().expect("ten");
    assert!(most <= 127, "{most} of 1000 tries in flight on one of ten");
}

pub fn without_a_key_any_endpoint_will_do<P: Policy>(new: New<P>) {
    let set = bed::endpoints(&[1; 10]);
    let pool = pool(new, &set);
    let seen: std::collections::HashSet<u64> = (0..500)
        .filter_map(|seed| pool.pick(&Pick { now: Moment(1), seed, hash: None, tried: &[] }))
        .map(|e| e.id)
        .collect();
    assert_eq!(seen.len(), 10);
}

pub fn sections(entry: &Entry) {
    let Role::Balance(build) = entry.role else { panic!("a balancer") };
    let mut bed = Bed::default();
    let mut ok = |json: &str| bed.build(|b| build(Some(&bed::node(json)), b)).is_ok();
    for good in [
        r#"{"hash":"ip"}"#,
        r#"{"hash":{"ip":true}}"#,
        r#"{"hash":{"header":"x-user"},"loadFactor":0}"#,
        r#"{"hash":{"cookie":"sid"},"loadFactor":1.5}"#,
        r#"{"hash":{"query":"u"},"panicThreshold":"20%"}"#,
    ] {
        assert!(ok(good), "{good}");
    }
    for bad in [
        "{}",
        r#"{"hash":{"header":"x y"}}"#,
        r#"{"hash":{"header":"a","cookie":"b"}}"#,
        r#"{"hash":"header"}"#,
        r#"{"hash":"ip","loadFactor":0.5}"#,
        r#"{"hash":"ip","slowStart":"3s"}"#,
    ] {
        assert!(!ok(bad), "{bad}");
    }
}
