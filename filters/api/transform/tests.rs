use http::StatusCode;
use http::header::{COOKIE, SERVER};
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
    ] {
        let e = try_build(bad.clone()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
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
