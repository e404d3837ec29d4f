use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::caller::Key;
use crate::api::fixture::{Estate, decided, request, section};
use crate::contract::filter::Verdict;
use crate::contract::principal::{Consumer, Plan};

fn filter(json: serde_json::Value) -> Arc<dyn Filter> {
    let (mut estate, directory) = (Estate::default(), Directory::default());
    build(Some(&section(json)), &mut estate.build("routes.a", &directory)).unwrap_or_else(|e| panic!("{e}"))
}

fn passes(filter: &Arc<dyn Filter>, rq: &mut RequestCx) -> bool {
    matches!(decided(filter.on_request(rq)), Verdict::Next)
}

#[test]
fn a_place_is_free_again_when_the_request_is_gone() {
    let filter = filter(json!({"by": "ip", "limit": 2}));
    let (mut a, mut b, mut c) = (request("GET", "/"), request("GET", "/"), request("GET", "/"));
    assert!(passes(&filter, &mut a) && passes(&filter, &mut b));
    let Verdict::Fail(fault) = decided(filter.on_request(&mut c)) else { panic!("refused") };
    assert_eq!((fault.reason, fault.by), (Reason::OverQuota, NAME));
    assert!(fault.headers.as_ref().is_some_and(|h| h.contains_key("retry-after")));
    c.client_ip = "192.0.2.99".parse().expect("an address");
    assert!(passes(&filter, &mut c), "another caller is not concerned");
    drop(a);
    let mut d = request("GET", "/");
    d.dry_run = true;
    assert!(passes(&filter, &mut d) && passes(&filter, &mut d), "looking takes no place");
    d.dry_run = false;
    assert!(passes(&filter, &mut d));
    assert!(!passes(&filter, &mut request("GET", "/")));
}

#[test]
fn a_refusal_holds_no_place_of_another_limit() {
    let filter = filter(json!([{"by": "route.name", "limit": 5}, {"by": "ip", "limit": 1}]));
    let mut held = request("GET", "/");
    assert!(passes(&filter, &mut held));
    for _ in 0..10 {
        assert!(!passes(&filter, &mut request("GET", "/")));
    }
    let mut others = Vec::new();
    for n in 10..14 {
        let mut rq = request("GET", "/");
        rq.client_ip = [192, 0, 2, n].into();
        assert!(passes(&filter, &mut rq), "four places of the route are free");
        others.push(rq);
    }
}

#[test]
fn without_a_key_a_request_is_refused_unless_told_otherwise() {
    let strict = filter(json!({"by": "header:x-k", "limit": 1}));
    let Verdict::Fail(fault) = decided(strict.on_request(&mut request("GET", "/"))) else { panic!("refused") };
    assert_eq!(fault.reason, Reason::Forbidden);
    let lenient = filter(json!({"by": "header:x-k", "limit": 1, "missing": "ip"}));
    let mut held = request("GET", "/");
    assert!(passes(&lenient, &mut held) && !passes(&lenient, &mut request("GET", "/")));
    let shadow = filter(json!({"by": "ip", "limit": 1, "shadow": true}));
    let mut held = request("GET", "/");
    assert!(passes(&shadow, &mut held) && passes(&shadow, &mut request("GET", "/")));
}

#[test]
fn a_plan_counts_its_consumer_on_all_routes() {
    let sections = [("concurrency".to_owned(), section(json!({"limit": 1})))].into();
    let plan = Arc::new(Plan { name: "free".into(), priority: Default::default(), sections });
    let mut directory = Directory::default();
    directory.plans.insert("free".into(), plan.clone());
    assert!(implied(&RouteView { name: "r", keys: &["auth"] }, &directory));
    let mut estate = Estate::default();
    let mut on = |route: &str| build(None, &mut estate.build(route, &directory)).unwrap_or_else(|e| panic!("{e}"));
    let (a, b) = (on("routes.a"), on("routes.b"));
    let of = || {
        let mut rq = request("GET", "/");
        rq.consumer = Some(Arc::new(Consumer { name: "acme".into(), plan: Some(plan.clone()), scopes: Vec::new() }));
        rq
    };
    let mut held = of();
    assert!(passes(&a, &mut held));
    assert!(!passes(&b, &mut of()), "the other route knows");
    assert!(passes(&b, &mut request("GET", "/")), "no consumer, no limit");
}

#[test]
fn mistakes_have_a_place() {
    for bad in [
        json!({"by": "ip", "limit": 0}),
        json!({"limit": 1}),
        json!([{"by": "ip", "limit": 1}, {"by": "ip", "limit": 2}]),
        json!({"by": "usr.sub", "limit": 1}),
        json!({"by": "ip", "limit": 1, "per": "1s"}),
    ] {
        let (mut estate, directory) = (Estate::default(), Directory::default());
        let made = build(Some(&section(bad.clone())), &mut estate.build("routes.a", &directory));
        assert!(made.err().is_some_and(|e| e.span.is_some()), "{bad}");
    }
}

proptest! {
    /// Whatever comes and goes, as many are in as permits are held, never more than the limit, and nothing stays behind.
    #[test]
    fn permits_never_leak(limit in 1u32..5, steps in prop::collection::vec((0u8..4, any::<bool>(), any::<usize>()), 1..200)) {
        let slots = Arc::new(Slots::default());
        let mut held: Vec<(u8, Permit)> = Vec::new();
        let key = |k: u8| if k == 0 { Key::ALL } else { Key::of(k) };
        for (k, comes, which) in steps {
            let before = held.iter().filter(|(other, _)| *other == k).count();
            if comes {
                let permit = Slots::enter(&slots, key(k), limit);
                prop_assert_eq!(permit.is_some(), before < limit as usize);
                held.extend(permit.map(|p| (k, p)));
            } else if !held.is_empty() {
                held.swap_remove(which % held.len());
            }
            let now = held.iter().filter(|(other, _)| *other == k).count();
            prop_assert_eq!(slots.taken(key(k)) as usize, now);
        }
        held.clear();
        prop_assert_eq!((slots.callers(), slots.taken(Key::ALL)), (0, 0));
    }
}
