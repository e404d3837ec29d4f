//! The chain of filters: none, six and twelve idle ones, and the built-in gateway chain, before a direct response.
//! The difference between two lines divided by six is what one filter costs; `quota` less `none` is what a local quota
//! costs, its fields on the answer included.

#[path = "gate/idle.rs"]
mod idle;

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use http::Request;
use onehop::config::Source;
use onehop::hop::Hop;
use onehop_filters::contract::Body;
use tower::Service;

/// `gw` has what an edge usually has: CORS, an API key with a rule, two quotas, and a transform.
fn config() -> String {
    let (six, twelve) = (idle::keys(6), idle::keys(12));
    format!(
        r#"
version: 1
admin: {{ bind: none }}
runtime: {{ workers: 1 }}
listeners: {{ api: {{ bind: "127.0.0.1:0" }} }}
identities: {{ partners: {{ apiKey: {{ header: x-api-key }} }} }}
consumers: {{ acme: {{ apiKeys: ["sha256:8676d15d94dabdd1283e6c407e2bb08a7b5c13b4e3667d4795c17172e080a3d4"], scopes: [orders] }} }}
routes:
- {{ name: none, matches: [{{ path: {{ exact: /none }} }}], respond: {{ status: 200 }} }}
- {{ name: six, matches: [{{ path: {{ exact: /six }} }}], {six}respond: {{ status: 200 }} }}
- {{ name: twelve, matches: [{{ path: {{ exact: /twelve }} }}], {twelve}respond: {{ status: 200 }} }}
- {{ name: quota, matches: [{{ path: {{ exact: /quota }} }}], quota: [{{ by: ip, limit: 1000000000, per: 1s }}], respond: {{ status: 200 }} }}
- name: gw
  matches: [{{ path: {{ prefix: /gw }} }}]
  cors: {{ allowOrigins: [https://shop.example.com] }}
  auth: {{ require: partners, allow: "'orders' in consumer.scopes" }}
  quota: [{{ by: ip, limit: 1000000000, per: 1s }}, {{ by: consumer, limit: 1000000000, per: 1s }}]
  transform: {{ path: {{ replacePrefix: /orders }}, request: {{ set: {{ x-consumer: "${{consumer.name}}" }} }}, response: {{ set: {{ x-served-by: onehop }} }} }}
  respond: {{ status: 200 }}
"#
    )
}

fn chains(c: &mut Criterion) {
    let dir = std::env::current_dir().expect("a working directory");
    let source = Source::Text { name: "bench.yaml".to_owned(), text: config(), dir };
    let hop = Hop::start(vec![source], idle::entries()).unwrap_or_else(|e| panic!("the configuration is good: {e}"));
    let mut service = hop.service("api").expect("the listener is there");
    let mut group = c.benchmark_group("chain");
    for path in ["/none", "/six", "/twelve", "/quota", "/gw"] {
        let mut ask = || {
            let rq = Request::get(path).header("host", "localhost").header("x-api-key", "acme-demo-key");
            let rq = rq.body(Body::Empty).expect("a good request");
            service.call(rq).now_or_never().expect("nothing waits").expect("never fails")
        };
        assert_eq!(ask().status(), 200, "{path}");
        group.bench_function(&path[1..], |b| b.iter(&mut ask));
    }
    group.finish();
}

criterion_group!(benches, chains);
criterion_main!(benches);
