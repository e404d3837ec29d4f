use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, request, section, section as section_of, user};
use crate::contract::filter::{AuthError, AuthVerdict};
use crate::contract::metrics::Registry;
use crate::contract::principal::{Consumer, Plan, Priority, Workload};

/// Judges by what stands in a header of its name, now or after a wait.
struct Scripted {
    name: &'static str,
    waits: bool,
    asked: AtomicUsize,
    fields: Vec<HeaderName>,
}

impl Scripted {
    fn judge(&self, rq: &mut RequestCx) -> AuthVerdict {
        self.asked.fetch_add(1, SeqCst);
        match rq.headers.get(self.name).and_then(|v| v.to_str().ok()) {
            None => AuthVerdict::Absent,
            Some("bad") => AuthVerdict::Refused(AuthError { code: "invalid_token", description: "it is bad" }),
            Some("down") => AuthVerdict::Unavailable("no keys"),
            Some(sub) => {
                rq.user = Some(user(json!({"sub": sub, "scope": "read", "role": "clerk"})));
                AuthVerdict::Accepted
            }
        }
    }
}

impl Authenticator for Scripted {
    fn authenticate<'a>(&'a self, rq: &'a mut RequestCx) -> AuthStep<'a> {
        if self.waits { AuthStep::Wait(Box::pin(async { self.judge(rq) })) } else { AuthStep::Done(self.judge(rq)) }
    }
    fn claims_headers(&self) -> &[HeaderName] {
        &self.fields
    }
    fn challenge(&self, error: Option<&AuthError>) -> String {
        error.map_or_else(|| format!("Test {}", self.name), |e| format!("Test {} {}", self.name, e.code))
    }
}

fn directory() -> Directory {
    let mut directory = Directory::default();
    for (name, waits) in [("one", false), ("two", false), ("slow", true)] {
        let fields = vec![HeaderName::from_static("x-user")];
        directory
            .identities
            .insert(name.into(), Arc::new(Scripted { name, waits, asked: AtomicUsize::new(0), fields }));
    }
    for name in ["acme", "other"] {
        directory.consumers.insert(name.into(), member(name, None));
    }
    for name in ["gold", "free"] {
        let plan = Plan { name: name.into(), priority: Priority::Normal, sections: BTreeMap::new() };
        directory.plans.insert(name.into(), Arc::new(plan));
    }
    directory
}

fn try_build(json: serde_json::Value) -> Result<Arc<dyn Filter>, ConfigError> {
    build(Some(&section(json)), &mut Estate::default().build("routes.orders", &directory()))
}

async fn run(json: &serde_json::Value, rq: &mut RequestCx) -> Result<(), Fault> {
    let filter = try_build(json.clone()).unwrap_or_else(|e| panic!("{json}: {e}"));
    let verdict = match filter.on_request(rq) {
        Step::Done(verdict) => verdict,
        Step::Wait(later) => later.await,
    };
    match verdict {
        Verdict::Next => Ok(()),
        Verdict::Fail(fault) => Err(*fault),
        Verdict::Reply(_) => panic!("auth never answers"),
    }
}

fn sends(fields: &[(&'static str, &'static str)]) -> RequestCx {
    let mut rq = request("GET", "/v1/orders");
    for (name, value) in fields {
        rq.headers.append(*name, HeaderValue::from_static(value));
    }
    rq
}

#[tokio::test]
async fn any_of_several_identities_is_enough() {
    use Reason::{Forbidden, IdentityUnavailable, Unauthenticated};
    for (section, fields, result) in [
        (json!({"require": "one"}), &[("one", "ann")][..], None),
        (json!({"require": "one"}), &[], Some(Unauthenticated)),
        (json!({"require": "one"}), &[("two", "ann")], Some(Unauthenticated)),
        (json!({"require": ["one", "two"]}), &[("two", "ann")], None),
        (json!({"require": ["one", "two"]}), &[("one", "bad"), ("two", "ann")], None),
        (json!({"require": ["one", "two"]}), &[("one", "down"), ("two", "ann")], None),
        (json!({"require": ["one", "two"]}), &[("one", "down"), ("two", "bad")], Some(IdentityUnavailable)),
        (json!({"require": ["one", "slow", "two"]}), &[("slow", "ann")], None),
        (json!({"require": ["slow", "two"]}), &[("slow", "bad"), ("two", "ann")], None),
        (json!({"require": ["slow"]}), &[("slow", "down")], Some(IdentityUnavailable)),
        // Every one of several, beside any one of others.
        (json!({"require": {"all": ["one", "two"]}}), &[("one", "ann"), ("two", "bob")], None),
        (json!({"require": {"all": ["one", "two"]}}), &[("one", "ann")], Some(Unauthenticated)),
        (json!({"require": {"all": ["one", "two"]}}), &[("one", "ann"), ("two", "bad")], Some(Unauthenticated)),
        (json!({"require": {"all": ["one", "slow"]}}), &[("one", "ann"), ("slow", "down")], Some(IdentityUnavailable)),
        (json!({"require": [{"all": ["one", "slow"]}, "two"]}), &[("one", "ann"), ("slow", "bob")], None),
        (json!({"require": [{"all": ["one", "slow"]}, "two"]}), &[("two", "ann")], None),
        (json!({"require": [{"all": ["one", "two"]}, "one"]}), &[("one", "ann")], None),
        (json!({"require": {"all": ["one", "two"]}, "optional": true}), &[("one", "ann")], Some(Unauthenticated)),
        (json!({"require": {"all": ["one", "two"]}, "optional": true}), &[], None),
        (json!({"require": "one", "optional": true}), &[], None),
        (json!({"require": "one", "optional": true}), &[("one", "bad")], Some(Unauthenticated)),
        (json!({"require": "one", "optional": true}), &[("one", "down")], Some(IdentityUnavailable)),
        // Rules: deny wins, and what cannot be decided denies but never allows.
        (json!({"require": "one", "allow": "user.sub == 'ann'"}), &[("one", "ann")], None),
        (json!({"require": "one", "allow": "user.sub == 'ann'"}), &[("one", "bob")], Some(Forbidden)),
        (json!({"require": "one", "allow": ["user.sub == 'x'", "user.role == 'clerk'"]}), &[("one", "bob")], None),
        (json!({"require": "one", "allow": []}), &[("one", "ann")], Some(Forbidden)),
        (json!({"require": "one", "allow": "user.none != 'x'"}), &[("one", "ann")], Some(Forbidden)),
        (json!({"require": "one", "deny": "user.sub == 'ann'"}), &[("one", "ann")], Some(Forbidden)),
        (json!({"require": "one", "deny": "user.sub == 'ann'"}), &[("one", "bob")], None),
        (json!({"require": "one", "deny": "user.none == 'x'"}), &[("one", "ann")], Some(Forbidden)),
        (
            json!({"require": "one", "allow": "user.sub == 'ann'", "deny": "user.role == 'clerk'"}),
            &[("one", "ann")],
            Some(Forbidden),
        ),
        (json!({"require": "one", "optional": true, "allow": "user.sub == 'ann'"}), &[], Some(Forbidden)),
        (json!({"require": "one", "scopes": ["read"]}), &[("one", "ann")], None),
        (json!({"require": "one", "scopes": ["read", "write"]}), &[("one", "ann")], Some(Forbidden)),
        (json!({"allow": "request.method == 'GET'"}), &[], None),
    ] {
        let mut rq = sends(fields);
        let outcome = run(&section, &mut rq).await;
        assert_eq!(outcome.as_ref().err().map(|f| f.reason), result, "{section} {fields:?}");
        assert!(outcome.err().is_none_or(|f| f.by == "auth"));
    }
}

fn challenges(fault: &Fault) -> Vec<&str> {
    let headers = fault.headers.as_ref().expect("fields");
    headers.get_all(WWW_AUTHENTICATE).iter().map(|v| v.to_str().expect("ascii")).collect()
}

#[tokio::test]
async fn a_refusal_names_all_that_was_tried() {
    let section = json!({"require": ["one", "two"]});
    let fault = run(&section, &mut sends(&[("one", "bad")])).await.expect_err("refused");
    assert_eq!(challenges(&fault), ["Test one invalid_token", "Test two"]);
    assert_eq!(fault.detail, "it is bad");
    let told = |fault: &Fault| {
        let tried = fault.lists.iter().flat_map(|lists| &lists.tried);
        tried.map(|a| format!("{} {} {}", a.identity, a.outcome, a.why)).collect::<Vec<_>>()
    };
    assert_eq!(told(&fault), ["one refused it is bad", "two absent "]);
    let both = json!({"require": [{"all": ["two", "one"]}, "slow"]});
    let fault = run(&both, &mut sends(&[("two", "ann"), ("slow", "bad")])).await.expect_err("refused");
    assert_eq!(told(&fault), ["two accepted ", "one absent ", "slow refused it is bad"]);
    let fault = run(&json!({"require": {"all": ["one", "two"]}}), &mut sends(&[("one", "down")])).await;
    assert_eq!(told(&fault.expect_err("refused")), ["one unavailable no keys", "two unasked "]);
    let fault = run(&section, &mut sends(&[])).await.expect_err("refused");
    assert_eq!(challenges(&fault), ["Test one", "Test two"]);
    let scoped = json!({"require": "one", "scopes": ["read", "write"]});
    let fault = run(&scoped, &mut sends(&[("one", "ann")])).await.expect_err("refused");
    assert_eq!(challenges(&fault), ["Bearer error=\"insufficient_scope\", scope=\"read write\""]);
    let fault = run(&json!({"require": "one"}), &mut sends(&[("one", "down")])).await.expect_err("refused");
    assert_eq!(fault.headers.expect("fields")[RETRY_AFTER], "5");
}

#[tokio::test]
async fn workloads_and_consumers() {
    let section = json!({"workloads": ["spiffe://corp/ns/web/*", "spiffe://corp/ns/shop/sa/orders"]});
    for (id, allowed) in [
        ("spiffe://corp/ns/web/sa/front", true),
        ("spiffe://corp/ns/shop/sa/orders", true),
        ("spiffe://corp/ns/shop/sa/orders2", false),
        ("spiffe://corp/ns/web/", false),
        ("spiffe://corp/ns/webx/sa/front", false),
        ("spiffe://corp.evil/ns/web/sa/front", false),
    ] {
        let mut rq = sends(&[]);
        rq.workload = Some(Arc::new(Workload {
            id: id.into(),
            names: vec!["spiffe://corp/ns/web/sa/x".into()],
            ..Default::default()
        }));
        assert_eq!(run(&section, &mut rq).await.is_ok(), allowed, "{id}");
    }
    let fault = run(&section, &mut sends(&[])).await.expect_err("no workload");
    assert_eq!(fault.reason, Reason::Forbidden);
    let mut rq = sends(&[]);
    rq.consumer = Some(Arc::new(Consumer { name: "acme".into(), plan: None, scopes: vec!["orders".into()] }));
    assert!(run(&json!({"scopes": ["orders"]}), &mut rq).await.is_ok(), "a consumer's scopes count");
}

fn member(name: &str, plan: Option<&str>) -> Arc<Consumer> {
    let plan =
        plan.map(|name| Arc::new(Plan { name: name.into(), priority: Priority::Normal, sections: BTreeMap::new() }));
    Arc::new(Consumer { name: name.into(), plan, scopes: Vec::new() })
}

#[tokio::test]
async fn consumers_and_plans_are_listed() {
    for (section, consumer, allowed) in [
        (json!({"consumers": "acme"}), Some(("acme", None)), true),
        (json!({"consumers": ["other", "acme"]}), Some(("acme", None)), true),
        (json!({"consumers": "other"}), Some(("acme", None)), false),
        (json!({"consumers": []}), Some(("acme", None)), false),
        (json!({"consumers": "acme"}), None, false),
        (json!({"plans": "gold"}), Some(("acme", Some("gold"))), true),
        (json!({"plans": ["gold", "free"]}), Some(("acme", Some("free"))), true),
        (json!({"plans": "gold"}), Some(("acme", Some("free"))), false),
        (json!({"plans": "gold"}), Some(("acme", None)), false),
        (json!({"plans": "gold"}), None, false),
        (json!({"consumers": "other", "plans": "gold"}), Some(("acme", Some("gold"))), false),
    ] {
        let mut rq = sends(&[]);
        rq.consumer = consumer.map(|(name, plan)| member(name, plan));
        let outcome = run(&section, &mut rq).await;
        assert_eq!(outcome.is_ok(), allowed, "{section} {consumer:?}");
        assert!(outcome.err().is_none_or(|f| f.reason == Reason::Forbidden));
    }
}

#[tokio::test]
async fn a_dry_run_refuses_nobody_whom_the_rules_refuse() {
    let directory = directory();
    let metrics = Arc::new(Registry::default());
    let mut estate = Estate::default();
    let build = |section: serde_json::Value, estate: &mut Estate| {
        let mut build = estate.build("routes.orders", &directory);
        build.metrics = metrics.clone();
        super::build(Some(&section_of(section)), &mut build).unwrap_or_else(|e| panic!("{e}"))
    };
    let rules = json!({"require": "one", "deny": "user.sub == 'ann'", "scopes": ["write"], "audit": true});
    let filter = build(rules, &mut estate);
    let counted =
        |result| metrics.counter("onehop_auth_requests_total", "", &[("route", "orders"), ("result", result)]);
    for _ in 0..2 {
        assert!(matches!(filter.on_request(&mut sends(&[("one", "ann")])), Step::Done(Verdict::Next)));
    }
    assert_eq!((counted("audited").value(), counted("allowed").value()), (2, 0));
    let mut rq = sends(&[("one", "bad")]);
    let refused = filter.on_request(&mut rq);
    assert!(matches!(refused, Step::Done(Verdict::Fail(f)) if f.reason == Reason::Unauthenticated), "identities act");
    assert_eq!((counted("audited").value(), counted("unauthenticated").value()), (2, 1));
}

/// Paths are compared as the router sees them: what was written in another form was brought to that one before.
#[tokio::test]
async fn rules_see_the_path_the_router_sees() {
    let section = json!({"deny": "request.path.startsWith('/admin')"});
    for (path, allowed) in [("/admin/x", false), ("/public", true)] {
        assert_eq!(run(&section, &mut request("GET", path)).await.is_ok(), allowed, "{path}");
    }
}

#[tokio::test]
async fn strangers_cannot_send_claims() {
    let directory = directory();
    assert!(implied(&RouteView { name: "open", keys: &[] }, &directory));
    assert!(!implied(&RouteView { name: "open", keys: &[] }, &Directory::default()));
    let open = build(None, &mut Estate::default().build("routes.open", &directory)).unwrap_or_else(|e| panic!("{e}"));
    let mut rq = sends(&[("x-user", "forged"), ("x-other", "1")]);
    assert!(matches!(open.on_request(&mut rq), Step::Done(Verdict::Next)));
    assert!(!rq.headers.contains_key("x-user") && rq.headers.contains_key("x-other"));
    let mut rq = sends(&[("x-user", "forged")]);
    assert!(run(&json!({"require": "one", "optional": true}), &mut rq).await.is_ok());
    assert!(!rq.headers.contains_key("x-user"));
}

#[test]
fn bad_sections_name_their_cure() {
    for (bad, says) in [
        (json!({}), "checks nothing"),
        (json!({"optional": true, "allow": "true"}), "without `require`"),
        (json!({"require": []}), "names no identity"),
        (json!({"require": "onee"}), "did you mean `one`"),
        (json!({"require": ["one", "tow"]}), "did you mean `two`"),
        (json!({"require": 7}), "expected a string"),
        (json!({"require": "one", "allow": "user.sub"}), "not a condition"),
        (json!({"require": "one", "deny": ["usr.sub == 'a'"]}), "did you mean `user`"),
        (json!({"workloads": ["spiffe://*/x"]}), "not a workload pattern"),
        (json!({"workloads": ["spiffe://corp/w*"]}), "not a workload pattern"),
        (json!({"requires": "one"}), "did you mean `require`"),
        (json!({"require": {"all": []}}), "names no identity"),
        (json!({"require": ["one", {"all": ["two", "onne"]}]}), "did you mean `one`"),
        (json!({"require": {"any": ["one"]}}), "unknown key `any`"),
        (json!({"require": "one", "audit": true}), "without a rule"),
        (json!({"consumers": ["acmee"]}), "did you mean `acme`"),
        (json!({"plans": "glod"}), "did you mean `gold`"),
    ] {
        let e = try_build(bad.clone()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
    let e = try_build(json!({"require": ["one", "tow"]})).err().expect("an error");
    assert_eq!(e.span.map(|s| s.line), Some(4), "at the name itself");
}
