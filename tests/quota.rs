//! What callers have left, through the binary: restarts, costs of answers, requests in flight, and asking.

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use common::{Client, Endpoint, Onehop, eventually, get, get_with, scripted};

fn config(up: impl std::fmt::Display, state: &str, route: &str) -> String {
    format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         {state}\n\
         routes: [{{ name: all, {route}, to: up }}]\n\
         services: {{ up: {{ discover: {{ static: ['{up}'] }}, retry: {{ attempts: 0 }} }} }}\n"
    )
}

fn statuses(onehop: &Onehop, n: usize) -> Vec<u16> {
    (0..n).map(|_| get(onehop.at("web"), "a.test", "/").status()).collect()
}

#[test]
fn a_restart_and_a_kill_lose_no_calendar_quota() {
    let up = Endpoint::ok();
    let dir = tempfile::tempdir().expect("a folder");
    let state = format!("state: {{ dir: '{}', saveEvery: 100ms }}", dir.path().display());
    let yaml =
        config(up.address, &state, "quota: [{ by: ip, limit: 3, per: month, calendar: { timeZone: Europe/Berlin } }]");
    let mut first = Onehop::start(&yaml);
    assert_eq!(statuses(&first, 2), [200, 200]);
    // Not even a second has passed: what is saved at the end counts.
    first.signal("TERM");
    assert_eq!(first.wait(Duration::from_secs(20)), Some(0));
    let mut second = Onehop::start(&yaml);
    assert_eq!(statuses(&second, 2), [200, 429]);
    let file = dir.path().join("quota.json");
    let saved = std::fs::read(&file).expect("the file");
    assert!(!String::from_utf8_lossy(&saved).contains("127.0.0.1"), "no caller stands in it");
    // What was saved at intervals outlives a process that could not say goodbye.
    eventually("the last count is saved", || std::fs::read(&file).is_ok_and(|now| now != saved));
    second.signal("KILL");
    assert_eq!(second.wait(Duration::from_secs(20)), None);
    let third = Onehop::start(&yaml);
    assert_eq!(statuses(&third, 1), [429]);
    let (status, text) = third.reload(&yaml.replace("limit: 3", "limit: 4"));
    assert_eq!(status, 200, "{text}");
    assert_eq!(statuses(&third, 2), [200, 429], "a reload adds what the new limit adds");
}

#[test]
fn an_answer_costs_what_it_says_and_our_own_503_nothing() {
    let up = Endpoint::start(|_, _| {
        let events = "data: {\"usage\":null}\n\ndata: {\"usage\":{\"total_tokens\":40}}\n\ndata: [DONE]\n\n";
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{events}",
            events.len()
        )
        .into_bytes()
    });
    let quota = "quota: [{ by: ip, limit: 100, per: 1h, name: tokens, \
                 cost: { estimate: 10, response: response.json.usage.total_tokens } }]";
    let onehop = Onehop::start(&config(up.address, "", quota));
    let left = || get(onehop.at("web"), "a.test", "/").header("ratelimit").unwrap_or_default();
    assert!(left().starts_with("\"tokens\";r=90;"), "the estimate");
    assert!(left().starts_with("\"tokens\";r=50;"), "40 for the first, 10 for this");
    assert!(left().starts_with("\"tokens\";r=10;"));
    // 120 used: in debt.
    let refused = get(onehop.at("web"), "a.test", "/");
    assert_eq!(refused.status(), 429);
    assert!(refused.header("retry-after").is_some_and(|s| s.parse::<u64>().is_ok_and(|s| s > 1000)));

    // No endpoint at all.
    let broken = Onehop::start(
        &config("127.0.0.1:1", "", "quota: [{ by: ip, limit: 3, per: 1h }]")
            .replace("static: ['127.0.0.1:1']", "file: nowhere.json"),
    );
    assert_eq!(broken.admin_get("/livez").status(), 200);
    for _ in 0..6 {
        assert_eq!(get(broken.at("web"), "a.test", "/").status(), 503, "never 429: what we cannot serve costs nothing");
    }
    let metrics = broken.admin_get("/metrics").body();
    assert!(metrics.contains("onehop_quota_refunded_total{route=\"all\",policy=\"ip-1h\"} 6"), "{metrics}");
}

#[test]
fn a_place_in_flight_is_free_when_the_answer_ends_or_the_client_leaves() {
    // Answers with a head and a byte, and then nothing until the connection is closed.
    let up = scripted(|mut stream: TcpStream| {
        let mut client = Client::over(stream.try_clone().expect("a second handle"));
        let head = client.until(b"\r\n\r\n");
        let whole = head.windows(5).any(|w| w == b"/fast");
        let body = if whole { "2\r\nok\r\n0\r\n\r\n" } else { "1\r\no\r\n" };
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{body}");
        if !whole {
            client.rest();
        }
    });
    let onehop = Onehop::start(&config(up, "", "concurrency: { by: ip, limit: 2 }"));
    let hold = || {
        let mut client = Client::to(onehop.at("web"));
        client.send(b"GET /slow HTTP/1.1\r\nhost: a.test\r\n\r\n");
        assert_eq!(client.head().status(), 200);
        client
    };
    let fast = || get(onehop.at("web"), "a.test", "/fast").status();
    for _ in 0..5 {
        assert_eq!(fast(), 200, "one after the other");
    }
    let (one, two) = (hold(), hold());
    let refused = get(onehop.at("web"), "a.test", "/fast");
    assert_eq!((refused.status(), refused.header("retry-after").as_deref()), (429, Some("1")));
    drop(one);
    eventually("the client that left holds no place", || fast() == 200);
    let three = hold();
    assert_eq!(fast(), 429);
    drop((two, three));
    eventually("both are free", || {
        let (a, b) = (fast(), fast());
        a == 200 && b == 200
    });
}

#[test]
fn a_guard_stands_ahead_of_credentials_and_usage_is_told_free_of_charge() {
    let up = Endpoint::ok();
    let key = "sha256:c48a01f49fd0f2cc404bc3cbbc80e91457a3d41bb429a695243de4c61794155c";
    let yaml = format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         identities: {{ partners: {{ apiKey: {{}} }} }}\n\
         plans: {{ free: {{ quota: [{{ limit: 5, per: 1h }}, {{ limit: 9, per: day }}] }} }}\n\
         consumers: {{ acme: {{ plan: free, apiKeys: ['{key}', 'a key that is long enough'] }} }}\n\
         routes:\n\
         - {{ name: all, guard: {{ limit: 3, per: 1h }}, auth: {{ require: partners }}, to: up }}\n\
         - {{ name: mine, matches: [{{ path: {{ exact: /quota }} }}], auth: {{ require: partners }}, quotaUsage: {{}}, respond: {{ status: 204 }} }}\n\
         services: {{ up: {{ discover: {{ static: ['{}'] }} }} }}\n",
        up.address
    );
    let onehop = Onehop::start(&yaml);
    let with_key = |path: &str| get_with(onehop.at("web"), "a.test", path, "x-api-key: a key that is long enough\r\n");
    assert_eq!(with_key("/").status(), 200);
    let usage = || serde_json::from_str::<serde_json::Value>(&with_key("/quota").body()).expect("JSON");
    for _ in 0..10 {
        let told = usage();
        assert_eq!((&told["consumer"], &told["plan"]), (&"acme".into(), &"free".into()));
        let limits = told["limits"].as_array().expect("a list");
        let left: Vec<_> =
            limits.iter().map(|l| (l["name"].as_str(), l["limit"].as_u64(), l["remaining"].as_u64())).collect();
        assert_eq!(left, [(Some("free-1h"), Some(5), Some(4)), (Some("free-day"), Some(9), Some(8))], "{told}");
    }
    assert_eq!(get(onehop.at("web"), "a.test", "/quota").status(), 401, "only who is known is told");
    // The guard counts whoever it is, and comes before the 401.
    assert_eq!(get(onehop.at("web"), "a.test", "/").status(), 401);
    assert_eq!(get(onehop.at("web"), "a.test", "/").status(), 401);
    assert_eq!(get(onehop.at("web"), "a.test", "/").status(), 429);
    assert_eq!(with_key("/").status(), 429);
}
