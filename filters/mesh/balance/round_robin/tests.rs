use std::sync::atomic::Ordering::Relaxed;

use super::core::RoundRobin;
use crate::contract::Moment;
use crate::contract::mesh::{Pick, Picker};
use crate::mesh::balance::pool::{Pool, Rules};
use crate::mesh::bed;

fn shares(weights: &[u32], picks: u64, down: &[usize]) -> Vec<u64> {
    let set = bed::endpoints(weights);
    let pool = Pool::new(RoundRobin, &set, Rules::default());
    down.iter().for_each(|i| set[*i].state.ejected_until.store(u64::MAX, Relaxed));
    let mut seen = vec![0; weights.len()];
    for seed in 0..picks {
        let e = pool.pick(&Pick { now: Moment(1), seed, hash: None, tried: &[] }).expect("some are available");
        seen[set.iter().position(|x| x.id == e.id).expect("one of the set")] += 1;
    }
    seen
}

#[test]
fn turns_are_exact() {
    assert_eq!(shares(&[1; 3], 300, &[]), [100, 100, 100]);
    assert_eq!(shares(&[5, 1, 4], 1000, &[]), [500, 100, 400]);
}

#[test]
fn the_share_of_one_that_is_down_is_spread_over_all() {
    let seen = shares(&[1; 10], 90_000, &[3]);
    assert_eq!(seen[3], 0);
    assert!(seen.iter().enumerate().all(|(i, n)| i == 3 || (9_500..10_500).contains(n)), "{seen:?}");
}

#[test]
fn starts_differ() {
    let firsts: std::collections::HashSet<u64> = (0..64)
        .map(|_| {
            let set = bed::endpoints(&[1; 16]);
            let pool = Pool::new(RoundRobin, &set, Rules::default());
            pool.pick(&Pick { now: Moment(1), seed: 1, hash: None, tried: &[] }).expect("all are available").id
        })
        .collect();
    assert!(firsts.len() > 4, "64 instances started at {} endpoints", firsts.len());
}
