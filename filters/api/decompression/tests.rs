use http_body_util::BodyExt;
use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, decided, request, section};
use crate::contract::entry::Directory;
use crate::contract::filter::Verdict;

fn try_build(json: serde_json::Value) -> Result<Arc<dyn Filter>, ConfigError> {
    build(Some(&section(json)), &mut Estate::default().build("routes.r", &Directory::default()))
}

fn whole(body: Body) -> Result<Vec<u8>, Reason> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(body.collect()).map(|all| all.to_bytes().to_vec()).map_err(|fault| fault.reason)
}

fn coded(text: &[u8], codings: &[Coding]) -> Vec<u8> {
    let encode = |body, coding| content::encode(body, coding, 6);
    whole(codings.iter().fold(Body::full(text.to_vec()), |body, coding| encode(body, *coding))).expect("encoded")
}

/// A body as a service would get it.
fn sent(filter: &Arc<dyn Filter>, encoding: &'static str, body: Vec<u8>) -> Result<Vec<u8>, Reason> {
    let mut rq = request("POST", "/");
    rq.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
    rq.headers.insert("content-digest", HeaderValue::from_static("sha-256=:x:"));
    rq.body = Body::full(body);
    match decided(filter.on_request(&mut rq)) {
        Verdict::Next => {
            assert!(!rq.headers.contains_key(CONTENT_ENCODING), "{encoding}");
            assert_eq!(rq.headers.contains_key("content-digest"), encoding == "identity", "{encoding}");
            whole(rq.body)
        }
        Verdict::Fail(fault) => {
            assert!(fault.headers.is_some_and(|h| h.contains_key(ACCEPT_ENCODING)));
            Err(fault.reason)
        }
        Verdict::Reply(_) => panic!("it never answers"),
    }
}

#[test]
fn bodies_arrive_plain() {
    let filter = try_build(json!({})).expect("builds");
    for (encoding, codings) in [
        ("gzip", &[Coding::Gzip][..]),
        ("deflate", &[Coding::Deflate]),
        ("br", &[Coding::Brotli]),
        ("zstd", &[Coding::Zstd]),
        ("gzip, br", &[Coding::Gzip, Coding::Brotli]),
        ("identity", &[]),
    ] {
        assert_eq!(sent(&filter, encoding, coded(b"{\"a\":1}", codings)), Ok(b"{\"a\":1}".to_vec()), "{encoding}");
    }
}

#[test]
fn what_is_not_taken_is_refused() {
    let filter = try_build(json!({"algorithms": ["gzip"], "limit": "2MiB", "ratio": 10})).expect("builds");
    assert_eq!(sent(&filter, "br", coded(b"x", &[Coding::Brotli])), Err(Reason::UnsupportedMedia));
    assert_eq!(sent(&filter, "aes128gcm", b"x".to_vec()), Err(Reason::UnsupportedMedia));
    assert_eq!(sent(&filter, "gzip, gzip, gzip", b"x".to_vec()), Err(Reason::UnsupportedMedia));
    let bomb = coded(&vec![0; 8 << 20], &[Coding::Gzip]);
    assert!(bomb.len() < 20_000, "a bomb");
    assert_eq!(sent(&filter, "gzip", bomb), Err(Reason::BodyTooLarge));
    assert_eq!(sent(&filter, "gzip", b"not gzip at all".to_vec()), Err(Reason::BadBody));
}

#[test]
fn a_request_without_a_coding_is_not_touched() {
    let filter = try_build(json!({})).expect("builds");
    let mut rq = request("POST", "/");
    rq.headers.insert("content-digest", HeaderValue::from_static("sha-256=:x:"));
    rq.body = Body::full("x");
    assert!(matches!(decided(filter.on_request(&mut rq)), Verdict::Next));
    assert!(rq.headers.contains_key("content-digest") && matches!(rq.body, Body::Full(_)));
}

#[test]
fn bad_sections_name_their_cure() {
    for (bad, says) in [
        (json!({"algorithms": []}), "no algorithm"),
        (json!({"algorithms": ["lzma"]}), "gzip, deflate, br, zstd"),
        (json!({"limit": "0B"}), "refuses every body"),
        (json!({"ratio": 0}), "refuses every body"),
        (json!({"limits": 0}), "did you mean `limit`"),
    ] {
        let e = try_build(bad.clone()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}
