//! Quotas that several processes share through a real Redis: alone, behind TLS and a password, as a cluster, and while it
//! is stopped, killed and started again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use super::common::{Onehop, get_with};
use super::kit::{Authority, Server, eventually, free_port, reachable, succeed, tool};

const LIMIT: usize = 300;
const LEASE: usize = 10;

struct Redis {
    server: Option<Server>,
    port: u16,
    dir: tempfile::TempDir,
    options: Vec<String>,
}

impl Redis {
    fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        let mut redis = Self { server: None, port: free_port(), dir, options };
        redis.again();
        redis
    }

    /// Starts it, with nothing in it.
    fn again(&mut self) {
        let port = self.port.to_string();
        let listen = if self.options.iter().any(|o| o == "--tls-cert-file") { "--tls-port" } else { "--port" };
        let mut command = tool("redis-server");
        if listen == "--tls-port" {
            command.args(["--port", "0"]);
        }
        command.args([listen, &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
        self.server = Some(Server::start(command.arg(self.dir.path()).args(&self.options)));
        reachable(SocketAddr::from(([127, 0, 0, 1], self.port)));
    }

    fn signal(&self, name: &str) {
        self.server.as_ref().expect("it runs").signal(name);
    }
}

fn config(redis: &str, quota: &str) -> String {
    format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         state: {{ redis: {redis}, timeout: 50ms, nodes: 3 }}\n\
         routes: [{{ name: all, quota: [{quota}], respond: {{ status: 200 }} }}]\n"
    )
}

fn quota() -> String {
    format!("{{ by: route.name, limit: {LIMIT}, per: month, scope: shared, lease: {LEASE}, name: s }}")
}

/// Three processes that share.
fn three(config: &str) -> Vec<Onehop> {
    let all: Vec<Onehop> = (0..3).map(|_| Onehop::start(config)).collect();
    all.iter().for_each(connected);
    all
}

fn connected(onehop: &Onehop) {
    eventually("Redis is connected", || onehop.admin_get("/metrics").body().contains("onehop_quota_redis_up 1"));
}

/// Sends that many requests to each at once; how many passed. Every answer is 200 or 429.
fn hammer(all: &[Onehop], each: usize, field: &str) -> usize {
    let passed = AtomicUsize::new(0);
    thread::scope(|scope| {
        for onehop in all {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..each / 2 {
                        match get_with(onehop.at("web"), "a.example", "/", field).status() {
                            200 => drop(passed.fetch_add(1, SeqCst)),
                            429 => {}
                            other => panic!("answered {other}:\n{}", onehop.log()),
                        }
                    }
                });
            }
        }
    });
    passed.into_inner()
}

/// What `check --effective` says may go over the limit: with Redis, and how much more without.
fn printed(config: &str) -> (usize, usize) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("onehop.yaml");
    std::fs::write(&file, config).expect("written");
    let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_onehop"));
    let out = succeed(check.args(["check", "--effective", "-c"]).arg(&file));
    let line = out.lines().find(|line| line.starts_with("# quota `s`")).unwrap_or_else(|| panic!("{out}"));
    let after = |words: &str| {
        let rest = line.split(words).nth(1).unwrap_or_else(|| panic!("{line}"));
        rest.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    };
    (after(" at most "), after("while Redis is away at most "))
}

#[test]
fn three_processes_admit_no_more_than_the_limit_and_the_printed_bound() {
    let redis = Redis::start(&[]);
    let config = config(&format!("'redis://127.0.0.1:{}'", redis.port), &quota());
    let (bound, _) = printed(&config);
    assert_eq!(bound, 3 * LEASE);
    let all = three(&config);
    let passed = hammer(&all, 200, "");
    assert!(passed <= LIMIT + bound, "{passed} of {LIMIT} and {bound}");
    assert!(passed >= LIMIT - 3 * LEASE, "only {passed} of {LIMIT}: leases are stuck");
    let metrics = all[0].admin_get("/metrics").body();
    for wanted in [
        "onehop_quota_over_admission{route=\"all\",policy=\"s\",while=\"connected\"} 30",
        "onehop_quota_redis_nodes 3",
        "onehop_quota_leases_total",
    ] {
        assert!(metrics.contains(wanted), "{wanted}\n{metrics}");
    }
    // Leases save questions.
    let asked: u64 = all
        .iter()
        .map(|o| o.admin_get("/metrics").body())
        .filter_map(|m| m.lines().find_map(|l| l.strip_prefix("onehop_quota_leases_total ")?.parse::<u64>().ok()))
        .sum();
    assert!(asked > 0 && asked < 600, "{asked} questions for 600 requests");
}

#[test]
fn a_redis_that_stops_dies_and_comes_back_costs_no_more_than_the_bound() {
    let mut redis = Redis::start(&[]);
    let config = config(&format!("'redis://127.0.0.1:{}'", redis.port), &quota());
    let (bound, away) = printed(&config);
    assert_eq!(away, 200);
    let all = three(&config);
    let mut passed = hammer(&all, 20, "");
    assert_eq!(passed, 60);
    redis.signal("STOP");
    passed += hammer(&all, 20, "");
    assert!(passed >= 100, "its share is admitted although Redis hangs: {passed}");
    redis.signal("CONT");
    all.iter().for_each(connected);
    passed += hammer(&all, 20, "");
    redis.signal("KILL");
    redis.server = None;
    passed += hammer(&all, 20, "");
    // A new one that remembers nothing.
    redis.again();
    all.iter().for_each(connected);
    passed += hammer(&all, 200, "");
    assert!(passed <= LIMIT + bound + away, "{passed} of {LIMIT}, {bound} and {away}");
    // Nothing was forgotten with it: far from twice the limit.
    let more = hammer(&all, 20, "");
    assert!(passed + more <= LIMIT + bound + away, "{passed} and {more}");
}

#[test]
fn without_redis_at_the_start_a_process_serves_and_finds_it_later() {
    let mut redis = Redis::start(&[]);
    redis.server = None;
    let config = config(&format!("'redis://127.0.0.1:{}'", redis.port), &quota());
    let onehop = Onehop::start(&config);
    assert_eq!(onehop.admin_get("/readyz").status(), 200);
    let all = [onehop];
    assert_eq!(hammer(&all, 2 * LIMIT, ""), LIMIT / 3, "its share, neither nothing nor everything");
    redis.again();
    connected(&all[0]);
    let more = hammer(&all, 2 * LIMIT, "");
    assert!(LIMIT / 3 + more <= LIMIT + 3 * LEASE, "what was admitted alone is told: {more}");
    assert!(more >= LIMIT / 2, "{more}");
}

#[test]
fn tls_and_a_password() {
    let authority = Authority::new();
    let (cert, key) = authority.issue(&["127.0.0.1", "localhost"]);
    let ca = authority.ca();
    let options: Vec<String> = [
        ("--tls-cert-file", cert),
        ("--tls-key-file", key),
        ("--tls-ca-cert-file", ca.clone()),
        ("--tls-auth-clients", "no".to_owned()),
        ("--requirepass", "open sesame".to_owned()),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value])
    .collect();
    let redis = Redis::start(&options.iter().map(String::as_str).collect::<Vec<_>>());
    let section = |password: &str| {
        config(&format!("{{ url: 'rediss://localhost:{}', ca: '{ca}', password: '{password}' }}", redis.port), &quota())
    };
    let all = three(&section("open sesame"));
    let passed = hammer(&all, 200, "");
    assert!((LIMIT - 3 * LEASE..=LIMIT + 3 * LEASE).contains(&passed), "{passed}");
    for page in ["/config", "/metrics"] {
        assert!(!all[0].admin_get(page).body().contains("sesame"), "{page} shows the password");
    }
    assert!(!all[0].log().contains("sesame"), "the log shows the password");
    let wrong = Onehop::start(&section("close sesame"));
    eventually("the refusal is told", || wrong.log().contains("Redis cannot be reached"));
    assert!(!wrong.log().contains("sesame"), "{}", wrong.log());
    assert_eq!(get_with(wrong.at("web"), "a.example", "/", "").status(), 200, "its share");
}

#[test]
fn a_cluster_of_three_keeps_each_caller_somewhere() {
    let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
    let nodes: Vec<Redis> = (0..3).map(|_| Redis::start(&options)).collect();
    let addresses: Vec<String> = nodes.iter().map(|n| format!("127.0.0.1:{}", n.port)).collect();
    succeed(tool("redis-cli").args(["--cluster", "create"]).args(&addresses).arg("--cluster-yes"));
    eventually("the cluster is whole", || {
        nodes.iter().all(|n| {
            let port = n.port.to_string();
            succeed(tool("redis-cli").args(["-p", &port, "cluster", "info"])).contains("cluster_state:ok")
        })
    });
    let quota = "{ by: 'header:x-k', limit: 20, per: month, scope: shared, lease: 2, name: s }";
    let all = three(&config(&format!("'redis+cluster://{}'", addresses[0]), quota));
    for caller in 0..8 {
        let passed = hammer(&all, 20, &format!("x-k: {caller}\r\n"));
        assert!((14..=26).contains(&passed), "caller {caller}: {passed} of 20");
    }
    // All three hold some of them.
    for node in &nodes {
        let port = node.port.to_string();
        let keys = succeed(tool("redis-cli").args(["-p", &port, "keys", "onehop:quota:*"]));
        assert!(keys.contains("onehop:quota:"), "{port}: {keys}");
    }
}
