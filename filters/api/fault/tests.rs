use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use proptest::prelude::*;
use serde_json::json;

use super::core::{Draw, Plan, end};
use super::*;
use crate::api::fixture::{Estate, decided, request, section};
use crate::contract::Directory;

fn made(estate: &mut Estate, config: serde_json::Value) -> Arc<dyn Filter> {
    let directory = Directory::default();
    let filter = build(Some(&section(config)), &mut estate.build("routes.orders", &directory));
    let filter = filter.unwrap_or_else(|e| panic!("{e}"));
    estate.publish();
    filter
}

fn refused(config: serde_json::Value) -> String {
    let directory = Directory::default();
    let made = build(Some(&section(config)), &mut Estate::default().build("routes.orders", &directory));
    made.err().expect("a mistake").to_string()
}

fn aborted(filter: &dyn Filter, rq: &mut RequestCx) -> Option<StatusCode> {
    match decided(filter.on_request(rq)) {
        Verdict::Fail(fault) => Some(fault.status()),
        Verdict::Next => None,
        Verdict::Reply(_) => panic!("a fault"),
    }
}

#[test]
fn an_experiment_fails_requests_until_it_is_over() {
    let mut estate = Estate::default();
    let config = json!({ "abort": { "status": 418 }, "for": "1h" });
    let filter = made(&mut estate, config);
    let mut rq = request("GET", "/");
    assert_eq!(aborted(&*filter, &mut rq), Some(StatusCode::IM_A_TEAPOT));
    assert_eq!(rq.reply_headers[0], (MARK, HeaderValue::from_static("abort")));

    let filter = made(&mut estate, json!({ "abort": { "status": 418 }, "expires": "2020-01-01T00:00:00Z" }));
    assert_eq!(aborted(&*filter, &mut request("GET", "/")), None, "long over");
    let mut rq = request("GET", "/");
    rq.dry_run = true;
    assert_eq!(aborted(&*made(&mut estate, json!({ "abort": { "status": 418 }, "for": "1h" })), &mut rq), None);
}

#[test]
fn a_reload_does_not_begin_it_again() {
    let mut estate = Estate::default();
    let first = json!({ "abort": { "percent": "1%", "status": 500 }, "for": "10ms" });
    made(&mut estate, first);
    std::thread::sleep(Duration::from_millis(15));
    let tuned = made(&mut estate, json!({ "abort": { "percent": "100%", "status": 500 }, "for": "10ms" }));
    assert_eq!(aborted(&*tuned, &mut request("GET", "/")), None, "ten milliseconds have passed since it began");
    let longer = made(&mut estate, json!({ "abort": { "status": 500 }, "for": "1h" }));
    assert!(aborted(&*longer, &mut request("GET", "/")).is_some(), "another length is another experiment");
}

#[test]
fn nothing_is_in_force_before_publish() {
    let directory = Directory::default();
    let mut estate = Estate::default();
    let config = section(json!({ "abort": { "status": 500 }, "for": "1h" }));
    let filter = build(Some(&config), &mut estate.build("routes.orders", &directory)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(aborted(&*filter, &mut request("GET", "/")), None);
}

#[test]
fn only_requests_that_are_meant() {
    let mut estate = Estate::default();
    let config = json!({ "abort": { "status": 500 }, "when": "request.method == 'POST'", "for": "1h" });
    let filter = made(&mut estate, config);
    assert_eq!(aborted(&*filter, &mut request("GET", "/")), None);
    assert!(aborted(&*filter, &mut request("POST", "/")).is_some());
}

fn with(trusted: bool, fields: &[(&'static str, &'static str)]) -> RequestCx {
    let mut rq = request("GET", "/");
    Arc::get_mut(&mut rq.conn).expect("not shared").trusted = trusted;
    for (name, value) in fields {
        rq.headers.insert(*name, HeaderValue::from_static(value));
    }
    rq
}

#[test]
fn callers_ask_only_if_they_are_trusted() {
    let mut estate = Estate::default();
    let filter = made(&mut estate, json!({ "byHeader": true, "abort": { "status": 500 }, "for": "1h" }));
    assert_eq!(aborted(&*filter, &mut with(true, &[])), None, "nobody asked");
    assert_eq!(aborted(&*filter, &mut with(true, &[("x-onehop-fault", "1")])), Some(StatusCode::INTERNAL_SERVER_ERROR));
    let mut asked = with(true, &[("x-onehop-fault-abort", "429")]);
    assert_eq!(aborted(&*filter, &mut asked), Some(StatusCode::TOO_MANY_REQUESTS));
    assert!(asked.headers.is_empty(), "the next hop is not asked again");
    let mut stranger = with(false, &[("x-onehop-fault-abort", "429")]);
    assert_eq!(aborted(&*filter, &mut stranger), None);
    assert!(stranger.headers.is_empty());
    assert_eq!(aborted(&*filter, &mut with(true, &[("x-onehop-fault-delay", "long")])), Some(StatusCode::BAD_REQUEST));
}

#[tokio::test]
async fn delays_are_bounded_in_number_and_by_the_deadline() {
    let mut estate = Estate::default();
    let config = json!({ "delay": { "fixed": "1h" }, "maxActive": 1, "for": "1h" });
    let filter = made(&mut estate, config);
    let mut rq = request("GET", "/");
    rq.deadline = now() + Duration::from_millis(20);
    let Step::Wait(first) = filter.on_request(&mut rq) else { panic!("a delay") };
    let mut second = request("GET", "/");
    assert!(matches!(filter.on_request(&mut second), Step::Done(Verdict::Next)), "one at a time");
    assert!(second.reply_headers.is_empty(), "and nothing was done to it");
    assert!(matches!(first.await, Verdict::Next));
    assert!(now() >= rq.deadline, "it waited as long as there was time");
    assert!(matches!(filter.on_request(&mut request("GET", "/")), Step::Wait(_)), "the place is free again");
}

#[test]
fn tries_are_planned_for_the_engine() {
    let mut estate = Estate::default();
    let config = json!({ "scope": "attempt", "tries": [1, 3], "abort": { "failure": "connect" }, "for": "1h" });
    let filter = made(&mut estate, config);
    let mut rq = request("GET", "/");
    assert_eq!(aborted(&*filter, &mut rq), None, "the request itself goes on");
    let mut tries = rq.scratch.take::<Tries>().expect("left for the mesh loop");
    let mut at = |n| tries.0.inject(n).and_then(|i| i.abort);
    assert_eq!([at(1), at(2), at(3)], [Some(Abort::ConnectFailure), None, Some(Abort::ConnectFailure)]);
}

#[test]
fn mistakes() {
    let table = [
        (json!({ "abort": { "status": 503 } }), "no end"),
        (json!({ "for": "1h" }), "nothing is injected"),
        (json!({ "for": "1h", "abort": { "status": 200 } }), "not the status of a failure"),
        (json!({ "for": "1h", "abort": { "grpcStatus": 17 } }), "not the gRPC status"),
        (json!({ "for": "1h", "abort": { "status": 503, "failure": "reset" } }), "exactly one"),
        (json!({ "for": "1h", "delay": { "percent": "5%" } }), "exactly one of `fixed`"),
        (json!({ "for": "1h", "delay": { "range": ["2s", "1s"] } }), "upside down"),
        (json!({ "for": "1h", "abort": { "status": 503 }, "tries": [1] }), "never be meant"),
        (json!({ "for": "1h", "scope": "attempt", "abort": { "status": 503 }, "tries": [0] }), "never be meant"),
        (json!({ "expires": "tomorrow", "abort": { "status": 503 } }), "not a point in time"),
        (json!({ "for": "1h", "abort": { "status": 503 }, "maxActive": 0 }), "nothing could be delayed"),
    ];
    for (config, message) in table {
        let found = refused(config.clone());
        assert!(found.contains(message), "{config}: {found}");
    }
}

#[test]
fn an_experiment_ends_at_the_earlier_of_its_two_ends() {
    let s = Duration::from_secs;
    let now = Moment(0) + s(100);
    let wall = s(1_000_000);
    assert_eq!(end(now, wall, Moment(0) + s(90), Some(s(60)), None), Moment(0) + s(150));
    assert_eq!(end(now, wall, now, None, Some(wall + s(5))), Moment(0) + s(105));
    assert_eq!(end(now, wall, now, Some(s(60)), Some(wall + s(5))), Moment(0) + s(105));
    assert_eq!(end(now, wall, now, None, Some(wall - s(5))), now, "over");
}

proptest! {
    #[test]
    fn shares_and_ranges_hold(share in 0.0f64..=1.0, least in 0u64..1000, more in 0u64..1000, seed in any::<u64>()) {
        let (least, most) = (Duration::from_millis(least), Duration::from_millis(least + more));
        let plan = Plan { delay: Some((share, least, most)), abort: Some((share, Abort::Reset)), tries: vec![] };
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            crate::contract::mesh::stable_hash(&[&state.to_le_bytes()])
        };
        let draws: Vec<Draw> = (0..2000).map(|_| plan.draw(&mut next)).collect();
        prop_assert!(draws.iter().filter_map(|d| d.delay).all(|d| (least..=most).contains(&d)));
        let hits = draws.iter().filter(|d| d.abort.is_some()).count() as f64 / 2000.0;
        prop_assert!((hits - share).abs() < 0.06, "{hits} of {share}");
    }

    #[test]
    fn no_field_panics(text in "\\PC{0,16}", name in 0usize..4) {
        let mut headers = HeaderMap::new();
        let name = [DELAY, ABORT, TRIES, MARK][name].clone();
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
            let _ = Plan::default().asked(&headers);
        }
    }
}
