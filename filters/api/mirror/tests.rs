use std::sync::atomic::AtomicUsize;

use futures_util::stream;
use http::Response;
use http_body::Frame;
use http_body_util::StreamBody;
use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, decided, directory, request, section, services};
use crate::contract::BodyError;
use crate::contract::filter::Verdict;

type Seen = Arc<Mutex<Vec<Request<Bytes>>>>;

struct Bed {
    filter: Arc<dyn Filter>,
    seen: Seen,
    services: Arc<dyn Services>,
    metrics: Arc<crate::contract::metrics::Registry>,
}

fn bed(config: serde_json::Value) -> Bed {
    let (mut estate, directory) = (Estate::default(), directory(&["shadow"]));
    let mut build = estate.build("routes.orders", &directory);
    let metrics = build.metrics.clone();
    let filter = super::build(Some(&section(config)), &mut build).unwrap_or_else(|e| panic!("{e}"));
    let seen = Seen::default();
    let kept = seen.clone();
    let services = services(move |_, call| {
        let kept = kept.clone();
        Box::pin(async move {
            let (head, body) = call.request.into_parts();
            let body = body.collect().await.expect("whole").to_bytes();
            kept.lock().push(Request::from_parts(head, body));
            Ok(Response::new(Body::full("ignored")))
        })
    });
    Bed { filter, seen, services, metrics }
}

impl Bed {
    fn pass(&self, rq: &mut RequestCx) {
        rq.services = self.services.clone();
        assert!(matches!(decided(self.filter.on_request(rq)), Verdict::Next));
    }
    fn count(&self, result: &str) -> u64 {
        let labels = [("route", "orders"), ("service", "shadow"), ("result", result)];
        self.metrics.counter("onehop_mirrored_total", "", &labels).value()
    }
    async fn until(&self, result: &str, n: u64) {
        for _ in 0..2000 {
            if self.count(result) == n {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{result}: {} instead of {n}", self.count(result));
    }
}

fn chunks(list: &[&'static str]) -> Body {
    let frames: Vec<Result<Frame<Bytes>, BodyError>> =
        list.iter().map(|c| Ok(Frame::data(Bytes::from_static(c.as_bytes())))).collect();
    Body::stream(StreamBody::new(stream::iter(frames)))
}

#[tokio::test]
async fn a_copy_is_what_the_service_gets_and_marked() {
    let bed = bed(json!({ "to": "shadow", "hostSuffix": "-shadow" }));
    let mut rq = request("POST", "/v1/a?b=c");
    rq.headers.insert("x-a", HeaderValue::from_static("1"));
    rq.body = chunks(&["ab", "cd"]);
    bed.pass(&mut rq);
    assert!(bed.seen.lock().is_empty(), "not before the body has gone by");
    let body = std::mem::take(&mut rq.body).collect().await.expect("whole").to_bytes();
    assert_eq!(body, "abcd");
    bed.until("sent", 1).await;
    let copy = bed.seen.lock().remove(0);
    assert_eq!(
        (copy.method(), copy.uri().to_string().as_str()),
        (&Method::POST, "http://api.example.com-shadow:8443/v1/a?b=c")
    );
    assert_eq!(&copy.body()[..], b"abcd");
    assert_eq!(
        (&copy.headers()["x-onehop-mirrored"], &copy.headers()["x-request-id"]),
        (&HeaderValue::from_static("orders"), &rq.request_id)
    );
    assert!(copy.headers().contains_key("x-a"));
}

#[tokio::test]
async fn what_is_not_mirrored_is_counted() {
    let bed = bed(json!({ "to": "shadow", "bodyLimit": "3B", "maxConcurrent": 1 }));
    // Too long, found out on the way.
    let mut rq = request("POST", "/");
    rq.body = chunks(&["ab", "cd"]);
    bed.pass(&mut rq);
    assert_eq!(std::mem::take(&mut rq.body).collect().await.expect("whole").to_bytes(), "abcd");
    assert_eq!(bed.count("too-long"), 1);
    // Too long, known before.
    let mut rq = request("POST", "/");
    rq.body = Body::full("abcd");
    bed.pass(&mut rq);
    assert_eq!(bed.count("too-long"), 2);
    // Never read to the end.
    let mut rq = request("POST", "/");
    rq.body = chunks(&["a", "b"]);
    bed.pass(&mut rq);
    // And no room meanwhile.
    bed.pass(&mut request("GET", "/"));
    assert_eq!(bed.count("busy"), 1);
    drop(rq);
    assert_eq!(bed.count("unfinished"), 1);
    bed.pass(&mut request("GET", "/"));
    bed.until("sent", 1).await;
    assert_eq!(bed.seen.lock().len(), 1);
}

#[tokio::test]
async fn copies_upgrades_and_hypothetical_requests_are_not_mirrored() {
    let bed = bed(json!([{ "to": "shadow" }]));
    for (name, value) in [("x-onehop-mirrored", "orders"), ("sec-websocket-key", "x")] {
        let mut rq = request("GET", "/");
        rq.headers.insert(name, HeaderValue::from_static(value));
        bed.pass(&mut rq);
    }
    bed.pass(&mut request("CONNECT", "/"));
    let mut rq = request("GET", "/");
    rq.dry_run = true;
    bed.pass(&mut rq);
    tokio::task::yield_now().await;
    assert!(bed.seen.lock().is_empty());
}

#[tokio::test]
async fn a_share_is_one_and_a_slow_mirror_is_given_up() {
    let bed = bed(json!([{ "to": "shadow", "percent": "30%", "maxConcurrent": 100_000 }]));
    for _ in 0..2000 {
        bed.pass(&mut request("GET", "/"));
    }
    let labels = [("route", "orders"), ("service", "shadow")];
    while bed.metrics.gauge("onehop_mirror_under_way", "", &labels).value() > 0 {
        tokio::task::yield_now().await;
    }
    assert!((450..750).contains(&bed.seen.lock().len()), "{}", bed.seen.lock().len());

    let slow = self::bed(json!({ "to": "shadow", "timeout": "5ms" }));
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let mut rq = request("GET", "/");
    rq.services = services(move |_, _| {
        counted.fetch_add(1, Relaxed);
        Box::pin(std::future::pending())
    });
    assert!(matches!(decided(slow.filter.on_request(&mut rq)), Verdict::Next), "at once");
    tokio::time::sleep(Duration::from_millis(6)).await;
    slow.until("failed", 1).await;
    assert_eq!(
        slow.metrics.gauge("onehop_mirror_under_way", "", &[("route", "orders"), ("service", "shadow")]).value(),
        0
    );
}

#[test]
fn mistakes() {
    let directory = directory(&["shadow"]);
    for (config, message) in [
        (json!([]), "no mirror"),
        (json!({ "to": "shadw" }), "no service `shadw`"),
        (json!({ "to": "shadow", "bodyLimit": "1GiB" }), "not kept"),
        (json!({ "to": "shadow", "timeout": "0s" }), "no time"),
        (json!({ "to": "shadow", "maxConcurrent": 0 }), "nothing would"),
        (json!({ "to": "shadow", "hostSuffix": "/x" }), "cannot end a host"),
    ] {
        let made = build(Some(&section(config.clone())), &mut Estate::default().build("routes.o", &directory));
        let found = made.err().unwrap_or_else(|| panic!("{config}")).to_string();
        assert!(found.contains(message), "{config}: {found}");
    }
}

#[test]
fn suffixes_stand_before_the_port() {
    for (host, expected) in [
        ("a.b", "a.b-s"),
        ("a:80", "a-s:80"),
        ("[::1]:80", "[::1]:80"),
        ("[::1]", "[::1]"),
        ("10.0.0.1:1", "10.0.0.1:1"),
    ] {
        assert_eq!(suffixed(host, "-s").expect("an authority"), expected);
    }
}

proptest! {
    /// Whatever the chunks and the limit: the primary sees every byte, and the copy all or nothing.
    #[test]
    fn the_tee_loses_nothing(parts in proptest::collection::vec("[a-z]{0,5}", 0..8), limit in 0usize..30, read in 0usize..10) {
        let whole: String = parts.concat();
        let frames: Vec<Result<Frame<Bytes>, BodyError>> = parts.iter().map(|p| Ok(Frame::data(Bytes::from(p.clone())))).collect();
        let n = frames.len();
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = told.clone();
        let body = Body::stream(StreamBody::new(stream::iter(frames)));
        let mut tee = Tee::new(body, limit, move |kept| tell.lock().push(kept));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let passed = runtime.block_on(async {
            let mut passed = String::new();
            for _ in 0..read {
                match tee.frame().await {
                    Some(Ok(frame)) => passed.push_str(std::str::from_utf8(frame.data_ref().expect("data")).expect("text")),
                    _ => break,
                }
            }
            passed
        });
        drop(tee);
        prop_assert!(whole.starts_with(&passed));
        let told = told.lock();
        prop_assert_eq!(told.len(), 1, "told once");
        let expected = match &told[0] {
            Kept::Whole(bytes) => bytes == whole.as_bytes() && passed == whole && whole.len() <= limit,
            Kept::TooLong => passed.len() > limit,
            Kept::Unfinished => read <= n && passed.len() <= limit,
        };
        prop_assert!(expected, "{:?}", told[0]);
    }
}
