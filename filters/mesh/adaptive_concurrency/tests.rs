mod simulation;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use super::config::Section;
use super::core::Limiter;
use crate::contract::mesh::{Admit, Gate, TryOutcome};
use crate::contract::principal::Priority::Normal;
use crate::contract::{Moment, Proof, Reason, Role};
use crate::mesh::bed::{self, Bed, answer, failure};

const MS: u64 = 1_000_000;

fn gate(bed: &mut Bed, json: &str) -> Arc<dyn Gate> {
    let Role::Gate(build) = super::ENTRY.role else { panic!("a gate") };
    bed.build(|b| build(Some(&bed::node(json)), b)).expect("a valid section").expect("a gate")
}

fn limit(bed: &Bed) -> i64 {
    bed.metrics.gauge("onehop_concurrency_limit", "", &[("service", "stock")]).value()
}

#[test]
fn nothing_without_the_key() {
    let Role::Gate(build) = super::ENTRY.role else { panic!("a gate") };
    assert!(Bed::default().build(|b| build(None, b)).expect("valid").is_none());
}

#[test]
fn sections() {
    for bad in [
        r#"{"minConcurrency":0}"#,
        r#"{"minConcurrency":10,"maxConcurrency":9}"#,
        r#"{"percentile":"0%"}"#,
        r#"{"percentile":"100%"}"#,
        r#"{"window":"0s"}"#,
        r#"{"minRtt":{"interval":"0s"}}"#,
        r#"{"pendingTarget":"0s"}"#,
        r#"{"limit":9}"#,
    ] {
        assert!(bed::node(bad).read::<Section>().and_then(|s| s.meaning()).is_err(), "{bad}");
    }
    let all = r#"{"minConcurrency":2,"maxConcurrency":50,"initialConcurrency":90,"pendingTarget":"5ms"}"#;
    let meaning = bed::node(all).read::<Section>().and_then(|s| s.meaning()).expect("valid");
    assert_eq!((meaning.limits.min, meaning.limits.max, meaning.limits.initial), (2.0, 50.0, 50.0));
    assert_eq!(meaning.target, Some(Duration::from_millis(5)));
}

#[tokio::test]
async fn what_is_too_much_waits_or_is_refused() {
    let mut bed = Bed::default();
    let g = gate(&mut bed, r#"{"initialConcurrency":4,"maxPending":1,"pendingTimeout":"50ms"}"#);
    let now = crate::contract::now();
    (0..4).for_each(|_| assert!(matches!(g.admit(now, Normal), Admit::Yes)));
    let Admit::Wait(waits) = g.admit(now, Normal) else { panic!("waits") };
    let Admit::No(fault) = g.admit(now, Normal) else { panic!("the queue is full") };
    assert_eq!(
        (fault.reason, fault.proof, fault.by),
        (Reason::PendingOverflow, Proof::NeverRan, "adaptiveConcurrency")
    );
    assert_eq!(waits.await.expect_err("nobody leaves").reason, Reason::PendingTimeout);
    let view = g.view(now).expect("a view");
    assert_eq!((view.0, &view.1["limit"], &view.1["active"]), ("concurrency", &4.into(), &4.into()));
    (0..4).for_each(|_| g.release(None));
    assert_eq!(g.view(now).expect("a view").1["active"], 0);
}

/// One window of answers that take so long, with all places taken. Returns its end.
fn window(g: &dyn Gate, from: u64, ms: u64) -> u64 {
    let none = HeaderMap::new();
    let endpoint = &bed::endpoints(&[1])[0];
    let mut at = from;
    // Over the longest window there is.
    for _ in 0..60 {
        at += 50 * MS;
        while matches!(g.admit(Moment(at), Normal), Admit::Yes) {}
        let outcome = TryOutcome { latency: Duration::from_millis(ms), ..answer(200, &none) };
        (0..4).for_each(|_| g.observe(endpoint, &outcome, Moment(at)));
    }
    at
}

#[test]
fn a_service_that_became_slower_for_good_is_not_starved() {
    let mut bed = Bed::default();
    let g = gate(&mut bed, r#"{"initialConcurrency":40,"maxPending":0}"#);
    let mut at = window(&*g, 0, 10);
    at = window(&*g, at, 10);
    let before = limit(&bed);
    assert!(before >= 40, "fast answers raise it: {before}");
    for _ in 0..4 {
        at = window(&*g, at, 60);
    }
    // It is slower whatever is let in: less would help nobody.
    assert!(limit(&bed) >= 40, "{}", limit(&bed));
}

#[test]
fn what_tells_nothing_changes_nothing() {
    let mut bed = Bed::default();
    let g = gate(&mut bed, "{}");
    let endpoint = &bed::endpoints(&[1])[0];
    let none = HeaderMap::new();
    for i in 1..2000u64 {
        let now = Moment(i * 10 * MS);
        for outcome in [
            answer(500, &none),
            answer(429, &none),
            TryOutcome { grpc: Some(8), ..answer(200, &none) },
            failure(Reason::ConnectFailed, Proof::NeverRan),
            failure(Reason::ClientGone, Proof::MayHaveRun),
        ] {
            g.observe(endpoint, &outcome, now);
        }
    }
    assert_eq!(g.view(Moment(0)).expect("a view").1["min_rtt_ms"], 0.0);
    assert_eq!(limit(&bed), 20);
}

#[test]
fn a_reload_keeps_what_was_learned() {
    let mut bed = Bed::default();
    let g = gate(&mut bed, r#"{"maxPending":0}"#);
    let mut at = 0;
    for _ in 0..4 {
        at = window(&*g, at, 10);
    }
    let learned = limit(&bed);
    assert!(learned > 30, "{learned}");
    let _again = gate(&mut bed, r#"{"maxPending":10}"#);
    assert_eq!(limit(&bed), learned);
    let _lower = gate(&mut bed, r#"{"maxConcurrency":25,"maxPending":10}"#);
    assert_eq!(limit(&bed), 25);
}

#[test]
fn windows_need_samples_and_time() {
    let settings = bed::node("{}").read::<Section>().and_then(|s| s.meaning()).expect("valid").limits;
    let limiter = Limiter::new(&settings, 1);
    let latency = Duration::ZERO;
    for i in 0..49 {
        assert_eq!(limiter.sample(&settings, latency, Moment((1000 + i) * MS)), None, "too soon");
    }
    assert_eq!(limiter.sample(&settings, latency, Moment(1099 * MS)), None, "enough for a window, not for the first");
    for _ in 0..49 {
        assert_eq!(limiter.sample(&settings, latency, Moment(1100 * MS)), None, "not quite enough");
    }
    assert!(limiter.sample(&settings, latency, Moment(1100 * MS)).is_some());
    for i in 0..19 {
        assert_eq!(limiter.sample(&settings, latency, Moment((2000 + i * 1000) * MS)), None, "too few");
    }
    assert!(limiter.sample(&settings, latency, Moment(30_000 * MS)).is_some(), "few, but all there are");
}
