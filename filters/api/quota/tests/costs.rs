//! Costs: of the request, of the answer, settled however it ends.

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use super::*;
use crate::contract::{Body, BodyError};

fn left(quota: &Arc<dyn Filter>, rq: &mut RequestCx) -> u64 {
    rq.dry_run = true;
    rq.reply_headers.clear();
    assert!(run(quota, rq).is_none(), "something is left");
    rq.dry_run = false;
    let state = reply(rq, "ratelimit");
    let r = state.split(";r=").nth(1).and_then(|s| s.split(';').next()).expect("r");
    r.parse().expect("a number")
}

/// The answer's body as the client reads it; `None` where it reads only the first chunk and leaves.
fn answer(quota: &Arc<dyn Filter>, rq: &mut RequestCx, kind: &str, chunks: &[&str], all: bool) -> Vec<u8> {
    let frames: Vec<Result<Frame<Bytes>, BodyError>> =
        chunks.iter().map(|c| Ok(Frame::data(Bytes::copy_from_slice(c.as_bytes())))).collect();
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::try_from(kind).expect("a kind"));
    let body = Body::stream(StreamBody::new(stream::iter(frames)));
    let mut rs = ResponseCx { status: StatusCode::OK, headers, body, origin: Origin::Upstream };
    assert!(matches!(quota.on_response(rq, &mut rs), Step::Done(Verdict::Next)));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        if all {
            return rs.body.collect().await.expect("whole").to_bytes().to_vec();
        }
        let first = rs.body.frame().await.expect("a chunk").expect("good");
        first.into_data().map(|b| b.to_vec()).unwrap_or_default()
    })
}

/// Units that an exchange cost in the end. The look at the end shows what another estimate would leave.
fn cost(section: serde_json::Value, kind: &str, chunks: &[&str], all: bool) -> u64 {
    let estimate = section["estimate"].as_u64().expect("an estimate");
    let quota = one(json!([{"by": "ip", "limit": 1000, "per": "1h", "cost": section}]));
    let mut rq = request("GET", "/");
    assert!(run(&quota, &mut rq).is_none());
    let got = answer(&quota, &mut rq, kind, chunks, all);
    assert!(!all || got == chunks.concat().into_bytes(), "not a byte is changed");
    1000 - left(&quota, &mut rq) - estimate
}

#[test]
fn a_request_costs_what_is_written_or_said() {
    let quota = one(json!([{"by": "ip", "limit": 10, "per": "1h", "cost": 4}]));
    let mut rq = request("GET", "/");
    assert!(run(&quota, &mut rq).is_none() && run(&quota, &mut rq).is_none());
    let fault = run(&quota, &mut rq).expect("two are left");
    assert!(header(&fault, "ratelimit").starts_with("\"ip-1h\";r=2;t="), "{}", header(&fault, "ratelimit"));
    let quota = one(json!([{"by": "ip", "limit": 100, "per": "1h", "cost": "request.headers['x-cost']"}]));
    for (said, remains) in [("30", 70), ("0.5", 69), ("-7", 69), ("nonsense", 68), ("0", 68)] {
        rq.headers.insert("x-cost", HeaderValue::from_static(said));
        assert!(run(&quota, &mut rq).is_none());
        let state = reply(&rq, "ratelimit").to_owned();
        assert!(state.contains(&format!(";r={remains};")), "{said}: {state}");
    }
    let quota = one(json!([{"by": "ip", "limit": 100, "per": "1h", "cost": "size(request.path)"}]));
    let mut rq = request("GET", "/12345");
    assert_eq!(left(&quota, &mut rq), 94, "a computed cost");
}

#[test]
fn an_answer_costs_its_bytes_or_what_it_says() {
    let bytes = || json!({"estimate": 5, "response": "response.bytes"});
    assert_eq!(cost(bytes(), "text/plain", &["hello", " world"], true), 11);
    assert_eq!(cost(bytes(), "text/plain", &["hello", " world"], false), 5, "what went through until the client left");
    let tokens = || json!({"estimate": 50, "response": "response.json.usage.total_tokens"});
    let usage = ["{\"choices\":[],\"usa", "ge\":{\"total_tokens\":42}}"];
    assert_eq!(cost(tokens(), "application/json", &usage, true), 42);
    assert_eq!(cost(tokens(), "application/problem+json; charset=utf-8", &usage, true), 42);
    assert_eq!(cost(tokens(), "application/json", &["{\"id\":1}"], true), 50, "no number: the estimate stays");
    assert_eq!(cost(tokens(), "application/json", &usage, false), 50, "half a text says nothing");
    assert_eq!(cost(tokens(), "text/plain", &usage, true), 50);
}

#[test]
fn an_event_stream_costs_what_its_latest_usage_says() {
    let tokens = || json!({"estimate": 100, "response": "response.json.usage.total_tokens"});
    let events = [
        "data: {\"choices\":[{\"delta\":{}}],\"usage\":null}\n\n",
        ": a comment\r\ndata: {\"usage\":{\"tot",
        "al_tokens\":7}}\r\n\r\nevent: x\ndata: {\"choices\":[]}\n\n",
        "data: {\"usage\":{\ndata: \"total_tokens\":30}}\n\ndata: [DONE]\n\n",
    ];
    assert_eq!(cost(tokens(), "text/event-stream", &events, true), 30);
    assert_eq!(cost(tokens(), "text/event-stream; charset=utf-8", &events[..3], true), 7);
    assert_eq!(cost(tokens(), "text/event-stream", &events, false), 100, "aborted before any usage");
    let unfinished = ["data: {\"usage\":{\"total_tokens\":9}}"];
    assert_eq!(cost(tokens(), "text/event-stream", &unfinished, true), 9, "the last event without its empty line");
}

#[test]
fn an_answer_may_cost_more_than_is_left() {
    let quota = one(json!([{"by": "ip", "limit": 10, "per": "1h", "cost": {"response": "response.bytes"}}]));
    let mut rq = request("GET", "/");
    assert!(run(&quota, &mut rq).is_none());
    answer(&quota, &mut rq, "text/plain", &["twenty bytes of text"], true);
    let fault = run(&quota, &mut rq).expect("in debt");
    let wait: u64 = header(&fault, "retry-after").parse().expect("seconds");
    assert!(wait > 360 * 10 && wait <= 360 * 11 + 1, "10 too many, and one more must be there: {wait}");
}

#[test]
fn who_reads_json_asks_for_it_uncoded() {
    let section = json!([{"by": "ip", "limit": 10, "per": "1h", "cost": {"response": "response.json.n"}}]);
    let mut rq = request("GET", "/");
    rq.headers.insert("accept-encoding", HeaderValue::from_static("gzip"));
    assert!(run(&one(section), &mut rq).is_none());
    assert!(!rq.headers.contains_key("accept-encoding"));
}
