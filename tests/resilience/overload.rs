//! More than there is room for.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use tokio::time::Instant;

use super::common::backend::{Backend, Mood, WORKERS};
use super::common::load::{Load, Plan};
use super::common::{Onehop, get, get_with};
use super::{forward, head, metric, until};

#[test]
fn the_queue_is_bounded_and_says_why() {
    let app = Backend::start(Mood::Silent);
    let more = ", circuitBreaker: { maxRequests: 2, maxPending: 3, pendingTimeout: 400ms }, retry: { attempts: 0 }";
    let hop = Onehop::start(&forward(&[&app], more));
    let web = hop.at("web");
    let held: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut caller = TcpStream::connect(web).expect("a connection");
            caller.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("a request");
            caller
        })
        .collect();
    until("both places are taken", || app.requests() == 2);
    let begun = Instant::now();
    let waiting: Vec<_> = (0..3).map(|_| std::thread::spawn(move || get(web, "localhost", "/"))).collect();
    until("the queue is full", || metric(&hop, "onehop_breaker_pending{service=\"app\"}") > 2.5);
    let asked = Instant::now();
    let refused = get(web, "localhost", "/");
    assert!(asked.elapsed() < Duration::from_millis(300), "a refusal waits for nothing: {:?}", asked.elapsed());
    assert!(refused.status() == 503 && refused.text().contains("pending-overflow"), "{}", refused.text());
    for late in waiting {
        let late = late.join().expect("no panic");
        assert!(late.status() == 503 && late.text().contains("pending-timeout"), "{}", late.text());
    }
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(app.requests(), 2, "nobody got past the cap");
    drop(held);
    // Its own mood again: the places come back.
    app.set(Mood::Well);
    until("the service answers", || get(web, "localhost", "/").status() == 200);
}

#[test]
fn a_better_plan_takes_the_turn_of_a_lesser_one() {
    let app = Backend::start(Mood::Silent);
    let more = ", circuitBreaker: { maxRequests: 1, maxPending: 1, pendingTimeout: 10s }, retry: { attempts: 0 }";
    let yaml = forward(&[&app], more).replace("to: app }]", "auth: { require: keys }, to: app }]")
        + "identities: { keys: { apiKey: { header: x-api-key } } }\n\
           plans: { free: { priority: low }, gold: { priority: high } }\n\
           consumers:\n  cheap: { apiKeys: [key-of-the-cheap-one], plan: free }\n  \
           dear: { apiKeys: [key-of-the-dear-one], plan: gold }\n  some: { apiKeys: [key-of-some-one] }\n";
    let hop = Onehop::start(&yaml);
    let web = hop.at("web");
    let ask = move |who: &'static str| {
        std::thread::spawn(move || get_with(web, "localhost", "/", &format!("x-api-key: key-of-{who}-one\r\n")))
    };
    let mut held = TcpStream::connect(web).expect("a connection");
    held.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nx-api-key: key-of-some-one\r\n\r\n").expect("a request");
    until("the place is taken", || app.requests() == 1);
    app.set(Mood::Well);
    let cheap = ask("the-cheap");
    until("one waits", || metric(&hop, "onehop_breaker_pending{service=\"app\"}") > 0.5);
    let dear = ask("the-dear");
    let cheap = cheap.join().expect("no panic");
    assert!(cheap.status() == 503 && cheap.text().contains("pending-overflow"), "{}", cheap.text());
    let refused = ask("some").join().expect("no panic");
    assert!(refused.status() == 503 && refused.text().contains("pending-overflow"), "{}", refused.text());
    drop(held);
    assert_eq!(dear.join().expect("no panic").status(), 200);
}

#[test]
fn an_overloaded_service_answers_as_fast_as_it_can() {
    let app = Backend::start(Mood::Slow(20));
    let more = ", circuitBreaker: { maxRequests: 4, maxPending: 4, pendingTimeout: 100ms }, retry: { attempts: 0 }";
    let hop = Onehop::start(&forward(&[&app], more));
    let plan = Plan { clients: 24, pause: Duration::ZERO, wanted: &[200, 503], ..Plan::get(hop.at("web"), "/") };
    let load = Load::start(plan);
    load.wait_for(1500);
    let tally = load.stop();
    tally.assert_clean("overload", 1000);
    assert!(tally.statuses[&200] > 20 && tally.statuses[&503] > 100, "{:?}", tally.statuses);
    assert!(tally.quantile(0.99) < Duration::from_millis(500), "p99 {:?}", tally.quantile(0.99));
    until("every place is free", || metric(&hop, "onehop_breaker_active{service=\"app\"}") == 0.0);
}

#[test]
fn a_service_that_is_asked_for_more_than_it_can_do_goes_on_doing_what_it_can() {
    let app = Backend::start(Mood::Narrow(20));
    let more = ", adaptiveConcurrency: { initialConcurrency: 40, minRtt: { interval: 5s } }, retry: { attempts: 0 }";
    let hop = Onehop::start(&forward(&[&app], more));
    let limit = || metric(&hop, "onehop_concurrency_limit{service=\"app\"}");
    let plan = Plan { pause: Duration::from_millis(5), wanted: &[200, 503], ..Plan::get(hop.at("web"), "/") };
    let load = Load::start(Plan { clients: 24, ..plan });
    // Ten times what it does at once, so every answer would take ten times as long.
    until("the limit falls to what the service can do", || limit() < 3.0 * WORKERS as f64);
    let (begun, before) = (load.so_far(), app.requests());
    until("it has done some work", || app.requests() > before + 300);
    let (ended, done) = (load.so_far(), app.requests() - before);
    let good = ended.statuses[&200] - begun.statuses[&200];
    // What it did was not in vain, and it had always something to do.
    assert!(good + 16 > done, "{good} good answers for {done} requests");
    assert!(ended.statuses.contains_key(&503), "too much was asked: {:?}", ended.statuses);
    let view: serde_json::Value = serde_json::from_str(&hop.admin_get("/endpoints").body()).expect("JSON");
    assert!(view["services"]["app"]["concurrency"]["limit"].as_u64() >= Some(WORKERS as u64), "{view}");
    // The limit outlives a reload.
    let learned = limit();
    let (status, text) = hop.reload(&forward(&[&app], &more.replace("interval: 5s", "interval: 6s")));
    assert_eq!(status, 200, "{text}");
    assert!(limit() < 3.0 * WORKERS as f64, "{learned} became {}", limit());
    load.stop().assert_clean("more than it can do", 300);
    until("every place is free", || metric(&hop, "onehop_concurrency_active{service=\"app\"}") == 0.0);
}

#[test]
fn connections_over_the_cap_are_closed() {
    let listener = ", limits: { connections: 3 }";
    let hop = Onehop::start(&(head(listener) + "routes: [{ name: pong, respond: { body: pong } }]\n"));
    let web = hop.at("web");
    let kept: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(web).expect("a connection")).collect();
    until("three are open", || metric(&hop, "onehop_connections_open{listener=\"web\"}") > 2.5);
    assert_eq!(get(web, "localhost", "/").status(), 0, "the fourth is closed");
    drop(kept);
    until("there is room again", || get(web, "localhost", "/").status() == 200);
    let over = "onehop_connections_total{listener=\"web\",outcome=\"over-limit\"}";
    assert!(metric(&hop, over) >= 1.0);
}
