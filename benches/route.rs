//! The route table at 10, 1,000 and 10,000 routes: a lookup's cost must not depend on their number.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use onehop::config::plan::{Match, PathMatch, Paths};
use onehop::route::{Probe, RouteSpec, Table, path};

const HOST: &str = "api.example.com";

fn table(routes: usize) -> Table<usize> {
    let entry = |n: usize| {
        let path = if n.is_multiple_of(2) {
            PathMatch::Exact(format!("/v1/service-{n}/status"))
        } else {
            PathMatch::Prefix(format!("/v1/service-{n}/items"))
        };
        let rule = Match { path: Some(path), ..Match::default() };
        (RouteSpec { hosts: vec![HOST.to_owned()], matches: vec![rule] }, n)
    };
    Table::build((0..routes).map(entry)).expect("the paths hold no regex")
}

fn lookups(c: &mut Criterion) {
    let headers = HeaderMap::new();
    let mut group = c.benchmark_group("route");
    for routes in [10, 1_000, 10_000] {
        let table = table(routes);
        let (even, odd) = ((routes / 2) & !1, (routes / 2) | 1);
        for (kind, path) in [
            ("exact", format!("/v1/service-{even}/status")),
            ("prefix", format!("/v1/service-{odd}/items/4711/lines")),
            ("miss", format!("/v1/service-{odd}/none")),
        ] {
            let probe =
                Probe { host: HOST, path: &path, query: None, method: &Method::GET, headers: &headers, claims: None };
            assert_eq!(table.find(&probe).is_some(), kind != "miss");
            group.bench_with_input(BenchmarkId::new(kind, routes), &probe, |b, probe| {
                b.iter(|| table.find(black_box(probe)));
            });
        }
    }
    group.finish();
}

fn normalising(c: &mut Criterion) {
    let policy = Paths { reject_escaped_slashes: true, reject_underscores: true };
    for (name, text) in [("normal", "/v1/service-7/items/4711/lines?page=2"), ("odd", "/v1/./service-7//items/%41?x")] {
        let target = PathAndQuery::from_static(text);
        c.bench_function(&format!("path/{name}"), |b| {
            b.iter(|| path::normalise(black_box(&target).clone(), policy));
        });
    }
}

criterion_group!(benches, lookups, normalising);
criterion_main!(benches);
