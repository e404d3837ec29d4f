use http::header::{COOKIE, SERVER};
use http::{HeaderMap, HeaderName, StatusCode};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, decided, request, section, user};
use crate::contract::Body;
use crate::contract::entry::Directory;
use crate::contract::filter::Verdict;
use crate::contract::request::Origin;

fn try_build(json: serde_json::Value) -> Result<Arc<dyn Filter>, ConfigError> {
    build(Some(&section(json)), &mut Estate::default().build("routes.r", &Directory::default()))
}

fn transform(json: serde_json::Value) -> Arc<dyn Filter> {
    try_build(json).unwrap_or_else(|e| panic!("{e}"))
}

fn target(json: serde_json::Value, target: &str) -> Result<String, Reason> {
    let mut rq = request("GET", target);
    // As a route with the prefixes /v1/orders and /v1 would have it.
    rq.covered =
        ["/v1/orders/", "/v1/"].iter().find(|p| format!("{}/", rq.path()).starts_with(*p)).map_or(0, |p| p.len() - 1);
    rq.user = Some(user(json!({"sub": "a b/../c?d"})));
    let verdict = decided(transform(json).on_request(&mut rq));
    match verdict {
        Verdict::Next => Ok(rq.target.to_string()),
        Verdict::Fail(fault) => {
            assert_eq!(fault.by, "transform");
            Err(fault.reason)
        }
        Verdict::Reply(_) => panic!("a transform never answers"),
    }
}

#[test]
fn paths_and_queries() {
    for (section, from, to) in [
        // What the route's match covers is replaced: see `covered` below.
        (json!({"path": {"replacePrefix": "/orders"}}), "/v1/orders/7?x=1", Ok("/orders/7?x=1")),
        (json!({"path": {"replacePrefix": "/orders"}}), "/v1/ordersx", Ok("/orders/ordersx")),
        (json!({"path": {"replacePrefix": "/"}}), "/v1/orders", Ok("/")),
        (json!({"path": {"replaceFull": "/all"}}), "/v1/orders?x=1", Ok("/all?x=1")),
        (json!({"path": {"replaceFull": "/u/${user.sub}"}}), "/v1", Err(Reason::BadPath)),
        (
            json!({"path": {"replaceFull": "/q/${request.query.n}"}}),
            "/v1?n=a%20b%3Fc%23d",
            Ok("/q/a%20b%3Fc%23d?n=a%20b%3Fc%23d"),
        ),
        (json!({"path": {"replaceFull": "/q/${request.query.n}"}}), "/v1", Err(Reason::BadPath)),
        (json!({"path": {"replaceFull": "/q/${request.query.n}"}}), "/v1?n=%252e%252e", Err(Reason::BadPath)),
        (json!({"path": {"regex": "^/v1/(\\w+)", "substitution": "/$1/v1"}}), "/v1/orders/7", Ok("/orders/v1/7")),
        (json!({"path": {"regex": "^/v1", "substitution": ""}}), "/v1", Err(Reason::BadPath)),
        (json!({"path": {"regex": "a", "substitution": ".."}}), "/a", Err(Reason::BadPath)),
        (json!({"query": {"set": {"v": "2"}, "remove": ["token"]}}), "/a?v=1&token=x&b=%2F&v=3", Ok("/a?v=2&b=%2F")),
        (json!({"query": {"add": {"a": "x y&z"}}}), "/a", Ok("/a?a=x%20y%26z")),
        (json!({"query": {"remove": ["v"]}}), "/a?v=1&%76=2", Ok("/a")),
        (json!({"query": {"set": {"u": "${user.none}"}}}), "/a?u=forged&b", Ok("/a?b")),
    ] {
        assert_eq!(target(section.clone(), from), to.map(str::to_owned), "{section} {from}");
    }
}

#[test]
fn headers_are_set_then_added_then_removed() {
    let filter = transform(json!({
        "host": "orders.internal:81",
        "request": {
            "set": {"x-user": "${user.sub}", "x-none": "${user.none}", "x-old": "${request.headers['x-user']}"},
            "add": {"x-tag": "b", "x-gone": "1"}, "remove": ["cookie", "x-gone"]
        },
        "response": {"set": {"x-served-by": "onehop", "x-path": "${request.path}"}, "remove": ["server"]}
    }));
    let mut rq = request("GET", "/v1");
    rq.user = Some(user(json!({"sub": "ann"})));
    for (name, value) in [("x-user", "forged"), ("x-none", "forged"), ("x-tag", "a"), ("cookie", "a=b")] {
        rq.headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    assert!(matches!(filter.on_request(&mut rq), Step::Done(Verdict::Next)));
    assert_eq!(rq.headers["x-user"], "ann");
    assert_eq!(rq.headers["x-old"], "forged", "templates see the request before any edit");
    assert!(!rq.headers.contains_key("x-none"), "set or removed, never passed through");
    assert_eq!(rq.headers.get_all("x-tag").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert!(!rq.headers.contains_key(COOKIE) && !rq.headers.contains_key("x-gone"));
    assert_eq!(rq.upstream_host.as_ref().map(|h| h.as_bytes()), Some(&b"orders.internal:81"[..]));

    let mut headers = HeaderMap::new();
    headers.insert(SERVER, HeaderValue::from_static("x"));
    let mut rs = ResponseCx { status: StatusCode::OK, headers, body: Body::Empty, origin: Origin::Upstream };
    assert!(filter.needs().response);
    assert!(matches!(filter.on_response(&mut rq, &mut rs), Step::Done(Verdict::Next)));
    assert_eq!(rs.headers["x-served-by"], "onehop");
    assert!(!rs.headers.contains_key(SERVER));
    assert!(!transform(json!({"request": {"remove": ["a"]}})).needs().response, "nothing to do on the way out");
}

#[test]
fn bad_sections_name_their_cure() {
    for (bad, says) in [
        (json!({"request": {"set": {"connection": "x"}}}), "cannot be transformed"),
        (json!({"request": {"remove": ["Transfer-Encoding"]}}), "cannot be transformed"),
        (json!({"response": {"set": {"content-length": "1"}}}), "cannot be transformed"),
        (json!({"request": {"set": {"host": "x"}}}), "transform.host"),
        (json!({"request": {"set": {"a b": "x"}}}), "not a header name"),
        (json!({"request": {"set": {"x-a": "a\r\nb"}}}), "control characters"),
        (json!({"request": {"set": {"x-a": "${usr.sub}"}}}), "did you mean `user`"),
        (json!({"request": {"set": ["x"]}}), "a map"),
        (json!({"request": {"set": {"x": ["y"]}}}), "not text"),
        (json!({"host": "a@b"}), "not a host"),
        (json!({"host": "a b"}), "not a host"),
        (json!({"path": {}}), "exactly one"),
        (json!({"path": {"replaceFull": "/a", "replacePrefix": "/b"}}), "exactly one"),
        (json!({"path": {"regex": "("}}), "exactly one"),
        (json!({"path": {"regex": "(", "substitution": "/"}}), "regular expression"),
        (json!({"path": {"replaceFull": "a"}}), "does not begin"),
        (json!({"path": {"replaceFull": "/a/../b"}}), "not a path"),
        (json!({"path": {"replacePrefix": "/a b"}}), "not a path"),
        (json!({"reqest": {}}), "did you mean `request`"),
        (json!({"request": {"body": {"json": {}}}}), "no rule"),
        (json!({"request": {"body": {}}}), "`json` is missing"),
        (json!({"request": {"body": {"json": {"set": {"a": 1}}}}}), "begins with `/`"),
        (json!({"request": {"body": {"json": {"set": {"/a": "${body/~2}"}}}}}), "`~0` and `~1`"),
        (json!({"request": {"body": {"json": {"set": {"/a": "${usr.sub}"}}}}}), "did you mean `user`"),
        (json!({"request": {"body": {"json": {"remove": [""]}}}}), "whole body"),
        (json!({"request": {"body": {"json": {"template": "{a}"}}}}), "not JSON"),
        (json!({"request": {"body": {"json": {"remove": ["/a"]}, "limit": "0B"}}}), "from 1B"),
        (json!({"request": {"body": {"json": {"remove": ["/a"]}, "otherwise": "pass"}}}), "unknown key"),
        (json!({"response": {"body": {"json": {"remove": ["/a"]}, "otherwise": "drop"}}}), "refuse, pass"),
        (json!({"request": {"cookies": {"set": {"a b": "x"}}}}), "name of a cookie"),
        (json!({"response": {"cookies": [{"name": "a"}]}}), "removed or given"),
        (json!({"response": {"cookies": [{"name": "a", "remove": true, "path": "/"}]}}), "removed or given"),
        (json!({"response": {"cookies": [{"name": "a", "sameSite": "none"}]}}), "without `secure`"),
        (json!({"response": {"cookies": [{"name": "a", "path": "/;x"}]}}), "cannot stand"),
    ] {
        let e = try_build(bad.clone()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}

/// What became of a request body of this type.
fn sent(rules: serde_json::Value, fields: &[(&'static str, &'static str)], body: Body) -> Result<String, Reason> {
    let filter = transform(json!({"request": {"body": rules}}));
    let mut rq = request("POST", "/v1?n=7");
    rq.user = Some(user(json!({"sub": "ann\"}", "groups": ["a"]})));
    rq.headers.insert("content-digest", HeaderValue::from_static("x"));
    for (name, value) in fields {
        rq.headers.insert(*name, HeaderValue::from_static(value));
    }
    rq.body = body;
    match waited(filter.on_request(&mut rq)) {
        Verdict::Next => Ok(read(rq.body)),
        Verdict::Fail(fault) => Err(fault.reason),
        Verdict::Reply(_) => panic!("a transform never answers"),
    }
}

fn waited(step: Step<'_>) -> Verdict {
    match step {
        Step::Done(verdict) => verdict,
        Step::Wait(later) => runtime().block_on(later),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

fn read(body: Body) -> String {
    let all = runtime().block_on(http_body_util::BodyExt::collect(body)).expect("whole").to_bytes();
    String::from_utf8(all.to_vec()).expect("text")
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

#[test]
fn bodies_are_edited_by_template_merge_set_and_remove() {
    for (rules, body, expected) in [
        (
            json!({"set": {"/user": "${user.sub}", "/groups": "${user.groups}", "/n": "no ${request.query.n}"}}),
            r#"{"user":"root","id":10000000000000000000000001}"#,
            r#"{"user":"ann\"}","id":10000000000000000000000001,"groups":["a"],"n":"no 7"}"#,
        ),
        (json!({"set": {"/user": "${user.none}"}}), r#"{"user":"root","a":1}"#, r#"{"a":1}"#),
        (json!({"remove": ["/a/0", "/b"]}), r#"{"a":[1,2],"b":3,"c": 4}"#, r#"{"a":[2],"c":4}"#),
        (
            json!({"merge": {"a": {"b": null, "c": "${user.sub}", "d": "${user.none}"}}}),
            r#"{"a":{"b":1,"d":2}}"#,
            r#"{"a":{"c":"ann\"}"}}"#,
        ),
        (
            json!({"template": {"who": "${user.sub}", "first": "${body/items/0}", "gone": "${body/none}", "all": "${body}"}}),
            r#"{"items":[1.50]}"#,
            r#"{"who":"ann\"}","first":1.50,"all":{"items":[1.50]}}"#,
        ),
        (json!({"template": "{\"who\": \"${user.sub}\", \"n\": 1}"}), "[]", r#"{"who":"ann\"}","n":1}"#),
        (
            json!({"template": {"a": 1}, "merge": {"b": 2}, "set": {"/c": "${body/x}"}, "remove": ["/a"]}),
            r#"{"x":3}"#,
            r#"{"b":2,"c":3}"#,
        ),
    ] {
        assert_eq!(sent(json!({"json": rules}), JSON, Body::full(body)).as_deref(), Ok(expected), "{body}");
    }
}

#[test]
fn a_body_that_rules_do_not_fit_is_refused() {
    let rules = json!({"json": {"set": {"/a/b": 1}}, "limit": "16B"});
    for (body, reason) in [
        ("{", Reason::BadBody),
        (r#"{"a":1}"#, Reason::BadBody),
        ("[]", Reason::BadBody),
        (r#"{"a":{"long":"body"}}"#, Reason::BodyTooLarge),
    ] {
        assert_eq!(sent(rules.clone(), JSON, Body::full(body)), Err(reason), "{body}");
    }
    let text = [("content-type", "text/plain")];
    assert_eq!(sent(rules.clone(), &text, Body::full("{")).as_deref(), Ok("{"), "not JSON, not touched");
    assert_eq!(sent(rules, JSON, Body::Empty).as_deref(), Ok(""));
}

#[test]
fn encoded_bodies_are_decoded_or_refused() {
    use crate::api::content::{Coding, encode};
    let fields = [JSON[0], ("content-encoding", "br")];
    let body = || encode(Body::full(r#"{"a":1}"#), Coding::Brotli, 4);
    assert_eq!(sent(json!({"json": {"remove": ["/a"]}}), &fields, body()).as_deref(), Ok("{}"));
    let rules = json!({"json": {"remove": ["/a"]}, "encoded": "refuse"});
    assert_eq!(sent(rules.clone(), &fields, body()), Err(Reason::UnsupportedMedia));
    assert_eq!(sent(rules, &[JSON[0], ("content-encoding", "compress")], body()), Err(Reason::UnsupportedMedia));
    let large = encode(Body::full(format!("[{}]", "1,".repeat(4000))), Coding::Brotli, 4);
    assert_eq!(sent(json!({"json": {"remove": ["/a"]}, "limit": "1KiB"}), &fields, large), Err(Reason::BodyTooLarge));
}

/// An answer after the rules: its fields and body, or why there is none.
fn answered(
    rules: serde_json::Value,
    status: u16,
    fields: &[(&'static str, &'static str)],
    body: Body,
) -> Result<(HeaderMap, String), Reason> {
    let filter = transform(json!({"response": {"body": rules}}));
    let mut rq = request("GET", "/v1");
    for name in ["range", "if-range", "accept-encoding"] {
        rq.headers.insert(name, HeaderValue::from_static("x"));
    }
    assert!(matches!(waited(filter.on_request(&mut rq)), Verdict::Next));
    assert!(rq.headers.len() == 1 && rq.headers["accept-encoding"] == "identity", "whole and plain");
    let headers = fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
    let status = StatusCode::from_u16(status).expect("a status");
    let mut rs = ResponseCx { status, headers, body, origin: Origin::Upstream };
    match waited(filter.on_response(&mut rq, &mut rs)) {
        Verdict::Next => Ok((rs.headers, read(rs.body))),
        Verdict::Fail(fault) => Err(fault.reason),
        Verdict::Reply(_) => panic!("a transform never answers"),
    }
}

#[test]
fn answers_are_edited_or_not_let_through() {
    let rules = |otherwise| json!({"json": {"remove": ["/secret"], "set": {"/via/0": "x"}}, "limit": "32B", "otherwise": otherwise});
    let fields = [JSON[0], ("etag", "\"1\""), ("content-length", "9"), ("digest", "x")];
    let (headers, body) =
        answered(rules("refuse"), 200, &fields, Body::full(r#"{"secret":1,"via":[]}"#)).expect("edited");
    assert_eq!((headers["etag"].as_bytes(), headers.len(), &*body), (&b"W/\"1\""[..], 2, r#"{"via":["x"]}"#));
    let long = r#"{"secret":"a very long text for this limit"}"#;
    for (status, body, reason) in [
        (200, "{", Reason::BodyUnusable),
        (200, r#"{"secret":1,"via":7}"#, Reason::BodyUnusable),
        (206, r#"{"secret":1,"via":[]}"#, Reason::BodyUnusable),
        (200, long, Reason::ResponseBodyTooLarge),
    ] {
        assert_eq!(answered(rules("refuse"), status, &fields, Body::full(body)), Err(reason), "{body}");
        let (headers, passed) = answered(rules("pass"), status, &fields, Body::full(body)).expect("passes");
        assert_eq!((headers.len(), &*passed), (4, body), "as it came");
    }
    let plain = [("content-type", "text/html")];
    assert!(answered(rules("refuse"), 200, &plain, Body::full("{")).is_ok_and(|(_, body)| body == "{"));
    let gzip =
        crate::api::content::encode(Body::full(r#"{"secret":1,"via":[]}"#), crate::api::content::Coding::Gzip, 5);
    let (headers, body) =
        answered(rules("refuse"), 200, &[JSON[0], ("content-encoding", "gzip")], gzip).expect("decoded");
    assert_eq!((headers.contains_key("content-encoding"), &*body), (false, r#"{"via":["x"]}"#));
}

/// A body that no rule applies to is the very same object, not a copy and not an adapter.
#[test]
fn streams_without_a_rule_are_not_touched() {
    let address = |body: &Body| match body {
        Body::Stream(stream) => std::ptr::from_ref(&**stream).cast::<u8>() as usize,
        Body::Empty | Body::Full(_) => 0,
    };
    let stream = || {
        let frame = http_body::Frame::data(bytes::Bytes::from_static(b"{}"));
        Body::stream(http_body_util::StreamBody::new(futures_util::stream::iter([Ok(frame)])))
    };
    for rules in [json!({"request": {"set": {"x-a": "1"}}}), json!({"request": {"body": {"json": {"remove": ["/a"]}}}})]
    {
        let filter = transform(rules);
        let mut rq = request("POST", "/");
        rq.body = stream();
        rq.headers.insert("content-type", HeaderValue::from_static("application/octet-stream"));
        let before = address(&rq.body);
        assert!(matches!(filter.on_request(&mut rq), Step::Done(Verdict::Next)), "decided at once");
        assert!(before != 0 && address(&rq.body) == before);
    }
}

#[test]
fn single_cookies_are_edited() {
    let filter = transform(json!({"request": {"cookies": {
        "set": {"user": "${user.sub}", "old": "${user.none}", "new": "1"}, "remove": ["secret"]
    }}}));
    let mut rq = request("GET", "/");
    rq.user = Some(user(json!({"sub": "a;b c%"})));
    rq.headers.append(COOKIE, HeaderValue::from_static("a=\"x y\"; user=forged; secret=1;b"));
    rq.headers.append(COOKIE, HeaderValue::from_static("user = again; old=1"));
    assert!(matches!(filter.on_request(&mut rq), Step::Done(Verdict::Next)));
    assert_eq!(rq.headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=\"x y\"; user=a%3Bb%20c%25; b; new=1"]);
    let filter = transform(json!({"request": {"cookies": {"remove": ["a"]}}}));
    let mut rq = request("GET", "/");
    rq.headers.append(COOKIE, HeaderValue::from_static("a=1"));
    assert!(matches!(filter.on_request(&mut rq), Step::Done(Verdict::Next)));
    assert!(!rq.headers.contains_key(COOKIE), "none is left");
}

#[test]
fn cookies_of_the_service_are_hardened() {
    let filter = transform(json!({"response": {"cookies": [
        {"name": "*", "secure": true, "httpOnly": true, "sameSite": "lax"},
        {"name": "sid", "domain": "", "path": "/app", "maxAge": "1h"},
        {"name": "open", "httpOnly": false},
        {"name": "debug", "remove": true}
    ]}}));
    let mut rs =
        ResponseCx { status: StatusCode::OK, headers: HeaderMap::new(), body: Body::Empty, origin: Origin::Upstream };
    for cookie in [
        "sid=1; Domain=x.example; expires=Thu, 01 Jan 1970 00:00:00 GMT; SameSite=None",
        "open=1;secure;Priority=High",
        "debug=1",
    ] {
        rs.headers.append("set-cookie", HeaderValue::from_static(cookie));
    }
    assert!(filter.needs().response);
    assert!(matches!(filter.on_response(&mut request("GET", "/"), &mut rs), Step::Done(Verdict::Next)));
    assert_eq!(
        rs.headers.get_all("set-cookie").iter().collect::<Vec<_>>(),
        [
            "sid=1; SameSite=Lax; Secure; HttpOnly; Path=/app; Max-Age=3600",
            "open=1; Priority=High; SameSite=Lax; Secure",
        ]
    );
}

proptest! {
    /// Whatever a claim holds, what goes upstream is one path below the fixed part, or nothing.
    #[test]
    fn no_claim_escapes_its_place(sub in "\\PC{0,12}|[./%25eE2F?#\r\n\\\\]{0,12}") {
        let filter = transform(json!({"path": {"replaceFull": "/u/${user.sub}/x"}}));
        let mut rq = request("GET", "/v1?a=1");
        rq.user = Some(user(json!({"sub": sub})));
        if matches!(filter.on_request(&mut rq), Step::Done(Verdict::Next)) {
            prop_assert!(rq.path().starts_with("/u/") && rq.path().ends_with("/x"), "{}", rq.target);
            prop_assert_eq!(rq.target.query(), Some("a=1"));
            prop_assert!(core::checked(rq.path()).is_some());
        }
    }
}
