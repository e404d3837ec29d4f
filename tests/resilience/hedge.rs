//! Another try beside one that is slow.

use std::time::Duration;

use tokio::time::Instant;

use super::common::backend::{Backend, Mood};
use super::common::{Onehop, exchange, get};
use super::{forward, metric, sum, until};

const BUDGET: &str = "budget: { percent: 100%, minPerSecond: 100 }";

fn config(backends: &[&Backend], retry: &str) -> String {
    let more = format!(
        ", retry: {{ {retry} }}, loadBalancer: {{ policy: round-robin }}, outlierDetection: {{ enabled: false }}"
    );
    forward(backends, &more).replace("to: app }]", "timeouts: { request: 600ms }, to: app }]")
}

#[test]
fn one_slow_endpoint_of_two_is_not_waited_for() {
    let app = [Mood::Silent, Mood::Well].map(Backend::start);
    let hop = Onehop::start(&config(&app.each_ref(), &format!("hedge: {{ after: 30ms }}, {BUDGET}")));
    for _ in 0..20 {
        let answer = get(hop.at("web"), "localhost", "/");
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    assert_eq!(app[1].requests(), 20, "each is answered once");
    let hedged = metric(&hop, "onehop_retries_total{service=\"app\",outcome=\"hedged\"}");
    assert!(hedged >= 5.0 && app[0].requests() as f64 <= hedged, "{hedged} of {}", app[0].requests());
    // Those that lost are over: nothing is left in flight.
    until("nothing is in flight", || sum(&hop, "inflight") == 0);
}

#[test]
fn a_bad_answer_does_not_win_against_one_that_is_still_to_come() {
    let app = [Mood::Slow(150), Mood::Says(503)].map(Backend::start);
    let hop = Onehop::start(&config(&app.each_ref(), &format!("hedge: {{ after: 20ms }}, {BUDGET}")));
    let answers: Vec<u16> = (0..8).map(|_| get(hop.at("web"), "localhost", "/").status()).collect();
    // A quick 503 comes before any hedge and is no matter of hedging; who began with the slow one gets its answer.
    assert!(answers.iter().filter(|s| **s == 200).count() >= 3, "{answers:?}");
    assert_eq!(answers.iter().filter(|s| **s == 200).count(), app[0].requests(), "{answers:?}");
}

#[test]
fn hedges_are_for_idempotent_requests_and_within_the_budget() {
    let app = Backend::start(Mood::Silent);
    let hop = Onehop::start(&config(&[&app], &format!("hedge: {{ after: 30ms, max: 2 }}, {BUDGET}")));
    let begun = Instant::now();
    assert_eq!(get(hop.at("web"), "localhost", "/").status(), 504);
    assert!(begun.elapsed() < Duration::from_secs(4), "one deadline for all of them");
    assert_eq!(app.requests(), 3);
    let post = b"POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi";
    assert_eq!(exchange(hop.at("web"), post).status(), 504);
    assert_eq!(app.requests(), 4, "a POST goes out once");
    let put = b"PUT / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi";
    assert_eq!(exchange(hop.at("web"), put).status(), 504);
    assert_eq!(app.requests(), 7, "a body that was kept goes out with each");
    let poor = Onehop::start(&config(&[&app], "hedge: { after: 30ms }, budget: { percent: 0%, minPerSecond: 0 }"));
    assert_eq!(get(poor.at("web"), "localhost", "/").status(), 504);
    assert_eq!(app.requests(), 8, "nothing in the budget");
}
