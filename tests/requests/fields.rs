//! Fields that callers make up, fields of one hop, and bytes that try to become fields.

use crate::Bench;
use crate::common::{Client, Endpoint, Onehop, eventually, exchange, get, get_with};

/// Values of a field in a head, in order.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let named = |l: &'a str| l.split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim());
    head.lines().skip(1).filter_map(named).collect()
}

#[test]
fn strangers_forward_for_nobody() {
    let bench = Bench::start();
    let spoofed = "x-forwarded-for: 1.2.3.4\r\nx-forwarded-for: 5.6.7.8\r\nx-forwarded-proto: https\r\n\
        x-forwarded-host: bank.example\r\nx-forwarded-port: 443\r\nx-forwarded-prefix: /admin\r\n\
        x-forwarded-client-cert: By=me\r\nx-real-ip: 1.2.3.4\r\nforwarded: for=1.2.3.4\r\n\
        x-onehop-attempt: 9\r\nx-onehop-user: root\r\nx-onehop-timeout-ms: 1\r\nx-onehop-debug: 1\r\n";
    let answer = get_with(bench.hop.at("edge"), "a.example", "/", spoofed);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let seen = bench.up.last();
    assert_eq!(values(&seen, "x-forwarded-for"), ["127.0.0.1"], "{seen}");
    assert_eq!(values(&seen, "x-forwarded-proto"), ["http"]);
    assert_eq!(values(&seen, "x-forwarded-host"), ["a.example"]);
    for gone in [
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-client-cert",
        "x-real-ip",
        "forwarded",
        "x-onehop-attempt",
        "x-onehop-user",
        "x-onehop-debug",
    ] {
        assert!(values(&seen, gone).is_empty(), "{gone} in\n{seen}");
    }
    // Ours, from the route's own limit: not one millisecond.
    let left: u64 = values(&seen, "x-onehop-timeout-ms")[0].parse().unwrap();
    assert!((5_000..=15_000).contains(&left), "{left}");
    assert_eq!(answer.header("server-timing"), None);
}

/// A field that some identity makes of a claim never comes from a caller, also where nobody is asked who he is.
#[test]
fn claims_are_not_made_up() {
    let up = Endpoint::ok();
    let jwks = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/jwks.json");
    let config = format!(
        "{}identities: {{ corp: {{ jwt: {{ issuer: \"https://id.example.com/\", audiences: [a], algorithms: [ES256], \
         jwks: {{ file: {jwks} }}, claimsToHeaders: {{ sub: x-user }} }} }} }}\n",
        crate::common::simple(&up)
    );
    let hop = Onehop::start(&config);
    get_with(hop.at("edge"), "a.example", "/", "x-user: root\r\nX-User: admin\r\nx-users: kept\r\n");
    let seen = up.last();
    assert!(values(&seen, "x-user").is_empty(), "{seen}");
    assert_eq!(values(&seen, "x-users"), ["kept"]);
}

#[test]
fn trusted_proxies_are_believed() {
    let bench = Bench::start();
    let said = "x-forwarded-for: 1.2.3.4, 5.6.7.8\r\nx-forwarded-proto: https\r\nx-forwarded-host: shop.example\r\nx-onehop-debug: 1\r\n";
    let answer = get_with(bench.hop.at("trusting"), "a.example", "/", said);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let seen = bench.up.last();
    assert_eq!(values(&seen, "x-forwarded-for"), ["1.2.3.4, 5.6.7.8, 127.0.0.1"]);
    assert_eq!(values(&seen, "x-forwarded-proto"), ["https"]);
    assert_eq!(values(&seen, "x-forwarded-host"), ["shop.example"]);
    assert!(values(&seen, "x-onehop-debug").is_empty(), "{seen}");
    assert!(answer.header("server-timing").unwrap().contains("total;dur="));
    eventually("the client's address in the log", || bench.hop.log().contains("\"client_ip\":\"5.6.7.8\""));
}

#[test]
fn fields_of_one_hop_stay_there() {
    let up = Endpoint::start(|_, _| {
        b"HTTP/1.1 200 OK\r\nconnection: keep-alive, x-inner\r\nkeep-alive: timeout=5\r\nx-inner: 1\r\nproxy-connection: x\r\n\
          upgrade: h2c\r\nproxy-authenticate: Basic\r\nx-outer: 1\r\ncontent-length: 2\r\n\r\nhi"
            .to_vec()
    });
    let hop = Onehop::start(&crate::common::simple(&up));
    let said = "connection: close, x-mine, host, x-forwarded-for, content-length\r\nx-mine: 1\r\nkeep-alive: 1\r\n\
        proxy-connection: keep-alive\r\nte: trailers, gzip\r\nproxy-authorization: Basic x\r\nhttp2-settings: AAAA\r\n\
        upgrade: h2c\r\ntrailer: x-sum\r\nx-kept: 1\r\ncontent-length: 2\r\n";
    let request = format!("POST / HTTP/1.1\r\nhost: a.example\r\n{said}\r\nhi");
    let answer = exchange(hop.at("edge"), request.as_bytes());
    assert_eq!((answer.status(), answer.body().as_str()), (200, "hi"), "{}", answer.text());
    assert_eq!(answer.header("x-outer").as_deref(), Some("1"));
    for gone in ["x-inner", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(answer.header(gone), None, "{gone} in {}", answer.text());
    }
    let seen = up.last();
    for gone in
        ["x-mine", "keep-alive", "proxy-connection", "proxy-authorization", "http2-settings", "upgrade", "trailer"]
    {
        assert!(values(&seen, gone).is_empty(), "{gone} in\n{seen}");
    }
    assert_eq!(values(&seen, "te"), ["trailers"], "{seen}");
    assert_eq!(values(&seen, "x-kept"), ["1"]);
    assert_eq!(values(&seen, "content-length"), ["2"]);
    assert_eq!(values(&seen, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(values(&seen, "host"), ["a.example"]);
}

#[test]
fn request_ids_are_given_not_taken() {
    let bench = Bench::start();
    get_with(bench.hop.at("edge"), "a.example", "/", "x-request-id: mine\r\nx-request-id: other\r\n");
    let given = values(&bench.up.last(), "x-request-id").len();
    assert_eq!(given, 1, "{}", bench.up.last());
    let odd = "x-request-id: \"}{\"level\":\"fake\r\n";
    get_with(bench.hop.at("edge"), "a.example", "/odd-id", odd);
    eventually("the line", || bench.hop.log().contains("/odd-id"));
    assert!(!bench.hop.log().contains("\"level\":\"fake"), "{}", bench.hop.log());
}

/// Escapes, quotes and controls that reach the log or an answer stay data.
#[test]
fn nothing_is_injected() {
    let bench = Bench::start();
    for path in ["/%0d%0aset-cookie:%20a=b", "/%22,%22status%22:200", "/?%0d%0ax:y", "/?a='b'"] {
        let answer = get(bench.hop.at("edge"), "a.example", path);
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        assert_eq!(bench.up.last().lines().next().unwrap().split(' ').count(), 3, "{}", bench.up.last());
    }
    let agent = "user-agent: \"},{\"status\":599,\\\t\r\n";
    get_with(bench.hop.at("edge"), "a.example", "/agent", agent);
    // Refused, with the same bytes in the path and as a host.
    get(bench.hop.at("edge"), "a\"b", "/bad-host");
    get(bench.hop.at("edge"), "a.example", "/%00\"%0d%0a");
    eventually("seven lines", || bench.hop.log().lines().filter(|l| l.starts_with("{\"ts\"")).count() >= 7);
    for line in bench.hop.log().lines().filter(|l| l.starts_with('{')) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_ne!(line["status"], 599, "{line}");
    }
}

/// An endpoint that lies about its answer.
#[test]
fn answers_are_read_strictly() {
    let answers: &[(&str, &[u8])] = &[
        ("status 99", b"HTTP/1.1 99 Odd\r\ncontent-length: 0\r\n\r\n"),
        ("status 600", b"HTTP/1.1 600 Odd\r\ncontent-length: 0\r\n\r\n"),
        ("status 1000", b"HTTP/1.1 1000 Odd\r\ncontent-length: 0\r\n\r\n"),
        ("unasked 101", b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"),
        ("coding and length", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n"),
        ("lengths differ", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"),
        ("signed length", b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nab"),
        ("another coding", b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nab"),
        ("coding twice", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
        ("NUL in a value", b"HTTP/1.1 200 OK\r\nx-a: \0\r\ncontent-length: 0\r\n\r\n"),
        ("folded line", b"HTTP/1.1 200 OK\r\nx-a: b\r\n c\r\ncontent-length: 0\r\n\r\n"),
        ("garbage", b"hello\r\n\r\n"),
        ("version 2", b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n"),
    ];
    let next = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let turn = next.clone();
    let up = Endpoint::start(move |_, _| answers[turn.load(std::sync::atomic::Ordering::SeqCst)].1.to_vec());
    let hop = Onehop::start(&crate::common::simple(&up));
    for (at, (name, _)) in answers.iter().enumerate() {
        next.store(at, std::sync::atomic::Ordering::SeqCst);
        // On one connection after the other: a broken answer must not poison the next exchange either.
        let mut client = Client::to(hop.at("edge"));
        client.send(b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n");
        let answer = client.answer();
        assert_eq!(answer.status(), 502, "{name}: {}", answer.text());
        let reason = crate::reason(&answer);
        assert!(["bad-response", "reset"].contains(&reason.as_str()), "{name}: {}", answer.text());
    }
}
