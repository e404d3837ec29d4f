use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proptest::prelude::*;
use serde_json::json;

use super::core::{Cells, Key, Rate};
use super::*;
use crate::api::fixture::{Estate, request, section, user};
use crate::contract::filter::Verdict;
use crate::contract::principal::{Consumer, Plan};

fn filter(estate: &mut Estate, directory: &Directory, json: serde_json::Value) -> Arc<dyn Filter> {
    let made =
        build(Some(&section(json)), &mut estate.build("routes.orders", directory)).unwrap_or_else(|e| panic!("{e}"));
    estate.publish();
    made
}

fn one(json: serde_json::Value) -> Arc<dyn Filter> {
    filter(&mut Estate::default(), &Directory::default(), json)
}

fn error(json: serde_json::Value) -> ConfigError {
    let directory = Directory::default();
    let mut estate = Estate::default();
    let result = build(Some(&section(json)), &mut estate.build("routes.orders", &directory));
    result.err().expect("an error")
}

/// Status-like: `None` = passed, else the fault.
fn run(filter: &Arc<dyn Filter>, rq: &mut RequestCx) -> Option<Fault> {
    rq.reply_headers.clear();
    match filter.on_request(rq) {
        Step::Done(Verdict::Next) => None,
        Step::Done(Verdict::Fail(fault)) => Some(*fault),
        _ => panic!("quota decides at once"),
    }
}

fn reply<'a>(rq: &'a RequestCx, name: &str) -> &'a str {
    let found = rq.reply_headers.iter().find(|(n, _)| n == name);
    found.map_or("", |(_, v)| v.to_str().expect("ascii"))
}

fn header<'a>(fault: &'a Fault, name: &str) -> &'a str {
    fault.headers.as_ref().and_then(|h| h.get(name)).map_or("", |v| v.to_str().expect("ascii"))
}

#[test]
fn counts_down_and_says_so() {
    let quota = one(json!([{"by": "ip", "limit": 3, "per": "1m"}]));
    let mut rq = request("GET", "/");
    for left in [2, 1] {
        assert!(run(&quota, &mut rq).is_none());
        assert_eq!(reply(&rq, "ratelimit-policy"), "\"ip-1m\";q=3;w=60");
        assert!(reply(&rq, "ratelimit").starts_with(&format!("\"ip-1m\";r={left};t=")), "{}", reply(&rq, "ratelimit"));
    }
    assert!(run(&quota, &mut rq).is_none());
    assert_eq!(reply(&rq, "ratelimit"), "\"ip-1m\";r=0;t=20", "a request is there again after a third of a minute");
    let fault = run(&quota, &mut rq).expect("over the limit");
    assert_eq!((fault.reason, fault.by), (Reason::OverQuota, "quota"));
    assert_eq!(header(&fault, "retry-after"), "20");
    assert_eq!(header(&fault, "ratelimit"), "\"ip-1m\";r=0;t=20");
    assert_eq!(header(&fault, "ratelimit-policy"), "\"ip-1m\";q=3;w=60");
    // Another caller is not concerned.
    rq.client_ip = "192.0.2.8".parse().expect("an address");
    assert!(run(&quota, &mut rq).is_none());
}

#[test]
fn burst_is_what_may_come_at_once() {
    let quota = one(json!([{"by": "route.name", "limit": 60, "per": "1m", "burst": 2}]));
    let mut rq = request("GET", "/");
    assert!(run(&quota, &mut rq).is_none() && run(&quota, &mut rq).is_none());
    let fault = run(&quota, &mut rq).expect("over the burst");
    assert_eq!(header(&fault, "retry-after"), "1");
}

#[test]
fn a_refusal_charges_nobody() {
    let quota = one(json!([{"by": "ip", "limit": 10, "per": "1h"}, {"by": "header:x-k", "limit": 1, "per": "1h"}]));
    let mut rq = request("GET", "/");
    rq.headers.insert("x-k", HeaderValue::from_static("a"));
    assert!(run(&quota, &mut rq).is_none());
    for _ in 0..20 {
        let fault = run(&quota, &mut rq).expect("the second limit is used up");
        assert!(header(&fault, "ratelimit").starts_with("\"header:x-k-1h\""), "the one that refused is told");
    }
    rq.headers.insert("x-k", HeaderValue::from_static("b"));
    assert!(run(&quota, &mut rq).is_none());
    assert!(reply(&rq, "ratelimit").starts_with("\"ip-1h\";r=8;"), "{}", reply(&rq, "ratelimit"));
}

#[test]
fn a_dry_run_looks_and_leaves() {
    let quota = one(json!([{"by": "ip", "limit": 1, "per": "1h"}]));
    let mut rq = request("GET", "/");
    rq.dry_run = true;
    for _ in 0..3 {
        assert!(run(&quota, &mut rq).is_none());
    }
    rq.dry_run = false;
    assert!(run(&quota, &mut rq).is_none());
    rq.dry_run = true;
    assert!(run(&quota, &mut rq).is_some());
}

#[test]
fn keys_tell_callers_apart() {
    let same = |by: &str, change: &dyn Fn(&mut RequestCx)| {
        let quota = one(json!([{"by": by, "limit": 1, "per": "1h"}]));
        let mut rq = request("GET", "/a");
        rq.user = Some(user(json!({"sub": "ann", "team": "x"})));
        assert!(run(&quota, &mut rq).is_none());
        change(&mut rq);
        run(&quota, &mut rq).is_some()
    };
    let v6 = |ip: &str| IpAddr::V6(ip.parse().expect("an address"));
    assert!(same("user.sub", &|_| {}));
    assert!(!same("user.sub", &|rq| rq.user = Some(user(json!({"sub": "bob"})))));
    assert!(same("user.sub", &|rq| rq.client_ip = v6("2001:db8::1")), "the user, wherever from");
    assert!(same("user.claims.team", &|rq| rq.user = Some(user(json!({"sub": "bob", "team": "x"})))));
    assert!(same("user.team + request.path", &|_| {}));
    assert!(!same("user.team + request.path", &|rq| rq.target = "/b".parse().expect("a target")));
    assert!(same("route.name", &|rq| rq.user = None));
    // Without a key: one bucket per address, whatever the limit's key would have been.
    assert!(same("consumer", &|_| {}));
    assert!(!same("consumer", &|rq| rq.client_ip = v6("2001:db8::1")));
    let network = |a: &str, b: &str| {
        let quota = one(json!([{"by": "ip", "limit": 1, "per": "1h"}]));
        let mut rq = request("GET", "/");
        rq.client_ip = v6(a);
        assert!(run(&quota, &mut rq).is_none());
        rq.client_ip = v6(b);
        run(&quota, &mut rq).is_some()
    };
    assert!(network("2001:db8:0:1::1", "2001:db8:0:1:ffff::2"), "one /64 is one caller");
    assert!(!network("2001:db8:0:1::1", "2001:db8:0:2::1"));
}

#[test]
fn a_plan_counts_its_consumer_on_all_routes() {
    let plan = |limit: u64| {
        let sections = [("quota".to_owned(), section(json!([{"limit": limit, "per": "1h"}])))].into();
        Arc::new(Plan { name: "free".into(), priority: Default::default(), sections })
    };
    let mut directory = Directory::default();
    directory.plans.insert("free".into(), plan(3));
    let consumer = Arc::new(Consumer { name: "acme".into(), plan: Some(plan(3)), scopes: Vec::new() });
    let view = |keys: &'static [&'static str]| RouteView { name: "r", keys };
    assert!(implied(&view(&["auth"]), &directory));
    assert!(!implied(&view(&["cors"]), &directory));

    let mut estate = Estate::default();
    let on = |estate: &mut Estate, route: &str, node: Option<&Node>| {
        build(node, &mut estate.build(route, &directory)).unwrap_or_else(|e| panic!("{e}"))
    };
    let own = section(json!([{"by": "ip", "limit": 100, "per": "1m"}]));
    let (a, b) = (on(&mut estate, "routes.a", None), on(&mut estate, "routes.b", Some(&own)));
    estate.publish();
    let mut rq = request("GET", "/");
    assert!(run(&a, &mut rq).is_none());
    assert!(rq.reply_headers.is_empty(), "no consumer, no limit");
    rq.consumer = Some(consumer);
    assert!(run(&a, &mut rq).is_none());
    assert!(run(&b, &mut rq).is_none());
    assert_eq!(reply(&rq, "ratelimit-policy"), "\"ip-1m\";q=100;w=60, \"free-1h\";q=3;w=3600");
    assert!(run(&b, &mut rq).is_none());
    assert!(run(&a, &mut rq).is_some() && run(&b, &mut rq).is_some());
}

#[test]
fn a_reload_keeps_what_was_used() {
    let directory = Directory::default();
    let mut estate = Estate::default();
    let mut rq = request("GET", "/");
    let mut passes = |filter: &Arc<dyn Filter>| (0..100).take_while(|_| run(filter, &mut rq).is_none()).count();
    let limit = |n: u64, per: &str| json!([{"by": "ip", "limit": n, "per": per, "name": "l"}]);
    let first = filter(&mut estate, &directory, limit(5, "1h"));
    assert_eq!(passes(&first), 5);
    let same = filter(&mut estate, &directory, limit(5, "1h"));
    assert_eq!(passes(&same), 0);
    let more = filter(&mut estate, &directory, limit(8, "1h"));
    assert_eq!(passes(&more), 3, "only what the new limit adds");
    let longer = filter(&mut estate, &directory, limit(8, "1d"));
    assert_eq!(passes(&longer), 0, "a longer window is not a refill");
    let fewer = filter(&mut estate, &directory, limit(2, "1h"));
    assert_eq!(passes(&fewer), 0);
}

#[test]
fn a_rejected_config_changes_no_count() {
    let directory = Directory::default();
    let mut estate = Estate::default();
    let mut rq = request("GET", "/");
    let running = filter(&mut estate, &directory, json!([{"by": "ip", "limit": 2, "per": "1h", "name": "l"}]));
    assert!(run(&running, &mut rq).is_none());
    let node = section(json!([{"by": "ip", "limit": 2, "per": "1s", "name": "l"}]));
    let never = build(Some(&node), &mut estate.build("routes.orders", &directory)).map(|_| ());
    assert!(never.is_ok(), "built, but not published");
    assert!(run(&running, &mut rq).is_none());
    assert!(run(&running, &mut rq).is_some());
}

#[test]
fn bad_sections_name_their_cure() {
    for (bad, says) in [
        (json!([]), "no limit"),
        (json!([{"limit": 1, "per": "1m"}]), "`by` is missing"),
        (json!([{"by": "ip", "limit": 0, "per": "1m"}]), "1 to 1000000000"),
        (json!([{"by": "ip", "limit": 1, "per": "0s"}]), "1ms to 366d"),
        (json!([{"by": "ip", "limit": 1, "per": 60}]), "a duration with a unit"),
        (json!([{"by": "ip", "limit": 1, "per": "1m", "burst": 0}]), "a burst is"),
        (json!([{"by": "ip", "limit": 1, "per": "1m", "scope": "shared"}]), "not available yet"),
        (json!([{"by": "user.sbu +", "limit": 1, "per": "1m"}]), "not an expression"),
        (json!([{"by": "usr.sub", "limit": 1, "per": "1m"}]), "did you mean `user`"),
        (json!([{"by": "header:a b", "limit": 1, "per": "1m"}]), "not a header name"),
        (
            json!([{"by": "ip", "limit": 1, "per": "1m"}, {"by": "ip", "limit": 2, "per": "60s"}]),
            "two limits are called",
        ),
        (json!([{"by": "ip", "limit": 1, "per": "1m", "brust": 3}]), "did you mean `burst`"),
        (json!([{"by": "ip", "limit": 1, "per": "1m", "maxKeys": 0}]), "maxKeys"),
    ] {
        let e = error(bad.clone());
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}

#[test]
fn racing_charges_are_exact() {
    let rate = Rate::new(1000, Duration::from_secs(3600), 1000);
    let cells = Cells::new(rate, 100_000);
    let (passed, at) = (AtomicU64::new(0), Moment(1_000_000_000));
    let keys = [Key::ALL, Key::of("one"), Key::of("two")];
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..400 {
                    for key in keys {
                        if cells.with(key, at, |c| rate.charge(c, at)).allowed {
                            passed.fetch_add(1, Relaxed);
                        }
                    }
                }
            });
        }
    });
    assert_eq!(passed.load(Relaxed), 3 * 1000, "8 x 400 tried for 1000 in each of three cells");
}

#[test]
fn keys_are_bounded_and_full_buckets_go_first() {
    let rate = Rate::new(1, Duration::from_secs(10), 1);
    let cells = Cells::new(rate, 100);
    for n in 0..100 {
        assert!(cells.with(Key::of(n), Moment(1), |c| rate.charge(c, Moment(1))).allowed);
    }
    // All are in debt: one makes room, the others still hold.
    assert!(cells.with(Key::of(100), Moment(1), |c| rate.charge(c, Moment(1))).allowed);
    assert_eq!(cells.len(), 100);
    let held = (0..100).filter(|n| !cells.look(Key::of(*n), |c| rate.peek(c, Moment(1))).allowed).count();
    assert_eq!(held, 99);
    // Later all buckets are full again, and forgetting them costs nothing.
    let later = Moment(1) + Duration::from_secs(11);
    cells.with(Key::of(999), later, |c| rate.charge(c, later));
    assert_eq!(cells.len(), 1);
}

/// A token bucket with exact fractions, as a textbook has it.
struct Bucket {
    level: f64,
    at: f64,
}

proptest! {
    /// GCRA is the token bucket seen from the other side.
    #[test]
    fn gcra_is_a_token_bucket(
        limit in 1u64..50, per_ms in 1u64..5_000, burst in 1u64..20, steps in prop::collection::vec(0u64..2_000_000_000, 1..200)
    ) {
        let per = Duration::from_millis(per_ms);
        let rate = Rate::new(limit, per, burst);
        let cell = AtomicU64::new(0);
        let interval = (per.as_nanos() as u64 / limit) as f64;
        let mut bucket = Bucket { level: burst as f64, at: 0.0 };
        let mut now = 1_000_000_000_000u64;
        bucket.at = now as f64;
        for step in steps {
            now += step;
            bucket.level = (bucket.level + (now as f64 - bucket.at) / interval).min(burst as f64);
            bucket.at = now as f64;
            // At the very edge floating point may differ from whole nanoseconds.
            prop_assume!((bucket.level - 1.0).abs() > 1e-6);
            let expected = bucket.level >= 1.0;
            let charge = rate.charge(&cell, Moment(now));
            prop_assert_eq!(charge.allowed, expected);
            if expected {
                bucket.level -= 1.0;
            } else {
                let wait = charge.reset.as_nanos() as u64;
                prop_assert!(!rate.peek(&cell, Moment(now + wait - 1)).allowed, "not a nanosecond before");
                prop_assert!(rate.peek(&cell, Moment(now + wait)).allowed, "Retry-After is enough");
            }
        }
    }

    /// A charge that is taken back never was.
    #[test]
    fn refunds_are_exact(limit in 1u64..50, before in 0u64..50) {
        let rate = Rate::new(limit, Duration::from_secs(60), limit);
        let (cell, now) = (AtomicU64::new(0), Moment(5_000_000_000));
        for _ in 0..before.min(limit - 1) {
            rate.charge(&cell, now);
        }
        let left = rate.peek(&cell, now).remaining;
        prop_assert!(rate.charge(&cell, now).allowed);
        rate.refund(&cell);
        prop_assert_eq!(rate.peek(&cell, now).remaining, left);
    }
}
