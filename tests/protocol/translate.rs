//! gRPC for callers that speak something else: gRPC-Web and JSON, over HTTP/1.1, to a gRPC service on the h2 crate.

use serde_json::{Value, json};

use super::grpc::server;
use crate::common::{Answer, Client, Onehop, before};

fn config(up: impl std::fmt::Display, keys: &str) -> String {
    before(up).replace("{ name: all, to: up }", &format!("{{ name: all, to: up, {keys} }}"))
}

fn post(hop: &Onehop, path: &str, headers: &str, body: &[u8]) -> Answer {
    let mut client = Client::to(hop.at("edge"));
    client.send(
        format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        )
        .as_bytes(),
    );
    client.send(body);
    client.answer()
}

/// The bytes of a chunked body.
fn chunks(answer: &Answer) -> Vec<u8> {
    let at = answer.0.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    let mut rest = &answer.0[at..];
    let mut out = Vec::new();
    while let Some(line) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).expect("a size");
        if size == 0 {
            break;
        }
        out.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
    }
    out
}

/// The trailers in the last frame of a gRPC-Web body.
fn trailers(body: &[u8]) -> String {
    let mut rest = body;
    while rest.len() >= 5 {
        let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
        if rest[0] == 0x80 {
            assert_eq!(rest.len(), 5 + length, "it is the last");
            return String::from_utf8(rest[5..].to_vec()).unwrap();
        }
        rest = &rest[5 + length..];
    }
    panic!("no trailers in {body:?}");
}

#[test]
fn browsers_call_grpc() {
    let keys = "cors: { allowOrigins: [\"https://shop.example\"], allowMethods: [POST], allowHeaders: [content-type, x-grpc-web] }, grpcWeb: {}";
    let hop = Onehop::start(&config(server(), keys));
    let web = "content-type: application/grpc-web+proto\r\norigin: https://shop.example\r\ngrpc-timeout: 2S\r\n";
    let answer = post(&hop, "/Unary", web, b"\0\0\0\0\x02hi");
    assert_eq!((answer.status(), answer.header("content-type").as_deref()), (200, Some("application/grpc-web+proto")));
    assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some("https://shop.example"));
    assert_eq!(answer.header("x-seen-te").as_deref(), Some("trailers"));
    assert!(answer.header("x-seen-grpc-timeout").is_some(), "the deadline goes on: {}", answer.text());
    let body = chunks(&answer);
    assert!(body.starts_with(b"\0\0\0\0\x02hi"));
    assert!(trailers(&body).contains("grpc-status: 0\r\n") && trailers(&body).contains("x-custom-bin: AAEC\r\n"));

    let text = post(&hop, "/Unary", "content-type: application/grpc-web-text\r\n", b"AAAAAAJoaQ==");
    assert_eq!(text.header("content-type").as_deref(), Some("application/grpc-web-text+proto"));
    let mut decoded = Vec::new();
    onehop_filters::api::grpc_web::framing::Decoder::default().push(&chunks(&text), &mut decoded).expect("base64");
    assert_eq!(trailers(&decoded), trailers(&body));

    let refused = chunks(&post(&hop, "/Refuse", web, b"\0\0\0\0\0"));
    assert!(trailers(&refused).contains("grpc-status: 5\r\n"), "{refused:?}");
    // This one sends five bytes before it fails, which are no frame.
    let failed = chunks(&post(&hop, "/Fail", web, b"\0\0\0\0\0"));
    assert!(failed.starts_with(b"first") && trailers(&failed[5..]).contains("grpc-status: 13\r\n"), "{failed:?}");
    let late = chunks(&post(&hop, "/Slow", &web.replace("2S", "100m"), b"\0\0\0\0\0"));
    assert!(trailers(&late).contains("grpc-status: 4\r\n"));
    let headers = "content-type: application/grpc-web-text\r\naccept: application/grpc-web\r\n";
    let bad = chunks(&post(&hop, "/Unary", headers, b"AAAA!!!!"));
    assert!(trailers(&bad).contains("grpc-status: 3\r\n"), "{}", trailers(&bad));
}

#[test]
fn refusals_of_filters_are_trailers_too() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let keys = "grpcWeb: {}, quota: [{ by: ip, limit: 1, per: 1h }]";
    let hop = Onehop::start(&config(port, keys));
    let web = "content-type: application/grpc-web\r\n";
    let down = post(&hop, "/Unary", web, b"\0\0\0\0\0");
    assert_eq!((down.status(), down.header("grpc-status")), (200, None));
    assert!(trailers(&chunks(&down)).contains("grpc-status: 14\r\n"), "{}", down.text());
    let over = post(&hop, "/Unary", web, b"\0\0\0\0\0");
    assert!(trailers(&chunks(&over)).contains("grpc-status: 8\r\n") && over.header("retry-after").is_some());
}

/// The echo of the test server understands no message, so the calls are those whose answer has the request's shape.
#[test]
fn json_becomes_grpc_and_back() {
    let hop = Onehop::start(&before(server()));
    crate::common::descriptors(hop.dir());
    let keys = "transcode: { descriptors: shop.pb, services: [shop.v1.Shop] }, transform: { path: { regex: \"^/api\", substitution: \"\" } }";
    let (status, told) = hop.reload(&config(server(), keys));
    assert_eq!(status, 200, "{told}");
    let json = "content-type: application/json\r\n";
    let answer = post(&hop, "/api/v1/orders/7:cancel", json, br#"{"lines": ["a", "b"], "totalCents": "5"}"#);
    assert_eq!(
        (answer.status(), answer.header("content-type").as_deref()),
        (200, Some("application/json")),
        "{}",
        answer.text()
    );
    assert_eq!(answer.body(), r#"["a","b"]"#);
    assert_eq!(answer.header("content-length").as_deref(), Some("9"));
    assert_eq!(answer.header("x-seen-te").as_deref(), Some("trailers"));
    assert!(answer.header("x-seen-grpc-timeout").is_some(), "the deadline goes on");
    let get = |path: &str, headers: &str| crate::common::get_with(hop.at("edge"), "a", path, headers);
    let stream = get("/api/v1/orders/7:watch", "accept: text/event-stream\r\n");
    assert_eq!(stream.header("content-type").as_deref(), Some("text/event-stream"));
    assert_eq!(chunks(&stream), b"data: {\"name\":\"7\"}\n\n");
    assert_eq!(chunks(&get("/api/v1/orders/7:watch", "")), b"{\"name\":\"7\"}\n");
    let wrong = post(&hop, "/api/v1/orders/7:cancel", json, br#"{"lines": 7}"#);
    assert_eq!((wrong.status(), wrong.header("content-type").as_deref()), (400, Some("application/problem+json")));
    assert_eq!(get("/api/v1/none", "").status(), 404);
    let (status, told) = hop.reload(&config(server(), keys).replace("up: { discover", "up: { protocol: h1, discover"));
    assert!(status != 200 && told.contains("protocol: grpc"), "{status} {told}");
}

#[test]
fn failures_of_a_transcoded_call_are_http() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hop = Onehop::start(&before(port));
    crate::common::descriptors(hop.dir());
    let (status, told) = hop.reload(&config(port, "transcode: { descriptors: shop.pb, services: [shop.v1.Shop] }"));
    assert_eq!(status, 200, "{told}");
    let down = crate::common::get(hop.at("edge"), "a", "/v1/orders/7");
    assert_eq!(
        (down.status(), down.header("content-type").as_deref()),
        (502, Some("application/problem+json")),
        "{}",
        down.text()
    );
    let problem: Value = serde_json::from_str(&down.body()).expect("JSON");
    assert_eq!(problem["reason"], json!("connect-failed"));
}
