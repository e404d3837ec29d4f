//! HTTP/1.1: connections, interim answers, trailers, and answers without a body.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;

use crate::common::h2::{Fate, Frames, plain};
use crate::common::{Client, Endpoint, Onehop, before, scripted, simple};

/// Answers with the path as body.
fn echo() -> Endpoint {
    Endpoint::start(|head, body| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let text = format!("{path} {}", String::from_utf8_lossy(body));
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()).into_bytes()
    })
}

/// What a client sends, as the endpoint reads it, up to and with `end`.
pub fn read_until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut one = [0; 1];
    while !bytes.ends_with(end) && stream.read(&mut one).is_ok_and(|n| n > 0) {
        bytes.push(one[0]);
    }
    bytes
}

#[test]
fn connections_are_kept_and_pipelined_requests_answered_in_order() {
    let up = echo();
    let hop = Onehop::start(&simple(&up));
    let mut client = Client::to(hop.at("edge"));
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
    let post = |path: &str| format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi");
    let chunked = "POST /c HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n".to_owned();
    for segment in [
        vec![get("/1")],
        vec![get("/1"), get("/2")],
        vec![get("/1"), get("/2"), get("/3")],
        vec![post("/1"), chunked.clone(), get("/3")],
        vec![chunked, post("/2"), post("/3"), get("/4")],
    ] {
        client.send(segment.concat().as_bytes());
        for request in &segment {
            let path = request.split(' ').nth(1).unwrap();
            let answer = client.answer();
            assert_eq!(answer.status(), 200, "{}", answer.text());
            let body = if request.starts_with("POST") { "hi" } else { "" };
            assert_eq!(answer.body(), format!("{path} {body}"), "{segment:?}");
        }
    }
    client.send(b"GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\nGET /after HTTP/1.1\r\nhost: a\r\n\r\n");
    let answer = client.answer();
    assert_eq!(answer.header("connection").as_deref(), Some("close"));
    assert!(client.rest().is_empty(), "nothing is served after `connection: close`");
    assert!(!up.heads.lock().unwrap().iter().any(|h| h.contains("/after")));
}

#[test]
fn http_1_0_ends_with_the_answer() {
    let up =
        Endpoint::start(|_, _| b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n".to_vec());
    let hop = Onehop::start(&simple(&up));
    let mut client = Client::to(hop.at("edge"));
    client.send(b"GET / HTTP/1.0\r\nhost: a\r\n\r\n");
    let text = String::from_utf8(client.rest()).unwrap();
    assert!(text.ends_with("\r\n\r\nhi"), "{text}");
    assert!(!text.contains("transfer-encoding"), "{text}");
}

#[test]
fn a_client_that_has_said_everything_is_answered() {
    let up = echo();
    let hop = Onehop::start(&simple(&up));
    let stream = TcpStream::connect(hop.at("edge")).unwrap();
    let mut client = Client::over(stream.try_clone().unwrap());
    client.send(b"POST /half HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.answer().body(), "/half hi");
    assert!(client.rest().is_empty());
}

#[test]
fn the_endpoint_decides_about_100_continue() {
    let up = scripted(|mut stream| {
        loop {
            let head = String::from_utf8(read_until(&mut stream, b"\r\n\r\n")).unwrap();
            if head.is_empty() {
                return;
            }
            assert!(head.contains("expect: 100-continue"), "{head}");
            if head.starts_with("POST /no ") {
                let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno");
                return;
            }
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            let mut body = [0; 2];
            stream.read_exact(&mut body).unwrap();
            assert_eq!(&body, b"hi");
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes").unwrap();
        }
    });
    let hop = Onehop::start(&before(up));
    let mut client = Client::to(hop.at("edge"));
    client.send(b"POST /yes HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n");
    assert_eq!(client.head().status(), 100);
    client.send(b"hi");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.body().as_str()), (200, "yes"), "{}", answer.text());
    client.send(b"POST /no HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.body().as_str()), (403, "no"), "{}", answer.text());
    let log = || hop.log();
    crate::common::eventually("both lines", || log().matches("\"ts\"").count() == 2);
}

#[test]
fn early_hints_go_on_to_clients_that_know_them() {
    let up = Endpoint::start(|_, _| {
        b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nconnection: x\r\nx: 1\r\n\r\n\
          HTTP/1.1 103 Early Hints\r\nlink: </b.css>; rel=preload\r\n\r\n\
          HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
            .to_vec()
    });
    let hop = Onehop::start(&simple(&up));
    let mut client = Client::to(hop.at("edge"));
    for _ in 0..2 {
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        let hints = client.head();
        assert_eq!((hints.status(), hints.header("link").unwrap().as_str()), (103, "</a.css>; rel=preload"));
        assert_eq!(hints.header("x"), None, "{}", hints.text());
        assert_eq!(client.head().header("link").unwrap(), "</b.css>; rel=preload");
        assert_eq!(client.answer().body(), "hi");
    }
    let mut old = Client::to(hop.at("edge"));
    old.send(b"GET / HTTP/1.0\r\nhost: a\r\n\r\n");
    assert_eq!(old.answer().status(), 200);
}

#[test]
fn trailers_pass_both_ways() {
    let (seen, sent) = mpsc::channel();
    let up = scripted(move |mut stream| {
        let head = read_until(&mut stream, b"\r\n\r\n");
        let body = if head.starts_with(b"POST") { read_until(&mut stream, b"\r\n\r\n") } else { Vec::new() };
        let _ = seen.send(String::from_utf8([head, body].concat()).unwrap().to_ascii_lowercase());
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum, set-cookie\r\n\r\n\
              2\r\nhi\r\n0\r\nx-sum: 2\r\nset-cookie: a=b\r\n\r\n",
        );
    });
    let hop = Onehop::start(&before(up));
    let mut client = Client::to(hop.at("edge"));
    client.send(
        b"POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntrailer: x-in, authorization\r\ntransfer-encoding: chunked\r\n\r\n\
          2\r\nhi\r\n0\r\nx-in: 1\r\nauthorization: Bearer x\r\ncontent-length: 5\r\nx-forwarded-for: 1.2.3.4\r\n\r\n",
    );
    let answer = client.answer().text();
    assert!(answer.ends_with("2\r\nhi\r\n0\r\nx-sum: 2\r\n\r\n"), "{answer}");
    let said = sent.recv().unwrap();
    assert!(said.ends_with("0\r\nx-in: 1\r\n\r\n"), "{said}");
    // Who did not ask for trailers gets none.
    let mut other = Client::to(hop.at("edge"));
    other.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let answer = other.answer().text();
    assert!(answer.ends_with("2\r\nhi\r\n0\r\n\r\n"), "{answer}");
}

#[test]
fn answers_without_a_body_have_none() {
    let up = Endpoint::start(|head, _| {
        match head.split(' ').nth(1).unwrap() {
            "/204" => &b"HTTP/1.1 204 No Content\r\n\r\n"[..],
            "/304" => b"HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ncontent-length: 7\r\n\r\n",
            "/chunked" => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            _ => b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nx-a: b\r\n\r\n",
        }
        .to_vec()
    });
    let hop = Onehop::start(&simple(&up));
    let mut client = Client::to(hop.at("edge"));
    for (method, path, status, length) in [
        ("HEAD", "/", 200, Some("7")),
        ("HEAD", "/chunked", 200, None),
        ("GET", "/204", 204, None),
        ("HEAD", "/204", 204, None),
        ("HEAD", "/304", 304, None),
    ] {
        client.send(format!("{method} {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes());
        // If a body followed, the next head would not start with a status line.
        let head = client.head();
        assert_eq!(head.status(), status, "{method} {path}: {}", head.text());
        if status == 200 {
            assert_eq!(head.header("content-length").as_deref(), length, "{method} {path}");
        }
    }
    client.send(b"GET /304 HTTP/1.1\r\nhost: a\r\n\r\nHEAD / HTTP/1.1\r\nhost: a\r\n\r\n");
    let head = client.head();
    assert_eq!((head.status(), head.header("etag").unwrap().as_str()), (304, "\"a\""));
    assert_eq!(client.head().status(), 200);
    for path in ["/204", "/304"] {
        let fate = Frames::to(hop.at("edge")).ask(1, &plain("GET", path));
        assert!(matches!(&fate, Fate::Answered(204 | 304, body) if body.is_empty()), "{path}: {fate:?}");
    }
    let fate = Frames::to(hop.at("edge")).ask(1, &plain("HEAD", "/"));
    assert_eq!(fate, Fate::Answered(200, String::new()));
}

#[test]
fn redirects_and_answers_of_the_config() {
    let up = echo();
    let config = simple(&up).replace(
        "routes:\n",
        "routes:\n\
         - { name: old, matches: [{ path: { prefix: /old } }], redirect: { scheme: https, host: b.example, path: { replacePrefix: /new }, status: 308 } }\n\
         - { name: ping, matches: [{ path: { exact: /ping } }], respond: { status: 203, headers: { x-a: b }, body: pong } }\n",
    );
    let hop = Onehop::start(&config);
    let mut client = Client::to(hop.at("edge"));
    client.send(b"GET /old/a?b=c HTTP/1.1\r\nhost: a.example:80\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.header("location").unwrap().as_str()), (308, "https://b.example/new/a?b=c"));
    client.send(b"GET /ping HTTP/1.1\r\nhost: a\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.header("x-a").unwrap().as_str(), answer.body().as_str()), (203, "b", "pong"));
    client.send(b"HEAD /ping HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.head().header("content-length").as_deref(), Some("4"));
    assert_eq!(up.seen(), 0);
}
