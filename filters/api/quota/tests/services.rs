//! Limits that a rate limit service keeps, against one in this process.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use prost::Message;

use super::super::service::{CurrentLimit, DescriptorStatus, Field, RateLimitRequest, RateLimitResponse, Span};
use super::*;
use crate::contract::call::Answering;
use crate::contract::{Body, BodyError, Call, ServiceId, Services};

/// Answers what it is told to, and keeps what it was asked.
struct Fake {
    answer: Option<RateLimitResponse>,
    asked: Mutex<Vec<RateLimitRequest>>,
}

impl Services for Fake {
    fn call(self: Arc<Self>, service: ServiceId, call: Call) -> Answering {
        Box::pin(async move {
            assert_eq!(service, ServiceId(7));
            assert_eq!(call.request.uri().path(), "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
            let sent = call.request.into_body().collect().await.expect("a body").to_bytes();
            self.asked.lock().push(RateLimitRequest::decode(&sent[5..]).expect("a message"));
            // Without an answer: as a service that hangs.
            let Some(answer) = &self.answer else { return std::future::pending().await };
            let mut frame = BytesMut::new();
            frame.put_u8(0);
            frame.put_u32(u32::try_from(answer.encoded_len()).expect("small"));
            answer.encode(&mut frame).expect("room");
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let frames: Vec<Result<Frame<Bytes>, BodyError>> =
                vec![Ok(Frame::data(frame.freeze())), Ok(Frame::trailers(trailers))];
            let response = Response::builder().header("content-type", "application/grpc");
            Ok(response.body(Body::stream(StreamBody::new(stream::iter(frames)))).expect("a response"))
        })
    }
}

fn quota(more: &str, cost: u64) -> Arc<dyn Filter> {
    let services = BTreeMap::from([("rl".to_owned(), ServiceId(7))]);
    let directory = Directory { services, ..Directory::default() };
    let mut service = json!({
        "service": "rl", "domain": "shop", "descriptors": {"tenant": "${request.headers['x-tenant']}", "kind": "gold"},
        "timeout": "50ms",
    });
    if !more.is_empty() {
        service["failureMode"] = more.into();
    }
    let section =
        json!([{"by": "ip", "limit": 2, "per": "1h"}, {"by": "ip", "cost": cost, "rateLimitService": service}]);
    filter(&mut Estate::default(), &directory, section)
}

fn ask(quota: &Arc<dyn Filter>, fake: &Arc<Fake>, rq: &mut RequestCx) -> Option<Fault> {
    rq.services = fake.clone();
    rq.headers.insert("x-tenant", HeaderValue::from_static("a"));
    rq.reply_headers.clear();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let verdict = match quota.on_request(rq) {
        Step::Done(verdict) => verdict,
        Step::Wait(later) => runtime.block_on(later),
    };
    match verdict {
        Verdict::Next => None,
        Verdict::Fail(fault) => Some(*fault),
        Verdict::Reply(_) => panic!("quota never replies"),
    }
}

fn fake(answer: Option<(i32, u32)>) -> Arc<Fake> {
    let answer = answer.map(|(overall_code, limit_remaining)| RateLimitResponse {
        overall_code,
        statuses: vec![DescriptorStatus {
            code: overall_code,
            current_limit: Some(CurrentLimit { requests_per_unit: 9 }),
            limit_remaining,
            duration_until_reset: Some(Span { seconds: 41, nanos: 500_000_000 }),
        }],
        response_headers_to_add: vec![
            Field { key: "x-limit".to_owned(), value: "nine".to_owned(), raw_value: Vec::new() },
            Field { key: "content-length".to_owned(), value: "7".to_owned(), raw_value: Vec::new() },
        ],
    });
    Arc::new(Fake { answer, asked: Mutex::default() })
}

#[test]
fn the_service_decides_and_its_fields_go_to_the_caller() {
    let (quota, service) = (quota("", 3), fake(Some((1, 8))));
    let mut rq = request("GET", "/");
    assert!(ask(&quota, &service, &mut rq).is_none());
    assert_eq!(reply(&rq, "x-limit"), "nine");
    assert_eq!(reply(&rq, "content-length"), "", "framing is not the service's");
    assert!(reply(&rq, "ratelimit").contains("\"ip-shop\";r=8;t=42"), "{}", reply(&rq, "ratelimit"));
    let asked = service.asked.lock();
    let entries = asked[0].descriptors[0].entries.iter().map(|e| (e.key.as_str(), e.value.as_str()));
    assert_eq!((asked[0].domain.as_str(), asked[0].hits_addend), ("shop", 3));
    assert_eq!(entries.collect::<Vec<_>>(), [("tenant", "a"), ("kind", "gold")]);
}

#[test]
fn over_its_limit_is_429_and_other_limits_are_not_charged() {
    let quota = quota("", 1);
    let over = fake(Some((2, 0)));
    for _ in 0..5 {
        let fault = ask(&quota, &over, &mut request("GET", "/")).expect("refused");
        assert_eq!(fault.reason, Reason::OverQuota);
        assert_eq!((header(&fault, "retry-after"), header(&fault, "x-limit")), ("42", "nine"));
    }
    let good = fake(Some((1, 5)));
    for _ in 0..2 {
        assert!(ask(&quota, &good, &mut request("GET", "/")).is_none(), "the local limit was given back each time");
    }
    assert!(ask(&quota, &good, &mut request("GET", "/")).is_some());
    assert_eq!(good.asked.lock().len(), 2, "a limit that refuses first spares the call");
}

#[test]
fn without_an_answer_the_mode_decides() {
    let silent = fake(None);
    assert!(ask(&quota("", 1), &silent, &mut request("GET", "/")).is_none());
    assert!(ask(&quota("allow", 1), &silent, &mut request("GET", "/")).is_none());
    let fault = ask(&quota("deny", 1), &silent, &mut request("GET", "/")).expect("refused");
    assert_eq!((fault.reason, fault.reason.status().as_u16()), (Reason::QuotaUnavailable, 503));
    let asked = silent.asked.lock().len();
    assert!(ask(&quota("deny", 0), &silent, &mut request("GET", "/")).is_none(), "what costs nothing is not asked");
    assert_eq!(silent.asked.lock().len(), asked);
}

#[test]
fn a_request_without_what_a_descriptor_names_is_nameless() {
    let quota = quota("", 1);
    let mut rq = request("GET", "/");
    rq.services = fake(Some((1, 5)));
    let Step::Done(Verdict::Fail(fault)) = quota.on_request(&mut rq) else { panic!("refused at once") };
    assert_eq!(fault.reason, Reason::Forbidden);
}
