//! Too large and too slow.

use std::time::Duration;

use crate::common::h2::{Fate, Frames, plain};
use crate::common::{Client, exchange};
use crate::{Bench, reason};

#[test]
fn large_is_refused() {
    let bench = Bench::start();
    let field = |n: usize| format!("x-a: {}\r\n", "a".repeat(n));
    let many = |n: usize| (0..n).map(|i| format!("x-{i}: a\r\n")).collect::<String>();
    let path = |n: usize| format!("/{}", "a".repeat(n - 1));
    let get = |path: &str, fields: &str| format!("GET {path} HTTP/1.1\r\nhost: a.example\r\n{fields}\r\n");
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nhost: a.example\r\n{fields}");
    let chunked = format!("transfer-encoding: chunked\r\n\r\n400\r\n{}\r\n1\r\na\r\n0\r\n\r\n", "a".repeat(0x400));
    let cases = [
        ("edge", "head of 33 KiB", get("/", &field(33 << 10)), 431, "head-too-large"),
        ("edge", "head without end", get("/", &field(33 << 10)).trim_end().to_owned(), 431, "head-too-large"),
        ("edge", "101 fields", get("/", &many(100)), 431, "head-too-large"),
        ("edge", "target of 8 KiB and one", get(&path(8193), ""), 414, "uri-too-long"),
        ("edge", "target without end", format!("GET {}", path(40 << 10)), 414, "uri-too-long"),
        ("edge", "body of 10 MiB and one, announced", post("content-length: 10485761\r\n\r\n"), 413, "body-too-large"),
        ("tight", "head of 1 KiB and more", get("/", &field(1 << 10)), 431, "head-too-large"),
        ("tight", "11 fields", get("/", &many(10)), 431, "head-too-large"),
        ("tight", "target of 257", get(&path(257), ""), 414, "uri-too-long"),
        ("tight", "body of 1 KiB and one, announced", post("content-length: 1025\r\n\r\n"), 413, "body-too-large"),
        (
            "tight",
            "body of 1 KiB and one, expected",
            post("expect: 100-continue\r\ncontent-length: 1025\r\n\r\n"),
            413,
            "body-too-large",
        ),
    ];
    for (listener, name, bytes, status, why) in &cases {
        let before = bench.up.seen();
        let mut client = Client::to(bench.hop.at(listener));
        client.send(bytes.as_bytes());
        let answer = client.answer();
        assert_eq!(
            (answer.status(), reason(&answer).as_str()),
            (*status, *why),
            "{listener}: {name}: {}",
            answer.text()
        );
        assert_eq!(answer.header("connection").as_deref(), Some("close"), "{listener}: {name}: {}", answer.text());
        let rest = client.rest();
        assert!(rest.is_empty(), "{listener}: {name}: {}", String::from_utf8_lossy(&rest));
        bench.untouched("edge", before, name);
    }
    // Counted as it streams: the endpoint may have begun to read, but never gets the whole.
    let answer = exchange(bench.hop.at("tight"), post(&chunked).as_bytes());
    assert_eq!((answer.status(), reason(&answer).as_str()), (413, "body-too-large"), "{}", answer.text());
}

#[test]
fn what_just_fits_passes() {
    let bench = Bench::start();
    let post = |fields: &str, body: &str| {
        format!("POST / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n{fields}\r\n{body}")
    };
    let body = "a".repeat(1024);
    let path = format!("/{}", "a".repeat(255));
    let fields: String = (0..8).map(|i| format!("x-{i}: a\r\n")).collect();
    for (name, request) in [
        ("1 KiB announced", post("content-length: 1024\r\n", &body)),
        ("1 KiB in chunks", post("transfer-encoding: chunked\r\n", &format!("400\r\n{body}\r\n0\r\n\r\n"))),
        ("256 bytes of target", format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")),
        ("10 fields", format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{fields}\r\n")),
    ] {
        let answer = exchange(bench.hop.at("tight"), request.as_bytes());
        assert_eq!(answer.status(), 200, "{name}: {}", answer.text());
    }
}

#[test]
fn slow_is_refused() {
    let bench = Bench::start();
    for (name, bytes, why) in [
        ("half a request line", &b"GET / HT"[..], "head-timeout"),
        ("half a head", b"GET / HTTP/1.1\r\nhost: a.example\r\n", "head-timeout"),
        ("half a preface", b"PRI * HT", "head-timeout"),
        ("half a body", b"POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 10\r\n\r\nabc", "body-timeout"),
        (
            "half a chunk",
            b"POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
            "body-timeout",
        ),
        ("no body", b"POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 10\r\n\r\n", "body-timeout"),
    ] {
        let mut client = Client::to(bench.hop.at("tight"));
        client.send(bytes);
        let answer = client.answer();
        assert_eq!((answer.status(), reason(&answer).as_str()), (408, why), "{name}: {}", answer.text());
        assert_eq!(answer.header("connection").as_deref(), Some("close"), "{name}: {}", answer.text());
        assert!(client.rest().is_empty(), "{name}");
        // A body goes on as it comes, so an endpoint may have the first half; a head does not.
        assert!(why == "body-timeout" || bench.up.seen() == 0, "{name}: {}", bench.up.last());
    }
}

/// A byte now and then does not extend the time a head has.
#[test]
fn a_trickle_is_slow() {
    let bench = Bench::start();
    let stream = std::net::TcpStream::connect(bench.hop.at("tight")).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(40))).unwrap();
    let mut client = Client::over(stream);
    client.send(b"GET / HTTP/1.1\r\nhost: a.example\r\nx-a: ");
    let mut letters = 0;
    let mut answer = client.answer();
    while answer.status() == 0 && letters < 100 {
        client.send(b"a");
        letters += 1;
        answer = client.answer();
    }
    assert_eq!(answer.status(), 408, "after {letters} letters: {}", answer.text());
    assert!(letters < 20, "{letters}");
}

#[test]
fn large_is_refused_over_http2() {
    let bench = Bench::start();
    let long = format!("/{}", "a".repeat(256));
    let mut target = plain("GET", "/");
    target[3].1 = long.as_bytes();
    let mut frames = Frames::to(bench.hop.at("tight"));
    let Fate::Answered(414, body) = frames.ask(1, &target) else { panic!("a long target passes") };
    assert_eq!(crate::reason_in(&body), "uri-too-long");
    // The connection goes on.
    assert!(matches!(frames.ask(3, &plain("GET", "/")), Fate::Answered(200, _)));
}
