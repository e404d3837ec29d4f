//! Random sequences of configurations over live traffic.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use onehop::config::Source;
use onehop::hop::Hop;
use onehop::observe::exposition::{Format, expose};
use onehop_filters::BUILTIN;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::common::backend::{Backend, Mood};
use super::common::get;
use super::common::load::{Load, Plan};
use super::{assert_monotonic, parse};

/// One configuration: what may differ between two of them.
#[derive(Clone, Debug)]
struct Shape {
    policy: usize,
    extra_routes: usize,
    extra_services: usize,
    extra_listeners: usize,
    /// Which of the two endpoints; never none.
    endpoints: usize,
    /// Of another quota than the one that must not be refilled.
    limit: usize,
    breaker: Option<usize>,
    renamed: bool,
    drain: usize,
    /// Refused, for one of several reasons.
    bad: Option<usize>,
}

fn shape() -> impl Strategy<Value = Shape> {
    let sizes = (0..5usize, 0..5usize, 0..3usize, 0..3usize, 1..4usize);
    let rest = (1..1000usize, proptest::option::of(50..200usize), any::<bool>(), 1..20usize);
    (sizes, rest, proptest::option::weighted(0.25, 0..4usize)).prop_map(
        |(
            (policy, extra_routes, extra_services, extra_listeners, endpoints),
            (limit, breaker, renamed, drain),
            bad,
        )| {
            Shape {
                policy,
                extra_routes,
                extra_services,
                extra_listeners,
                endpoints,
                limit,
                breaker,
                renamed,
                drain,
                bad,
            }
        },
    )
}

impl Shape {
    fn yaml(&self, web: SocketAddr, app: &[Backend; 2]) -> String {
        let policy = ["round-robin", "least-request", "random", "peak-ewma", "maglev"][self.policy];
        let hash = if policy == "maglev" { ", hash: ip" } else { "" };
        let chosen = app.iter().enumerate().filter(|(i, _)| self.endpoints & (1 << i) != 0);
        let chosen: Vec<String> = chosen.map(|(_, b)| format!("\"{}\"", b.address)).collect();
        let listener = if self.renamed { "front" } else { "web" };
        let mut yaml = format!(
            "version: 1\nadmin: {{ bind: none }}\nruntime: {{ workers: 2 }}\nlifecycle: {{ drain: {}s }}\n\
             listeners:\n  {listener}: {{ bind: \"{web}\" }}\n",
            self.drain
        );
        for i in 0..self.extra_listeners {
            let _ = writeln!(yaml, "  extra-{i}: {{ bind: \"127.0.0.1:0\" }}");
        }
        let _ = write!(
            yaml,
            "routes:\n- {{ name: app, matches: [{{ path: {{ prefix: /app }} }}], to: app }}\n\
             - {{ name: limited, matches: [{{ path: {{ exact: /limited }} }}], \
                  quota: [{{ by: route.name, limit: 8, per: 1h }}], respond: {{ body: within }} }}\n\
             - {{ name: other, matches: [{{ path: {{ exact: /other }} }}], \
                  quota: [{{ by: ip, limit: {}, per: 1m }}], respond: {{ body: within }} }}\n",
            self.limit
        );
        for i in 0..self.extra_routes {
            let to = if i < self.extra_services { format!("to: extra-{i}") } else { "respond: {}".to_owned() };
            let _ = writeln!(yaml, "- {{ name: extra-{i}, hosts: [\"h{i}.test\"], {to} }}");
        }
        let breaker = self.breaker.map_or(String::new(), |n| format!(", circuitBreaker: {{ maxRequests: {n} }}"));
        let _ = writeln!(
            yaml,
            "services:\n  app: {{ discover: {{ static: [{}] }}, loadBalancer: {{ policy: {policy}{hash} }}, \
             retry: {{ attempts: 0 }}{breaker} }}",
            chosen.join(", ")
        );
        for i in 0..self.extra_services {
            let _ = writeln!(yaml, "  extra-{i}: {{ discover: {{ static: [\"{}\"] }} }}", app[0].address);
        }
        match self.bad {
            None => yaml,
            Some(0) => yaml + "nonsense: true\n",
            Some(1) => yaml.replace("to: app", "to: ap"),
            Some(2) => yaml.replace("listeners:\n", "listeners:\n  nowhere: { bind: \"192.0.2.1:1\" }\n"),
            Some(_) => yaml.replace("limit: 8", "limit: 0"),
        }
    }
}

fn source(text: String) -> [Source; 1] {
    [Source::Text { name: "generated.yaml".to_owned(), text, dir: std::env::temp_dir() }]
}

fn counters(hop: &Hop) -> BTreeMap<String, f64> {
    parse(&expose(hop.metrics(), Format::Text))
}

/// Whatever the sequence: no error by a reload, no refill of a quota, no counter falls, and a refused configuration is
/// as if it had not been.
fn holds(shapes: &[Shape], app: &[Backend; 2]) {
    let web = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let first = Shape { bad: None, ..shapes[0].clone() };
    let hop = Hop::start(source(first.yaml(web, app)).into(), BUILTIN).expect("starts");
    let pause = Duration::from_millis(3);
    let loads = [
        Plan { clients: 3, pause, ..Plan::get(web, "/app") },
        Plan { clients: 1, pause, h2: true, ..Plan::get(web, "/app/h2") },
        Plan { clients: 1, pause, per_connection: 3, ..Plan::get(web, "/app/short") },
    ]
    .map(Load::start);
    let (mut within, mut generation, mut before) = (0, 1, counters(&hop));
    for (n, shape) in shapes.iter().enumerate() {
        let result = hop.apply(&source(shape.yaml(web, app)));
        match (&result, shape.bad) {
            (Ok(new), None) => {
                assert_eq!(*new, generation + 1, "after {n} configurations");
                generation = *new;
            }
            (Err(_), Some(_)) => {}
            _ => panic!("configuration {n} {shape:?}: {:?}", result.err().map(|r| r.to_string())),
        }
        loads.iter().for_each(|load| load.wait_for(3));
        within += usize::from(get(web, "localhost", "/limited").status() == 200);
        let now = counters(&hop);
        assert_monotonic(&before, &now);
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let running = generation as f64;
        assert!((now["onehop_config_generation"] - running).abs() < 0.5);
        before = now;
    }
    for _ in 0..10 {
        within += usize::from(get(web, "localhost", "/limited").status() == 200);
    }
    assert_eq!(within, 8, "the quota was refilled or lost");
    for (load, what) in loads.into_iter().zip(["h1", "h2", "short"]) {
        load.stop().assert_clean(what, shapes.len());
    }
    hop.stop(Duration::from_secs(2));
}

#[test]
fn any_sequence_of_configurations() {
    let app = [Mood::Well, Mood::Slow(2)].map(Backend::start);
    let config = Config { cases: 6, max_shrink_iters: 16, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]));
    runner
        .run(&proptest::collection::vec(shape(), 4..16), |shapes| {
            holds(&shapes, &app);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}
