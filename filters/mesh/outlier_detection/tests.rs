mod simulation;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use http::HeaderMap;

use super::config::{Section, Settings};
use super::core::{Interval, may_eject, outliers};
use crate::contract::mesh::{Endpoint, Gate, TryOutcome};
use crate::contract::metrics::Registry;
use crate::contract::{Moment, Proof, Reason, Role};
use crate::mesh::bed::{self, Bed, answer, failure};
use crate::mesh::verdict::{Verdict, verdict};

const SECOND: u64 = 1_000_000_000;

fn gate(json: Option<&str>) -> Arc<dyn Gate> {
    let Role::Gate(build) = super::ENTRY.role else { panic!("a gate") };
    let node = json.map(bed::node);
    Bed::default().build(|b| build(node.as_ref(), b)).expect("a valid section").expect("always a gate")
}

fn fail(g: &dyn Gate, e: &Endpoint, times: u32, at: u64) {
    let none = HeaderMap::new();
    let outcome = TryOutcome { latency: Duration::ZERO, ..answer(500, &none) };
    (0..times).for_each(|_| g.observe(e, &outcome, Moment(at * SECOND)));
}

fn out(e: &Endpoint) -> bool {
    e.state.ejected_until.load(Relaxed) != 0
}

#[test]
fn on_by_default_after_five_in_a_row() {
    let set = bed::endpoints(&[1; 4]);
    let g = gate(None);
    g.members(&set);
    let none = HeaderMap::new();
    fail(&*g, &set[0], 4, 100);
    g.observe(&set[0], &answer(200, &none), Moment(100 * SECOND));
    fail(&*g, &set[0], 4, 100);
    assert!(!out(&set[0]));
    fail(&*g, &set[0], 1, 100);
    assert!(out(&set[0]) && !set[0].available(Moment(129 * SECOND)) && set[0].available(Moment(130 * SECOND)));
}

#[test]
fn what_counts_and_what_does_not() {
    let none = HeaderMap::new();
    let of = |o: &TryOutcome<'_>| verdict(o);
    for status in [200, 304, 400, 404, 429, 499] {
        assert_eq!(of(&answer(status, &none)), Verdict::Good, "{status}");
    }
    assert_eq!(of(&answer(500, &none)), Verdict::Error { gateway: false });
    assert_eq!(of(&answer(503, &none)), Verdict::Error { gateway: true });
    assert_eq!(of(&TryOutcome { grpc: Some(14), ..answer(200, &none) }), Verdict::Error { gateway: true });
    assert_eq!(of(&TryOutcome { grpc: Some(8), ..answer(200, &none) }), Verdict::Good);
    assert_eq!(of(&failure(Reason::ConnectFailed, Proof::NeverRan)), Verdict::Unreachable);
    assert_eq!(of(&failure(Reason::TryTimeout, Proof::MayHaveRun)), Verdict::Error { gateway: true });
    for reason in [Reason::ClientGone, Reason::Deadline, Reason::BreakerOpen, Reason::RefusedStream] {
        assert_eq!(of(&failure(reason, Proof::MayHaveRun)), Verdict::Nothing, "{reason}");
    }
}

#[test]
fn at_most_half_and_never_the_last() {
    let settings = |json: &str| -> Settings {
        bed::node(json).read::<Section>().and_then(|s| s.settings()).expect("a valid section")
    };
    let half = settings("{}");
    let cases = [(1, 0, false), (2, 0, true), (2, 1, false), (3, 0, true), (3, 1, false), (4, 1, true), (4, 2, false)];
    for (members, already, may) in cases {
        assert_eq!(may_eject(&half, members, already), may, "{already} of {members} are out");
    }
    assert!(!may_eject(&settings(r#"{"maxEjectionPercent":"100%"}"#), 3, 2), "one is kept");
    assert!(!may_eject(&settings(r#"{"maxEjectionPercent":"0%"}"#), 3, 0));
    let set = bed::endpoints(&[1; 10]);
    let g = gate(None);
    g.members(&set);
    set.iter().for_each(|e| fail(&*g, e, 50, 100));
    assert_eq!(set.iter().filter(|e| out(e)).count(), 5);
}

#[test]
fn two_threads_do_not_eject_the_last_two() {
    for _ in 0..50 {
        let set = bed::endpoints(&[1; 2]);
        let g = gate(None);
        g.members(&set);
        std::thread::scope(|s| {
            for e in &*set {
                s.spawn(|| fail(&*g, e, 5, 100));
            }
        });
        assert_eq!(set.iter().filter(|e| out(e)).count(), 1);
    }
}

#[test]
fn exactly_one_probe_among_eight_threads() {
    let set = bed::endpoints(&[1; 4]);
    let g = gate(None);
    g.members(&set);
    for round in 0..100u64 {
        set[0].state.ejected_until.store(1 + round, Relaxed);
        set[0].state.probing.store(false, Relaxed);
        let winners = AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| {
                    if g.picked(&set[0], Moment(1000 * SECOND)) {
                        winners.fetch_add(1, Relaxed);
                    }
                });
            }
        });
        assert_eq!(winners.load(Relaxed), 1);
        assert!(!set[0].available(Moment(1000 * SECOND)), "the probe is taken");
    }
}

#[test]
fn a_probe_brings_it_back_or_sends_it_off_for_longer() {
    let set = bed::endpoints(&[1; 4]);
    let g = gate(None);
    g.members(&set);
    let none = HeaderMap::new();
    let until = || set[0].state.ejected_until.load(Relaxed) / SECOND;
    fail(&*g, &set[0], 5, 100);
    assert_eq!(until(), 130);
    // What was under way before the ejection proves nothing.
    g.observe(&set[0], &TryOutcome { latency: Duration::from_secs(50), ..answer(200, &none) }, Moment(131 * SECOND));
    assert!(out(&set[0]));
    assert!(g.picked(&set[0], Moment(132 * SECOND)));
    g.observe(&set[0], &TryOutcome { latency: Duration::from_secs(60), ..answer(200, &none) }, Moment(132 * SECOND));
    assert!(out(&set[0]), "an old try is not the probe");
    fail(&*g, &set[0], 1, 133);
    assert_eq!(until(), 193, "second time: twice as long");
    assert!(g.picked(&set[0], Moment(200 * SECOND)));
    g.observe(&set[0], &answer(200, &none), Moment(201 * SECOND));
    assert!(!out(&set[0]) && set[0].available(Moment(201 * SECOND)));
    fail(&*g, &set[0], 5, 205);
    assert_eq!(until(), 205 + 90, "third time soon after");
    assert!(g.picked(&set[0], Moment(300 * SECOND)));
    g.observe(&set[0], &answer(204, &none), Moment(301 * SECOND));
    fail(&*g, &set[0], 5, 321);
    assert_eq!(until(), 321 + 60, "two intervals of peace forgive two");
    fail(&*g, &set[1], 5, 1000);
    assert!(set[1].state.ejected_until.load(Relaxed) / SECOND == 1030);
}

#[test]
fn ejections_are_capped() {
    let set = bed::endpoints(&[1; 4]);
    let g = gate(None);
    g.members(&set);
    let mut at = 100;
    fail(&*g, &set[0], 5, at);
    for _ in 0..40 {
        at = set[0].state.ejected_until.load(Relaxed) / SECOND + 1;
        assert!(g.picked(&set[0], Moment(at * SECOND)));
        fail(&*g, &set[0], 1, at);
    }
    assert_eq!(set[0].state.ejected_until.load(Relaxed) / SECOND, at + 300);
}

#[test]
fn a_probe_that_vanishes_makes_way() {
    let set = bed::endpoints(&[1; 4]);
    let g = gate(None);
    g.members(&set);
    fail(&*g, &set[0], 5, 100);
    assert!(g.picked(&set[0], Moment(140 * SECOND)));
    assert!(!g.picked(&set[0], Moment(145 * SECOND)));
    assert!(g.picked(&set[0], Moment(201 * SECOND)), "its caller left, nobody told");
    // Told, the next one may come at once.
    g.observe(&set[0], &failure(Reason::ClientGone, Proof::MayHaveRun), Moment(202 * SECOND));
    assert!(set[0].available(Moment(202 * SECOND)));
    let none = HeaderMap::new();
    g.observe(&set[0], &answer(200, &none), Moment(202 * SECOND));
    assert!(out(&set[0]), "nobody probes: this answer is to a try from before");
    assert!(g.picked(&set[0], Moment(202 * SECOND)));
}

#[test]
fn separate_counts() {
    let set = bed::endpoints(&[1; 4]);
    let none = HeaderMap::new();
    let split = gate(Some(
        r#"{"splitLocalOriginErrors":true,"consecutiveLocalOriginFailures":2,"consecutive5xx":0,"consecutiveGatewayErrors":3}"#,
    ));
    split.members(&set);
    fail(&*split, &set[0], 50, 1);
    assert!(!out(&set[0]), "500 is not counted");
    (0..3).for_each(|_| split.observe(&set[0], &answer(503, &none), Moment(SECOND)));
    assert!(out(&set[0]));
    (0..2).for_each(|_| split.observe(&set[1], &failure(Reason::ConnectFailed, Proof::NeverRan), Moment(SECOND)));
    assert!(out(&set[1]));
}

#[test]
fn off_lets_everybody_back() {
    let set = bed::endpoints(&[1; 4]);
    let on = gate(None);
    on.members(&set);
    fail(&*on, &set[0], 5, 100);
    let off = gate(Some(r#"{"enabled":false}"#));
    off.members(&set);
    fail(&*off, &set[0], 50, 100);
    assert!(!out(&set[0]));
}

#[test]
fn a_set_that_shrinks_to_those_that_are_out_gets_them_back() {
    let set = bed::endpoints(&[1; 4]);
    let g = gate(None);
    g.members(&set);
    fail(&*g, &set[0], 5, 100);
    g.members(&set[..1]);
    assert!(!out(&set[0]));
}

fn of(json: &str) -> Settings {
    bed::node(json).read::<Section>().and_then(|s| s.settings()).expect("a valid section")
}

fn interval(tries: u32, failed: u32) -> Interval {
    Interval { tries, failed }
}

#[test]
fn by_the_share_of_failures_with_a_least_number_of_tries_and_endpoints() {
    let s = of(r#"{"failurePercentageThreshold":"60%","failurePercentageMinimumHosts":3}"#);
    let good = interval(100, 5);
    assert_eq!(outliers(&s, &[good, interval(100, 60), good, interval(100, 59)]), [1]);
    assert_eq!(outliers(&s, &[good, interval(49, 49), good, good]), [0usize; 0], "too few tries");
    assert_eq!(outliers(&s, &[good, interval(50, 50), interval(9, 9)]), [0usize; 0], "too few endpoints");
    assert_eq!(outliers(&of("{}"), &[interval(100, 100); 9]), [0usize; 0], "not unless it is asked for");
}

#[test]
fn by_comparison_with_all_others() {
    let s = of(r#"{"successRateStdevFactor":1.9}"#);
    let mut all = [interval(200, 10); 10];
    assert_eq!(outliers(&s, &all), [0usize; 0], "all alike");
    all[3].failed = 40;
    assert_eq!(outliers(&s, &all), [3], "a fifth of failures among a twentieth");
    all[3].tries = 99;
    assert_eq!(outliers(&s, &all), [0usize; 0], "too few tries");
    assert_eq!(
        outliers(&s, &[interval(200, 200), interval(200, 0), interval(200, 0)]),
        [0usize; 0],
        "too few endpoints"
    );
    // Where all fail, nobody is worse.
    assert_eq!(outliers(&s, &[interval(200, 190); 10]), [0usize; 0]);
}

#[test]
fn an_endpoint_that_fails_now_and_then_goes_by_its_share_and_one_is_kept() {
    let none = HeaderMap::new();
    let set = bed::endpoints(&[1; 6]);
    let Role::Gate(build) = super::ENTRY.role else { panic!("a gate") };
    let json = r#"{"failurePercentageThreshold":"30%","consecutive5xx":0,"maxEjectionPercent":"100%"}"#;
    assert!(Bed::default().build(|b| build(Some(&bed::node(json)), b)).is_ok());
    let settings = of(json);
    let detector = super::Detector::new(settings, &Registry::default(), "stock");
    detector.members(&set);
    let round = |bad: usize, at: u64| {
        for (i, e) in set.iter().enumerate() {
            for n in 0..60 {
                let status = if i < bad && n % 2 == 0 { 503 } else { 200 };
                detector.observe(e, &answer(status, &none), Moment(at * SECOND));
                detector.observe(e, &failure(Reason::ClientGone, Proof::MayHaveRun), Moment(at * SECOND));
            }
        }
        detector.sweep(Moment(at * SECOND));
    };
    round(1, 100);
    assert_eq!(set.iter().map(|e| out(e)).collect::<Vec<_>>(), [true, false, false, false, false, false]);
    round(6, 110);
    assert_eq!(set.iter().filter(|e| out(e)).count(), 5, "one is kept");
    detector.sweep(Moment(120 * SECOND));
    assert_eq!(set.iter().filter(|e| out(e)).count(), 5, "a new interval begins empty");
}

#[test]
fn failures_to_connect_are_not_in_the_share_if_counted_apart() {
    let set = bed::endpoints(&[1]);
    let split = of(r#"{"splitLocalOriginErrors":true,"failurePercentageThreshold":"30%"}"#);
    super::core::tally(&split, &set[0].state, Verdict::Unreachable);
    assert_eq!(Interval::take(&set[0].state).tries, 0);
    super::core::tally(&of("{}"), &set[0].state, Verdict::Unreachable);
    assert_eq!(Interval::take(&set[0].state).failed, 1);
}

#[test]
fn a_passing_health_check_does_not_close_it() {
    let set = bed::endpoints(&[1; 4]);
    let g = gate(None);
    g.members(&set);
    fail(&*g, &set[0], 5, 100);
    set[0].state.health.store(1, Relaxed);
    assert!(out(&set[0]) && !set[0].available(Moment(101 * SECOND)));
}

#[test]
fn shares_that_make_no_sense() {
    for bad in [
        r#"{"failurePercentageThreshold":"0%"}"#,
        r#"{"successRateStdevFactor":0}"#,
        r#"{"successRateStdevFactor":-1.5}"#,
    ] {
        assert!(bed::node(bad).read::<Section>().and_then(|s| s.settings()).is_err(), "{bad}");
    }
}
