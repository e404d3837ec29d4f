//! Filters that answer from memory, through the binary and a real endpoint.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use common::{Endpoint, Onehop, eventually, exchange, get, get_with};

fn config(up: &Endpoint, route: &str) -> String {
    common::simple(up).replace("{ name: all, to: up }", &format!("{{ name: all, {route}, to: up }}"))
}

fn says(head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{head}\r\n{body}", body.len()).into_bytes()
}

#[test]
fn a_cached_answer_spares_the_service() {
    let up = Endpoint::start(|_, _| says("cache-control: max-age=60\r\netag: \"1\"\r\n", "page"));
    let hop = Onehop::start(&config(&up, "cache: {}"));
    let first = get(hop.at("edge"), "a.test", "/p");
    assert_eq!(first.header("cache-status").as_deref(), Some("onehop; fwd=uri-miss; fwd-status=200; stored"));
    let second = get(hop.at("edge"), "a.test", "/p");
    assert_eq!((second.status(), second.body().as_str()), (200, "page"));
    assert!(second.header("cache-status").is_some_and(|s| s.starts_with("onehop; hit; ttl=")), "{}", second.text());
    assert!(second.header("age").is_some(), "{}", second.text());
    assert_eq!(get_with(hop.at("edge"), "a.test", "/p", "if-none-match: \"1\"\r\n").status(), 304);
    let head = exchange(hop.at("edge"), b"HEAD /p HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n");
    assert_eq!((head.header("content-length").as_deref(), head.body().as_str()), (Some("4"), ""));
    assert_eq!(up.seen(), 1);
    // What is kept outlives a reload that does not touch it.
    let (status, text) = hop.reload(&config(&up, "cache: {}, timeouts: { request: 9s }"));
    assert_eq!(status, 200, "{text}");
    assert_eq!(get(hop.at("edge"), "a.test", "/p").body(), "page");
    assert_eq!(up.seen(), 1);
    let metrics = hop.admin_get("/metrics").body();
    assert!(metrics.contains("onehop_cache_requests_total{route=\"all\",result=\"hit\"}"), "{metrics}");
}

#[test]
fn a_stale_answer_is_renewed_behind_the_callers_back() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let up = Endpoint::start(move |_, _| {
        let n = counted.fetch_add(1, SeqCst);
        says("cache-control: max-age=0, stale-while-revalidate=60\r\n", &format!("v{n}"))
    });
    let hop = Onehop::start(&config(&up, "cache: {}"));
    assert_eq!(get(hop.at("edge"), "a.test", "/").body(), "v0");
    let stale = get(hop.at("edge"), "a.test", "/");
    assert_eq!(stale.body(), "v0", "at once, and old");
    assert_eq!(stale.header("cache-status").as_deref(), Some("onehop; hit; detail=stale-while-revalidate"));
    eventually("the new one is fetched", || count.load(SeqCst) >= 2);
    eventually("the new one is given", || get(hop.at("edge"), "a.test", "/").body() != "v0");
    let asked = up.heads.lock().expect("no panic under the lock")[1].to_lowercase();
    assert!(asked.starts_with("get / http/1.1\r\n") && asked.contains("host: a.test\r\n"), "{asked}");
}

#[test]
fn a_stale_answer_stands_in_for_a_dead_service() {
    let backend = common::backend::Backend::start(common::backend::Mood::Says(200));
    let yaml = common::before(backend.address)
        .replace("{ name: all, to: up }", "{ name: all, cache: { defaultTtl: 1s, staleIfError: 1h }, to: up }");
    let hop = Onehop::start(&yaml);
    assert_eq!(get(hop.at("edge"), "a.test", "/").status(), 200);
    backend.kill();
    // Fresh for a second, then what there is.
    eventually("a stale answer", || {
        let got = get(hop.at("edge"), "a.test", "/");
        assert_eq!(got.status(), 200, "{}", got.text());
        got.header("cache-status").is_some_and(|s| s.contains("stale-if-error"))
    });
    assert_eq!(get(hop.at("edge"), "a.test", "/other").status(), 502, "nothing is kept of this one");
}

#[test]
fn an_order_is_placed_once() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let up = Endpoint::start(move |_, body| {
        let n = counted.fetch_add(1, SeqCst);
        says("x-order: 1\r\n", &format!("{n} {}", String::from_utf8_lossy(body)))
    });
    let hop = Onehop::start(&config(&up, "idempotency: { required: true }"));
    let post = |key: &str, body: &str| {
        let head = format!("POST /orders HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n{key}");
        exchange(hop.at("edge"), format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes())
    };
    let first = post("idempotency-key: \"k\"\r\n", "tea");
    assert_eq!(first.body(), "0 tea");
    let again = post("idempotency-key: \"k\"\r\n", "tea");
    assert_eq!((again.body().as_str(), again.header("x-order").as_deref()), ("0 tea", Some("1")));
    assert_eq!(again.header("idempotency-replayed").as_deref(), Some("true"));
    let mixed = post("idempotency-key: \"k\"\r\n", "coffee");
    assert_eq!(mixed.status(), 422);
    assert!(mixed.body().contains("key-mismatch"), "{}", mixed.text());
    assert_eq!(post("", "tea").status(), 400);
    assert_eq!(count.load(SeqCst), 1);
}
