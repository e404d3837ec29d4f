//! Services that are left alone for a while: because they fail, or because an operator says so.

use super::common::backend::{Backend, Mood};
use super::common::{Answer, Onehop, exchange, get};
use super::{forward, metric, until};

fn put(hop: &Onehop, path: &str, body: &str) -> Answer {
    let head = format!("PUT {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    exchange(hop.admin(), format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes())
}

fn breaker(hop: &Onehop) -> serde_json::Value {
    let view: serde_json::Value = serde_json::from_str(&hop.admin_get("/endpoints").body()).expect("JSON");
    view["services"]["app"]["breaker"].clone()
}

#[test]
fn a_failing_service_is_left_alone_and_probed_by_one_request() {
    let app = Backend::start(Mood::Says(500));
    let more = ", circuitBreaker: { trip: { minRequests: 10, openFor: 700ms } }, outlierDetection: { enabled: false }";
    let hop = Onehop::start(&forward(&[&app], more));
    let web = hop.at("web");
    (0..10).for_each(|_| assert_eq!(get(web, "localhost", "/").status(), 500));
    let refused = get(web, "localhost", "/");
    assert!(refused.status() == 503 && refused.text().contains("breaker-open"), "{}", refused.text());
    assert!(refused.header("retry-after").is_some(), "{}", refused.text());
    assert_eq!(app.requests(), 10);
    assert_eq!(breaker(&hop)["state"], "open");
    assert!(metric(&hop, "onehop_breaker_state{service=\"app\"}") > 1.5);
    // A reload forgets nothing.
    let (status, text) = hop.reload(&forward(&[&app], &more.replace("minRequests: 10", "minRequests: 9")));
    assert_eq!(status, 200, "{text}");
    assert_ne!(breaker(&hop)["state"], "closed");
    // The probe never ends: nobody else gets through.
    app.set(Mood::Silent);
    let probe = std::net::TcpStream::connect(web).expect("a connection");
    until("the breaker is half-open", || {
        use std::io::Write as _;
        if breaker(&hop)["state"] == "half-open" {
            let _ = (&probe).write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
            true
        } else {
            false
        }
    });
    until("the probe is out", || app.requests() == 11);
    (0..10).for_each(|_| assert_eq!(get(web, "localhost", "/").status(), 503));
    assert_eq!(app.requests(), 11);
    // Its caller leaves: the next one is the probe, and closes the breaker.
    app.set(Mood::Well);
    drop(probe);
    until("the service is back", || get(web, "localhost", "/").status() == 200);
    assert_eq!(breaker(&hop)["state"], "closed");
    (0..10).for_each(|_| assert_eq!(get(web, "localhost", "/").status(), 200));
}

#[test]
fn an_operator_opens_and_closes_any_breaker() {
    let app = Backend::start(Mood::Well);
    let hop = Onehop::start(&forward(&[&app], ""));
    let web = hop.at("web");
    assert_eq!(get(web, "localhost", "/").status(), 200);
    let said = put(&hop, "/breakers/app", "open");
    assert_eq!(said.status(), 200, "{}", said.text());
    let before = app.requests();
    let refused = get(web, "localhost", "/");
    assert!(refused.status() == 503 && refused.text().contains("breaker-open"), "{}", refused.text());
    let (status, text) = hop.reload(&forward(&[&app], ", connectTimeout: 2s"));
    assert_eq!(status, 200, "{text}");
    assert_eq!(get(web, "localhost", "/").status(), 503, "it survives a reload");
    assert_eq!(app.requests(), before);
    assert_eq!((&breaker(&hop)["state"], &breaker(&hop)["switch"]), (&"open".into(), &"open".into()));
    assert!(hop.admin_get("/breakers").body().contains("\"open\""));
    assert_eq!(put(&hop, "/breakers/app", "{\"switch\": \"auto\"}").status(), 200);
    assert_eq!(get(web, "localhost", "/").status(), 200);
    assert_eq!(put(&hop, "/breakers/app", "ajar").status(), 400);
    assert_eq!(put(&hop, "/breakers/nobody", "open").status(), 404);
    assert_eq!(hop.admin_get("/breakers/nobody").status(), 404);
}

#[test]
fn a_breaker_that_is_held_closed_never_trips() {
    let app = Backend::start(Mood::Says(500));
    let more = ", circuitBreaker: { trip: { minRequests: 5 } }, outlierDetection: { enabled: false }";
    let hop = Onehop::start(&forward(&[&app], more));
    assert_eq!(put(&hop, "/breakers/app", "closed").status(), 200);
    (0..20).for_each(|_| assert_eq!(get(hop.at("web"), "localhost", "/").status(), 500));
    let (status, text) = hop.reload(&forward(&[&app], &format!("{more}, connectTimeout: 2s")));
    assert_eq!(status, 200, "{text}");
    (0..20).for_each(|_| assert_eq!(get(hop.at("web"), "localhost", "/").status(), 500));
    assert_eq!(app.requests(), 40);
    assert_eq!(breaker(&hop)["switch"], "closed");
}
