//! Copies of requests: what they say, and that nobody waits for them.

use std::time::Duration;

use super::common::backend::{Backend, Mood};
use super::common::{Endpoint, eventually, exchange, get};
use super::{metric, start};

#[test]
fn copies_follow_what_the_service_got() {
    let (up, shadow) =
        (Endpoint::ok(), Endpoint::start(|_, _| b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nno".to_vec()));
    let hop = start(
        "- { name: orders, to: up, quota: [{ by: ip, limit: 100, per: 1h }], \
         transform: { path: { replacePrefix: /v2 }, request: { set: { x-a: b } } }, matches: [{ path: { prefix: /v1 } }], \
         mirror: { to: shadow, bodyLimit: 8B, hostSuffix: -shadow } }",
        &[("up", up.address, ""), ("shadow", shadow.address, "")],
        "",
    );
    let post = |body: &str| {
        let length = body.len();
        let text = format!(
            "POST /v1/x HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        exchange(hop.at("web"), text.as_bytes())
    };
    assert_eq!(post("hello").status(), 200, "what the mirror says does not matter");
    eventually("the copy arrives", || shadow.seen() == 1);
    let copy = shadow.last().to_lowercase();
    assert!(copy.starts_with("post /v2/x http/1.1\r\n") && copy.contains("host: shop.test-shadow\r\n"), "{copy}");
    assert!(copy.contains("x-a: b\r\n") && copy.contains("x-onehop-mirrored: orders\r\n"), "{copy}");
    assert!(copy.contains("content-length: 5\r\n"), "{copy}");
    let id = |head: &str| head.to_lowercase().lines().find(|l| l.starts_with("x-request-id: ")).map(ToOwned::to_owned);
    assert_eq!(id(&up.last()), id(&shadow.last()));
    assert!(!up.last().contains("mirrored"));

    assert_eq!(post("longer than eight").status(), 200);
    eventually("it is counted", || metric(&hop, "onehop_mirrored_total", &["result=\"too-long\""]) == 1.0);
    eventually("so is the other", || metric(&hop, "onehop_mirrored_total", &["result=\"sent\""]) == 1.0);
    assert_eq!(shadow.seen(), 1);
    assert_eq!(metric(&hop, "onehop_quota_allowed_total", &["route=\"orders\""]), 2.0, "copies are not charged");
}

#[test]
fn a_mirror_that_never_answers_slows_nobody() {
    let (up, shadow) = (Endpoint::ok(), Backend::start(Mood::Silent));
    let hop = start(
        "- { name: all, to: up, mirror: { to: shadow, maxConcurrent: 3, timeout: 60s } }",
        &[("up", up.address, ""), ("shadow", shadow.address, "")],
        "",
    );
    let begun = onehop_filters::contract::now();
    for _ in 0..20 {
        assert_eq!(get(hop.at("web"), "a", "/").status(), 200);
    }
    assert!(onehop_filters::contract::now().since(begun) < Duration::from_secs(10));
    eventually("three are under way", || shadow.requests() == 3);
    assert_eq!(metric(&hop, "onehop_mirrored_total", &["result=\"busy\""]), 17.0);
    assert_eq!(metric(&hop, "onehop_mirror_under_way", &[]), 3.0);
    // A mirror that is gone costs no request either.
    shadow.kill();
    assert_eq!(get(hop.at("web"), "a", "/").status(), 200);
    eventually("the places are free again", || metric(&hop, "onehop_mirror_under_way", &[]) == 0.0);
}
