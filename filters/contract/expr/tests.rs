use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::super::principal::{Consumer, Workload};
use super::*;
use crate::api::fixture::{request, user};

fn compile(text: &str) -> Expr {
    Expr::compile(text, Span::default()).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn full() -> RequestCx {
    let mut rq = request("GET", "/v1/orders?v=2&q=a%20b&v=3");
    rq.user = Some(user(json!({
        "sub": "ann", "scope": "orders read", "role": "admin", "level": 3, "ratio": 0.5, "ok": true, "nil": null,
        "groups": ["a", "b"], "realm": {"roles": ["x"], "name": "r"}
    })));
    rq.consumer = Some(Arc::new(Consumer { name: "acme".into(), plan: None, scopes: vec!["orders".into()] }));
    rq.workload = Some(Arc::new(Workload { id: "spiffe://corp/ns/web/sa/front".into(), ..Default::default() }));
    rq.headers.insert("x-beta", "1".parse().expect("a value"));
    rq.headers.append("x-two", "a".parse().expect("a value"));
    rq.headers.append("x-two", "b".parse().expect("a value"));
    rq
}

#[test]
fn truth_of_what_rules_are_made_of() {
    let rq = full();
    for (text, truth, native) in [
        ("user.sub == 'ann'", Some(true), true),
        ("user.claims.sub != 'ann'", Some(false), true),
        ("'orders' in user.scopes", Some(true), true),
        ("'order' in user.scopes", Some(false), true),
        ("user.role in ['admin', 'root']", Some(true), true),
        ("'b' in user.groups && 'x' in user.realm.roles", Some(true), true),
        ("'name' in user.realm", Some(true), true),
        ("user.level >= 3 && user.ratio < 1", Some(true), true),
        ("user.ok", Some(true), true),
        ("!user.ok || user.sub.startsWith('an')", Some(true), true),
        ("user.nil == null", Some(true), true),
        ("user.role.matches('^ad.*n$')", Some(true), true),
        ("request.path.startsWith('/v1/') ? user.ok : false", Some(true), true),
        ("request.headers['x-beta'] == '1' && request.headers['x-two'] == 'a, b'", Some(true), true),
        ("request.query.v == '2' && request.query['q'] == 'a b'", Some(true), true),
        ("request.host == 'api.example.com' && request.scheme == 'http'", Some(true), true),
        ("workload.namespace == 'web' && workload.trustDomain == 'corp'", Some(true), true),
        ("workload.serviceAccount == 'front' && consumer.name == 'acme'", Some(true), true),
        ("route.name == 'orders' && listener.name == 'public' && client.ip == '192.0.2.7'", Some(true), true),
        ("has(user.role) && !has(user.nothing)", Some(true), true),
        // A substring is not membership, natively and in the fallback.
        ("'adm' in user.role", None, true),
        ("'adm' in (user.role + '')", None, false),
        // What is missing is neither true nor false, whichever side it stands on.
        ("user.nothing == 'x'", None, true),
        ("user.nothing != 'x'", None, true),
        ("!(user.nothing == 'x')", None, true),
        ("user.nothing == 'x' || user.ok", Some(true), true),
        ("user.ok || user.nothing == 'x'", Some(true), true),
        ("user.nothing == 'x' && !user.ok", Some(false), true),
        ("request.headers['x-none'] != 'a'", None, true),
        ("request.headers['x-' + 'none'] != 'a'", None, false),
        ("consumer.plan == 'gold'", None, true),
        // Left to the cel crate.
        ("size(user.scopes) == 2", Some(true), false),
        ("user.groups.exists(g, g == 'b')", Some(true), false),
        ("user.groups.exists(g, g.matches('^b'))", Some(true), false),
        ("user.groups.all(g, g in ['a', 'b'])", Some(true), false),
        ("user.groups == ['a', 'b']", Some(true), false),
        ("user.scopes.contains('read')", Some(true), false),
        ("user.role.exists(c, c == 'a')", None, false),
        ("user.sub + '!' == 'ann!'", Some(true), false),
        ("user.missing.exists(c, true) || user.ok", Some(true), false),
    ] {
        let expr = compile(text);
        assert_eq!(expr.truth(&rq), truth, "{text}");
        assert_eq!(expr.bool(&rq), truth == Some(true), "{text}");
        assert_eq!(expr.is_native(), native, "{text}");
    }
}

#[test]
fn nobody_matches_nothing() {
    let rq = request("GET", "/");
    for text in ["user.sub != 'x'", "'x' in user.scopes", "workload.id == ''", "size(user.scopes) == 0", "!(user.ok)"] {
        assert_eq!(compile(text).truth(&rq), None, "{text}");
    }
}

#[test]
fn text_of_expressions() {
    let rq = full();
    for (text, want) in [
        ("user.sub", Some("ann")),
        ("user.level", Some("3")),
        ("user.ok", Some("true")),
        ("user.sub + '@' + route.name", Some("ann@orders")),
        ("has(user.role) ? user.role : 'none'", Some("admin")),
        ("user.groups", None),
        ("user.nothing", None),
    ] {
        assert_eq!(compile(text).text(&rq).as_deref(), want, "{text}");
    }
}

#[test]
fn bad_expressions_are_refused_with_a_cure() {
    let span = Span { file: 0, line: 4, column: 9 };
    for (text, says) in [
        ("user.sub ==", "not an expression"),
        ("usr.sub == 'a'", "did you mean `user`"),
        ("request.metod == 'GET'", "did you mean `method`"),
        ("user.sub.startWith('a')", "did you mean `startsWith`"),
        ("user.sub.matches('(')", "regular expression"),
        ("user.sub.matches(user.role)", "must be a literal"),
        ("request.headers['X-Beta'] == '1'", "lower-case"),
        ("user.a.exists(x, user.b.exists(y, x == y))", "inside another macro"),
        ("-user.level == 1", "literal can be negated"),
        ("Msg{a: 1} == 1", "not supported"),
        (&"a".repeat(5000), "longer than"),
        (&vec!["1"; 1500].join("+"), "too large"),
        (&"!".repeat(3000), "not an expression"),
        (&vec!["user.ok"; 300].join(" || "), "too large"),
        (&format!("{}user.ok{}", "(".repeat(200), ")".repeat(200)), "nested deeper"),
    ] {
        let e = Expr::compile(text, span).expect_err(text);
        assert_eq!(e.span, Some(span));
        assert!(e.to_string().contains(says), "{text}: {e}");
    }
    for text in ["user.scopes", "'a'", "1", "request.path", "null", "['a']"] {
        assert!(Expr::condition(text, span).is_err(), "{text} is no condition");
    }
    assert!(Expr::condition("user.ok", span).is_ok(), "a claim may be a boolean");
}

#[test]
fn cost_is_bounded_by_the_items_of_a_claim() {
    let mut rq = full();
    rq.user = Some(user(json!({"sub": "a", "many": vec![1; 1025], "some": vec![1; 1024]})));
    assert_eq!(compile("user.some.all(n, n == 1)").truth(&rq), Some(true));
    assert_eq!(compile("user.many.all(n, n == 1)").truth(&rq), None);
}

fn operand() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("user.sub"),
        Just("user.role"),
        Just("user.level"),
        Just("user.ratio"),
        Just("user.ok"),
        Just("user.nil"),
        Just("user.nothing"),
        Just("request.path"),
        Just("request.method"),
        Just("route.name"),
        Just("'ann'"),
        Just("'admin'"),
        Just("'GET'"),
        Just("3"),
        Just("0.5"),
        Just("true"),
        Just("null"),
        Just("user.realm.name"),
    ]
    .prop_map(str::to_owned)
}

fn atom() -> impl Strategy<Value = String> {
    prop_oneof![
        (operand(), prop_oneof![Just("=="), Just("!="), Just("<"), Just("<="), Just(">"), Just(">=")], operand())
            .prop_map(|(a, o, b)| format!("{a} {o} {b}")),
        (
            operand(),
            prop_oneof![Just("['ann', 'GET', 3]"), Just("user.scopes"), Just("user.groups"), Just("user.realm")]
        )
            .prop_map(|(a, l)| format!("{a} in {l}")),
        (
            operand(),
            prop_oneof![Just("startsWith"), Just("endsWith")],
            prop_oneof![Just("'a'"), Just("'n'"), Just("''")]
        )
            .prop_map(|(a, f, b)| format!("{a}.{f}({b})")),
        Just("has(user.role)".to_owned()),
        Just("has(user.nothing)".to_owned()),
        Just("user.ok".to_owned()),
    ]
}

fn rule() -> impl Strategy<Value = String> {
    atom().prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the cel crate decides, the native evaluator decides alike; where the crate gives up, only `&&` and `||`
    /// (which absorb errors, as the CEL specification says and the crate does not) may still decide.
    #[test]
    fn lowering_agrees_with_the_cel_crate(text in rule()) {
        let rq = full();
        let expr = compile(&text);
        prop_assert!(expr.is_native(), "{text}");
        let tree = parse(&text).expect("parsed before");
        let roots = ROOTS.iter().map(|(r, _)| *r).collect();
        let crates = Fallback::new(&tree, roots).truth(&rq);
        match crates {
            Some(b) => prop_assert_eq!(expr.truth(&rq), Some(b), "{}", text),
            None if !text.contains("&&") && !text.contains("||") => prop_assert_eq!(expr.truth(&rq), None, "{}", text),
            None => {}
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,40}") {
        let _ = Expr::compile(&text, Span::default());
    }
}
