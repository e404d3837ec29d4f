//! One deadline from the edge to the endpoint: queue and pauses are within it, and what comes too late is not begun.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use tokio::time::Instant;

use super::common::backend::{Backend, Mood};
use super::common::{Endpoint, Onehop, get, get_with};
use super::{forward, until};

#[test]
fn what_expired_before_it_came_costs_nothing() {
    let app = Backend::start(Mood::Well);
    let yaml = forward(&[&app], "")
        .replace("bind: \"127.0.0.1:0\" } }\nroutes", "bind: \"127.0.0.1:0\", exposure: mesh } }\nroutes")
        .replace("to: app }]", "quota: [{ by: ip, limit: 1, per: 1h }], to: app }]");
    assert!(yaml.contains("exposure: mesh"), "{yaml}");
    let hop = Onehop::start(&yaml);
    let late = get_with(hop.at("web"), "localhost", "/", "x-onehop-timeout-ms: 0\r\n");
    assert!(late.status() == 504 && late.text().contains("\"deadline\""), "{}", late.text());
    assert_eq!(app.requests(), 0);
    assert_eq!(get(hop.at("web"), "localhost", "/").status(), 200, "the only request of the quota was left");
    assert_eq!(get(hop.at("web"), "localhost", "/").status(), 429);
}

#[test]
fn the_queue_is_within_the_deadline() {
    let app = Backend::start(Mood::Silent);
    let more = ", circuitBreaker: { maxRequests: 1, pendingTimeout: 30s }, retry: { attempts: 0 }";
    let yaml = forward(&[&app], more).replace("to: app }]", "timeouts: { request: 1s }, to: app }]");
    let hop = Onehop::start(&yaml);
    let mut held = TcpStream::connect(hop.at("web")).expect("a connection");
    held.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("a request");
    until("the place is taken", || app.requests() == 1);
    let late = get(hop.at("web"), "localhost", "/");
    assert_eq!(late.status(), 504, "{}", late.text());
    drop(held);
}

#[test]
fn a_retry_that_would_come_too_late_is_not_made() {
    let app = Backend::start(Mood::Says(503));
    let more = ", retry: { attempts: 3, retryOn: [503], backoff: 5s }";
    let yaml = forward(&[&app], more).replace("to: app }]", "timeouts: { request: 2s }, to: app }]");
    let hop = Onehop::start(&yaml);
    let begun = Instant::now();
    assert_eq!(get(hop.at("web"), "localhost", "/").status(), 503, "what the endpoint said, not a timeout");
    assert!(begun.elapsed() < Duration::from_millis(1500), "at once: {:?}", begun.elapsed());
    assert_eq!(app.requests(), 1);
}

#[test]
fn each_try_is_told_what_is_left_and_how_many_there_were() {
    let app = Endpoint::start(|head, _| {
        let answer = if head.contains("x-onehop-attempt: 2") { "200 OK" } else { "503 Busy" };
        format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n").into_bytes()
    });
    let yaml = super::head("")
        + &format!(
            "routes: [{{ name: all, timeouts: {{ request: 5s }}, to: app }}]\nservices: {{ app: {{ discover: {{ static: \
             [\"{}\"] }}, retry: {{ retryOn: [503], backoff: 200ms, perTryTimeout: 4s }} }} }}\n",
            app.address
        );
    let hop = Onehop::start(&yaml);
    assert_eq!(get(hop.at("web"), "localhost", "/").status(), 200);
    let heads = app.heads.lock().expect("no panic under the lock").clone();
    let left: Vec<u64> = heads
        .iter()
        .filter_map(|head| head.lines().find_map(|l| l.strip_prefix("x-onehop-timeout-ms: ")?.trim().parse().ok()))
        .collect();
    let [first, second] = left[..] else { panic!("two tries: {heads:?}") };
    // What a try is told is its own limit; it is never more than what is left of the request.
    assert!(first <= 4000 && second <= first && second <= 4800, "{left:?}");
    assert!(!heads[0].contains("x-onehop-attempt"), "{}", heads[0]);
}

#[test]
fn a_body_over_the_limit_goes_through_and_the_log_says_what_it_cost() {
    let app = Backend::start(Mood::Says(503));
    let more = ", retry: { attempts: 2, retryOn: [503], bodyLimit: 1KiB }";
    let hop = Onehop::start(&forward(&[&app], more));
    let body = "x".repeat(100_000);
    let put = format!(
        "PUT / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(super::common::exchange(hop.at("web"), put.as_bytes()).status(), 503);
    assert_eq!(app.requests(), 1, "it went through, once");
    until("the log says so", || hop.log().contains("no retry: more of the request body was sent than is kept"));
}
