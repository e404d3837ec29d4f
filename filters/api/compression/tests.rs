use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, decided, request, section};
use crate::contract::entry::Directory;
use crate::contract::filter::Verdict;
use crate::contract::{Body, Origin};

const OURS: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];

fn try_build(json: serde_json::Value) -> Result<Arc<dyn Filter>, ConfigError> {
    build(Some(&section(json)), &mut Estate::default().build("routes.r", &Directory::default()))
}

#[test]
fn the_callers_weights_decide_then_our_order() {
    for (accept, chosen) in [
        ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
        ("gzip, deflate, br", Some(Coding::Brotli)),
        ("br;q=0.5, gzip;q=0.8", Some(Coding::Gzip)),
        ("gzip;q=0", None),
        ("*", Some(Coding::Zstd)),
        ("*;q=0.1, zstd;q=0", Some(Coding::Brotli)),
        ("*;q=0", None),
        ("", None),
        ("identity", None),
        ("identity;q=1, gzip;q=0.5", None),
        ("identity;q=0.5, gzip;q=0.5", Some(Coding::Gzip)),
        ("X-GZIP", Some(Coding::Gzip)),
        ("gzip;q=1.5", None),
        ("gzip;q=abc", None),
        ("gzip;q=0.0001", None),
        ("gzip ; Q=0.001", Some(Coding::Gzip)),
        ("deflate", None),
        ("compress, gzip", Some(Coding::Gzip)),
    ] {
        assert_eq!(choose(accept, &OURS), chosen, "{accept}");
    }
}

/// An answer, and what became of it: its fields and its body.
fn run(filter: &Arc<dyn Filter>, method: &str, accept: Option<&'static str>, rs: ResponseCx) -> (HeaderMap, Vec<u8>) {
    let mut rq = request(method, "/");
    if let Some(accept) = accept {
        rq.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(accept));
    }
    assert!(matches!(decided(filter.on_request(&mut rq)), Verdict::Next));
    // An inner filter may ask the endpoint for something else.
    rq.headers.remove(ACCEPT_ENCODING);
    let mut rs = rs;
    assert!(matches!(decided(filter.on_response(&mut rq, &mut rs)), Verdict::Next));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let body = runtime.block_on(rs.body.collect()).expect("whole").to_bytes();
    (rs.headers, body.to_vec())
}

fn answer(status: u16, fields: &[(&'static str, &'static str)], body: &str) -> ResponseCx {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_static(value));
    }
    let status = StatusCode::from_u16(status).expect("a status");
    ResponseCx { status, headers, body: Body::full(body.to_owned()), origin: Origin::Upstream }
}

#[test]
fn an_answer_is_encoded_with_its_fields() {
    let filter = try_build(json!({"minLength": "10B"})).expect("builds");
    let text = "hello ".repeat(100);
    let fields = [
        ("content-type", "application/json; charset=utf-8"),
        ("etag", "\"a\""),
        ("content-md5", "x"),
        ("vary", "origin"),
    ];
    let (headers, body) = run(&filter, "GET", Some("gzip"), answer(200, &fields, &text));
    assert_eq!(headers[CONTENT_ENCODING], "gzip");
    assert_eq!(headers["etag"], "W/\"a\"");
    assert!(!headers.contains_key("content-md5"));
    assert_eq!(headers.get_all("vary").iter().collect::<Vec<_>>(), ["origin", "accept-encoding"]);
    assert!(body.starts_with(&[0x1f, 0x8b]) && body.len() < 100);
}

#[test]
fn some_answers_are_left_alone() {
    let filter = try_build(json!({"minLength": "10B"})).expect("builds");
    let text = "hello ".repeat(100);
    let json = ("content-type", "application/json");
    let cases: Vec<(&str, ResponseCx, bool)> = vec![
        ("no type", answer(200, &[], &text), false),
        ("an image", answer(200, &[("content-type", "image/png")], &text), false),
        ("events", answer(200, &[("content-type", "text/event-stream")], &text), false),
        ("gRPC", answer(200, &[("content-type", "application/grpc+json")], &text), false),
        ("encoded", answer(200, &[json, ("content-encoding", "br")], &text), false),
        ("a part", answer(206, &[json], &text), false),
        ("a redirect", answer(302, &[json], &text), false),
        ("not to be touched", answer(200, &[json, ("cache-control", "public, No-Transform")], &text), false),
        ("tiny", answer(200, &[json], "{}"), false),
        ("text", answer(200, &[("content-type", "text/html")], &text), true),
        ("a problem", answer(503, &[("content-type", "application/problem+json")], &text), true),
    ];
    for (what, rs, encoded) in cases {
        let (before, status) = (rs.headers.clone(), rs.status);
        let (headers, body) = run(&filter, "GET", Some("gzip"), rs);
        assert_eq!(headers.get(CONTENT_ENCODING).is_some_and(|v| v == "gzip"), encoded, "{what}");
        if !encoded {
            assert_eq!(headers, before, "{what} {status}: not a field changed");
            assert!(body == text.as_bytes() || body == b"{}", "{what}");
        }
    }
}

#[test]
fn whoever_did_not_ask_is_told_that_it_varies() {
    let filter = try_build(json!({"minLength": "0B"})).expect("builds");
    let json = [("content-type", "application/json"), ("etag", "\"a\"")];
    let (headers, body) = run(&filter, "GET", None, answer(200, &json, "{}"));
    assert_eq!(
        (headers["vary"].as_bytes(), headers["etag"].as_bytes(), &body[..]),
        (&b"accept-encoding"[..], &b"\"a\""[..], &b"{}"[..])
    );
    let (headers, body) = run(&filter, "HEAD", Some("br"), answer(200, &json, ""));
    assert!(!headers.contains_key(CONTENT_ENCODING) && body.is_empty());
    assert_eq!((headers["vary"].as_bytes(), headers["etag"].as_bytes()), (&b"accept-encoding"[..], &b"W/\"a\""[..]));
    let (headers, _) = run(&filter, "GET", Some("br"), answer(304, &[("etag", "\"a\"")], ""));
    assert_eq!((headers["vary"].as_bytes(), headers["etag"].as_bytes()), (&b"accept-encoding"[..], &b"W/\"a\""[..]));
}

#[test]
fn bad_sections_name_their_cure() {
    for (bad, says) in [
        (json!({"algorithms": []}), "no algorithm"),
        (json!({"algorithms": ["gzip", "gzip"]}), "stands twice"),
        (json!({"algorithms": ["lzma"]}), "zstd, br, gzip"),
        (json!({"level": 0}), "from 1"),
        (json!({"level": 10}), "from 1"),
        (json!({"types": []}), "no type"),
        (json!({"types": ["json"]}), "not a media type"),
        (json!({"types": ["text/event-stream"]}), "never compressed"),
        (json!({"types": ["application/grpc-web"]}), "never compressed"),
        (json!({"minLength": 5}), "a size with a unit"),
        (json!({"mime": []}), "unknown key"),
    ] {
        let e = try_build(bad.clone()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}

proptest! {
    /// Whatever a caller sends, what is chosen is ours, and not what it gave no weight.
    #[test]
    fn no_field_breaks_the_choice(accept in "\\PC{0,40}|((gzip|br|zstd|\\*|identity)(;q=(0|1|0\\.[0-9]{1,3}))?,){0,5}") {
        if let Some(coding) = choose(&accept, &OURS) {
            prop_assert!(OURS.contains(&coding));
            let refused = format!("{};q=0", coding.name());
            prop_assert!(!accept.split(',').next().is_some_and(|first| first == refused));
        }
    }
}
