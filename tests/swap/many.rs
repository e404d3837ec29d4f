//! A thousand swaps.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::common::authority::Authority;
use super::common::backend::{Backend, Mood, grpc_echo};
use super::common::load::{Load, Plan};
use super::common::streams::LongStream;
use super::common::{Onehop, get};
use super::{assert_monotonic, series, until};

const SWAPS: usize = 1000;

/// What stands behind the gateway, and what its certificates are.
struct Stage {
    app: [Backend; 2],
    sick: [Backend; 2],
    busy: Backend,
    grpc: std::net::SocketAddr,
    dir: tempfile::TempDir,
    certificates: [(PathBuf, PathBuf); 2],
    authority: Authority,
}

impl Stage {
    fn new() -> Self {
        let (dir, authority) = (tempfile::tempdir().expect("a folder"), Authority::new());
        let certificates = ["one", "two"].map(|name| authority.issue(dir.path(), name));
        let app = [Mood::Well, Mood::Well].map(Backend::start);
        let sick = [Mood::Well, Mood::Says(500)].map(Backend::start);
        Self { app, sick, busy: Backend::start(Mood::Silent), grpc: grpc_echo(), dir, certificates, authority }
    }

    /// The `n`-th configuration: what every one of them has, and something that changes.
    fn config(&self, n: usize) -> String {
        let (crt, key) = &self.certificates[n / 4 % 2];
        let extra = if n.is_multiple_of(5) { "  extra: { bind: \"127.0.0.1:0\" }\n" } else { "" };
        let policy = ["peak-ewma", "round-robin", "least-request", "maglev"][n / 3 % 4];
        let mut yaml = format!(
            r#"version: 1
admin: {{ bind: "127.0.0.1:0" }}
runtime: {{ workers: 2 }}
telemetry: {{ log: warn }}
listeners:
  web: {{ bind: "127.0.0.1:0", limits: {{ fields: {fields} }} }}
  safe: {{ bind: "127.0.0.1:0", tls: {{ certificates: [{{ cert: "{crt}", key: "{key}" }}] }} }}
{extra}routes:
- name: main
  matches: [{{ path: {{ prefix: /app }} }}]
  transform: {{ response: {{ set: {{ x-config: "{n}" }} }} }}
  to: app
- name: socket
  matches: [{{ path: {{ exact: /ws }} }}]
  upgrades: [websocket]
  to: app
- name: stream
  matches: [{{ path: {{ prefix: /grpc }} }}]
  to: grpc
- name: limited
  matches: [{{ path: {{ exact: /limited }} }}]
  quota: [{{ by: route.name, limit: 5, per: 1h }}]
  respond: {{ body: within }}
- {{ name: sick, matches: [{{ path: {{ exact: /sick }} }}], to: sick }}
- {{ name: busy, matches: [{{ path: {{ exact: /busy }} }}], timeouts: {{ request: 0s }}, to: busy }}
"#,
            fields = 100 + n % 2,
            crt = crt.display(),
            key = key.display(),
        );
        for i in 0..n % 4 {
            let _ = writeln!(yaml, "- {{ name: more-{i}, matches: [{{ path: {{ exact: /more/{i} }} }}], to: more }}");
        }
        let [a, b] = &self.app;
        let [well, ill] = &self.sick;
        let _ = write!(
            yaml,
            r#"services:
  app:
    discover: {{ static: ["{}", "{}"] }}
    loadBalancer: {{ policy: {policy}{} }}
    retry: {{ attempts: 0 }}
  sick:
    discover: {{ static: ["{}", "{}"] }}
    loadBalancer: {{ policy: round-robin }}
    retry: {{ attempts: 0 }}
    outlierDetection: {{ consecutive5xx: 2, baseEjectionTime: 10m, maxEjectionTime: 10m, interval: {}s }}
  busy:
    discover: {{ static: ["{}"] }}
    circuitBreaker: {{ maxRequests: 1, maxPending: 0 }}
  grpc: {{ discover: {{ static: ["{}"] }}, protocol: grpc }}
"#,
            a.address,
            b.address,
            if policy == "maglev" { ", hash: { header: x-none }" } else { "" },
            well.address,
            ill.address,
            10 + n % 3,
            self.busy.address,
            self.grpc,
        );
        if !n.is_multiple_of(4) {
            let _ = writeln!(yaml, "  more: {{ discover: {{ static: [\"{}\"] }} }}", a.address);
        }
        yaml
    }

    /// Wrong in a way of its own, each refused at another stage.
    fn broken(&self, n: usize) -> (String, &'static str) {
        let good = self.config(0);
        match n % 4 {
            0 => (good.replace("to: grpc", "to: [grpc"), "yaml"),
            1 => (good.replace("to: grpc", "to: gprc"), "gprc"),
            2 => (good.replace("  extra: { bind: \"127.0.0.1:0\" }", "  extra: { bind: \"192.0.2.1:1\" }"), "extra"),
            _ => {
                let bad = self.dir.path().join("bad.crt");
                std::fs::write(&bad, "no certificate").expect("the folder can be written");
                let (crt, _) = &self.certificates[0];
                (good.replace(&crt.display().to_string(), &bad.display().to_string()), "bad.crt")
            }
        }
    }
}

/// Resident memory in KiB, at its lowest over a time in which old snapshots are let go of (the process looks once a
/// second).
fn resident(hop: &Onehop) -> usize {
    let look = || {
        std::thread::sleep(Duration::from_millis(100));
        resident_now(hop)
    };
    std::iter::repeat_with(look).take(25).min().expect("a number")
}

fn resident_now(hop: &Onehop) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", hop.pid())).expect("the process lives");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("Linux tells");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn generation(hop: &Onehop) -> f64 {
    series(hop)["onehop_config_generation"]
}

/// 503 by the breaker, 500 never, 429 always.
#[track_caller]
fn assert_nothing_forgotten(hop: &Onehop, ill: &Backend, ill_requests: usize) {
    let web = hop.at("web");
    assert_eq!(get(web, "localhost", "/limited").status(), 429, "the quota was refilled");
    let busy = get(web, "localhost", "/busy");
    assert!(busy.status() == 503 && busy.text().contains("breaker-open"), "the breaker forgot: {}", busy.text());
    assert_eq!(get(web, "localhost", "/sick").status(), 200);
    assert_eq!(ill.requests(), ill_requests, "the ejection was forgotten");
}

#[test]
fn a_thousand_swaps_under_load() {
    let stage = Stage::new();
    let hop = Onehop::start(&stage.config(0));
    let (web, safe) = (hop.at("web"), hop.at("safe"));
    // Used up, ejected, full: what must not be forgotten.
    let spent: Vec<u16> = (0..7).map(|_| get(web, "localhost", "/limited").status()).collect();
    assert_eq!(spent, [200, 200, 200, 200, 200, 429, 429]);
    let ill = &stage.sick[1];
    until("ejection", || {
        get(web, "localhost", "/sick");
        series(&hop).iter().any(|(k, v)| k.starts_with("onehop_outlier_ejected") && k.contains("sick") && *v == 1.0)
    });
    let ill_requests = ill.requests();
    let mut held = std::net::TcpStream::connect(web).expect("a connection");
    held.write_all(b"GET /busy HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("a request");
    until("the breaker's only place is taken", || stage.busy.requests() == 1);

    let every = |pause| Duration::from_millis(pause);
    let tls = Some(stage.authority.client());
    let plans = [
        Plan { clients: 4, pause: every(10), ..Plan::get(web, "/app/h1") },
        Plan { clients: 2, pause: every(10), per_connection: 20, ..Plan::get(web, "/app/short") },
        Plan { clients: 2, pause: every(10), h2: true, ..Plan::get(web, "/app/h2") },
        Plan { clients: 2, pause: every(20), per_connection: 5, tls: tls.clone(), ..Plan::get(safe, "/app/tls") },
        Plan { clients: 1, pause: every(20), h2: true, tls, ..Plan::get(safe, "/app/h2s") },
    ];
    let loads = plans.map(Load::start);
    let socket = LongStream::websocket(web, "/ws");
    let stream = LongStream::grpc(web, "/grpc/echo");
    for load in &loads {
        load.wait_for(5);
    }
    let connections = || stage.app.each_ref().map(Backend::connections).iter().sum::<usize>();
    let (mut before, first, mut rss) = (series(&hop), generation(&hop), 0);
    let connected = connections();

    for n in 1..=SWAPS {
        let (status, body) = hop.reload(&stage.config(n));
        assert_eq!(status, 200, "swap {n}: {body}");
        if n % 50 == 0 {
            let (yaml, word) = stage.broken(n / 50);
            let (status, body) = hop.reload(&yaml);
            assert!(status == 422 && body.contains(word), "swap {n}: {status} {body}");
        }
        if n % 100 == 0 {
            let now = series(&hop);
            assert_monotonic(&before, &now);
            before = now;
            assert_nothing_forgotten(&hop, ill, ill_requests);
            socket.still_echoes();
            stream.still_echoes();
        }
        if n == SWAPS / 5 {
            rss = resident(&hop);
        }
    }
    let grown = resident(&hop).saturating_sub(rss);
    assert!(generation(&hop) >= first + SWAPS as f64);
    assert!(series(&hop)["onehop_config_rejected_total"] >= (SWAPS / 50) as f64);
    assert!(connections() - connected <= 16, "{} new connections to endpoints", connections() - connected);
    socket.still_echoes();
    assert_eq!(socket.finish(), Ok(()));
    assert_eq!(stream.finish(), Ok(()));
    for (load, what) in loads.into_iter().zip(["h1", "short h1", "h2", "tls h1", "tls h2"]) {
        let tally = load.stop();
        println!("{what}: {} right, p50 {:?}, p99 {:?}", tally.right(), tally.quantile(0.5), tally.quantile(0.99));
        tally.assert_clean(what, SWAPS / 10);
    }
    assert!(grown < 12 << 10, "{grown} KiB more after {SWAPS} swaps than after {}", SWAPS / 5);
    println!("memory grew by {grown} KiB, {} new connections to endpoints", connections() - connected);
}
