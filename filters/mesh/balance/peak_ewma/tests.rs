use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::config::Settings;
use super::core::{PeakEwma, ended, observe};
use crate::contract::mesh::{Endpoint, Pick, Picker, TryOutcome};
use crate::contract::{Moment, Proof, Reason, Role};
use crate::mesh::balance::pool::{Pool, Rules};
use crate::mesh::bed::{self, Bed};
use crate::mesh::chance::Dice;

const MS: u64 = 1_000_000;

fn answer(status: u16, ms: f64, headers: &HeaderMap) -> TryOutcome<'_> {
    TryOutcome {
        result: Ok((StatusCode::from_u16(status).expect("a valid status"), headers)),
        grpc: None,
        latency: Duration::from_secs_f64(ms / 1e3),
    }
}

/// 20,000 tries one after the other, 1 ms apart; `reply` gives status and latency (ms) of each endpoint.
fn run(set: &Arc<[Arc<Endpoint>]>, reply: impl Fn(usize) -> (u16, f64)) -> Vec<u32> {
    let settings = Settings::default();
    let pool = Pool::new(PeakEwma(settings), set, Rules::default());
    let mut dice = Dice::new(11);
    let mut seen = vec![0; set.len()];
    let none = HeaderMap::new();
    for step in 1..=20_000u64 {
        let now = Moment(step * MS);
        let e = pool.pick(&Pick { now, seed: dice.roll(), hash: None, tried: &[] }).expect("all are available");
        let i = set.iter().position(|x| x.id == e.id).expect("one of the set");
        seen[i] += 1;
        let (status, ms) = reply(i);
        observe(&settings, &e, &answer(status, ms * (0.9 + 0.2 * dice.fraction()), &none), now);
    }
    seen
}

#[test]
fn equal_endpoints_share_evenly() {
    let seen = run(&bed::endpoints(&[1; 10]), |_| (200, 5.0));
    assert!(seen.iter().all(|n| (1_000..3_500).contains(n)), "{seen:?}");
    let weighted = run(&bed::endpoints(&[1, 3]), |_| (200, 5.0));
    assert!((3_500..6_500).contains(&weighted[0]), "{weighted:?}");
}

#[test]
fn a_slow_endpoint_is_avoided_and_not_forgotten() {
    let seen = run(&bed::endpoints(&[1; 5]), |i| (200, if i == 0 { 500.0 } else { 5.0 }));
    assert!(seen[0] > 0 && seen[0] < 200, "{seen:?}");
}

#[test]
fn quick_failures_do_not_attract() {
    for status in [429, 503] {
        let seen = run(&bed::endpoints(&[1; 5]), |i| if i == 0 { (status, 0.1) } else { (200, 50.0) });
        assert!(seen[0] < 200, "{status}: {seen:?}");
    }
}

#[test]
fn a_penalty_lasts_as_long_as_asked_up_to_a_minute() {
    let settings = Settings::default();
    let set = bed::endpoints(&[1]);
    let until = |value: &'static str| {
        set[0].state.penalty_until.store(0, Relaxed);
        let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, http::HeaderValue::from_static(value))]);
        observe(&settings, &set[0], &answer(429, 1.0, &headers), Moment(0));
        set[0].state.penalty_until.load(Relaxed) / 1_000 / MS
    };
    assert_eq!([until("1"), until("20"), until("9999"), until("nonsense")], [5, 20, 60, 5]);
    assert_eq!(until("Fri, 31 Dec 2100 23:59:59 GMT"), 60);
    assert_eq!(until("Fri, 31 Dec 1999 23:59:59 GMT"), 5);
    let pushback = HeaderMap::from_iter(
        [("grpc-retry-pushback-ms", "7000")]
            .map(|(n, v)| (http::HeaderName::from_static(n), http::HeaderValue::from_static(v))),
    );
    set[0].state.penalty_until.store(0, Relaxed);
    let exhausted = TryOutcome { grpc: Some(8), ..answer(200, 1.0, &pushback) };
    observe(&settings, &set[0], &exhausted, Moment(0));
    assert_eq!(set[0].state.penalty_until.load(Relaxed) / 1_000 / MS, 7);
}

#[test]
fn a_call_that_ends_exhausted_counts_as_a_failure() {
    let (settings, set) = (Settings::default(), bed::endpoints(&[1]));
    for (code, due) in [(5, 0), (16, 0), (8, 5), (14, 5)] {
        set[0].state.penalty_until.store(0, Relaxed);
        ended(&settings, &set[0], code, Moment(0));
        assert_eq!(set[0].state.penalty_until.load(Relaxed) / 1_000 / MS, due, "grpc-status {code}");
    }
}

#[test]
fn the_caller_s_failures_teach_nothing() {
    let set = bed::endpoints(&[1]);
    for reason in [Reason::ClientGone, Reason::Deadline, Reason::PendingTimeout] {
        let outcome =
            TryOutcome { result: Err((reason, Proof::MayHaveRun)), grpc: None, latency: Duration::from_secs(3) };
        observe(&Settings::default(), &set[0], &outcome, Moment(MS));
    }
    assert_eq!(set[0].state.ewma.load(Relaxed), 0);
    assert_eq!(set[0].state.penalty_until.load(Relaxed), 0);
}

#[test]
fn an_unknown_endpoint_gets_one_try_not_a_crowd() {
    let set = bed::endpoints(&[1, 1]);
    let settings = Settings::default();
    let pool = Pool::new(PeakEwma(settings), &set, Rules::default());
    let none = HeaderMap::new();
    observe(&settings, &set[0], &answer(200, 5.0, &none), Moment(MS));
    let pick = |seed| pool.pick(&Pick { now: Moment(2 * MS), seed, hash: None, tried: &[] }).expect("available").id;
    assert_eq!(pick(1), set[1].id, "the unknown one is tried");
    set[1].state.inflight.store(1, Relaxed);
    assert!((0..100).all(|s| pick(s) == set[0].id), "with that try under way it counts as 30 ms");
}

#[test]
fn section() {
    let Role::Balance(build) = super::ENTRY.role else { panic!("a balancer") };
    let mut bed = Bed::default();
    let good = r#"{"policy":"peak-ewma","slowStart":"30s","decay":"5s","defaultRtt":"10ms","penalty":"1s","panicThreshold":"0%"}"#;
    assert!(bed.build(|b| build(Some(&bed::node(good)), b)).is_ok());
    assert!(bed.build(|b| build(Some(&bed::node(r#"{"slowstart":"30s"}"#)), b)).is_err());
}

/// An outage under a steady load of 500 tries a second over three endpoints, in steps of a millisecond: how long after its
/// end endpoint 0 has a fair share again. `reply`: whether a try begun now at endpoint 0 fails, and how long it takes (ms).
fn back_after(end: u64, mut reply: impl FnMut(u64) -> (bool, u64)) -> u64 {
    const WINDOW: u64 = 500;
    let settings = Settings::default();
    let set = bed::endpoints(&[1; 3]);
    let pool = Pool::new(PeakEwma(settings), &set, Rules::default());
    let mut dice = Dice::new(5);
    let none = HeaderMap::new();
    let mut under_way: Vec<(u64, u64, usize, bool)> = Vec::new();
    let mut recent = std::collections::VecDeque::new();
    for step in 1..end + 60_000 {
        let now = Moment(step * MS);
        under_way.retain(|(begun, ends, i, failed)| {
            if *ends > step {
                return true;
            }
            set[*i].state.inflight.fetch_sub(1, Relaxed);
            let latency = Duration::from_millis(ends - begun);
            let outcome = if *failed {
                TryOutcome { result: Err((Reason::ConnectFailed, Proof::NeverRan)), grpc: None, latency }
            } else {
                TryOutcome { result: Ok((StatusCode::OK, &none)), grpc: None, latency }
            };
            observe(&settings, &set[*i], &outcome, now);
            false
        });
        if step % 2 != 0 {
            continue;
        }
        let e = pool.pick(&Pick { now, seed: dice.roll(), hash: None, tried: &[] }).expect("all are available");
        let i = set.iter().position(|x| x.id == e.id).expect("one of the set");
        e.state.inflight.fetch_add(1, Relaxed);
        let (failed, ms) = if i == 0 { reply(step) } else { (false, 2 + dice.roll() % 2) };
        under_way.push((step, step + ms, i, failed));
        recent.push_back((step, i == 0 && !failed));
        while recent.front().is_some_and(|(at, _)| *at + WINDOW < step) {
            recent.pop_front();
        }
        let share = recent.iter().filter(|(_, to_it)| *to_it).count() * 100 / recent.len();
        if step > end && share >= 20 {
            return step - end;
        }
    }
    u64::MAX
}

#[test]
fn who_comes_back_has_its_share_when_the_penalty_ends() {
    let limit = 5_000 + 1_000;
    for end in [8_000, 9_000, 10_500, 12_300] {
        let down = |now: u64| (4_000..end).contains(&now);
        let refused = back_after(end, |now| (down(now), if down(now) { 1 } else { 2 }));
        assert!(refused < limit, "refused connections until {end}: back after {refused} ms");
        let silent = back_after(end, |now| (down(now), if down(now) { 1_000 } else { 2 }));
        assert!(silent < limit + 1_000, "connects that time out until {end}: back after {silent} ms");
        // The first answers of a process that has just started are slow.
        let mut cold = 3;
        let started = back_after(end, |now| {
            if down(now) {
                return (true, 1);
            }
            let slow = now >= end && cold > 0;
            cold -= u32::from(slow);
            (false, if slow { 150 } else { 2 })
        });
        assert!(started < limit + 500, "a cold start until {end}: back after {started} ms");
    }
}
