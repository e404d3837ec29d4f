//! A hundred proxies and one service that dies, in virtual time: what retries add to its load, and whether they come
//! together.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use http::HeaderMap;

use super::super::budget::Budget;
use super::super::config::Settings;
use super::super::core::judge;
use super::{settings, wall};
use crate::contract::Moment;
use crate::contract::mesh::{Again, Judge};
use crate::mesh::bed;
use crate::mesh::chance::Dice;

const PROXIES: usize = 100;
const SECOND: u64 = 1_000_000_000;
const DIES: u64 = 20;
const BACK: u64 = 40;
const ENDS: u64 = 60;

/// Tries per second that reach the service: first ones, and others.
struct Load(Vec<(u64, u64)>);

/// Each proxy gets so many requests a second, at random times.
fn storm(s: &Settings, rate: f64, seed: u64) -> Load {
    let none = HeaderMap::new();
    let outcome = bed::answer(503, &none);
    let mut dice = Dice::new(seed);
    let budgets: Vec<Budget> = (0..PROXIES).map(|_| Budget::new()).collect();
    let mut load = Load(vec![(0, 0); ENDS as usize + 5]);
    // Time, proxy, number of the try.
    let mut tries = BinaryHeap::new();
    let pause = |dice: &mut Dice| (-(1.0 - dice.fraction()).ln() / rate * SECOND as f64) as u64;
    for proxy in 0..PROXIES {
        tries.push(Reverse((pause(&mut dice), proxy, 1u32)));
    }
    while let Some(Reverse((at, proxy, n))) = tries.pop() {
        if at >= ENDS * SECOND {
            break;
        }
        let second = &mut load.0[(at / SECOND) as usize];
        if n == 1 {
            second.0 += 1;
            budgets[proxy].begin(Moment(at), s.budget.window);
            tries.push(Reverse((at + pause(&mut dice), proxy, 1)));
        } else {
            second.1 += 1;
        }
        if !(DIES..BACK).contains(&(at / SECOND)) {
            continue;
        }
        let cx = Judge {
            now: Moment(at),
            deadline: Moment(at + 15 * SECOND),
            tries: n,
            idempotent: true,
            replayable: true,
            outcome: &outcome,
            seed: dice.roll(),
        };
        if let Again::After(pause) = judge(s, &budgets[proxy], &cx, wall) {
            tries.push(Reverse(((cx.now + pause).0, proxy, n + 1)));
        }
    }
    load
}

#[test]
fn a_hundred_proxies_add_a_fifth_to_the_load_of_a_dying_service() {
    let s =
        settings(r#"{"attempts":5,"retryOn":["503"],"backoff":"10ms","budget":{"percent":"20%","minPerSecond":1}}"#);
    for seed in 0..3 {
        let load = storm(&s, 40.0, seed);
        let over = |from: u64, to: u64| {
            load.0[from as usize..to as usize].iter().fold((0, 0), |sum, second| (sum.0 + second.0, sum.1 + second.1))
        };
        let (first, more) = over(DIES, BACK);
        assert!(more as f64 <= 0.21 * first as f64, "seed {seed}: {more} retries of {first} tries");
        assert!(more as f64 >= 0.15 * first as f64, "seed {seed}: the budget is there to be used: {more} of {first}");
        // The worst second holds what ten seconds of peace have saved, and no more.
        let worst = (DIES..BACK).map(|second| load.0[second as usize].1).max();
        let saved = PROXIES as f64 * 40.0 * 10.0 * 0.2;
        assert!(worst.is_some_and(|n| n as f64 <= 1.05 * saved), "seed {seed}: {worst:?}");
        // Once it is back nothing is left over.
        assert_eq!(over(BACK + 1, ENDS).1, 0);
    }
}

#[test]
fn without_a_budget_it_would_be_a_storm() {
    // What the test above would show without the budget: it can fail.
    let s = settings(
        r#"{"attempts":5,"retryOn":["503"],"backoff":"10ms","budget":{"percent":"100%","minPerSecond":1000}}"#,
    );
    let load = storm(&s, 40.0, 0);
    let more: u64 = (DIES..BACK).map(|second| load.0[second as usize].1).sum();
    let first: u64 = (DIES..BACK).map(|second| load.0[second as usize].0).sum();
    assert!(more > 4 * first);
}

#[test]
fn requests_that_fail_together_do_not_come_back_together() {
    let s = settings(
        r#"{"attempts":3,"retryOn":["503"],"backoff":"100ms","budget":{"percent":"100%","minPerSecond":100}}"#,
    );
    let none = HeaderMap::new();
    let outcome = bed::answer(503, &none);
    let mut dice = Dice::new(7);
    // Ten requests of each proxy fail at the same moment.
    let mut due: Vec<u64> = Vec::new();
    for _ in 0..PROXIES {
        let budget = Budget::new();
        for _ in 0..10 {
            let cx = Judge {
                now: Moment(SECOND),
                deadline: Moment::MAX,
                tries: 1,
                idempotent: true,
                replayable: true,
                outcome: &outcome,
                seed: dice.roll(),
            };
            let Again::After(pause) = judge(&s, &budget, &cx, wall) else { panic!("within the budget") };
            assert!(pause >= Duration::from_millis(100), "never sooner than `backoff`");
            due.push(u64::try_from(pause.as_millis()).expect("short"));
        }
    }
    // Spread over a hundred milliseconds: ten in each on average.
    let crowd = (100..=200).map(|ms| due.iter().filter(|d| **d == ms).count()).max();
    assert!(crowd < Some(30), "{crowd:?} of 1000 in one millisecond");
    assert!(due.iter().any(|d| *d < 110) && due.iter().any(|d| *d > 190));
}
