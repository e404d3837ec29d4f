//! Endpoints that die, close, or cannot cope.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::common::backend::{Backend, Mood};
use super::common::load::{Load, Plan};
use super::common::{Onehop, get};
use super::{forward, metric, sum, until};

#[test]
fn one_of_three_endpoints_dies_and_comes_back() {
    let app = [Mood::Slow(2), Mood::Slow(2), Mood::Slow(2)].map(Backend::start);
    let retry = ", retry: { attempts: 2, retryOn: [connect-failure, refused-stream, reset] }, \
                 outlierDetection: { consecutive5xx: 3, baseEjectionTime: 500ms, maxEjectionTime: 500ms }";
    for policy in ["peak-ewma", "round-robin"] {
        let more = format!("{retry}, loadBalancer: {{ policy: {policy} }}");
        let hop = Onehop::start(&forward(&app.each_ref(), &more));
        let pause = Duration::from_millis(3);
        let plan = Plan { clients: 6, pause, ..Plan::get(hop.at("web"), "/") };
        let loads = [Plan { h2: true, clients: 2, ..plan.clone() }, plan].map(Load::start);
        for load in &loads {
            load.wait_for(50);
        }
        for dying in &app {
            dying.kill();
            for load in &loads {
                load.wait_for(60);
            }
            let seen = dying.requests();
            dying.revive();
            until("the endpoint is used again", || dying.requests() > seen + 5);
        }
        for load in loads {
            load.stop().assert_clean(policy, 200);
        }
    }
}

#[test]
fn an_endpoint_that_closes_after_every_answer_costs_no_request() {
    let app = Backend::start(Mood::Closes);
    let hop = Onehop::start(&forward(&[&app], ""));
    let plan = Plan { clients: 8, pause: Duration::ZERO, ..Plan::get(hop.at("web"), "/") };
    let load = Load::start(plan);
    load.wait_for(1500);
    load.stop().assert_clean("closing endpoint", 1000);
}

#[test]
fn the_budget_bounds_retries_against_a_dying_service() {
    let app = Backend::start(Mood::Says(503));
    let more = ", retry: { attempts: 3, retryOn: [503], backoff: 1ms, budget: { percent: 20%, minPerSecond: 1 } }, \
                outlierDetection: { enabled: false }";
    let hop = Onehop::start(&forward(&[&app], more));
    let plan = Plan { clients: 4, pause: Duration::from_millis(1), wanted: &[503], ..Plan::get(hop.at("web"), "/") };
    let load = Load::start(plan);
    load.wait_for(1000);
    let tally = load.stop();
    tally.assert_clean("dying service", 500);
    let (asked, seen) = (tally.right(), app.requests());
    // 20 %, and what the floor grants in the seconds that this takes.
    assert!(seen <= asked + asked / 4 + 30, "{asked} requests became {seen}");
    assert!(seen > asked, "retries are still made");
}

#[test]
fn a_caller_that_leaves_frees_what_it_held() {
    let app = Backend::start(Mood::Endless);
    let hop = Onehop::start(&forward(&[&app], ", circuitBreaker: { maxRequests: 4, maxPending: 0 }"));
    for _ in 0..5 {
        let mut callers: Vec<TcpStream> = (0..4)
            .map(|_| {
                let mut caller = TcpStream::connect(hop.at("web")).expect("a connection");
                caller.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("a request");
                caller
            })
            .collect();
        for caller in &mut callers {
            let mut first = [0; 512];
            caller.read_exact(&mut first).expect("the answer begins");
            assert!(first.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&first));
        }
        assert_eq!(sum(&hop, "inflight"), 4);
        let refused = get(hop.at("web"), "localhost", "/");
        assert!(refused.status() == 503 && refused.text().contains("breaker-open"), "{}", refused.text());
        drop(callers);
        until("everything is released", || sum(&hop, "inflight") == 0);
        until("every place is free", || metric(&hop, "onehop_breaker_active{service=\"app\"}") == 0.0);
    }
}

#[test]
fn a_caller_that_leaves_before_the_answer_frees_what_it_held() {
    let app = Backend::start(Mood::Silent);
    let hop = Onehop::start(&forward(&[&app], ""));
    let mut caller = TcpStream::connect(hop.at("web")).expect("a connection");
    caller.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("a request");
    until("the request is with the endpoint", || sum(&hop, "inflight") == 1);
    drop(caller);
    until("it is released", || sum(&hop, "inflight") == 0);
}
