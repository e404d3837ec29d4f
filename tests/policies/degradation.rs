//! Closed routes, pages for failures, and who is turned away first when there is too much to do.

use super::common::backend::{Backend, Mood};
use super::common::{Client, Endpoint, eventually, exchange, get, get_with};
use super::{metric, start};

#[test]
fn a_closed_route_answers_by_itself() {
    let up = Endpoint::ok();
    let hop = start(
        "- { name: all, to: up, quota: [{ by: ip, limit: 1, per: 1h }], \
         maintenance: { retryAfter: 10m, allow: \"request.headers['x-preview'] == 'k'\" } }\n\
         - { name: text, matches: [{ path: { prefix: /text } }], to: up, maintenance: { status: 423, body: later } }",
        &[("up", up.address, "")],
        "",
    );
    for _ in 0..3 {
        let closed = get(hop.at("web"), "a", "/");
        assert_eq!((closed.status(), closed.header("retry-after").as_deref()), (503, Some("600")), "{}", closed.text());
        assert!(closed.body().contains("\"reason\":\"maintenance\""), "{}", closed.text());
    }
    let text = get(hop.at("web"), "a", "/text");
    assert_eq!((text.status(), text.body().as_str()), (423, "later"), "{}", text.text());
    assert_eq!(up.seen(), 0);
    assert_eq!(get_with(hop.at("web"), "a", "/", "x-preview: k\r\n").status(), 200, "nothing was charged before");
}

#[test]
fn people_get_pages_and_programs_json() {
    let up = Endpoint::start(|head, _| match head.contains("/missing") {
        true => b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\netag: \"1\"\r\n\r\ngone".to_vec(),
        false => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_vec(),
    });
    let hop = start(
        "- name: all\n  to: up\n  quota: [{ by: ip, limit: 3, per: 1h }]\n  errorPages:\n\
         \x20 - { at: [over-quota], html: \"<p>${status} ${requestId}\", json: '{\"why\":\"${reason}\"}' }\n\
         \x20 - { at: [404], for: upstream, html: \"<p>nothing here\" }",
        &[("up", up.address, "")],
        "",
    );
    let web = hop.at("web");
    let browser = "accept: text/html,*/*;q=0.8\r\n";
    let missing = get_with(web, "a", "/missing", browser);
    assert_eq!((missing.status(), missing.body().as_str()), (404, "<p>nothing here"), "{}", missing.text());
    assert_eq!((missing.header("vary").as_deref(), missing.header("etag")), (Some("accept"), None));
    assert_eq!(get(web, "a", "/missing").body(), "gone", "for programs it is the service's own");
    assert_eq!(get(web, "a", "/").body(), "hi");
    let over = get_with(web, "a", "/", &format!("{browser}x-request-id: id-<1>\r\n"));
    assert_eq!((over.status(), over.header("content-type").as_deref()), (429, Some("text/html; charset=utf-8")));
    assert!(over.body().starts_with("<p>429 ") && !over.body().contains("<1>"), "{}", over.text());
    assert!(over.header("retry-after").is_some() && over.header("ratelimit").is_some(), "{}", over.text());
    assert_eq!(get(web, "a", "/").body(), "{\"why\":\"over-quota\"}");
    let head = exchange(web, b"HEAD / HTTP/1.1\r\nhost: a\r\nconnection: close\r\naccept: text/html\r\n\r\n");
    assert_eq!((head.status(), head.body().as_str()), (429, ""), "{}", head.text());
}

#[test]
fn the_least_important_are_turned_away_first() {
    let up = Backend::start(Mood::Silent);
    let hop = start(
        "- { name: all, to: up, auth: { require: [keys], optional: true }, quota: [{ by: consumer, limit: 1000, per: 1h }], \
         timeouts: { request: 60s } }",
        &[("up", up.address, "")],
        "identities: { keys: { apiKey: {} } }\n\
         plans: { free: { priority: low }, gold: { priority: high } }\n\
         consumers:\n  poor: { plan: free, apiKeys: [poor-key-0123456789] }\n  rich: { plan: gold, apiKeys: [rich-key-0123456789] }\n\
         runtime: { workers: 2, maxRequests: 10 }\n",
    );
    let web = hop.at("web");
    let in_flight = || metric(&hop, "onehop_inflight_requests", &[]);
    let mut open = Vec::new();
    let mut fill = |n: usize| {
        while open.len() < n {
            let mut client = Client::to(web);
            client.send(b"GET / HTTP/1.1\r\nhost: a\r\nx-api-key: rich-key-0123456789\r\n\r\n");
            open.push(client);
        }
        eventually("they are in flight", || in_flight() == n as f64);
    };
    let ask = |fields: &str| get_with(web, "a", "/", &format!("x-onehop-timeout-ms: 50\r\n{fields}"));
    let (poor, rich) = ("x-api-key: poor-key-0123456789\r\n", "x-api-key: rich-key-0123456789\r\n");
    fill(8);
    let turned_away = ask(poor);
    assert_eq!((turned_away.status(), turned_away.header("retry-after").as_deref()), (503, Some("1")));
    assert!(turned_away.body().contains("\"reason\":\"shed\""), "{}", turned_away.text());
    assert!(turned_away.header("ratelimit").is_none(), "it was not charged: {}", turned_away.text());
    assert_eq!(ask("").status(), 504, "nobody in particular is served, as far as the service lets them");
    fill(9);
    assert_eq!(ask("").status(), 503);
    assert_eq!(ask(rich).status(), 504);
    fill(10);
    assert_eq!(ask(rich).status(), 503);
    assert_eq!(hop.admin_get("/healthz").status(), 200, "admin is no part of it");
    for priority in ["low", "normal"] {
        let label = format!("priority=\"{priority}\"");
        assert_eq!(metric(&hop, "onehop_shed_requests_total", &[&label]), 1.0, "{priority}");
    }
    assert_eq!(metric(&hop, "onehop_shed_requests_total", &["priority=\"unknown\""]), 1.0, "full: on arrival");
    drop(open);
    eventually("they are gone", || in_flight() == 0.0);
    up.set(Mood::Well);
    assert_eq!(ask(poor).status(), 200);
}
