use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use serde_json::json;

use super::core::{Asked, Refused, judge};
use super::*;
use crate::api::fixture::{Estate, decided, request, section};
use crate::contract::Directory;
use crate::contract::filter::Verdict;

const SITE: &str = "sec-fetch-site";

fn verdict(method: &str, https: bool, fields: &[(&'static str, &'static str)]) -> Result<(), Refused> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let asked = Asked { method: &method, headers: &headers, authority: "example.com", https };
    judge(&asked, |origin| origin == "https://trusted.example")
}

#[test]
fn where_requests_come_from() {
    const OK: Result<(), Refused> = Ok(());
    const CROSS: Result<(), Refused> = Err(Refused::CrossSite);
    const OTHER: Result<(), Refused> = Err(Refused::OtherOrigin);
    let table: &[(&str, &[(&str, &str)], Result<(), Refused>)] = &[
        // What Go's and tower-http's tests ask of the scheme.
        ("POST", &[(SITE, "same-origin")], OK),
        ("POST", &[(SITE, "none")], OK),
        ("POST", &[(SITE, "cross-site")], CROSS),
        ("POST", &[(SITE, "same-site")], CROSS),
        ("POST", &[(SITE, "Same-Origin")], CROSS),
        ("POST", &[], OK),
        ("POST", &[("origin", "https://example.com")], OK),
        ("POST", &[("origin", "https://attacker.example")], OTHER),
        ("POST", &[("origin", "null")], OTHER),
        ("GET", &[(SITE, "cross-site")], OK),
        ("HEAD", &[(SITE, "cross-site")], OK),
        ("OPTIONS", &[(SITE, "cross-site")], OK),
        ("PUT", &[(SITE, "cross-site")], CROSS),
        ("DELETE", &[(SITE, "cross-site")], CROSS),
        ("POST", &[(SITE, "cross-site"), ("origin", "https://trusted.example")], OK),
        ("POST", &[("origin", "https://trusted.example")], OK),
        ("POST", &[(SITE, "cross-site"), ("origin", "https://attacker.example")], CROSS),
        ("POST", &[(SITE, ""), ("origin", "https://attacker.example")], OTHER),
        // The browser's own word goes before the origin.
        ("POST", &[(SITE, "same-origin"), ("origin", "https://attacker.example")], OK),
        // Ports and case.
        ("POST", &[("origin", "https://example.com:443")], OK),
        ("POST", &[("origin", "https://EXAMPLE.com")], OK),
        ("POST", &[("origin", "https://example.com:8443")], OTHER),
        // Where there is no origin, the page.
        ("POST", &[("referer", "https://example.com/cart?x=1")], OK),
        ("POST", &[("referer", "https://trusted.example/x")], OK),
        ("POST", &[("referer", "https://attacker.example/example.com")], OTHER),
        ("POST", &[("referer", "https://attacker.example#https://example.com")], OTHER),
        ("POST", &[("referer", "about:blank")], OTHER),
        ("POST", &[("origin", "null"), ("referer", "https://example.com/")], OTHER),
        // Nobody's browser sends these.
        ("POST", &[("origin", "https://example.com"), ("origin", "https://attacker.example")], OTHER),
        ("POST", &[(SITE, "same-origin"), (SITE, "cross-site")], CROSS),
        // A WebSocket is no safe request: its answer is read without CORS.
        ("GET", &[(SITE, "cross-site"), ("sec-websocket-key", "x")], CROSS),
        ("GET", &[("origin", "https://attacker.example"), ("sec-websocket-key", "x")], OTHER),
        ("GET", &[("origin", "https://example.com"), ("sec-websocket-key", "x")], OK),
    ];
    for (method, fields, expected) in table {
        assert_eq!(verdict(method, true, fields), *expected, "{method} {fields:?}");
    }
    assert_eq!(verdict("POST", true, &[("origin", "http://example.com")]), OTHER, "a page in the clear");
    assert_eq!(verdict("POST", false, &[("origin", "http://example.com")]), OK);
    assert_eq!(verdict("POST", false, &[("origin", "https://example.com")]), OK, "TLS ended in front of us");
}

fn made(config: serde_json::Value) -> Result<Arc<dyn Filter>, ConfigError> {
    build(Some(&section(config)), &mut Estate::default().build("routes.orders", &Directory::default()))
}

#[test]
fn refusals_name_their_reason() {
    let filter = made(json!({ "allowOrigins": ["https://*.example.org"], "unless": "request.path == '/hook'" }))
        .unwrap_or_else(|e| panic!("{e}"));
    let mut rq = request("POST", "/buy");
    rq.headers.insert(SITE, HeaderValue::from_static("cross-site"));
    let Verdict::Fail(fault) = decided(filter.on_request(&mut rq)) else { panic!("refused") };
    assert_eq!(fault.reason, Reason::CrossSite);
    rq.headers.insert("origin", HeaderValue::from_static("https://shop.example.org"));
    assert!(matches!(decided(filter.on_request(&mut rq)), Verdict::Next));
    let mut hook = request("POST", "/hook");
    hook.headers.insert(SITE, HeaderValue::from_static("cross-site"));
    assert!(matches!(decided(filter.on_request(&mut hook)), Verdict::Next));
}

#[test]
fn nobody_is_let_in_by_mistake() {
    for bad in ["*", "null", "shop.example.com", "https://shop.example.com/path"] {
        assert!(made(json!({ "allowOrigins": [bad] })).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_source_panics_and_no_other_host_passes(source in "\\PC{0,40}") {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::try_from(source.as_str()) {
            headers.insert("origin", value);
            let asked = Asked { method: &Method::POST, headers: &headers, authority: "example.com", https: true };
            let host = source.trim().to_ascii_lowercase();
            if judge(&asked, |_| false).is_ok() && !host.is_empty() {
                prop_assert!(host.starts_with("https://example.com"), "{source}");
            }
        }
    }
}
