//! `onehop demo`: sample services, an edge chain and a sidecar chain in one process, and a tour through them.

mod client;
mod token;
mod upstreams;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::Source;
use crate::hop::Hop;
use client::Answer;
use upstreams::Upstreams;

/// Runs the demo. `once`: exit after the tour.
#[must_use]
pub fn run(once: bool) -> ExitCode {
    match start(once) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("demo: {e}");
            ExitCode::FAILURE
        }
    }
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn start(once: bool) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let samples = runtime.block_on(upstreams::start())?;
    let issuer = token::Issuer::new()?;
    let source = Source::Text {
        name: "demo.yaml".to_owned(),
        text: config(&samples, &issuer.jwks()),
        dir: std::env::temp_dir(),
    };
    let hop = Hop::start(vec![source], onehop_filters::BUILTIN)?;
    let addresses = hop.addresses();
    let of = |name: &str| addresses.get(name).copied().ok_or_else(|| format!("listener `{name}` did not start"));
    let place =
        Place { edge: of("edge")?, mesh: of("mesh")?, admin: hop.admin().ok_or("the admin port did not open")? };
    intro(&samples, &place);
    let ok = runtime.block_on(tour(&place, &issuer))?;
    outro(&place, &issuer, once);
    if !ok {
        return Err("a step of the tour did not go as it should".into());
    }
    if once {
        hop.stop(Duration::from_secs(1));
        return Ok(());
    }
    hop.serve_until_signal();
    Ok(())
}

struct Place {
    edge: SocketAddr,
    mesh: SocketAddr,
    admin: SocketAddr,
}

/// The demo's configuration: what README's examples look like, on free ports.
fn config(samples: &Upstreams, jwks: &str) -> String {
    let Upstreams { orders, flaky, slow, broken } = samples;
    format!(
        r#"version: 1
admin: {{ bind: "127.0.0.1:0" }}
runtime: {{ workers: 1 }}
listeners:
  edge: {{ bind: "127.0.0.1:0", trustedProxies: [127.0.0.0/8] }}
  mesh: {{ bind: "127.0.0.1:0", exposure: mesh, capture: outbound, trustedProxies: [127.0.0.0/8] }}
identities:
  shop:
    jwt:
      issuer: https://id.demo.example/
      audiences: [shop-api]
      algorithms: [ES256]
      jwks: {{ inline: '{jwks}' }}
routes:
- name: orders
  listeners: [edge]
  matches: [{{ path: {{ prefix: /v1/orders }} }}]
  auth: {{ require: shop, allow: "'orders' in user.scopes" }}
  quota: [{{ by: user.sub, limit: 5, per: 1m }}]
  transform:
    path: {{ replacePrefix: /orders }}
    request: {{ set: {{ x-user: "${{user.sub}}" }} }}
    response: {{ set: {{ x-served-by: onehop }} }}
  to: orders
- name: reports
  listeners: [edge]
  matches: [{{ path: {{ prefix: /reports }} }}]
  timeouts: {{ request: 2s }}
  to: reports
- name: to-stock
  listeners: [mesh]
  hosts: [stock.shop.svc]
  to: stock
- name: to-fleet
  listeners: [mesh]
  hosts: [fleet.shop.svc]
  to: fleet
services:
  orders: {{ discover: {{ static: ["{orders}"] }} }}
  reports: {{ discover: {{ static: ["{slow}"] }}, loadBalancer: {{ policy: least-request }} }}
  stock:
    discover: {{ static: ["{flaky}"] }}
    retry: {{ attempts: 2, retryOn: ["503"], backoff: 5ms }}
    outlierDetection: {{ enabled: false }}
  fleet:
    discover: {{ static: ["{orders}", "{slow}", "{broken}"] }}
    loadBalancer: {{ policy: round-robin }}
    retry: {{ attempts: 1, retryOn: [5xx], backoff: 5ms }}
    outlierDetection: {{ consecutive5xx: 3, baseEjectionTime: 30s }}
"#
    )
}

fn intro(samples: &Upstreams, place: &Place) {
    println!("onehop demo: one process, every policy once, in an order you can read\n");
    println!(
        "  sample services   orders {}   stock (flaky) {}   reports (slow) {}   broken {}",
        samples.orders, samples.flaky, samples.slow, samples.broken
    );
    println!("  edge chain        http://{}   JWT > quota > transform > pick > send", place.edge);
    println!("  sidecar chain     http://{}   pick > send > judge > retry", place.mesh);
    println!("  admin             http://{}", place.admin);
}

/// One stop of the tour.
struct Stop<'a> {
    title: &'a str,
    to: SocketAddr,
    host: &'a str,
    path: &'a str,
    token: Option<&'a str>,
    times: usize,
    want: u16,
}

async fn tour(place: &Place, issuer: &token::Issuer) -> Outcome<bool> {
    let good = issuer.token("alice", "orders", 600)?;
    let late = issuer.token("alice", "orders", -600)?;
    let stops = [
        Stop {
            title: "a good token",
            to: place.edge,
            host: "shop.example",
            path: "/v1/orders/7",
            token: Some(&good),
            times: 1,
            want: 200,
        },
        Stop {
            title: "an expired token",
            to: place.edge,
            host: "shop.example",
            path: "/v1/orders/7",
            token: Some(&late),
            times: 1,
            want: 401,
        },
        Stop {
            title: "over quota: the sixth call within a minute",
            to: place.edge,
            host: "shop.example",
            path: "/v1/orders/7",
            token: Some(&good),
            times: 5,
            want: 429,
        },
        Stop {
            title: "a slow service",
            to: place.edge,
            host: "shop.example",
            path: "/reports/today",
            token: None,
            times: 1,
            want: 200,
        },
        Stop {
            title: "sidecar: the endpoint says 503, the retry hides it",
            to: place.mesh,
            host: "stock.shop.svc",
            path: "/items",
            token: None,
            times: 1,
            want: 200,
        },
        Stop {
            title: "sidecar: one of three endpoints is broken and gets ejected",
            to: place.mesh,
            host: "fleet.shop.svc",
            path: "/x",
            token: None,
            times: 12,
            want: 200,
        },
    ];
    let mut ok = true;
    for (n, stop) in stops.iter().enumerate() {
        ok &= visit(n + 1, stop).await?;
    }
    let endpoints = client::get(place.admin, "127.0.0.1", "/endpoints", None).await?;
    println!("\n   /endpoints now says of `fleet`:");
    for line in client::endpoints(&endpoints.body, "fleet") {
        println!("     {line}");
    }
    Ok(ok)
}

async fn visit(n: usize, stop: &Stop<'_>) -> Outcome<bool> {
    let mut last = None;
    for _ in 0..stop.times {
        last = Some(client::get(stop.to, stop.host, stop.path, stop.token).await?);
    }
    let Answer { status, body, trail } = last.ok_or("a stop has at least one request")?;
    let ok = status == stop.want;
    println!("\n{n}. {}  ->  {status}{}", stop.title, if ok { "" } else { "  (unexpected)" });
    println!("   GET http://{}{}", stop.host, stop.path);
    for line in &trail {
        println!("     {line}");
    }
    println!("   {}", body.trim_end());
    Ok(ok)
}

fn outro(place: &Place, issuer: &token::Issuer, once: bool) {
    println!("\ntry it yourself:");
    if let Ok(token) = issuer.token("bob", "orders", 3600) {
        println!("  curl -i http://{}/v1/orders/7 -H 'authorization: Bearer {token}'", place.edge);
    }
    println!("  curl -i http://{}/v1/orders/7", place.edge);
    println!("  curl -i http://{}/items -H 'host: stock.shop.svc' -H 'x-onehop-debug: 1'", place.mesh);
    println!("  curl -s http://{}/endpoints   # also /metrics /config /healthz", place.admin);
    if !once {
        println!("\nserving until interrupted (ctrl-c)");
    }
}
