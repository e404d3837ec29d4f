//! Filters that work on bodies, end to end: lengths, codings and refusals as a peer sees them.

use http_body_util::BodyExt;
use onehop_filters::api::content::{self, Coding, Limits};
use onehop_filters::contract::{Body, Reason};
use serde_json::{Value, json};

use crate::common::{Answer, Client, Endpoint, Onehop, before, scripted, simple};

/// A configuration whose one route has these keys.
fn hop(up: &Endpoint, keys: &str) -> Onehop {
    Onehop::start(&simple(up).replace("{ name: all, to: up }", &format!("{{ name: all, to: up, {keys} }}")))
}

fn ask(hop: &Onehop, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    let mut client = Client::to(hop.at("edge"));
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    client.send(format!("{method} {path} HTTP/1.1\r\nhost: a.example\r\n{headers}{length}\r\n").as_bytes());
    client.send(body);
    if method == "HEAD" { client.head() } else { client.answer() }
}

/// The body of an answer, chunked or not, as bytes.
fn body(answer: &Answer) -> Vec<u8> {
    let at = answer.0.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    let mut rest = &answer.0[at..];
    if answer.header("transfer-encoding").is_none() {
        return rest.to_vec();
    }
    let mut out = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n").expect("a size");
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).expect("a size");
        if size == 0 {
            return out;
        }
        out.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
    }
}

fn collected(body: Body) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(body.collect()).expect("whole").to_bytes().to_vec()
}

fn decoded(bytes: Vec<u8>, coding: Coding) -> Vec<u8> {
    let limits =
        Limits { size: 1 << 30, ratio: 1 << 30, over: Reason::BodyTooLarge, broken: Reason::BadBody, by: "test" };
    collected(content::decode(Body::full(bytes), coding, limits))
}

fn echo() -> Endpoint {
    Endpoint::start(|head, body| {
        let digest = if head.contains("content-digest") { "x-digest: 1\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{digest}content-length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    })
}

#[test]
fn answers_are_compressed_and_flushed() {
    let text = "{\"hello\": \"hello\"}".repeat(500);
    let shown = text.clone();
    let up = Endpoint::start(move |head, _| {
        let etag = "etag: \"1\"\r\n";
        if head.starts_with("HEAD") {
            return format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{etag}content-length: {}\r\n\r\n",
                shown.len()
            )
            .into();
        }
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{etag}content-length: {}\r\n\r\n{shown}",
            shown.len()
        )
        .into()
    });
    let hop = hop(&up, "compression: {}");
    for (accept, coding) in [("gzip", Coding::Gzip), ("br", Coding::Brotli), ("zstd, gzip;q=0.5", Coding::Zstd)] {
        let answer = ask(&hop, "GET", "/", &format!("accept-encoding: {accept}\r\n"), b"");
        assert_eq!(answer.header("content-encoding").as_deref(), Some(coding.name()), "{accept}");
        assert_eq!((answer.header("content-length"), answer.header("etag").as_deref()), (None, Some("W/\"1\"")));
        assert_eq!(answer.header("vary").as_deref(), Some("accept-encoding"));
        assert_eq!(decoded(body(&answer), coding), text.as_bytes());
    }
    let plain = ask(&hop, "GET", "/", "", b"");
    assert_eq!((plain.header("content-encoding"), plain.body()), (None, text));
    let head = ask(&hop, "HEAD", "/", "accept-encoding: gzip\r\n", b"");
    assert_eq!(
        (head.status(), head.header("content-length"), head.header("vary").as_deref()),
        (200, None, Some("accept-encoding"))
    );
    let problem = ask(&hop, "GET", "/..%2f", "accept-encoding: gzip\r\n", b"");
    assert_eq!(problem.header("content-encoding"), None, "too short");
}

/// Half of an answer arrives although the other half never comes.
#[test]
fn a_pause_flushes_the_codec() {
    let up = scripted(|mut stream| {
        use std::io::{Read, Write};
        let mut bytes = [0; 4096];
        let _ = stream.read(&mut bytes);
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        );
        let _ = stream.read(&mut bytes);
    });
    let config =
        before(up).replace("{ name: all, to: up }", "{ name: all, to: up, compression: { algorithms: [gzip] } }");
    let hop = Onehop::start(&config);
    let mut client = Client::to(hop.at("edge"));
    client.send(b"GET / HTTP/1.1\r\nhost: a\r\naccept-encoding: gzip\r\n\r\n");
    assert_eq!(client.head().header("content-encoding").as_deref(), Some("gzip"));
    let mut seen: Vec<u8> = Vec::new();
    // A stored or fixed block of five letters ends with an empty block: 00 00 ff ff.
    while !seen.ends_with(&[0, 0, 0xff, 0xff]) {
        let size = client.until(b"\r\n");
        let size = usize::from_str_radix(String::from_utf8_lossy(&size).trim(), 16).expect("a chunk");
        assert!(size > 0, "it goes on");
        seen.extend(client.exactly(size));
        client.exactly(2);
    }
}

#[test]
fn requests_are_decoded_within_limits() {
    let up = echo();
    let hop = hop(&up, "decompression: { algorithms: [gzip, br], limit: 1MiB, ratio: 50 }");
    let coded = |text: &[u8], coding| collected(content::encode(Body::full(text.to_vec()), coding, 6));
    for (name, coding) in [("gzip", Coding::Gzip), ("br", Coding::Brotli)] {
        let headers = format!("content-encoding: {name}\r\ncontent-digest: sha-256=:x:\r\n");
        let answer = ask(&hop, "POST", "/", &headers, &coded(b"[1, 2]", coding));
        assert_eq!((answer.status(), answer.body().as_str(), answer.header("x-digest")), (200, "[1, 2]", None));
        assert!(!up.last().contains("content-encoding"), "{}", up.last());
    }
    let refused = ask(&hop, "POST", "/", "content-encoding: zstd\r\n", b"x");
    assert_eq!((refused.status(), refused.header("accept-encoding").as_deref()), (415, Some("gzip, br")));
    let bomb = ask(&hop, "POST", "/", "content-encoding: gzip\r\n", &coded(&vec![0; 16 << 20], Coding::Gzip));
    assert_eq!(bomb.status(), 413, "{}", bomb.text());
    let broken = ask(&hop, "POST", "/", "content-encoding: gzip\r\n", b"not gzip at all, not at all");
    assert_eq!(broken.status(), 400, "{}", broken.text());
}

#[test]
fn bodies_are_edited_with_their_lengths() {
    let up = echo();
    let keys = "transform: { \
        request: { body: { json: { set: { /id: \"${request.id}\", /n: 1 }, remove: [/admin] }, limit: 1KiB } }, \
        response: { body: { json: { merge: { seen: true, n: null } } } } }";
    let hop = hop(&up, keys);
    let json = "content-type: application/json\r\nx-request-id: r1\r\ncontent-digest: sha-256=:x:\r\n";
    let answer = ask(&hop, "POST", "/", json, br#"{"admin":true,"price":1.10}"#);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let read: Value = serde_json::from_str(&answer.body()).expect("JSON of the stated length");
    assert!(
        read["id"].is_string() && read["seen"] == json!(true) && read.get("admin").is_none() && read.get("n").is_none()
    );
    assert!(answer.body().contains("1.10"), "numbers keep their digits: {}", answer.body());
    assert_eq!(answer.header("x-digest"), None, "the digest went with the old bytes");
    let over = ask(&hop, "POST", "/", json, format!("[{}]", "1,".repeat(600)).as_bytes());
    assert_eq!(over.status(), 413, "{}", over.text());
    assert_eq!(ask(&hop, "POST", "/", json, b"{").status(), 400);
    let text = ask(&hop, "POST", "/", "content-type: text/plain\r\n", b"{}");
    assert_eq!(text.status(), 200, "{}", text.text());
}

#[test]
fn problems_list_what_is_wrong() {
    let up = echo();
    let keys = "validate: { body: { schema: { type: object, properties: { a: { type: integer } }, required: [b] } }, limit: 1KiB }";
    let hop = hop(&up, keys);
    let json = "content-type: application/json\r\n";
    assert_eq!(ask(&hop, "POST", "/", json, br#"{"a": 1, "b": 2}"#).body(), r#"{"a": 1, "b": 2}"#);
    let refused = ask(&hop, "POST", "/", json, br#"{"a": "hush"}"#);
    assert_eq!((refused.status(), refused.header("content-type").as_deref()), (400, Some("application/problem+json")));
    let problem: Value = serde_json::from_str(&refused.body()).expect("JSON");
    let pointers: Vec<&str> =
        problem["errors"].as_array().expect("a list").iter().filter_map(|e| e["pointer"].as_str()).collect();
    assert!(pointers.contains(&"/a") && pointers.contains(&"") && problem["reason"] == "invalid-request", "{problem}");
    assert!(!refused.text().contains("hush") && up.seen() == 1);
    assert_eq!(ask(&hop, "POST", "/", json, &[b'1'; 2000]).status(), 413);
}

#[test]
fn a_description_is_followed_on_disk() {
    let up = echo();
    let hop = Onehop::start(&simple(&up));
    let description = include_str!("../data/orders.yaml");
    std::fs::write(hop.dir().join("orders.yaml"), description).unwrap();
    let config = simple(&up).replace(
        "{ name: all, to: up }",
        "{ name: all, to: up, validate: { openapi: orders.yaml, response: enforce } }",
    );
    let (status, told) = hop.reload(&config);
    assert_eq!(status, 200, "{told}");
    assert_eq!(ask(&hop, "GET", "/api/orders/x", "", b"").status(), 400);
    assert_eq!(ask(&hop, "GET", "/api/orders/7", "", b"").status(), 502, "an empty answer is not what is described");
    assert_eq!(ask(&hop, "GET", "/v9/orders/x", "", b"").status(), 404);
    std::fs::write(hop.dir().join("new"), description.replace("/api", "/v9")).unwrap();
    std::fs::rename(hop.dir().join("new"), hop.dir().join("orders.yaml")).unwrap();
    crate::common::eventually("the new description is in force", || {
        ask(&hop, "GET", "/v9/orders/x", "", b"").status() == 400
    });
    // A bad one is refused at its place by the next load, and changes nothing.
    std::fs::write(hop.dir().join("orders.yaml"), "openapi: 2").unwrap();
    let (status, told) = hop.reload(&config);
    assert!(status != 200 && told.contains("neither 3.0 nor 3.1"), "{status} {told}");
    assert_eq!(ask(&hop, "GET", "/v9/orders/x", "", b"").status(), 400);
}
