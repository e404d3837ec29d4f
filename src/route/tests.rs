use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::{Probe, RouteSpec, Table, TableError, Verdict};
use crate::config::plan::{Match, PathMatch, ValueMatch};

fn prefix(p: &str) -> Match {
    Match { path: Some(PathMatch::Prefix(p.to_owned())), ..Match::default() }
}

fn exact(p: &str) -> Match {
    Match { path: Some(PathMatch::Exact(p.to_owned())), ..Match::default() }
}

fn regex(p: &str) -> Match {
    Match { path: Some(PathMatch::Regex(p.to_owned())), ..Match::default() }
}

fn header(mut m: Match, name: &'static str, value: ValueMatch) -> Match {
    m.headers.push((HeaderName::from_static(name), value));
    m
}

fn query(mut m: Match, name: &str, value: ValueMatch) -> Match {
    m.query.push((name.to_owned(), value));
    m
}

fn claim(mut m: Match, name: &str, value: ValueMatch) -> Match {
    m.claims.push((name.to_owned(), value));
    m
}

fn method(mut m: Match, method: Method) -> Match {
    m.methods.push(method);
    m
}

fn is(text: &str) -> ValueMatch {
    ValueMatch::Exact(text.to_owned())
}

fn on(hosts: &[&str], matches: Vec<Match>) -> RouteSpec {
    RouteSpec { hosts: hosts.iter().map(|h| (*h).to_owned()).collect(), matches }
}

/// A table whose values are positions.
fn table(routes: Vec<RouteSpec>) -> Table<usize> {
    Table::build(routes.into_iter().enumerate().map(|(n, spec)| (spec, n))).unwrap()
}

fn ask(table: &Table<usize>, host: &str, target: &str) -> Option<usize> {
    ask_with(table, &Method::GET, host, target, &[])
}

fn ask_with(table: &Table<usize>, method: &Method, host: &str, target: &str, fields: &[(&str, &str)]) -> Option<usize> {
    let field = |(n, v): &(&str, &str)| (n.parse::<HeaderName>().unwrap(), v.parse::<HeaderValue>().unwrap());
    let headers: HeaderMap = fields.iter().map(field).collect();
    let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
    table.find(&Probe { host, path, query, method, headers: &headers, claims: None }).copied()
}

/// What is found for a user with these claims.
fn ask_as(table: &Table<usize>, target: &str, claims: Option<serde_json::Value>) -> Option<usize> {
    let claims = claims.map(|c| c.as_object().expect("an object").clone());
    let headers = HeaderMap::new();
    let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
    let probe = Probe { host: "h", path, query, method: &Method::GET, headers: &headers, claims: claims.as_ref() };
    table.find(&probe).copied()
}

#[test]
fn claims_are_matched_by_name_path_and_item() {
    let by = |name: &str, value: ValueMatch| table(vec![on(&[], vec![claim(prefix("/"), name, value)])]);
    let regex = |text: &str| ValueMatch::Regex(text.to_owned());
    let claims = serde_json::json!({
        "plan": "gold", "level": 3, "staff": true, "nil": null, "groups": ["a", "b", 7],
        "realm": {"roles": ["admin"], "x": {"y": "z"}}, "https://id.example/tenant": "acme", "a.b": {"c": "d"},
    });
    for (name, value, holds) in [
        ("plan", is("gold"), true),
        ("plan", is("gol"), false),
        ("plan", regex("g.*"), true),
        ("plan", regex("g"), false),
        ("plan", ValueMatch::Present, true),
        ("level", is("3"), true),
        ("staff", is("true"), true),
        ("nil", ValueMatch::Present, false),
        ("nothing", ValueMatch::Present, false),
        ("groups", is("b"), true),
        ("groups", is("7"), true),
        ("groups", is("a,b"), false),
        ("realm.roles", is("admin"), true),
        ("realm.x.y", is("z"), true),
        ("realm", is("x"), false),
        ("realm", ValueMatch::Present, true),
        ("realm.nothing.y", ValueMatch::Present, false),
        ("https://id.example/tenant", is("acme"), true),
        ("a.b.c", is("d"), true),
    ] {
        let t = by(name, value.clone());
        assert_eq!(ask_as(&t, "/", Some(claims.clone())).is_some(), holds, "{name} {value:?}");
        assert_eq!(ask_as(&t, "/", None), None, "nobody has claims");
    }
}

#[test]
fn claims_come_last_before_the_order_of_the_file() {
    let gold = || claim(prefix("/"), "plan", is("gold"));
    let t = table(vec![
        on(&[], vec![prefix("/")]),
        on(&[], vec![gold()]),
        on(&[], vec![claim(gold(), "tenant", is("acme"))]),
        on(&[], vec![query(prefix("/"), "q", is("1"))]),
        on(&[], vec![claim(prefix("/deep"), "plan", is("gold"))]),
    ]);
    let gold = serde_json::json!({"plan": "gold"});
    let acme = serde_json::json!({"plan": "gold", "tenant": "acme"});
    for (target, claims, expected) in [
        ("/", None, 0),
        ("/", Some(serde_json::json!({"plan": "free"})), 0),
        ("/", Some(gold.clone()), 1),
        ("/", Some(acme.clone()), 2),
        ("/?q=1", Some(acme), 3),
        ("/deep", Some(gold.clone()), 4),
        ("/deep", None, 0),
    ] {
        assert_eq!(ask_as(&t, target, claims.clone()), Some(expected), "{target} {claims:?}");
    }
    let headers = HeaderMap::new();
    let probe = Probe { host: "h", path: "/deep", query: None, method: &Method::GET, headers: &headers, claims: None };
    let undecided: Vec<usize> = t.undecided(&probe).into_iter().map(|hit| *hit.value).collect();
    assert_eq!(undecided, [4, 2, 1], "best first");
    assert!(
        t.undecided(&Probe { query: Some("q=1"), path: "/", ..probe }).is_empty(),
        "a better match needs no claims"
    );
    assert!(table(vec![on(&[], vec![prefix("/")])]).undecided(&probe).is_empty());

    let said = |claims: Option<&serde_json::Value>| {
        let claims = claims.and_then(|c| c.as_object());
        let found = t.explain(&Probe { path: "/", claims, ..probe });
        found.iter().map(|c| format!("{} {}", c.value, c.verdict)).collect::<Vec<_>>()
    };
    let nobody = said(None);
    assert!(nobody.contains(&"0 won".to_owned()), "{nobody:?}");
    assert!(nobody.contains(&"1 claim plan of nobody: not authenticated".to_owned()), "{nobody:?}");
    let somebody = said(Some(&gold));
    assert!(somebody.contains(&"1 won".to_owned()), "{somebody:?}");
    assert!(somebody.contains(&"2 claim tenant differs".to_owned()), "{somebody:?}");
    assert!(somebody.contains(&"0 asks for fewer claims than another route with prefix /".to_owned()), "{somebody:?}");
}

#[test]
fn hosts_by_how_specific_they_are() {
    let t = table(vec![
        on(&["*.com"], vec![]),
        on(&[], vec![]),
        on(&["*.a.com"], vec![]),
        on(&["x.a.com"], vec![]),
        on(&["*.b.a.com"], vec![]),
    ]);
    for (host, expected) in [
        ("x.a.com", 3),
        ("y.a.com", 2),
        ("z.y.a.com", 2),
        ("z.b.a.com", 4),
        ("b.a.com", 2),
        ("a.com", 0),
        ("com", 1),
        ("other.org", 1),
        ("[::1]", 1),
        (".a.com", 0),
    ] {
        assert_eq!(ask(&t, host, "/"), Some(expected), "{host}");
    }
    let strict = table(vec![on(&["*.a.com"], vec![])]);
    assert_eq!(ask(&strict, "a.com", "/"), None);
    assert_eq!(ask(&strict, "ba.com", "/"), None);
    assert!(strict.knows("x.a.com") && !strict.knows("a.com"));
    assert_eq!(t.hosts().collect::<Vec<_>>(), ["*.com", "*", "*.a.com", "x.a.com", "*.b.a.com"]);
}

#[test]
fn a_less_specific_host_gets_what_the_other_leaves() {
    let t = table(vec![on(&["a.com"], vec![prefix("/x")]), on(&["*.com"], vec![exact("/x/y"), prefix("/z")])]);
    assert_eq!(ask(&t, "a.com", "/x/y"), Some(0));
    assert_eq!(ask(&t, "a.com", "/z"), Some(1));
    assert_eq!(ask(&t, "a.com", "/q"), None);
}

#[test]
fn prefixes_end_at_segments() {
    let t = table(vec![on(&[], vec![prefix("/foo")]), on(&[], vec![prefix("/bar/")])]);
    for (path, expected) in [
        ("/foo", Some(0)),
        ("/foo/", Some(0)),
        ("/foo/x", Some(0)),
        ("/foobar", None),
        ("/fo", None),
        ("/", None),
        ("/Foo", None),
        ("/bar", Some(1)),
        ("/bar/", Some(1)),
        ("/bar/x", Some(1)),
        ("/x/foo", None),
        ("*", None),
    ] {
        assert_eq!(ask(&t, "h", path), expected, "{path}");
    }
}

#[test]
fn exact_means_every_slash() {
    let t = table(vec![on(&[], vec![exact("/foo")]), on(&[], vec![exact("/foo/")]), on(&[], vec![exact("/")])]);
    for (path, expected) in [("/foo", Some(0)), ("/foo/", Some(1)), ("/", Some(2)), ("/foo/x", None), ("/foo/x/", None)]
    {
        assert_eq!(ask(&t, "h", path), expected, "{path}");
    }
}

/// The Gateway API's conformance cases for path order (`HTTPRouteMatchingAcrossRoutes`, `HTTPRoutePathMatchOrder`).
#[test]
fn gateway_api_path_order() {
    let t = table(vec![
        on(&[], vec![prefix("/match")]),
        on(&[], vec![prefix("/match/prefix/one")]),
        on(&[], vec![exact("/match/exact/one"), prefix("/")]),
        on(&[], vec![prefix("/match/prefix")]),
        on(&[], vec![exact("/match/exact"), regex("/match/.*")]),
    ]);
    for (path, expected) in [
        ("/match/exact/one", 2),
        ("/match/exact", 4),
        ("/match", 0),
        ("/match/prefix/one/any", 1),
        ("/match/prefix/any", 3),
        ("/match/any", 0),
        ("/any", 2),
        ("*", 2),
    ] {
        assert_eq!(ask(&t, "h", path), Some(expected), "{path}");
    }
}

#[test]
fn then_method_headers_query_and_order() {
    let v2 = || header(prefix("/"), "version", is("two"));
    let t = table(vec![
        on(&[], vec![prefix("/")]),
        on(&[], vec![query(query(prefix("/"), "a", is("1")), "b", is("2"))]),
        on(&[], vec![v2()]),
        on(&[], vec![header(v2(), "color", is("orange"))]),
        on(&[], vec![method(prefix("/"), Method::POST)]),
        on(&[], vec![query(v2(), "a", is("1"))]),
        on(&[], vec![v2()]),
    ]);
    let both = [("version", "two"), ("color", "orange")];
    assert_eq!(ask(&t, "h", "/"), Some(0));
    assert_eq!(ask(&t, "h", "/?b=2&a=1"), Some(1));
    assert_eq!(ask_with(&t, &Method::GET, "h", "/", &both[..1]), Some(2));
    assert_eq!(ask_with(&t, &Method::GET, "h", "/?a=1&b=2", &both[..1]), Some(5));
    assert_eq!(ask_with(&t, &Method::GET, "h", "/?a=1", &both), Some(3));
    assert_eq!(ask_with(&t, &Method::POST, "h", "/?a=1", &both), Some(4));
}

#[test]
fn a_prefix_whose_conditions_fail_leaves_the_shorter_ones() {
    let t = table(vec![on(&[], vec![prefix("/a")]), on(&[], vec![method(prefix("/a/b"), Method::POST)])]);
    assert_eq!(ask(&t, "h", "/a/b/c"), Some(0));
    assert_eq!(ask_with(&t, &Method::POST, "h", "/a/b/c", &[]), Some(1));
}

#[test]
fn repeated_headers_match_by_line_or_joined() {
    let t = table(vec![
        on(&[], vec![header(prefix("/"), "x", is("b"))]),
        on(&[], vec![header(prefix("/"), "y", is("a,b"))]),
        on(&[], vec![header(prefix("/"), "z", ValueMatch::Regex("a,+b|c.".to_owned()))]),
        on(&[], vec![header(prefix("/"), "w", ValueMatch::Present)]),
    ]);
    let hit = |fields: &[(&str, &str)]| ask_with(&t, &Method::GET, "h", "/", fields);
    assert_eq!(hit(&[("x", "a"), ("x", "b")]), Some(0));
    assert_eq!(hit(&[("x", "bb")]), None);
    assert_eq!(hit(&[("y", "a"), ("y", "b")]), Some(1));
    assert_eq!(hit(&[("y", "a"), ("y", "b"), ("y", "c")]), None);
    assert_eq!(hit(&[("y", "a")]), None);
    assert_eq!(hit(&[("z", "a"), ("z", "b")]), Some(2));
    assert_eq!(hit(&[("z", "q"), ("z", "cx")]), Some(2));
    assert_eq!(hit(&[("z", "xcx")]), None);
    assert_eq!(hit(&[("w", "")]), Some(3));
    assert_eq!(hit(&[]), None);
}

#[test]
fn the_first_query_parameter_counts_decoded() {
    let t = table(vec![
        on(&[], vec![query(prefix("/"), "q", is("a b"))]),
        on(&[], vec![query(prefix("/"), "r", ValueMatch::Regex("[0-9]+".to_owned()))]),
        on(&[], vec![query(prefix("/"), "s", ValueMatch::Present)]),
    ]);
    for (target, expected) in [
        ("/?q=a%20b", Some(0)),
        ("/?%71=a%20b", Some(0)),
        ("/?q=a+b", None),
        ("/?q=x&q=a%20b", None),
        ("/?q=a%20b&q=x", Some(0)),
        ("/?q=a%2", None),
        ("/?r=12", Some(1)),
        ("/?r=%31%32", Some(1)),
        ("/?r=12x", None),
        ("/?s", Some(2)),
        ("/?xs=1", None),
        ("/", None),
        ("/?", None),
    ] {
        assert_eq!(ask(&t, "h", target), expected, "{target}");
    }
}

#[test]
fn regexes_are_anchored_and_ordered_by_length() {
    let t = table(vec![
        on(&[], vec![regex("/u/[0-9]+")]),
        on(&[], vec![regex("/u/[0-9]+/posts")]),
        on(&[], vec![regex("^/u/1[0-9]*$")]),
        on(&[], vec![regex("/a|/bb")]),
        on(&[], vec![regex("(?i)/CASE")]),
        on(&[], vec![regex("/opt/?")]),
        on(&[], vec![regex("/q/*x")]),
    ]);
    for (path, expected) in [
        ("/u/7", Some(0)),
        ("/u/17", Some(2)),
        ("/u/7/posts", Some(1)),
        ("/u/7/other", None),
        ("/x/u/7", None),
        ("/a", Some(3)),
        ("/bb", Some(3)),
        ("/abb", None),
        ("/case", Some(4)),
        ("/opt", Some(5)),
        ("/opt/", Some(5)),
        ("/qx", Some(6)),
        ("/q/x", Some(6)),
    ] {
        assert_eq!(ask(&t, "h", path), expected, "{path}");
    }
}

#[test]
fn bad_regexes_are_refused_with_their_route() {
    for pattern in ["(", "a)|(b", "a)(b", "(?P<n>x){100000}", "\\p{L}"] {
        let built = Table::build([(on(&[], vec![]), 0), (on(&[], vec![regex(pattern)]), 1)]);
        match built {
            Err(TableError::Regex { route: 1, pattern: p, .. }) => assert_eq!(p, pattern),
            other => panic!("{pattern}: {other:?}"),
        }
    }
}

#[test]
fn route_paths_take_the_normal_form() {
    let t = table(vec![on(&[], vec![exact("/a%7eb//c")]), on(&[], vec![prefix("/x/../{id}")])]);
    assert_eq!(ask(&t, "h", "/a~b/c"), Some(0));
    assert_eq!(ask(&t, "h", "/%7Bid%7D/z"), Some(1));
}

#[test]
fn a_hit_says_how_much_it_covers() {
    // On the less specific host, for a prefix `/` beats every regex of its own.
    let t = table(vec![on(&["h"], vec![prefix("/foo/"), exact("/e/f"), regex("/r/.+")]), on(&[], vec![])]);
    let covered = |path: &str| {
        let headers = HeaderMap::new();
        t.lookup(&Probe { host: "h", path, query: None, method: &Method::GET, headers: &headers, claims: None })
            .unwrap()
            .covered
    };
    assert_eq!(
        (covered("/foo"), covered("/foo/x"), covered("/e/f"), covered("/r/xyz"), covered("/zz")),
        (4, 4, 4, 6, 0)
    );
}

#[test]
fn one_entry_per_host_and_match() {
    let t = table(vec![on(&["a", "b"], vec![prefix("/x"), prefix("/y")])]);
    assert_eq!(t.len(), 4);
    for (host, path) in [("a", "/x"), ("a", "/y"), ("b", "/x"), ("b", "/y")] {
        assert_eq!(ask(&t, host, path), Some(0));
    }
    assert!(table(vec![]).is_empty());
    assert_eq!(ask(&table(vec![]), "a", "/"), None);
}

#[test]
fn explain_says_why() {
    let t = table(vec![
        on(&["a.com"], vec![prefix("/v1")]),
        on(&["a.com"], vec![header(prefix("/v1/orders"), "x-beta", is("1"))]),
        on(&["a.com"], vec![method(prefix("/v1/orders"), Method::POST)]),
        on(&["*.com"], vec![prefix("/v1/orders/7")]),
        on(&["b.com"], vec![prefix("/v1")]),
        on(&["a.com"], vec![prefix("/v1/users")]),
        on(&["a.com"], vec![prefix("/v1")]),
        on(&["a.com"], vec![prefix("/other")]),
    ]);
    let headers = HeaderMap::new();
    let probe = Probe {
        host: "a.com",
        path: "/v1/orders/7",
        query: None,
        method: &Method::GET,
        headers: &headers,
        claims: None,
    };
    let told: Vec<(usize, String)> = t.explain(&probe).into_iter().map(|c| (c.value, c.verdict.to_string())).collect();
    let expected = [
        (0, "won"),
        (6, "comes later in the file than another route with prefix /v1"),
        (3, "host *.com is less specific than a.com"),
        (2, "method GET is not listed"),
        (1, "header x-beta differs"),
    ];
    for (n, (value, why)) in expected.iter().enumerate() {
        assert_eq!(told[n], (*value, (*why).to_owned()));
    }
    assert!(told.contains(&(4, "host b.com differs".to_owned())));
    assert!(told.contains(&(5, "prefix /v1/users does not match".to_owned())));
    assert!(!told.iter().any(|(value, _)| *value == 7));
    assert_eq!(t.find(&probe), Some(&0));
}

#[test]
fn what_can_never_match_is_found() {
    let get = || method(prefix("/a"), Method::GET);
    let t = table(vec![
        on(&["h"], vec![method(get(), Method::POST)]),
        on(&["h"], vec![get()]),
        on(&["h"], vec![method(prefix("/a"), Method::PUT)]),
        on(&["h"], vec![header(header(exact("/b"), "x", is("1")), "y", is("2"))]),
        on(&["h"], vec![header(header(exact("/b"), "y", is("2")), "x", is("1"))]),
        on(&["g"], vec![get()]),
        on(&["h"], vec![regex("/r.*"), regex("/r.+")]),
        on(&["h"], vec![regex("/r.*")]),
    ]);
    let mut hidden = t.shadowed();
    hidden.sort_unstable();
    assert_eq!(hidden, [(1, 0), (4, 3), (7, 6)]);
}

#[test]
fn ten_thousand_routes_stay_small() {
    let t =
        table((0..10_000).map(|n| on(&["api.example.com"], vec![prefix(&format!("/v1/service-{n}/items"))])).collect());
    assert!(t.footprint() < 10_000 * 512, "{} bytes a route", t.footprint() / 10_000);
    assert_eq!(ask(&t, "api.example.com", "/v1/service-7777/items/1"), Some(7777));
    assert_eq!(ask(&t, "api.example.com", "/v1/service-7777"), None);
    let hosts = table((0..10_000).map(|n| on(&[&format!("h{n}.example.com")], vec![])).collect());
    assert!(hosts.footprint() < 10_000 * 512, "{} bytes a host", hosts.footprint() / 10_000);
    assert_eq!(ask(&hosts, "h4242.example.com", "/"), Some(4242));
}

/// The precedence written down plainly: score every entry that matches, take the best.
fn naive(routes: &[RouteSpec], probe: &Probe<'_>) -> Option<usize> {
    let mut best = None;
    for (order, route) in routes.iter().enumerate() {
        let any = [String::new()];
        let all = [Match::default()];
        for host in if route.hosts.is_empty() { &any[..] } else { &route.hosts } {
            let host_score = match host.strip_prefix('*') {
                _ if host.is_empty() => (0, 0),
                Some(suffix) if probe.host.ends_with(suffix) && probe.host.len() > suffix.len() => (1, suffix.len()),
                None if host == probe.host => (2, 0),
                _ => continue,
            };
            for rule in if route.matches.is_empty() { &all[..] } else { &route.matches } {
                let path_score = match &rule.path {
                    None => (1, 0),
                    Some(PathMatch::Exact(p)) if p == probe.path => (2, 0),
                    Some(PathMatch::Prefix(p)) => {
                        let p = p.trim_end_matches('/');
                        if p == probe.path || probe.path.starts_with(&format!("{p}/")) {
                            (1, p.len())
                        } else {
                            continue;
                        }
                    }
                    Some(PathMatch::Regex(p))
                        if regex::Regex::new(&format!("^(?:{p})$")).unwrap().is_match(probe.path) =>
                    {
                        (0, p.len())
                    }
                    Some(_) => continue,
                };
                let method_holds = rule.methods.is_empty() || rule.methods.contains(probe.method);
                let headers_hold = rule.headers.iter().all(|(n, v)| match v {
                    ValueMatch::Exact(v) => probe.headers.get(n).is_some_and(|have| have == v.as_str()),
                    _ => probe.headers.contains_key(n),
                });
                let query_holds = rule.query.iter().all(|(n, v)| match v {
                    ValueMatch::Exact(v) => probe.query.is_some_and(|q| q.split('&').any(|p| p == format!("{n}={v}"))),
                    _ => probe.query.is_some_and(|q| q.split('&').any(|p| p.starts_with(&format!("{n}=")))),
                });
                let claims_hold = rule.claims.iter().all(|(n, v)| {
                    let claim = |claims: &serde_json::Map<String, serde_json::Value>| match n.as_str() {
                        "c" => claims.get("c").cloned(),
                        _ => claims.get("d").map(|d| d["e"].clone()),
                    };
                    match (probe.claims.and_then(claim), v) {
                        (Some(have), ValueMatch::Exact(v)) => have == v.as_str(),
                        (have, _) => have.is_some(),
                    }
                });
                if !(method_holds && headers_hold && query_holds && claims_hold) {
                    continue;
                }
                let conditions = (!rule.methods.is_empty(), rule.headers.len(), rule.query.len(), rule.claims.len());
                let score = (host_score, path_score, conditions, std::cmp::Reverse(order));
                best = best.max(Some((score, order)));
            }
        }
    }
    best.map(|(_, order)| order)
}

fn any_path() -> impl Strategy<Value = String> {
    let segment = prop_oneof![Just("a"), Just("b"), Just("ab"), Just("")];
    // As the normaliser leaves it: an empty segment stands only at the end.
    proptest::collection::vec(segment, 1..5).prop_map(|s| {
        let last = s.len() - 1;
        let kept: Vec<_> = s.iter().enumerate().filter(|(n, s)| !s.is_empty() || *n == last).map(|(_, s)| *s).collect();
        format!("/{}", kept.join("/"))
    })
}

fn any_host() -> impl Strategy<Value = String> {
    prop_oneof![Just("a.x"), Just("b.a.x"), Just("x"), Just("c.b.a.x"), Just("y")].prop_map(str::to_owned)
}

fn any_route() -> impl Strategy<Value = RouteSpec> {
    let host = prop_oneof![any_host(), any_host().prop_map(|h| format!("*.{h}")), Just(String::new())];
    let regexes =
        prop_oneof![Just("/a/.*"), Just("/(a|b)"), Just("/a/b?"), Just(".*"), Just("/[ab]+/ab"), Just("/a|/b/a")];
    let path = prop_oneof![
        any_path().prop_map(|p| Some(PathMatch::Exact(p))),
        any_path().prop_map(|p| Some(PathMatch::Prefix(p))),
        regexes.prop_map(|p| Some(PathMatch::Regex(p.to_owned()))),
        Just(None),
    ];
    let method = proptest::collection::vec(prop_oneof![Just(Method::GET), Just(Method::PUT)], 0..2);
    let value = || prop_oneof![Just(is("1")), Just(is("2")), Just(ValueMatch::Present)];
    let headers = proptest::collection::vec((prop_oneof![Just("x-a"), Just("x-b")], value()), 0..3);
    let query = proptest::collection::vec((prop_oneof![Just("p"), Just("q")], value()), 0..2);
    let claims = proptest::collection::vec((prop_oneof![Just("c"), Just("d.e")], value()), 0..2);
    let rule = (path, method, headers, query, claims).prop_map(|(path, methods, headers, query, claims)| Match {
        path,
        methods,
        headers: headers.into_iter().map(|(n, v)| (HeaderName::from_static(n), v)).collect(),
        query: query.into_iter().map(|(n, v)| (n.to_owned(), v)).collect(),
        claims: claims.into_iter().map(|(n, v)| (n.to_owned(), v)).collect(),
        cookies: Vec::new(),
    });
    (proptest::collection::vec(host, 0..3), proptest::collection::vec(rule, 0..3))
        .prop_map(|(hosts, matches)| RouteSpec { hosts, matches })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_table_agrees_with_the_plain_rules(
        routes in proptest::collection::vec(any_route(), 0..12),
        probes in proptest::collection::vec(
            (any_host(), any_path(), any::<bool>(), any::<[Option<bool>; 2]>(), any::<[Option<bool>; 2]>(),
             any::<Option<[Option<bool>; 2]>>()), 1..8),
    ) {
        let t = table(routes.clone());
        for (host, path, get, fields, parameters, user) in probes {
            let digit = |two: bool| if two { "2" } else { "1" };
            let mut headers = HeaderMap::new();
            for (name, two) in ["x-a", "x-b"].into_iter().zip(fields) {
                if let Some(two) = two {
                    headers.insert(name, HeaderValue::from_static(digit(two)));
                }
            }
            let pairs: Vec<String> = ["p", "q"].iter().zip(parameters)
                .filter_map(|(n, two)| two.map(|two| format!("{n}={}", digit(two)))).collect();
            let query = pairs.join("&");
            let method = if get { Method::GET } else { Method::PUT };
            let user = user.map(|[c, e]| {
                let mut claims = serde_json::Map::new();
                claims.extend(c.map(|two| ("c".to_owned(), digit(two).into())));
                claims.extend(e.map(|two| ("d".to_owned(), serde_json::json!({ "e": digit(two) }))));
                claims
            });
            let probe = Probe {
                host: &host, path: &path, query: (!pairs.is_empty()).then_some(&*query), method: &method, headers: &headers,
                claims: user.as_ref(),
            };
            let found = t.find(&probe).copied();
            // Whoever wins by claims was among those they decide about.
            let anybody = Probe { claims: None, ..probe };
            let undecided: Vec<usize> = t.undecided(&anybody).into_iter().map(|hit| *hit.value).collect();
            prop_assert!(found == t.find(&anybody).copied() || found.is_some_and(|f| undecided.contains(&f)));
            prop_assert_eq!(found, naive(&routes, &probe), "{:?}", probe);
            // What explains agrees with what routes.
            let told = t.explain(&probe);
            let won: Vec<usize> = told.iter().filter(|c| c.verdict == Verdict::Won).map(|c| c.value).collect();
            prop_assert_eq!(won, found.into_iter().collect::<Vec<_>>());
        }
    }

    /// An entry said to be hidden never wins: without it every answer is the same.
    #[test]
    fn hidden_entries_change_nothing(routes in proptest::collection::vec(any_route(), 1..8), host in any_host(), path in any_path()) {
        let single: Vec<RouteSpec> = routes.into_iter().filter(|r| r.hosts.len() < 2 && r.matches.len() < 2).collect();
        let t = table(single.clone());
        let headers = HeaderMap::new();
        let probe = Probe { host: &host, path: &path, query: None, method: &Method::GET, headers: &headers, claims: None };
        let found = t.find(&probe).copied();
        for (hidden, by) in t.shadowed() {
            prop_assert!(found != Some(hidden) && by < hidden);
        }
    }
}
