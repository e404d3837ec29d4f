//! Picks from 2 to 10,000 endpoints, whose cost must not depend on their number, and what an update of the set takes.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use onehop::snapshot::cluster::Cluster;
use onehop_filters::BUILTIN;
use onehop_filters::contract::entry::{Directory, Keeper};
use onehop_filters::contract::mesh::{Address, Balance, Found, Pick};
use onehop_filters::contract::metrics::Registry;
use onehop_filters::contract::section::{Key, Node, Span, Value};
use onehop_filters::contract::{Build, Moment, Role};

/// Keeps nothing.
struct Nothing;

impl Keeper for Nothing {
    fn find(&self, _: std::any::TypeId, _: &str, _: &str) -> Option<Arc<dyn std::any::Any + Send + Sync>> {
        None
    }
    fn stage(&mut self, _: std::any::TypeId, _: String, _: String, _: Arc<dyn std::any::Any + Send + Sync>) {}
    fn at_publish(&mut self, _: Box<dyn FnOnce() + Send>) {}
    fn background(&mut self, _: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) {}
}

fn policy(name: &str) -> Arc<dyn Balance> {
    let directory = Directory { zone: Some("a".into()), ..Directory::default() };
    let mut build = Build {
        scope: "services.bench".to_owned(),
        span: Span::default(),
        dir: std::path::PathBuf::new(),
        directory: &directory,
        metrics: Arc::new(Registry::default()),
        keeper: &mut Nothing,
    };
    let place = |value| Node { span: Span::default(), value };
    let entry = |name: &str, value| (Key { span: Span::default(), name: name.to_owned() }, place(value));
    let hashes = matches!(name, "ring-hash" | "maglev");
    let section = place(Value::Map(hashes.then(|| entry("hash", Value::Str("ip".to_owned()))).into_iter().collect()));
    let make = BUILTIN.iter().find_map(|e| match e.role {
        Role::Balance(make) if e.name == name => Some(make),
        _ => None,
    });
    make.expect("a policy")(Some(&section), &mut build).expect("a good section")
}

/// Endpoints in two zones or, without a second one, in one.
fn found(endpoints: usize, zones: usize) -> Vec<Found> {
    let address = |n: usize| {
        let n = u32::try_from(n).expect("few") + 0x0A00_0001;
        Address::Tcp((std::net::Ipv4Addr::from(n), 80).into())
    };
    let zone = |n: usize| ["a", "b"][n % zones].into();
    (0..endpoints).map(|n| Found { zone: zone(n), ..Found::at(address(n)) }).collect()
}

fn cluster(name: &str, endpoints: usize, zones: usize) -> Cluster {
    let cluster = Cluster::new("bench".into(), policy(name), &Registry::default());
    cluster.update(&found(endpoints, zones), Moment(1));
    cluster
}

fn picks(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    for name in ["peak-ewma", "least-request", "round-robin", "random", "ring-hash", "maglev", "utilization"] {
        for (kind, endpoints, zones) in [("", 2, 1), ("", 100, 1), ("", 10_000, 1), ("/zones", 10_000, 2)] {
            if zones == 2 && matches!(name, "ring-hash" | "maglev") {
                continue;
            }
            let cluster = cluster(name, endpoints, zones);
            let mut seed = 1u64;
            group.bench_function(BenchmarkId::new(format!("{name}{kind}"), endpoints), |b| {
                b.iter(|| {
                    seed = seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
                    // Another millisecond now and then, as under some load.
                    let now = Moment(1_000_000_000 + (seed >> 44));
                    cluster.pick(None, &Pick { now, seed, hash: Some(black_box(seed)), tried: &[] }, None)
                });
            });
        }
    }
    group.finish();
}

/// One endpoint of 10,000 leaves and another one joins.
fn updates(c: &mut Criterion) {
    let mut group = c.benchmark_group("update");
    group.sample_size(10);
    for name in ["peak-ewma", "round-robin", "ring-hash", "maglev"] {
        let cluster = cluster(name, 10_000, 1);
        let mut shift = 0;
        group.bench_function(BenchmarkId::new(name, 10_000), |b| {
            let next = || {
                shift = (shift + 1) % 2;
                found(10_001, 1).split_off(shift).into_iter().take(10_000).collect::<Vec<_>>()
            };
            b.iter_batched(next, |found| cluster.update(&found, Moment(2)), BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group!(benches, picks, updates);
criterion_main!(benches);
