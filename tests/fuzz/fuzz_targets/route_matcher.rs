//! Any table and any request: no panic, and what explains agrees with what routes.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use onehop::config::plan::{Match, PathMatch, ValueMatch};
use onehop::route::{Probe, RouteSpec, Table, Verdict, path::normalise_str};

type Rule = (String, u8, String, Option<String>);

fn spec((host, kind, path, header): &Rule) -> RouteSpec {
    let path = match kind % 4 {
        0 => Some(PathMatch::Exact(format!("/{path}"))),
        1 => Some(PathMatch::Prefix(format!("/{path}"))),
        2 => Some(PathMatch::Regex(path.clone())),
        _ => None,
    };
    let headers = header.iter().map(|v| (HeaderName::from_static("x"), ValueMatch::Exact(v.clone()))).collect();
    let methods = if kind & 4 == 0 { Vec::new() } else { vec![Method::GET] };
    RouteSpec { hosts: vec![host.clone()], matches: vec![Match { path, methods, headers, query: Vec::new(), ..Match::default() }] }
}

fuzz_target!(|input: (Vec<Rule>, String, String, Vec<u8>)| {
    let (rules, host, path, field) = input;
    let Ok(table) = Table::build(rules.iter().map(spec).zip(0..)) else { return };
    let Ok(path) = normalise_str(&path, false) else { return };
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(&field) {
        headers.insert("x", value);
    }
    let (path, query) = path.split_once('?').map_or((&*path, None), |(path, query)| (path, Some(query)));
    let probe = Probe { host: &host, path, query, method: &Method::GET, headers: &headers, claims: None };
    let found: Option<i32> = table.find(&probe).copied();
    let won = table.explain(&probe).into_iter().find(|c| c.verdict == Verdict::Won).map(|c| c.value);
    assert_eq!(found, won);
    let _ = table.shadowed();
});
