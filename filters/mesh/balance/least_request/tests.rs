use std::sync::atomic::Ordering::Relaxed;

use super::core::LeastRequest;
use crate::contract::Moment;
use crate::contract::mesh::{Pick, Picker};
use crate::mesh::balance::pool::{Pool, Rules};
use crate::mesh::bed;
use crate::mesh::chance::Dice;

fn pick(pool: &Pool<LeastRequest>, seed: u64) -> std::sync::Arc<crate::contract::mesh::Endpoint> {
    pool.pick(&Pick { now: Moment(1), seed, hash: None, tried: &[] }).expect("all are available")
}

#[test]
fn at_rest_the_weights_decide() {
    for weights in [vec![1u32; 10], vec![1, 3]] {
        let set = bed::endpoints(&weights);
        let pool = Pool::new(LeastRequest, &set, Rules::default());
        let total: u32 = weights.iter().sum();
        let mut seen = vec![0f64; weights.len()];
        (0..100_000).for_each(|s| {
            let id = pick(&pool, s).id;
            seen[set.iter().position(|e| e.id == id).expect("one of the set")] += 1.0;
        });
        for (n, w) in seen.iter().zip(&weights) {
            let ratio = n / 100_000.0 * f64::from(total) / f64::from(*w);
            assert!((0.95..1.05).contains(&ratio), "{weights:?}: {ratio}");
        }
    }
}

#[test]
fn a_slow_endpoint_gets_little() {
    // Every try lasts one step; those of endpoint 0 twenty.
    let set = bed::endpoints(&[1; 5]);
    let pool = Pool::new(LeastRequest, &set, Rules::default());
    let mut dice = Dice::new(3);
    let mut under_way: Vec<(u64, usize)> = Vec::new();
    let mut seen = [0u32; 5];
    for step in 0..20_000u64 {
        under_way.retain(|(end, i)| {
            if *end <= step {
                set[*i].state.inflight.fetch_sub(1, Relaxed);
            }
            *end > step
        });
        for _ in 0..3 {
            let id = pick(&pool, dice.roll()).id;
            let i = set.iter().position(|e| e.id == id).expect("one of the set");
            set[i].state.inflight.fetch_add(1, Relaxed);
            seen[i] += 1;
            under_way.push((step + if i == 0 { 20 } else { 1 }, i));
        }
    }
    assert!(seen[0] < 20_000 * 3 / 5 / 3, "{seen:?}");
}
