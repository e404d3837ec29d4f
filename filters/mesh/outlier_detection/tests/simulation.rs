//! Ten endpoints over seven minutes, in virtual time: one is ill for two of them, then all of them for one.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::HeaderMap;

use super::{gate, out};
use crate::contract::Moment;
use crate::contract::mesh::TryOutcome;
use crate::mesh::bed::{self, answer};
use crate::mesh::chance::Dice;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

#[test]
fn an_ill_endpoint_gets_next_to_nothing_and_comes_back() {
    let none = HeaderMap::new();
    for seed in 0..10 {
        let set = bed::endpoints(&[1; 10]);
        let g = gate(None);
        g.members(&set);
        let mut dice = Dice::new(seed);
        let (mut ill, mut most_out, mut back, mut lost) = (0, 0, None, 0);
        // A hundred requests a second.
        for i in 1..42_000u64 {
            let now = Moment(i * 10 * MS);
            let second = now.0 / SECOND;
            let one_ill = (60..180).contains(&second);
            let all_ill = (300..360).contains(&second);
            // As a balancer that asks again when the probe is taken.
            let picked = (0..20).map(|_| dice.below(set.len())).find(|at| {
                let e = &set[*at];
                e.available(now) && g.picked(e, now)
            });
            let Some(at) = picked else {
                lost += 1;
                continue;
            };
            let bad = all_ill || one_ill && at == 0;
            ill += usize::from(one_ill && at == 0);
            if at == 0 && (180..300).contains(&second) {
                back.get_or_insert(second);
            }
            let outcome =
                TryOutcome { latency: Duration::from_millis(2), ..answer(if bad { 503 } else { 200 }, &none) };
            g.observe(&set[at], &outcome, now + Duration::from_millis(2));
            most_out = most_out.max(set.iter().filter(|e| out(e)).count());
        }
        // Five to notice, then a probe after 30, 60 and 90 seconds.
        assert!((5..=9).contains(&ill), "seed {seed}: {ill} requests reached it");
        assert!(back.is_some_and(|at| at <= 300), "seed {seed}: back at {back:?}");
        assert!(most_out <= 5, "seed {seed}: {most_out} out at once, half are kept");
        assert!(lost < 10, "seed {seed}: {lost} found nobody");
        assert!(set.iter().all(|e| !e.state.probing.load(Relaxed) || out(e)), "seed {seed}: a probe of nobody");
    }
}
