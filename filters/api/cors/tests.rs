use http::header::HeaderMap;
use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, request, section};
use crate::contract::entry::Directory;
use crate::contract::filter::Verdict;
use crate::contract::request::Origin as Maker;

fn try_build(json: serde_json::Value) -> Result<Arc<dyn Filter>, ConfigError> {
    build(Some(&section(json)), &mut Estate::default().build("routes.r", &Directory::default()))
}

fn cors(json: serde_json::Value) -> Arc<dyn Filter> {
    try_build(json).unwrap_or_else(|e| panic!("{e}"))
}

fn preflight(filter: &Arc<dyn Filter>, origin: &str) -> HeaderMap {
    let mut rq = request("OPTIONS", "/v1/orders");
    rq.headers.insert(ORIGIN, origin.parse().expect("a value"));
    rq.headers.insert(ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("PUT"));
    rq.headers.insert(ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("x-a, x-b"));
    match filter.on_request(&mut rq) {
        Step::Done(Verdict::Reply(reply)) => {
            assert_eq!(reply.status(), StatusCode::NO_CONTENT);
            reply.into_parts().0.headers
        }
        _ => panic!("a preflight never goes on"),
    }
}

fn actual(filter: &Arc<dyn Filter>, origin: Option<&str>) -> HeaderMap {
    let mut rq = request("GET", "/v1/orders");
    if let Some(origin) = origin {
        rq.headers.insert(ORIGIN, origin.parse().expect("a value"));
    }
    assert!(matches!(filter.on_request(&mut rq), Step::Done(Verdict::Next)));
    rq.reply_headers.into_iter().collect()
}

#[test]
fn preflights_are_answered_in_full() {
    let filter = cors(json!({
        "allowOrigins": ["https://shop.example.com"], "allowMethods": ["GET", "PUT"], "allowHeaders": ["x-token"],
        "allowCredentials": true, "maxAge": "10m"
    }));
    let headers = preflight(&filter, "https://shop.example.com");
    for (name, value) in [
        ("access-control-allow-origin", "https://shop.example.com"),
        ("access-control-allow-methods", "GET, PUT"),
        ("access-control-allow-headers", "x-token"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "600"),
        ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ] {
        assert_eq!(headers.get(name).and_then(|v| v.to_str().ok()), Some(value), "{name}");
    }
    let headers = preflight(&filter, "https://evil.example.com");
    assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["vary"]);
}

#[test]
fn stars_echo_what_was_asked() {
    let filter = cors(json!({"allowOrigins": ["*"], "allowMethods": ["*"], "allowHeaders": ["*"]}));
    let headers = preflight(&filter, "https://any.test");
    assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    assert_eq!(headers[ACCESS_CONTROL_ALLOW_METHODS], "PUT");
    assert_eq!(headers[ACCESS_CONTROL_ALLOW_HEADERS], "x-a, x-b");
    assert!(!actual(&filter, Some("https://any.test")).contains_key(VARY), "the answer is the same for all");
}

#[test]
fn answers_depend_on_the_origin() {
    let filter = cors(json!({
        "allowOrigins": ["https://shop.example.com", "https://*.example.org"], "exposeHeaders": ["x-id"]
    }));
    let good = actual(&filter, Some("https://shop.example.com"));
    assert_eq!(good[ACCESS_CONTROL_ALLOW_ORIGIN], "https://shop.example.com");
    assert_eq!(good[ACCESS_CONTROL_EXPOSE_HEADERS], "x-id");
    assert_eq!(good[VARY], "Origin");
    for (origin, allowed) in [
        ("https://a.example.org", true),
        ("https://a.b.example.org", true),
        ("HTTPS://A.example.org", true),
        ("https://example.org", false),
        ("https://.example.org", false),
        ("http://a.example.org", false),
        ("https://aexample.org", false),
        ("https://evil.test/.example.org", false),
        ("https://evil.test?.example.org", false),
        ("https://a.example.org:8443", false),
        ("https://shop.example.com.evil.test", false),
        ("https://shop.example.comx", false),
        ("null", false),
    ] {
        let headers = actual(&filter, Some(origin));
        assert_eq!(headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN), allowed, "{origin}");
        assert_eq!(headers[VARY], "Origin", "{origin}");
    }
    assert_eq!(actual(&filter, None)[VARY], "Origin");
}

#[test]
fn plain_options_goes_on_and_the_upstreams_word_is_replaced() {
    let filter = cors(json!({"allowOrigins": ["*"]}));
    let mut rq = request("OPTIONS", "/");
    assert!(matches!(filter.on_request(&mut rq), Step::Done(Verdict::Next)));
    let mut rs =
        ResponseCx { status: StatusCode::OK, headers: HeaderMap::new(), body: Body::Empty, origin: Maker::Upstream };
    rs.headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("https://other.test"));
    assert!(filter.needs().response);
    assert!(matches!(filter.on_response(&mut rq, &mut rs), Step::Done(Verdict::Next)));
    assert!(rs.headers.is_empty());
}

#[test]
fn bad_sections_name_their_cure() {
    for (bad, says) in [
        (json!({}), "`allowOrigins` is missing"),
        (json!({"allowOrigins": []}), "no origin"),
        (json!({"allowOrigins": ["*"], "allowCredentials": true}), "act as the user"),
        (json!({"allowOrigins": ["shop.example.com"]}), "not an origin"),
        (json!({"allowOrigins": ["https://shop.example.com/"]}), "not an origin"),
        (json!({"allowOrigins": ["https://*"]}), "not an origin"),
        (json!({"allowOrigins": ["https://a*.example.com"]}), "not an origin"),
        (json!({"allowOrigins": ["*"], "allowMethods": ["G T"]}), "not a name"),
        (json!({"allowOrigins": ["*"], "allowHeaders": ["x y"]}), "not a name"),
        (json!({"allowOrigins": ["*"], "alowHeaders": ["x"]}), "did you mean `allowHeaders`"),
    ] {
        let e = try_build(bad.clone()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}
