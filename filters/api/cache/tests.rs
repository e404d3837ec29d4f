use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, LAST_MODIFIED, SET_COOKIE, VARY};
use http_body_util::BodyExt as _;
use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, decided, request, section, user};
use crate::contract::Directory;

fn cache(config: serde_json::Value) -> Arc<dyn Filter> {
    let directory = Directory::default();
    build(Some(&section(config)), &mut Estate::default().build("routes.orders", &directory)).expect("good")
}

fn headers(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
}

fn upstream(fields: &[(HeaderName, &'static str)], body: &'static str) -> ResponseCx {
    ResponseCx { status: StatusCode::OK, headers: headers(fields), body: Body::full(body), origin: Origin::Upstream }
}

/// What a request gets: a kept answer, or the one the service gives.
async fn ask(cache: &Arc<dyn Filter>, mut rq: RequestCx, service: impl FnOnce(&RequestCx) -> ResponseCx) -> Got {
    let verdict = match cache.on_request(&mut rq) {
        Step::Done(verdict) => verdict,
        Step::Wait(later) => later.await,
    };
    let (mut rs, called) = match verdict {
        Verdict::Next => (service(&rq), true),
        Verdict::Reply(reply) => {
            let (parts, body) = reply.into_parts();
            (ResponseCx { status: parts.status, headers: parts.headers, body, origin: Origin::Filter }, false)
        }
        Verdict::Fail(fault) => panic!("refused: {fault}"),
    };
    assert!(matches!(decided(cache.on_response(&mut rq, &mut rs)), Verdict::Next));
    let status = rs.headers.get(CACHE_STATUS).map_or("", |v| v.to_str().expect("text")).to_owned();
    let body = rs.body.collect().await.expect("whole").to_bytes();
    Got { called, code: rs.status.as_u16(), status, body: String::from_utf8(body.to_vec()).expect("text") }
}

struct Got {
    called: bool,
    code: u16,
    status: String,
    body: String,
}

fn never(_: &RequestCx) -> ResponseCx {
    panic!("the service was called")
}

#[tokio::test]
async fn a_fresh_answer_is_given_again() {
    let cache = cache(json!({}));
    let first = ask(&cache, request("GET", "/a?x=1"), |_| upstream(&[(CACHE_CONTROL, "max-age=60")], "hello")).await;
    assert_eq!(first.status, "onehop; fwd=uri-miss; fwd-status=200; stored");
    let again = ask(&cache, request("GET", "/a?x=1"), never).await;
    assert_eq!((again.code, again.body.as_str()), (200, "hello"));
    assert!(again.status.starts_with("onehop; hit; ttl="), "{}", again.status);
    assert!(ask(&cache, request("GET", "/a?x=2"), |_| upstream(&[], "")).await.called, "another target");
    let mut other = request("GET", "/a?x=1");
    other.authority = "other.example.com".parse().expect("an authority");
    assert!(ask(&cache, other, |_| upstream(&[], "")).await.called, "another host");
}

#[tokio::test]
async fn what_must_not_be_kept_is_not() {
    for fields in [
        &[(CACHE_CONTROL, "no-store, max-age=60")][..],
        &[(CACHE_CONTROL, "private, max-age=60")],
        &[(CACHE_CONTROL, "max-age=60"), (SET_COOKIE, "a=b")],
        &[(CACHE_CONTROL, "max-age=60"), (VARY, "*")],
        &[(CACHE_CONTROL, "max-age=0")],
        &[],
    ] {
        let cache = cache(json!({}));
        for _ in 0..2 {
            let got = ask(&cache, request("GET", "/a"), |_| upstream(fields, "secret")).await;
            assert!(got.called && !got.status.contains("stored"), "{fields:?}: {}", got.status);
        }
    }
}

#[tokio::test]
async fn an_identified_caller_shares_only_what_the_answer_shares() {
    let known = |sub: &str| {
        let mut rq = request("GET", "/me");
        rq.user = Some(user(json!({ "sub": sub })));
        rq
    };
    let plain = [(CACHE_CONTROL, "max-age=60")];
    let mine = cache(json!({}));
    assert!(!ask(&mine, known("a"), |_| upstream(&plain, "a")).await.status.contains("stored"));
    let public = [(CACHE_CONTROL, "public, max-age=60")];
    assert!(ask(&mine, known("a"), |_| upstream(&public, "all")).await.status.contains("stored"));
    assert_eq!(ask(&mine, known("b"), never).await.body, "all");

    let apart = cache(json!({ "by": ["user.sub"], "private": true }));
    let private = [(CACHE_CONTROL, "private, max-age=60")];
    ask(&apart, known("a"), |_| upstream(&private, "a")).await;
    assert_eq!(ask(&apart, known("a"), never).await.body, "a");
    assert_eq!(ask(&apart, known("b"), |_| upstream(&private, "b")).await.body, "b");
    // Whoever cannot be told apart goes past it.
    assert_eq!(ask(&apart, request("GET", "/me"), |_| upstream(&private, "x")).await.status, "onehop; fwd=bypass");
}

#[tokio::test]
async fn answers_that_vary_are_kept_apart() {
    let cache = cache(json!({}));
    let fields = [(CACHE_CONTROL, "max-age=60"), (VARY, "accept-language")];
    let speaks = |language| {
        let mut rq = request("GET", "/");
        rq.headers.insert("accept-language", HeaderValue::from_static(language));
        rq
    };
    ask(&cache, speaks("de"), |_| upstream(&fields, "hallo")).await;
    let other = ask(&cache, speaks("en"), |_| upstream(&fields, "hello")).await;
    assert!(other.status.contains("fwd=vary-miss"), "{}", other.status);
    assert_eq!(ask(&cache, speaks("de"), never).await.body, "hallo");
    assert_eq!(ask(&cache, speaks("en"), never).await.body, "hello");
}

#[tokio::test]
async fn a_stale_answer_is_checked_and_renewed() {
    let cache = cache(json!({}));
    let dated = [(CACHE_CONTROL, "max-age=0"), (ETAG, "\"v1\""), (LAST_MODIFIED, "Sun, 06 Nov 1994 08:49:37 GMT")];
    ask(&cache, request("GET", "/"), |_| upstream(&dated, "one")).await;
    let mut rq = request("GET", "/");
    rq.headers.insert(IF_NONE_MATCH, HeaderValue::from_static("\"mine\""));
    let got = ask(&cache, rq, |rq| {
        assert_eq!(rq.headers[IF_NONE_MATCH], "\"v1\"", "our condition, not the caller's");
        let mut rs = upstream(&[(CACHE_CONTROL, "max-age=60"), (ETAG, "\"v1\"")], "");
        rs.status = StatusCode::NOT_MODIFIED;
        rs
    });
    let got = got.await;
    assert_eq!((got.code, got.body.as_str()), (200, "one"));
    assert_eq!(got.status, "onehop; fwd=stale; fwd-status=304");
    assert_eq!(ask(&cache, request("GET", "/"), never).await.body, "one", "renewed by the 304");
    let mut rq = request("GET", "/");
    rq.headers.insert(IF_NONE_MATCH, HeaderValue::from_static("\"x, y\", W/\"v1\""));
    let got = ask(&cache, rq, never).await;
    assert_eq!((got.code, got.body.as_str()), (304, ""));
}

#[tokio::test]
async fn a_stale_answer_stands_in_for_a_failure_where_allowed() {
    let failing = |origin| {
        move |_: &RequestCx| ResponseCx {
            status: StatusCode::BAD_GATEWAY,
            headers: HeaderMap::new(),
            body: Body::full("down"),
            origin,
        }
    };
    let fields = [(CACHE_CONTROL, "max-age=0"), (ETAG, "\"1\"")];
    let lenient = cache(json!({ "staleIfError": "1m" }));
    ask(&lenient, request("GET", "/"), |_| upstream(&fields, "old")).await;
    let got = ask(&lenient, request("GET", "/"), failing(Origin::Fault)).await;
    assert_eq!((got.code, got.body.as_str()), (200, "old"));
    assert_eq!(got.status, "onehop; fwd=stale; detail=stale-if-error");
    let got = ask(&lenient, request("GET", "/"), failing(Origin::Upstream)).await;
    assert_eq!(got.status, "onehop; fwd=stale; fwd-status=502; detail=stale-if-error");

    let strict = [(CACHE_CONTROL, "max-age=0, must-revalidate"), (ETAG, "\"1\"")];
    ask(&lenient, request("GET", "/s"), |_| upstream(&strict, "old")).await;
    assert_eq!(ask(&lenient, request("GET", "/s"), failing(Origin::Fault)).await.code, 502, "must-revalidate");
    let none = cache(json!({}));
    ask(&none, request("GET", "/"), |_| upstream(&fields, "old")).await;
    assert_eq!(ask(&none, request("GET", "/"), failing(Origin::Fault)).await.code, 502, "nothing allows it");
}

#[tokio::test]
async fn who_asks_at_the_same_time_waits_for_the_first() {
    let cache = cache(json!({}));
    let mut first = request("GET", "/slow");
    assert!(matches!(decided(cache.on_request(&mut first)), Verdict::Next));
    let waiting = {
        let cache = cache.clone();
        tokio::spawn(async move { ask(&cache, request("GET", "/slow"), never).await })
    };
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    let mut rs = upstream(&[(CACHE_CONTROL, "max-age=60")], "once");
    assert!(matches!(decided(cache.on_response(&mut first, &mut rs)), Verdict::Next));
    let got = waiting.await.expect("no panic");
    assert_eq!(got.body, "once");
    assert!(got.status.ends_with("; collapsed"), "{}", got.status);
}

#[tokio::test]
async fn the_wait_ends_when_the_first_leaves() {
    let cache = cache(json!({ "collapse": "1h" }));
    let mut first = request("GET", "/slow");
    assert!(matches!(decided(cache.on_request(&mut first)), Verdict::Next));
    let waiting = {
        let cache = cache.clone();
        tokio::spawn(async move { ask(&cache, request("GET", "/slow"), |_| upstream(&[], "own")).await })
    };
    tokio::task::yield_now().await;
    drop(first);
    assert!(waiting.await.expect("no panic").called);
}

#[tokio::test]
async fn changes_and_purges_forget() {
    let cache = cache(json!({ "by": ["route.name"], "purge": "client.ip == '192.0.2.7'" }));
    let fresh = [(CACHE_CONTROL, "max-age=60")];
    for target in ["/a/1", "/a/2", "/b"] {
        ask(&cache, request("GET", target), |_| upstream(&fresh, "x")).await;
    }
    ask(&cache, request("POST", "/a/1"), |_| upstream(&[], "")).await;
    assert!(ask(&cache, request("GET", "/a/1"), |_| upstream(&fresh, "x")).await.called, "changed");
    assert_eq!(ask(&cache, request("PURGE", "/a/*"), never).await.body, "{\"purged\":2}\n");
    assert!(ask(&cache, request("GET", "/a/2"), |_| upstream(&fresh, "x")).await.called, "purged");
    ask(&cache, request("GET", "/b"), never).await;
    let mut stranger = request("PURGE", "/b");
    stranger.client_ip = "192.0.2.8".parse().expect("an address");
    assert!(matches!(decided(cache.on_request(&mut stranger)), Verdict::Fail(f) if f.reason == Reason::Forbidden));
}

#[tokio::test]
async fn large_and_broken_bodies_are_not_kept() {
    use http_body::Frame;
    use http_body_util::StreamBody;
    let streamed = |frames: Vec<Result<Frame<bytes::Bytes>, crate::contract::BodyError>>| {
        let mut rs = upstream(&[(CACHE_CONTROL, "max-age=60")], "");
        rs.body = Body::stream(StreamBody::new(futures_util::stream::iter(frames)));
        rs
    };
    let data = |text: &'static str| Ok(Frame::data(bytes::Bytes::from_static(text.as_bytes())));
    let cache = cache(json!({ "maxEntry": "4B" }));
    ask(&cache, request("GET", "/small"), |_| streamed(vec![data("ab"), data("cd")])).await;
    assert_eq!(ask(&cache, request("GET", "/small"), never).await.body, "abcd");
    ask(&cache, request("GET", "/large"), |_| streamed(vec![data("abc"), data("de")])).await;
    assert!(ask(&cache, request("GET", "/large"), |_| upstream(&[], "")).await.called);

    let mut rq = request("GET", "/cut");
    assert!(matches!(decided(cache.on_request(&mut rq)), Verdict::Next));
    let mut rs = streamed(vec![data("ab"), Err(Box::new(Fault::new(Reason::Truncated)))]);
    assert!(matches!(decided(cache.on_response(&mut rq, &mut rs)), Verdict::Next));
    assert!(rs.body.collect().await.is_err());
    assert!(ask(&cache, request("GET", "/cut"), |_| upstream(&[], "")).await.called, "a cut body is no answer");
}

#[tokio::test]
async fn requests_can_insist_unless_told_otherwise() {
    let insists = || {
        let mut rq = request("GET", "/");
        rq.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        rq
    };
    let fields = [(CACHE_CONTROL, "max-age=60"), (CONTENT_TYPE, "text/plain")];
    let polite = cache(json!({}));
    ask(&polite, request("GET", "/"), |_| upstream(&fields, "x")).await;
    assert!(ask(&polite, insists(), |_| upstream(&fields, "y")).await.called);
    let firm = cache(json!({ "ignoreRequestDirectives": true }));
    ask(&firm, request("GET", "/"), |_| upstream(&fields, "x")).await;
    assert_eq!(ask(&firm, insists(), never).await.body, "x");
    let mut only = request("GET", "/none");
    only.headers.insert(CACHE_CONTROL, HeaderValue::from_static("only-if-cached"));
    assert!(matches!(decided(polite.on_request(&mut only)), Verdict::Fail(f) if f.reason.status() == 504));
}

#[test]
fn private_answers_need_somebody_to_belong_to() {
    let directory = Directory::default();
    let mut estate = Estate::default();
    let mut refused = |config| match build(Some(&section(config)), &mut estate.build("routes.orders", &directory)) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    assert!(refused(json!({ "private": true })).contains("without `by`"));
    assert!(refused(json!({ "memory": "1KiB" })).contains("smaller than one entry"));
}

#[test]
fn memory_is_bounded() {
    let store = Arc::new(Store::new(1 << 20, 16 << 10));
    let rules = Rules {
        private: false,
        default_ttl: Duration::from_secs(60),
        stale_if_error: Duration::ZERO,
        stale_while_revalidate: Duration::ZERO,
        ignore_request: false,
    };
    let now = SystemTime::now();
    for n in 0..1000 {
        let asked = Asked::new(&HeaderMap::new(), false, &rules);
        let freshness = Freshness::of(&asked, StatusCode::OK, &HeaderMap::new(), &rules, now).expect("kept");
        let body = vec![0; 10 << 10].into();
        let entry = Answer { status: StatusCode::OK, headers: HeaderMap::new(), body, freshness };
        store.put(&format!("http://a/{n}"), Arc::new(entry), None);
        assert!(store.weight() <= 1 << 20);
    }
    assert!(store.weight() > 1 << 19, "and used");
}

/// What the public tests of HTTP caches found, each in a few lines.
#[tokio::test]
async fn in_doubt_an_answer_is_stale() {
    for (name, age, kept) in [
        ("one number", vec!["0"], true),
        ("a word", vec!["abc"], false),
        ("negative", vec!["-1"], false),
        ("a fraction", vec!["1.0"], false),
        ("two on a line", vec!["0, 0"], false),
        ("two lines", vec!["0", "0"], false),
        ("nothing", vec![""], false),
        ("with a parameter", vec!["0;x=1"], false),
    ] {
        let cache = cache(json!({}));
        let answer = |_: &RequestCx| {
            let mut rs = upstream(&[(CACHE_CONTROL, "max-age=60"), (ETAG, "\"a\"")], "x");
            for age in &age {
                rs.headers.append(AGE, HeaderValue::from_static(age));
            }
            rs
        };
        ask(&cache, request("GET", "/"), answer).await;
        assert_eq!(!ask(&cache, request("GET", "/"), answer).await.called, kept, "{name}");
    }
}

#[tokio::test]
async fn directives_have_no_case() {
    let cache = cache(json!({}));
    let answer = |_: &RequestCx| upstream(&[(CACHE_CONTROL, "Max-Age=60, No-CaChE"), (ETAG, "\"a\"")], "x");
    ask(&cache, request("GET", "/"), answer).await;
    assert!(ask(&cache, request("GET", "/"), answer).await.called);
}

#[tokio::test]
async fn a_304_says_nothing_of_the_kept_body() {
    let cache = cache(json!({}));
    ask(&cache, request("GET", "/"), |_| upstream(&[(CACHE_CONTROL, "max-age=0"), (ETAG, "\"a\"")], "x")).await;
    ask(&cache, request("GET", "/"), |_| {
        let mut rs = upstream(&[(CACHE_CONTROL, "max-age=60"), (ETAG, "\"b\"")], "");
        rs.status = StatusCode::NOT_MODIFIED;
        rs
    })
    .await;
    let mut rq = request("GET", "/");
    rq.headers.insert(IF_NONE_MATCH, HeaderValue::from_static("\"a\""));
    assert_eq!(ask(&cache, rq, never).await.code, 304, "the kept body is still `a`");
}

#[tokio::test]
async fn what_an_answer_names_has_changed_too() {
    for (name, place, gone) in [
        (LOCATION, "/a/b", true),
        (CONTENT_LOCATION, "/a/b#top", true),
        (LOCATION, "b", true),
        (LOCATION, "http://api.example.com:8443/a/b", true),
        (LOCATION, "http://other.example.com/a/b", false),
        (LOCATION, "https://api.example.com:8443/a/b", false),
        (LOCATION, "//api.example.com:8443/a/b", false),
        (LOCATION, "/a/c", false),
    ] {
        let cache = cache(json!({}));
        ask(&cache, request("GET", "/a/b"), |_| upstream(&[(CACHE_CONTROL, "max-age=60")], "old")).await;
        ask(&cache, request("POST", "/a/list"), |_| upstream(&[(name.clone(), place)], "")).await;
        let next = ask(&cache, request("GET", "/a/b"), |_| upstream(&[], "new")).await;
        assert_eq!(next.called, gone, "{name}: {place}");
    }
}
