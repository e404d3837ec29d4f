//! The breaker: when it opens, whom it lets through, and how it closes.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use http::HeaderMap;

use super::super::config::Section;
use super::super::trip::{Cause, Phase, Settings, Trip, Turn};
use super::{gate, reason};
use crate::contract::mesh::{Admit, Switch, TryOutcome};
use crate::contract::principal::Priority::Normal;
use crate::contract::{Moment, Proof, Reason};
use crate::mesh::bed::{self, Bed, answer, failure};
use crate::mesh::chance::Dice;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn settings(json: &str) -> Settings {
    let section: Section = bed::node(&format!(r#"{{"trip":{json}}}"#)).read().expect("valid");
    section.trip.expect("written").settings().expect("valid")
}

fn took(ms: u64, outcome: TryOutcome<'_>) -> TryOutcome<'_> {
    TryOutcome { latency: Duration::from_millis(ms), ..outcome }
}

#[test]
fn it_opens_at_the_share_and_not_before_the_least_number() {
    let none = HeaderMap::new();
    let s = settings("{}");
    let trip = Trip::new(1);
    for _ in 0..19 {
        assert_eq!(trip.observe(&s, &answer(500, &none), Moment(SECOND)), Turn::None, "too few");
    }
    assert_eq!(trip.observe(&s, &answer(503, &none), Moment(SECOND)), Turn::Opened(Cause::Failures));
    assert!(trip.refuses(Moment(15 * SECOND)) && !trip.enter(Moment(15 * SECOND)), "for fifteen seconds, and a little");
    assert!(!trip.refuses(Moment(18 * SECOND)));
    let mixed = Trip::new(1);
    for i in 0..100 {
        let status = if i % 5 < 3 { 200 } else { 500 };
        assert_eq!(mixed.observe(&s, &answer(status, &none), Moment(SECOND)), Turn::None, "four of ten");
    }
}

#[test]
fn what_is_no_failure() {
    let none = HeaderMap::new();
    let s = settings("{}");
    let trip = Trip::new(1);
    for _ in 0..100 {
        for outcome in [
            answer(429, &none),
            answer(404, &none),
            TryOutcome { grpc: Some(8), ..answer(200, &none) },
            failure(Reason::ClientGone, Proof::MayHaveRun),
            failure(Reason::Deadline, Proof::MayHaveRun),
            failure(Reason::RefusedStream, Proof::NeverRan),
            failure(Reason::PendingOverflow, Proof::NeverRan),
        ] {
            assert_eq!(trip.observe(&s, &outcome, Moment(SECOND)), Turn::None);
        }
    }
    // A fifth of what was counted.
    (0..99).for_each(|_| assert_eq!(trip.observe(&s, &answer(500, &none), Moment(SECOND)), Turn::None));
}

#[test]
fn slow_tries_open_it_by_their_share() {
    let none = HeaderMap::new();
    let s = settings(r#"{"slowRatio":"10%","slowerThan":"800ms"}"#);
    assert_eq!(s.failures, None, "only what was asked for");
    let trip = Trip::new(1);
    for _ in 0..45 {
        assert_eq!(trip.observe(&s, &took(799, answer(500, &none)), Moment(SECOND)), Turn::None);
    }
    for _ in 0..4 {
        assert_eq!(trip.observe(&s, &took(800, answer(200, &none)), Moment(SECOND)), Turn::None);
    }
    // A caller whose patience ended after so long saw a slow service.
    let late = failure(Reason::Deadline, Proof::MayHaveRun);
    assert_eq!(trip.observe(&s, &took(900, late), Moment(SECOND)), Turn::Opened(Cause::Slow));
    let both = settings(r#"{"failureRatio":"50%","slowerThan":"1s"}"#);
    assert_eq!((both.failures, both.slow.map(|(share, _)| share)), (Some(0.5), Some(0.5)));
}

#[test]
fn the_window_slides() {
    let none = HeaderMap::new();
    let s = settings(r#"{"window":"10s"}"#);
    let trip = Trip::new(1);
    for second in 0..60 {
        // Nineteen in each window.
        let n = if second % 10 == 0 { 19 } else { 0 };
        (0..n).for_each(|_| {
            assert_eq!(trip.observe(&s, &answer(500, &none), Moment((100 + second) * SECOND)), Turn::None);
        });
    }
    assert_ne!(trip.observe(&s, &answer(500, &none), Moment(155 * SECOND)), Turn::None, "the twentieth in ten seconds");
}

/// Opened at one second, half-open at eighteen.
fn opened(s: &Settings) -> Trip {
    let none = HeaderMap::new();
    let trip = Trip::new(1);
    (0..20).for_each(|_| {
        trip.observe(s, &answer(500, &none), Moment(SECOND));
    });
    assert_eq!(trip.phase(), Phase::Open);
    trip
}

#[test]
fn exactly_one_probe_among_eight_threads() {
    let s = settings("{}");
    for _ in 0..100 {
        let trip = opened(&s);
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        if trip.enter(Moment(18 * SECOND)) {
                            inside.fetch_add(1, Relaxed);
                            trip.picked(Moment(18 * SECOND));
                        }
                    }
                });
            }
        });
        assert_eq!((inside.load(Relaxed), trip.phase()), (1, Phase::Probing));
    }
}

#[test]
fn the_probe_decides_and_nobody_else() {
    let none = HeaderMap::new();
    let s = settings("{}");
    let trip = opened(&s);
    let now = Moment(18 * SECOND);
    assert!(trip.enter(now));
    trip.picked(now);
    let later = Moment(19 * SECOND);
    assert_eq!(trip.observe(&s, &took(10_000, answer(200, &none)), later), Turn::None, "from before it opened");
    assert_eq!(trip.observe(&s, &took(1000, failure(Reason::ClientGone, Proof::MayHaveRun)), later), Turn::None);
    assert!(trip.enter(later), "its caller left: another may go at once");
    trip.picked(later);
    assert_eq!(trip.observe(&s, &took(500, answer(502, &none)), Moment(19_500 * MS)), Turn::Opened(Cause::Probe));
    assert!(trip.refuses(Moment(30 * SECOND)));
    let again = Moment(40 * SECOND);
    assert!(trip.enter(again), "and again");
    trip.unpicked();
    assert!(trip.enter(again), "there was no endpoint for it: another may go at once");
    trip.picked(again);
    assert_eq!(trip.observe(&s, &took(100, answer(429, &none)), Moment(40_100 * MS)), Turn::Closed, "it lives");
    // What was counted before is over.
    for _ in 0..19 {
        assert_eq!(trip.observe(&s, &answer(500, &none), Moment(42 * SECOND)), Turn::None);
    }
    assert_eq!((trip.phase(), trip.times()), (Phase::Closed, 2));
}

#[test]
fn a_slow_probe_keeps_it_open() {
    let none = HeaderMap::new();
    let s = settings(r#"{"failureRatio":"50%","slowerThan":"1s"}"#);
    let trip = opened(&s);
    let now = Moment(18 * SECOND);
    assert!(trip.enter(now));
    trip.picked(now);
    assert_eq!(trip.observe(&s, &took(1500, answer(200, &none)), Moment(19_500 * MS)), Turn::Opened(Cause::Probe));
}

#[test]
fn the_gate_refuses_at_once_and_says_until_when() {
    let mut bed = Bed::default();
    let g = gate(&mut bed, r#"{"maxRequests":1,"trip":{"minRequests":2,"openFor":"3s"}}"#).expect("acts");
    let endpoint = &bed::endpoints(&[1])[0];
    let none = HeaderMap::new();
    let at = |ms: u64| Moment((1000 + ms) * MS);
    for _ in 0..2 {
        assert!(matches!(g.admit(at(0), Normal), Admit::Yes));
        assert!(g.picked(endpoint, at(0)));
        g.observe(endpoint, &answer(500, &none), at(5));
        g.release(Some(endpoint));
    }
    let Admit::No(fault) = g.admit(at(100), Normal) else { panic!("open") };
    assert_eq!((fault.reason, fault.proof), (Reason::BreakerOpen, Proof::NeverRan));
    assert!(fault.headers.is_some_and(|h| h["retry-after"] == "3" || h["retry-after"] == "4"));
    let view = g.view(at(100)).expect("a breaker");
    assert_eq!((view.0, &view.1["state"]), ("breaker", &"open".into()));
    let gauge = |bed: &Bed, name| bed.metrics.gauge(name, "", &[("service", "stock")]).value();
    assert_eq!((gauge(&bed, "onehop_breaker_state"), gauge(&bed, "onehop_breaker_active")), (2, 0));
    // A reload keeps it open; and the probe goes on under the new config.
    let g = gate(&mut bed, r#"{"maxRequests":1,"trip":{"minRequests":3,"openFor":"3s"}}"#).expect("acts");
    assert_eq!(reason(g.admit(at(2000), Normal)), Some(Reason::BreakerOpen));
    assert!(matches!(g.admit(at(4000), Normal), Admit::Yes));
    assert_eq!(gauge(&bed, "onehop_breaker_state"), 1);
    assert!(g.picked(endpoint, at(4000)));
    g.observe(endpoint, &answer(200, &none), at(4005));
    g.release(Some(endpoint));
    assert_eq!(gauge(&bed, "onehop_breaker_state"), 0);
    let trips = bed.metrics.counter("onehop_breaker_trips_total", "", &[("service", "stock"), ("cause", "failures")]);
    assert_eq!(trips.value(), 1);
}

#[tokio::test]
async fn who_waits_for_a_place_is_not_let_through_an_open_breaker() {
    let mut bed = Bed::default();
    let g = gate(&mut bed, r#"{"maxRequests":1,"trip":{"minRequests":1}}"#).expect("acts");
    let endpoint = &bed::endpoints(&[1])[0];
    let none = HeaderMap::new();
    let now = crate::contract::now();
    assert!(matches!(g.admit(now, Normal), Admit::Yes));
    let Admit::Wait(waits) = g.admit(now, Normal) else { panic!("waits") };
    g.observe(endpoint, &answer(500, &none), now);
    g.release(Some(endpoint));
    assert_eq!(waits.await.expect_err("open").reason, Reason::BreakerOpen);
    assert_eq!(bed.metrics.gauge("onehop_breaker_active", "", &[("service", "stock")]).value(), 0);
}

#[test]
fn an_operator_may_hold_it_closed() {
    let mut bed = Bed::default();
    let g = gate(&mut bed, r#"{"trip":{"minRequests":2}}"#).expect("acts");
    let endpoint = &bed::endpoints(&[1])[0];
    let none = HeaderMap::new();
    let now = crate::contract::now();
    (0..2).for_each(|_| g.observe(endpoint, &answer(500, &none), now));
    assert_eq!(reason(g.admit(now, Normal)), Some(Reason::BreakerOpen));
    g.switch(Switch::Closed);
    (0..50).for_each(|_| g.observe(endpoint, &answer(500, &none), now));
    assert!(matches!(g.admit(now, Normal), Admit::Yes));
    g.switch(Switch::Auto);
    assert!(matches!(g.admit(now, Normal), Admit::Yes), "it begins anew");
}

#[test]
fn sections() {
    for bad in [
        r#"{"failureRatio":"0%"}"#,
        r#"{"slowRatio":"10%"}"#,
        r#"{"slowerThan":"0s"}"#,
        r#"{"window":"0s"}"#,
        r#"{"openFor":"0s"}"#,
        r#"{"minRequests":0}"#,
        r#"{"errorRatio":"5%"}"#,
    ] {
        let section = bed::node(&format!(r#"{{"trip":{bad}}}"#)).read::<Section>();
        assert!(section.and_then(|s| s.trip.expect("written").settings()).is_err(), "{bad}");
    }
}

/// A service that is ill for a minute, called a hundred times a second: what reaches it, and when it is back.
#[test]
fn a_service_that_is_ill_is_spared_and_found_again() {
    let none = HeaderMap::new();
    let s = settings("{}");
    for seed in 0..20 {
        let trip = Trip::new(seed);
        let mut dice = Dice::new(seed);
        let (mut ill, mut back) = (0, None);
        for i in 0..20_000u64 {
            let now = Moment((1000 + i * 10) * MS);
            let healthy = !(2000..8000).contains(&i);
            if !trip.enter(now) {
                continue;
            }
            trip.picked(now);
            let status = if healthy || dice.fraction() < 0.05 { 200 } else { 500 };
            if !healthy {
                ill += 1;
            } else if i >= 8000 {
                back.get_or_insert(i - 8000);
            }
            trip.observe(&s, &took(1, answer(status, &none)), now + Duration::from_millis(1));
        }
        // Of six thousand: those it took to see it, twice or thrice if a probe was lucky.
        assert!(ill < 2200, "seed {seed}: {ill} tries reached it");
        assert!(back.is_some_and(|n| n <= 1650), "seed {seed}: back after {back:?} tries");
    }
}
