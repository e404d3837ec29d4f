use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proptest::prelude::*;
use serde_json::json;

use super::cells::{Cells, Tracks};
use super::core::{Meter, Rate};
use super::saved::Table;
use super::*;
use crate::api::caller::{Id, Key};
use crate::api::fixture::{Estate, request, section, user};
use crate::contract::Moment;
use crate::contract::metrics::Registry;
use crate::contract::principal::{Consumer, Plan};

mod calendars;
mod costs;
mod restarts;
mod services;

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
fn without_a_key_a_request_is_refused_unless_told_otherwise() {
    let quota = one(json!([{"by": "consumer", "limit": 5, "per": "1h"}]));
    let fault = run(&quota, &mut request("GET", "/")).expect("nothing to count it by");
    assert_eq!(fault.reason, Reason::Forbidden);
    // By address: apart from everything that has a key.
    let quota = one(json!([{"by": "header:x-k", "limit": 1, "per": "1h", "missing": "ip"}]));
    let mut rq = request("GET", "/");
    assert!(run(&quota, &mut rq).is_none() && run(&quota, &mut rq).is_some());
    rq.client_ip = "2001:db8::1".parse().expect("an address");
    assert!(run(&quota, &mut rq).is_none());
    rq.headers.insert("x-k", HeaderValue::from_static("a"));
    assert!(run(&quota, &mut rq).is_none());
}

#[test]
fn shadow_counts_and_marks_and_lets_pass() {
    let quota = one(json!([{"by": "ip", "limit": 1, "per": "1h", "shadow": true}]));
    let mut rq = request("GET", "/");
    for _ in 0..3 {
        assert!(run(&quota, &mut rq).is_none());
    }
    assert!(rq.reply_headers.is_empty(), "nobody is told of a limit that limits nobody");
    let marks = rq.trail.decisions().iter().filter(|d| d.why == "shadow").count();
    assert_eq!(marks, 2);
}

#[test]
fn what_we_could_not_serve_is_not_charged() {
    let quota = one(json!([{"by": "ip", "limit": 2, "per": "1h"}]));
    let answer = |rq: &mut RequestCx, status: u16, origin| {
        let status = StatusCode::from_u16(status).expect("a status");
        let mut rs = ResponseCx { status, headers: HeaderMap::new(), body: Default::default(), origin };
        assert!(matches!(quota.on_response(rq, &mut rs), Step::Done(Verdict::Next)));
    };
    let mut rq = request("GET", "/");
    for _ in 0..5 {
        assert!(run(&quota, &mut rq).is_none());
        answer(&mut rq, 503, Origin::Fault);
    }
    for (status, origin) in [(503, Origin::Upstream), (504, Origin::Fault)] {
        assert!(run(&quota, &mut rq).is_none());
        answer(&mut rq, status, origin);
    }
    assert!(run(&quota, &mut rq).is_some(), "the endpoint's own 503, and its time-out, are charged");
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
        (json!([{"by": "ip", "limit": 0, "per": "1m"}]), "1 to 1000000000000"),
        (json!([{"by": "ip", "limit": 1, "per": "0s"}]), "1ms to 366d"),
        (json!([{"by": "ip", "limit": 1, "per": 60}]), "a duration with a unit"),
        (json!([{"by": "ip", "limit": 1, "per": "1m", "burst": 0}]), "a burst is"),
        (json!([{"by": "ip", "limit": 1, "per": "1m", "scope": "shared"}]), "needs `state.redis`"),
        (json!([{"by": "user.sbu +", "limit": 1, "per": "1m"}]), "not an expression"),
        (json!([{"by": "usr.sub", "limit": 1, "per": "1m"}]), "did you mean `user`"),
        (json!([{"by": "header:a b", "limit": 1, "per": "1m"}]), "not a header name"),
        (
            json!([{"by": "ip", "limit": 1, "per": "1m"}, {"by": "ip", "limit": 2, "per": "60s"}]),
            "two limits are called",
        ),
        (json!([{"by": "ip", "limit": 1, "per": "1m", "brust": 3}]), "did you mean `burst`"),
        (json!([{"by": "ip", "limit": 1, "per": "1m", "maxKeys": 0}]), "maxKeys"),
        (json!([{"by": "ip", "per": "1m"}]), "`limit` is missing"),
        (json!([{"by": "ip", "limit": 1}]), "`per` is missing"),
        (json!([{"by": "ip", "limit": 1, "per": "1m", "lease": 1}]), "`lease` is for"),
        (json!([{"by": "ip", "limit": 1, "per": "fortnight"}]), "not a duration"),
        (json!([{"by": "ip", "limit": 1, "per": "day", "burst": 1}]), "a calendar has no `burst`"),
        (json!([{"by": "ip", "limit": 1, "per": "day", "calendar": false}]), "unit of the calendar"),
        (json!([{"by": "ip", "limit": 1, "per": "90s", "calendar": true}]), "no unit of 90s"),
        (json!([{"by": "ip", "limit": 1, "per": "day", "calendar": {"timeZone": "Mars/Base"}}]), "no time zone"),
        (json!([{"by": "ip", "limit": 1, "per": "1m", "cost": -1}]), "a cost is 0 to"),
        (json!([{"by": "ip", "limit": 1, "per": "1m", "cost": "request.pth"}]), "did you mean `path`"),
        (json!([{"by": "ip", "limit": 1, "per": "1m", "cost": {"estimate": 1}}]), "`response` is missing"),
        (json!([{"by": "ip", "limit": 1, "per": "1m", "cost": {"response": "response.bits"}}]), "has no field `bits`"),
        (
            json!([{"by": "ip", "limit": 1, "rateLimitService": {"service": "rl", "domain": "d", "descriptors": {}}}]),
            "exclude",
        ),
        (
            json!([{"by": "ip", "rateLimitService": {"service": "rl", "domain": "d", "descriptors": {"a": "b"}}}]),
            "service",
        ),
    ] {
        let e = error(bad.clone());
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}

fn cells(rate: Rate, max_keys: usize) -> Cells {
    let metrics = Registry::default();
    let tracks = Tracks { keys: metrics.gauge("keys", "", &[]), evicted: metrics.counter("evicted_total", "", &[]) };
    Cells::new(Some(rate), max_keys, Table::default(), tracks)
}

fn charge(cells: &Cells, key: Key, rate: Rate, now: Moment) -> bool {
    let meter = Meter::Rolling(rate, now);
    cells.with(key, meter, Id::default, |cell| meter.try_charge(cell, 1)).allowed
}

#[test]
fn racing_charges_are_exact() {
    let rate = Rate::new(1000, Duration::from_secs(3600), 1000);
    let cells = cells(rate, 100_000);
    let (passed, at) = (AtomicU64::new(0), Moment(1_000_000_000));
    let keys = [Key::ALL, Key::of("one"), Key::of("two")];
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..400 {
                    for key in keys {
                        if charge(&cells, key, rate, at) {
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
    let cells = cells(rate, 100);
    for n in 0..100 {
        assert!(charge(&cells, Key::of(n), rate, Moment(1)));
    }
    // All are in debt: one makes room, the others still hold.
    assert!(charge(&cells, Key::of(100), rate, Moment(1)));
    assert_eq!(cells.len(), 100);
    let meter = Meter::Rolling(rate, Moment(1));
    let allowed = |n: i32| cells.look(Key::of(n), Id::default, |c| meter.try_peek(c, 1)).allowed;
    assert_eq!((0..100).filter(|n| !allowed(*n)).count(), 99);
    // Later all buckets are full again, and forgetting them costs nothing.
    charge(&cells, Key::of(999), rate, Moment(1) + Duration::from_secs(11));
    assert_eq!(cells.len(), 1);
}

/// The table grows and is built anew under those who charge: no charge is lost and none counts twice.
#[test]
fn charges_are_exact_while_the_table_grows() {
    const KEYS: i32 = 3000;
    let rate = Rate::new(5, Duration::from_secs(3600), 5);
    let cells = cells(rate, 10_000);
    let (passed, at) = (AtomicU64::new(0), Moment(1_000_000_000));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (cells, passed) = (&cells, &passed);
            scope.spawn(move || {
                for round in 0..3 {
                    // Each thread meets the keys in another order.
                    for n in (0..KEYS).map(|n| (n * (2 * thread + 7) + round) % KEYS) {
                        if charge(cells, Key::of(n), rate, at) {
                            passed.fetch_add(1, Relaxed);
                        }
                    }
                }
            });
        }
    });
    assert_eq!(cells.len(), KEYS as usize);
    assert_eq!(passed.load(Relaxed), 5 * KEYS as u64, "4 x 3 tried for 5 in each cell");
}

/// A token bucket with exact fractions, as a textbook has it.
struct Bucket {
    level: f64,
    at: f64,
}

proptest! {
    /// Whatever is charged, forgotten and charged again: never more keys than allowed, and the counts are those of a plain
    /// map wherever nothing had to be forgotten.
    #[test]
    fn cells_are_a_bounded_map(
        most in 1usize..80, steps in prop::collection::vec((0u32..120, 0u64..4_000_000_000), 1..400)
    ) {
        let rate = Rate::new(2, Duration::from_secs(4), 2);
        let cells = cells(rate, most);
        let mut model: std::collections::HashMap<u32, AtomicU64> = std::collections::HashMap::new();
        let mut now = 1_000_000_000_000u64;
        for (n, step) in steps {
            now += step / 100;
            let meter = Meter::Rolling(rate, Moment(now));
            let room = model.len() < most || model.contains_key(&n);
            let known = model.entry(n).or_default();
            let expected = meter.peek(known, 1).allowed;
            let allowed = charge(&cells, Key::of(n), rate, Moment(now));
            if expected {
                meter.charge(known, 1);
            }
            prop_assert!(cells.len() <= most, "{} of {most}", cells.len());
            if room && model.len() <= most {
                prop_assert_eq!(allowed, expected, "nothing was forgotten that owed something");
            }
        }
    }

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
            let charge = Meter::Rolling(rate, Moment(now)).charge(&cell, 1);
            prop_assert_eq!(charge.allowed, expected);
            if expected {
                bucket.level -= 1.0;
            } else {
                let wait = charge.reset.as_nanos() as u64;
                let at = |now| Meter::Rolling(rate, Moment(now)).peek(&cell, 1).allowed;
                prop_assert!(!at(now + wait - 1), "not a nanosecond before");
                prop_assert!(at(now + wait), "Retry-After is enough");
            }
        }
    }

    /// A charge that is taken back never was, of any cost.
    #[test]
    fn refunds_are_exact(limit in 1u64..5000, before in 0u64..50, cost in 1u64..50, per in 1u64..100_000) {
        let rate = Rate::new(limit, Duration::from_millis(per), limit);
        let (cell, meter) = (AtomicU64::new(0), Meter::Rolling(rate, Moment(5_000_000_000)));
        for _ in 0..before {
            meter.charge(&cell, 1);
        }
        let left = meter.peek(&cell, 0).remaining;
        let charge = meter.charge(&cell, cost);
        prop_assert_eq!(charge.allowed, cost <= left);
        if charge.allowed {
            prop_assert_eq!(charge.remaining, left - cost);
            meter.refund(&cell, cost);
        }
        prop_assert_eq!(meter.peek(&cell, 0).remaining, left);
    }
}
