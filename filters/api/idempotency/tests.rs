use http::StatusCode;
use http_body_util::BodyExt as _;
use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, decided, request, section, user};
use crate::contract::Directory;

fn filter(config: serde_json::Value) -> Arc<dyn Filter> {
    let directory = Directory::default();
    build(Some(&section(config)), &mut Estate::default().build("routes.orders", &directory)).expect("good")
}

fn post(key: &'static str, body: &'static str) -> RequestCx {
    let mut rq = request("POST", "/orders");
    rq.headers.insert(KEY, HeaderValue::from_static(key));
    rq.body = Body::full(body);
    rq
}

async fn enter(filter: &Arc<dyn Filter>, rq: &mut RequestCx) -> Result<Option<Response<Body>>, Reason> {
    let verdict = match filter.on_request(rq) {
        Step::Done(verdict) => verdict,
        Step::Wait(later) => later.await,
    };
    match verdict {
        Verdict::Next => Ok(None),
        Verdict::Reply(reply) => Ok(Some(*reply)),
        Verdict::Fail(fault) => Err(fault.reason),
    }
}

async fn answer(filter: &Arc<dyn Filter>, rq: &mut RequestCx, status: u16, body: &'static str) {
    let status = StatusCode::from_u16(status).expect("a status");
    let mut headers = HeaderMap::new();
    headers.insert("x-order", HeaderValue::from_static("7"));
    let mut rs = ResponseCx { status, headers, body: Body::full(body), origin: Origin::Upstream };
    assert!(matches!(decided(filter.on_response(rq, &mut rs)), Verdict::Next));
    assert_eq!(rs.body.collect().await.expect("whole").to_bytes(), body);
}

async fn fail(filter: &Arc<dyn Filter>, rq: &mut RequestCx, may_have_run: bool) {
    rq.scratch.put(Failure { reason: Reason::TryTimeout, may_have_run });
    let headers = HeaderMap::new();
    let mut rs = ResponseCx { status: StatusCode::GATEWAY_TIMEOUT, headers, body: Body::Empty, origin: Origin::Fault };
    assert!(matches!(decided(filter.on_response(rq, &mut rs)), Verdict::Next));
}

#[tokio::test]
async fn a_repetition_gets_the_first_answer() {
    let filter = filter(json!({}));
    let mut first = post("k-1", "order");
    assert!(enter(&filter, &mut first).await.expect("passes").is_none());
    assert_eq!(first.body.collect().await.expect("whole").to_bytes(), "order", "the service gets the body");
    let mut first = post("k-2", "order");
    assert!(enter(&filter, &mut first).await.expect("passes").is_none());
    answer(&filter, &mut first, 201, "made").await;
    // Quoted as the draft says, it is the same key.
    let again = enter(&filter, &mut post("\"k-2\"", "order")).await.expect("passes").expect("answered");
    assert_eq!((again.status(), &again.headers()["x-order"]), (StatusCode::CREATED, &HeaderValue::from_static("7")));
    assert_eq!(again.headers()[&REPLAYED], "true");
    assert_eq!(again.into_body().collect().await.expect("whole").to_bytes(), "made");
}

#[tokio::test]
async fn a_key_is_for_one_request_of_one_caller() {
    let filter = filter(json!({}));
    let mut first = post("k", "one");
    assert!(matches!(enter(&filter, &mut first).await, Ok(None)));
    assert_eq!(enter(&filter, &mut post("k", "one")).await.expect_err("running"), Reason::KeyInUse);
    assert_eq!(enter(&filter, &mut post("k", "two")).await.expect_err("another body"), Reason::KeyMismatch);
    answer(&filter, &mut first, 200, "").await;
    assert_eq!(enter(&filter, &mut post("k", "two")).await.expect_err("another body"), Reason::KeyMismatch);
    let mut other = post("k", "two");
    other.user = Some(user(json!({"sub": "b"})));
    assert!(matches!(enter(&filter, &mut other).await, Ok(None)), "another caller's key");
    let mut get = post("k", "two");
    get.method = Method::GET;
    assert!(matches!(enter(&filter, &mut get).await, Ok(None)), "not for this method");
}

#[tokio::test]
async fn what_did_not_run_may_run_again() {
    let filter = filter(json!({}));
    for status in [429, 500, 503] {
        let mut rq = post("busy", "x");
        assert!(matches!(enter(&filter, &mut rq).await, Ok(None)));
        answer(&filter, &mut rq, status, "").await;
    }
    let mut rq = post("busy", "x");
    assert!(matches!(enter(&filter, &mut rq).await, Ok(None)));
    fail(&filter, &mut rq, false).await;
    assert!(matches!(enter(&filter, &mut post("busy", "x")).await, Ok(None)));
}

#[tokio::test]
async fn what_may_have_run_is_refused_unless_told_otherwise() {
    let careful = filter(json!({}));
    let mut rq = post("lost", "x");
    assert!(matches!(enter(&careful, &mut rq).await, Ok(None)));
    fail(&careful, &mut rq, true).await;
    assert_eq!(enter(&careful, &mut post("lost", "x")).await.expect_err("unknown"), Reason::KeyInUse);

    let mut left = post("left", "x");
    assert!(matches!(enter(&careful, &mut left).await, Ok(None)));
    drop(left);
    assert_eq!(enter(&careful, &mut post("left", "x")).await.expect_err("its caller left"), Reason::KeyInUse);

    let bold = filter(json!({"onUnknown": "repeat"}));
    let mut rq = post("lost", "x");
    assert!(matches!(enter(&bold, &mut rq).await, Ok(None)));
    fail(&bold, &mut rq, true).await;
    assert!(matches!(enter(&bold, &mut post("lost", "x")).await, Ok(None)));
    let mut left = post("left", "x");
    assert!(matches!(enter(&bold, &mut left).await, Ok(None)));
    drop(left);
    assert!(matches!(enter(&bold, &mut post("left", "x")).await, Ok(None)));
}

#[tokio::test]
async fn limits_hold() {
    let filter = filter(json!({"bodyLimit": "4B", "memory": "1KiB", "required": true}));
    assert_eq!(enter(&filter, &mut post("k", "12345")).await.expect_err("too large"), Reason::BodyTooLarge);
    assert_eq!(enter(&filter, &mut request("POST", "/")).await.expect_err("no key"), Reason::KeyMissing);
    assert_eq!(enter(&filter, &mut post("\"open", "1")).await.expect_err("bad"), Reason::BadHeader);
    let mut twice = post("a", "1");
    twice.headers.append(KEY, HeaderValue::from_static("b"));
    assert_eq!(enter(&filter, &mut twice).await.expect_err("two keys"), Reason::BadHeader);
    let mut rq = post("big", "1");
    assert!(matches!(enter(&filter, &mut rq).await, Ok(None)));
    answer(&filter, &mut rq, 200, "12345").await;
    assert_eq!(enter(&filter, &mut post("big", "1")).await.expect_err("not kept"), Reason::KeyInUse);
}
