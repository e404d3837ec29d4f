//! What is written down and counted: once per request, whatever happened on the way, and no secret in it.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use serde_json::Value;

use crate::common::{Client, Endpoint, Onehop, eventually, get, get_with, simple};

fn lines(hop: &Onehop) -> Vec<Value> {
    hop.log().lines().filter(|l| l.starts_with("{\"ts\"")).map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn line_of(hop: &Onehop, path: &str) -> Value {
    eventually(path, || lines(hop).iter().any(|l| l["path"] == path));
    lines(hop).into_iter().find(|l| l["path"] == path).unwrap()
}

/// Sum over the series of a metric whose line contains all of these.
fn metric(hop: &Onehop, name: &str, labels: &[&str]) -> f64 {
    let text = hop.admin_get("/metrics").body();
    let series = |l: &&str| {
        l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| l.contains(label))
    };
    text.lines().filter(series).filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn retries_are_seen_in_the_log() {
    let turn = AtomicUsize::new(0);
    let up = Endpoint::start(move |_, _| match turn.fetch_add(1, SeqCst) % 3 {
        0 | 1 => b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_vec(),
    });
    let hop =
        Onehop::start(&simple(&up).replace("] } }\n", "] }, retry: { attempts: 2, retryOn: [503], backoff: 1ms } }\n"));
    assert_eq!(get(hop.at("edge"), "a", "/again").body(), "hi");
    assert_eq!(up.seen(), 3);
    assert!(up.last().contains("x-onehop-attempt: 3\r\n"), "{}", up.last());
    let line = line_of(&hop, "/again");
    assert_eq!((&line["status"], &line["attempts"]), (&200.into(), &3.into()), "{line}");
    assert_eq!(line["retries"].as_array().unwrap().len(), 2, "{line}");
    assert_eq!(line["service"], "up");
    assert!(line.get("reason").is_none(), "{line}");
}

#[test]
fn every_end_has_its_line() {
    let up = Endpoint::start(|head, _| {
        if head.starts_with("GET /hangs") {
            std::thread::sleep(std::time::Duration::from_millis(1500));
        }
        if head.starts_with("GET /long") {
            return [&b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n"[..], &vec![b'a'; 50_000_000]].concat();
        }
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_vec()
    });
    let hop = Onehop::start(&simple(&up));
    get(hop.at("edge"), "a.example", "/plain?x=1");
    let line = line_of(&hop, "/plain?x=1");
    for (key, value) in [
        ("method", Value::from("GET")),
        ("host", "a.example".into()),
        ("protocol", "HTTP/1.1".into()),
        ("status", 200.into()),
        ("route", "all".into()),
        ("listener", "edge".into()),
        ("client_ip", "127.0.0.1".into()),
        ("service", "up".into()),
        ("endpoint", up.address.to_string().into()),
        ("attempts", 1.into()),
        ("bytes_out", 2.into()),
    ] {
        assert_eq!(line[key], value, "{key} in {line}");
    }
    // Gone before the answer, and gone in the middle of it.
    for path in ["/hangs", "/long"] {
        let mut client = Client::to(hop.at("edge"));
        let seen = up.seen();
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes());
        eventually("the endpoint has it", || up.seen() > seen);
        if path == "/long" {
            assert_eq!(client.head().status(), 200);
        }
        drop(client);
        let line = line_of(&hop, path);
        assert_eq!(line["status"], if path == "/hangs" { 0 } else { 200 }, "{line}");
        assert_eq!((&line["reason"], &line["aborted"]), (&"client-gone".into(), &true.into()), "{line}");
    }
    // Refused by the head, and by the gate before there is one.
    get(hop.at("edge"), "a", "/%00");
    let line = line_of(&hop, "/%00");
    assert_eq!((&line["reason"], &line["status"]), (&"bad-path".into(), &400.into()), "{line}");
    TcpStream::connect(hop.at("edge")).unwrap().write_all(b"nonsense\r\n\r\n").unwrap();
    eventually("the gate's line", || lines(&hop).iter().any(|l| l["reason"] == "bad-request"));
    assert!(metric(&hop, "onehop_requests_rejected_total", &["bad-path"]) >= 1.0);
}

#[test]
fn retries_cost_one_charge_and_one_check() {
    let up = Endpoint::start(|_, _| b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec());
    let key = jsonwebtoken::EncodingKey::from_ec_pem(include_bytes!("../data/example-issuer.key")).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let claims =
        serde_json::json!({ "iss": "https://id.example.com/", "aud": "shop-api", "sub": "ann", "exp": now + 60 });
    let header = jsonwebtoken::Header {
        kid: Some("example".to_owned()),
        ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256)
    };
    let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
    let jwks = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/jwks.json");
    let config = simple(&up)
        .replace("] } }\n", "] }, retry: { attempts: 3, retryOn: [503], backoff: 1ms, budget: { percent: 100%, minPerSecond: 1000 } }, outlierDetection: { consecutive5xx: 1000 } }\n")
        .replace("to: up }", "to: up, auth: { require: corp }, quota: [{ by: user.sub, limit: 1000, per: 1h }] }");
    let config = format!(
        "{config}identities: {{ corp: {{ jwt: {{ issuer: \"https://id.example.com/\", audiences: [shop-api], algorithms: [ES256], jwks: {{ file: {jwks} }} }} }} }}\n"
    );
    let hop = Onehop::start(&config);
    const N: usize = 12;
    let mut client = Client::to(hop.at("edge"));
    for _ in 0..N {
        client.send(format!("GET /counted HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n").as_bytes());
        assert_eq!(client.answer().status(), 503);
    }
    assert_eq!(up.seen(), 4 * N, "each request is tried four times");
    let n = f64::from(u32::try_from(N).unwrap());
    assert_eq!(metric(&hop, "onehop_quota_allowed_total", &[]), n);
    assert_eq!(metric(&hop, "onehop_auth_requests_total", &["result=\"allowed\""]), n);
    assert_eq!(metric(&hop, "onehop_jwt_tokens_total", &[]), n);
    assert_eq!(metric(&hop, "onehop_upstream_retries_total", &[]), 3.0 * n);
    assert_eq!(metric(&hop, "http_server_request_duration_seconds_count", &["route=\"all\""]), n);
    assert!(!up.last().contains("Bearer"), "the token ends here: {}", up.last());
}

#[test]
fn no_credential_is_written_down() {
    let up = Endpoint::ok();
    let config = simple(&up).replace(
        "to: up }",
        "to: up, auth: { require: keys } }\n- { name: open, matches: [{ path: { prefix: /open } }], to: up }",
    );
    let config = config.replace("/dev/stderr }", "/dev/stderr }, log: debug");
    let config = format!(
        "{config}identities: {{ keys: {{ apiKey: {{ header: x-api-key }} }} }}\nconsumers: {{ me: {{ apiKeys: [hunter-two-hunter-two] }} }}\n"
    );
    let hop = Onehop::start(&config);
    let secrets =
        "authorization: Bearer sesame-open\r\ncookie: sid=cookie-monster\r\nproxy-authorization: Basic c2VjcmV0\r\n";
    for (path, key) in
        [("/", "hunter-two-hunter-two"), ("/", "hunter-three"), ("/open", "hunter-four"), ("/%00", "hunter-five")]
    {
        get_with(
            hop.at("edge"),
            "a",
            &format!("{path}?access_token=query-token&api_key=query-key"),
            &format!("{secrets}x-api-key: {key}\r\n"),
        );
    }
    eventually("four lines", || lines(&hop).len() >= 4);
    let all = [
        hop.log(),
        hop.admin_get("/config").text(),
        hop.admin_get("/metrics").text(),
        hop.admin_get("/endpoints").text(),
    ]
    .concat();
    for secret in ["hunter-", "sesame", "cookie-monster", "c2VjcmV0", "query-token", "query-key"] {
        assert!(!all.contains(secret), "{secret} in {}", all.lines().find(|l| l.contains(secret)).unwrap());
    }
}

#[test]
fn the_path_that_was_asked_for_is_logged_without_the_key_that_was_taken() {
    let up = Endpoint::ok();
    let config = simple(&up).replace(
        "to: up }",
        "auth: { require: keys }, transform: { path: { replacePrefix: /inside } }, \
         matches: [{ path: { prefix: /shop } }], to: up }",
    );
    // A name that no rule for secrets knows.
    let config = format!(
        "{config}identities: {{ keys: {{ apiKey: {{ query: badge }} }} }}\nconsumers: {{ me: {{ apiKeys: [hunter-two-hunter-two] }} }}\n"
    );
    let hop = Onehop::start(&config);
    assert_eq!(get(hop.at("edge"), "a", "/shop/x?page=2&badge=hunter-two-hunter-two").status(), 200);
    assert!(up.last().starts_with("GET /inside/x?page=2 HTTP/1.1\r\n"), "{}", up.last());
    let line = line_of(&hop, "/shop/x?page=2");
    assert_eq!((&line["status"], &line["consumer"]), (&200.into(), &"me".into()), "{line}");
    assert_eq!(get(hop.at("edge"), "a", "/shop/y?badge=hunter-three").status(), 401);
    assert_eq!(line_of(&hop, "/shop/y")["reason"], "unauthenticated");
    assert!(!hop.log().contains("hunter"), "{}", hop.log());
}

#[test]
fn decisions_are_shown_to_trusted_debuggers_only() {
    let up = Endpoint::ok();
    let hop = Onehop::start(&simple(&up));
    let answer = get_with(hop.at("edge"), "a", "/", "x-onehop-debug: 1\r\n");
    assert_eq!(answer.header("server-timing"), None);
    let hop = Onehop::start(
        &simple(&up)
            .replace("bind: \"127.0.0.1:0\" }\nroutes", "bind: \"127.0.0.1:0\", trustedProxies: [127.0.0.1] }\nroutes"),
    );
    assert_eq!(get(hop.at("edge"), "a", "/").header("server-timing"), None);
    let answer = get_with(hop.at("edge"), "a", "/", "x-onehop-debug: 1\r\n");
    let shown = answer.header("server-timing").unwrap();
    assert!(shown.contains("loadBalancer") && shown.contains("attempt") && shown.contains("total;dur="), "{shown}");
    assert!(!up.last().contains("x-onehop-debug"), "{}", up.last());
}
