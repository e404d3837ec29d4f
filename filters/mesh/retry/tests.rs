use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::budget::{Budget, Limits};
use super::config::{Section, Settings};
use super::core::judge;
use crate::contract::mesh::{Again, Judge, TryOutcome};
use crate::contract::{Moment, Proof, Reason, Role};
use crate::mesh::bed::{self, Bed, failure};

const SECOND: u64 = 1_000_000_000;

fn settings(json: &str) -> Settings {
    bed::node(json).read::<Section>().and_then(Section::settings).expect("a valid section")
}

fn wall() -> jiff::Timestamp {
    "1994-11-06T08:49:30Z".parse().expect("a timestamp")
}

struct Case<'a> {
    outcome: &'a TryOutcome<'a>,
    idempotent: bool,
    replayable: bool,
    tries: u32,
    deadline: u64,
}

fn case<'a>(outcome: &'a TryOutcome<'a>) -> Case<'a> {
    Case { outcome, idempotent: true, replayable: true, tries: 1, deadline: 60 * SECOND }
}

fn ask(s: &Settings, case: &Case<'_>) -> Again {
    let cx = Judge {
        now: Moment(0),
        deadline: Moment(case.deadline),
        tries: case.tries,
        idempotent: case.idempotent,
        replayable: case.replayable,
        outcome: case.outcome,
        seed: 1,
    };
    judge(s, &Budget::new(), &cx, wall)
}

fn again(s: &Settings, case: &Case<'_>) -> bool {
    matches!(ask(s, case), Again::After(_))
}

const NEVER: Proof = Proof::NeverRan;
const MAY: Proof = Proof::MayHaveRun;

#[test]
fn by_default_only_what_never_ran() {
    let s = settings("{}");
    assert_eq!(s.attempts, 1);
    for (reason, proof, expected) in [
        (Reason::ConnectFailed, NEVER, true),
        (Reason::ConnectTimeout, NEVER, true),
        (Reason::RefusedStream, NEVER, true),
        (Reason::Reset, NEVER, true),
        (Reason::Reset, MAY, false),
        (Reason::TryTimeout, MAY, false),
        (Reason::BreakerOpen, NEVER, false),
        (Reason::ClientGone, MAY, false),
        (Reason::Deadline, NEVER, false),
    ] {
        let outcome = failure(reason, proof);
        assert_eq!(again(&s, &case(&outcome)), expected, "{reason}");
        assert_eq!(again(&s, &Case { idempotent: false, ..case(&outcome) }), expected, "{reason} POST");
    }
    let none = HeaderMap::new();
    assert_eq!(ask(&s, &case(&bed::answer(503, &none))), Again::No("not-retriable"));
}

#[test]
fn classes() {
    let none = HeaderMap::new();
    let one = |class: &str| settings(&format!(r#"{{"retryOn":["{class}"]}}"#));
    let answered = |class: &str, status| again(&one(class), &case(&bed::answer(status, &none)));
    let failed = |class: &str, reason, proof| again(&one(class), &case(&failure(reason, proof)));
    assert!(answered("503", 503) && !answered("503", 500));
    assert!(answered("5xx", 500) && answered("gateway-error", 504) && !answered("gateway-error", 500));
    assert!(!answered("reset", 503), "a reset is not a 503");
    assert!(failed("reset", Reason::Reset, MAY) && failed("reset", Reason::TryTimeout, MAY));
    assert!(!failed("reset", Reason::ConnectFailed, NEVER) && failed("connect-failure", Reason::ConnectFailed, NEVER));
    assert!(!failed("503", Reason::Reset, MAY) && failed("5xx", Reason::Reset, MAY));
    assert!(failed("unavailable", Reason::ConnectFailed, NEVER) && !failed("unavailable", Reason::Reset, MAY));
    assert!(answered("retriable-4xx", 409) && !answered("retriable-4xx", 404));
    assert!(!answered("5xx", 200));
}

#[test]
fn grpc_codes_by_name_even_though_calls_are_posts() {
    let s = settings(r#"{"retryOn":["unavailable","cancelled"]}"#);
    let none = HeaderMap::new();
    for (code, expected) in [(14, true), (1, true), (13, false), (0, false)] {
        let outcome = TryOutcome { grpc: Some(code), ..bed::answer(200, &none) };
        assert_eq!(again(&s, &Case { idempotent: false, ..case(&outcome) }), expected, "{code}");
    }
}

#[test]
fn retriable_headers() {
    let s = settings(r#"{"retryOn":["retriable-headers"],"retriableHeaders":["x-try-again"]}"#);
    let mut headers = HeaderMap::new();
    assert!(!again(&s, &case(&bed::answer(400, &headers))));
    headers.insert("x-try-again", HeaderValue::from_static("1"));
    assert!(again(&s, &case(&bed::answer(400, &headers))));
}

#[test]
fn words_in_their_order() {
    let s = settings(r#"{"attempts":2,"retryOn":["503"],"budget":{"percent":"0%","minPerSecond":0}}"#);
    let none = HeaderMap::new();
    let outcome = bed::answer(503, &none);
    let word = |case: Case<'_>| match ask(&s, &case) {
        Again::No(word) => word,
        Again::After(_) => "retried",
    };
    let all = || Case { idempotent: false, replayable: false, tries: 3, deadline: 1, ..case(&outcome) };
    assert_eq!(word(all()), "unsafe");
    assert_eq!(word(Case { idempotent: true, ..all() }), "attempts");
    assert_eq!(word(Case { idempotent: true, tries: 2, ..all() }), "body");
    assert_eq!(word(Case { idempotent: true, tries: 2, replayable: true, ..all() }), "deadline");
    assert_eq!(word(case(&outcome)), "budget");
    let bold = settings(r#"{"retryOn":["503"],"retryNonIdempotent":true}"#);
    assert!(again(&bold, &Case { idempotent: false, ..case(&outcome) }));
}

#[test]
fn pauses_an_endpoint_asks_for() {
    let s = settings(r#"{"retryOn":["503"]}"#);
    let with = |name: &'static str, value: &'static str| {
        let headers = HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))]);
        ask(&s, &case(&bed::answer(503, &headers)))
    };
    assert_eq!(with("retry-after", "3"), Again::After(Duration::from_secs(3)));
    assert_eq!(with("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), Again::After(Duration::from_secs(7)));
    assert_eq!(with("retry-after", "600"), Again::No("pushback"));
    assert!(matches!(with("retry-after", "soon"), Again::After(d) if d < Duration::from_millis(51)));
    assert!(matches!(with("retry-after", "Sun, 06 Nov 1994 08:49:07 GMT"), Again::After(_)), "a date that is past");
    assert_eq!(with("grpc-retry-pushback-ms", "1500"), Again::After(Duration::from_millis(1500)));
    assert_eq!(with("grpc-retry-pushback-ms", "-1"), Again::No("pushback"));
    let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, HeaderValue::from_static("5"))]);
    let late = bed::answer(503, &headers);
    assert_eq!(ask(&s, &Case { deadline: 4 * SECOND, ..case(&late) }), Again::No("deadline"));
}

proptest! {
    #[test]
    fn backoff_keeps_its_bounds(tries in 1u32..100, seed: u64) {
        let s = settings(r#"{"attempts":1000,"retryOn":["503"],"backoff":"25ms"}"#);
        let none = HeaderMap::new();
        let outcome = bed::answer(503, &none);
        let cx = Judge { now: Moment(0), deadline: Moment::MAX, tries, idempotent: true, replayable: true, outcome: &outcome, seed };
        let Again::After(pause) = judge(&s, &Budget::new(), &cx, wall) else { panic!("worth a retry") };
        prop_assert!(pause >= Duration::from_millis(25) && pause <= Duration::from_millis(250), "{pause:?}");
    }

    #[test]
    fn the_budget_holds_whatever_the_order(steps in prop::collection::vec((0u64..400, any::<bool>()), 1..800)) {
        // Over any window of ten seconds: at most a fifth of its first tries, or the floor.
        let budget = Budget::new();
        let limits = Limits { percent: 0.2, min_per_second: 1, window: Duration::from_secs(10) };
        let (mut at, mut begun, mut retried) = (0u64, Vec::new(), Vec::new());
        for (ms, first) in steps {
            at += ms * 1_000_000;
            if first {
                budget.begin(Moment(at), limits.window);
                begun.push(at);
            } else if budget.take(Moment(at), &limits) {
                retried.push(at);
            }
            let since = |list: &[u64], window: u64| list.iter().filter(|t| **t + window * SECOND > at).count();
            // Counted by whole seconds: the window is nine to ten seconds long.
            prop_assert!(since(&retried, 9) <= (since(&begun, 10) / 5).max(10));
        }
    }
}

#[test]
fn late_retries_are_not_in_step() {
    let s = settings(r#"{"attempts":10,"retryOn":["503"]}"#);
    let none = HeaderMap::new();
    let outcome = bed::answer(503, &none);
    for tries in [1, 5, 9] {
        let mut pauses: Vec<u128> = (0..1000)
            .filter_map(|seed| {
                let cx = Judge {
                    now: Moment(0),
                    deadline: Moment::MAX,
                    tries,
                    idempotent: true,
                    replayable: true,
                    outcome: &outcome,
                    seed,
                };
                match judge(&s, &Budget::new(), &cx, wall) {
                    Again::After(d) => Some(d.as_micros()),
                    Again::No(_) => None,
                }
            })
            .collect();
        pauses.sort_unstable();
        let (low, high) = (pauses[0], pauses[999]);
        assert!(high - low > low * 8 / 10, "try {tries}: {low}..{high} us");
        let slot = (high - low) / 10 + 1;
        let crowd = (0..10).map(|i| pauses.iter().filter(|p| (**p - low) / slot == i).count()).max();
        assert!(crowd < Some(150), "try {tries}: {crowd:?} of 1000 in a tenth of the span");
    }
}

#[test]
fn the_budget_outlives_a_reload() {
    let Role::Retry(build) = super::ENTRY.role else { panic!("a retry policy") };
    let mut bed = Bed::default();
    let outcome = failure(Reason::ConnectFailed, NEVER);
    let cx = || Judge {
        now: Moment(SECOND),
        deadline: Moment::MAX,
        tries: 1,
        idempotent: false,
        replayable: true,
        outcome: &outcome,
        seed: 3,
    };
    let section = bed::node(r#"{"budget":{"percent":"20%","minPerSecond":1}}"#);
    let before = bed.build(|b| build(Some(&section), b)).expect("valid");
    let granted = (0..50).filter(|_| matches!(before.judge(&cx()), Again::After(_))).count();
    assert_eq!(granted, 10);
    let after = bed.build(|b| build(Some(&section), b)).expect("valid");
    assert_eq!(after.judge(&cx()), Again::No("budget"));
    let count = |outcome| {
        bed.metrics.counter("onehop_retries_total", "", &[("service", "stock"), ("outcome", outcome)]).value()
    };
    assert_eq!((count("retried"), count("budget")), (10, 41));
}

#[test]
fn sections() {
    for bad in [
        r#"{"retryOn":["conect-failure"]}"#,
        r#"{"retryOn":[200]}"#,
        r#"{"retries":3}"#,
        r#"{"backoff":"1s","maxBackoff":"10ms"}"#,
        r#"{"perTryTimeout":"0s"}"#,
        r#"{"retriableHeaders":["a b"]}"#,
        r#"{"budget":{"percent":"120%"}}"#,
        r#"{"budget":{"interval":"0s"}}"#,
        r#"{"hedge":{}}"#,
        r#"{"hedge":{"after":"0s"}}"#,
        r#"{"hedge":{"after":"50ms","max":0}}"#,
        r#"{"hedge":{"after":"50ms","max":6}}"#,
        r#"{"hedge":{"after":"50ms"},"attempts":0}"#,
    ] {
        assert!(bed::node(bad).read::<Section>().and_then(Section::settings).is_err(), "{bad}");
    }
    let all = settings(
        r#"{"attempts":2,"retryOn":["connect-failure","refused-stream","reset",503,"502"],"backoff":"25ms","perTryTimeout":"900ms","budget":{"percent":"20%","minPerSecond":10},"bodyLimit":"64KiB"}"#,
    );
    assert_eq!((all.attempts, all.body_limit, all.per_try_timeout), (2, 65536, Some(Duration::from_millis(900))));
}

#[test]
fn the_default_written_out_is_the_default() {
    let (silent, written) = (settings("{}"), settings(r#"{"retryOn":["never-ran"]}"#));
    for reason in Reason::ALL.iter().copied() {
        for proof in [Proof::NeverRan, Proof::MayHaveRun] {
            let outcome = failure(reason, proof);
            let (a, b) = (ask(&silent, &case(&outcome)), ask(&written, &case(&outcome)));
            assert_eq!(format!("{a:?}"), format!("{b:?}"), "{reason} {proof:?}");
        }
    }
}

#[test]
fn hedges_come_out_of_the_same_budget() {
    let Role::Retry(build) = super::ENTRY.role else { panic!("a retry policy") };
    let mut bed = Bed::default();
    let text = r#"{"retryOn":["503"],"hedge":{"after":"50ms"},"budget":{"percent":"20%","minPerSecond":1}}"#;
    let policy = bed.build(|b| build(Some(&bed::node(text)), b)).expect("valid");
    let hedge = policy.hedge(true).expect("configured");
    assert_eq!((hedge.after, hedge.max), (Duration::from_millis(50), 1));
    assert_eq!(policy.hedge(false), None, "not for methods that are not idempotent");
    let now = Moment(SECOND);
    assert_eq!((0..50).filter(|_| policy.grants(now)).count(), 10);
    let none = HeaderMap::new();
    let outcome = bed::answer(503, &none);
    let cx =
        Judge { now, deadline: Moment::MAX, tries: 1, idempotent: true, replayable: true, outcome: &outcome, seed: 1 };
    assert_eq!(policy.judge(&cx), Again::No("budget"));
    let labels = [("service", "stock"), ("outcome", "hedged")];
    assert_eq!(bed.metrics.counter("onehop_retries_total", "", &labels).value(), 10);
    let bold = r#"{"retryNonIdempotent":true,"hedge":{"after":"50ms","max":2}}"#;
    let bold = Bed::default().build(|b| build(Some(&bed::node(bold)), b)).expect("valid");
    assert_eq!(bold.hedge(false).map(|h| h.max), Some(2));
}

mod storm;
