//! External authorization by HTTP and by gRPC.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};

use super::common::backend::background;
use super::common::{Endpoint, exchange, get, get_with};
use super::{metric, start};

fn says(status: &str, head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{head}\r\n{body}", body.len()).into_bytes()
}

#[test]
fn a_login_server_lets_in_sends_away_and_names_the_user() {
    let up = Endpoint::ok();
    let authz = Endpoint::start(|head, _| {
        if head.contains("good") {
            says("204 No Content", "x-user: ann\r\nset-cookie: s=1\r\n", "")
        } else if head.contains("cookie") {
            says("302 Found", "location: https://id.example/login\r\nset-cookie: state=1\r\n", "")
        } else {
            says(
                "401 Unauthorized",
                "www-authenticate: Basic realm=\"x\"\r\ncontent-type: text/plain\r\n",
                "who are you?",
            )
        }
    });
    let hop = start(
        "- { name: all, to: up, extAuth: { http: { service: authz, path: /check }, timeout: 5s, \
         headers: { toUpstream: [x-user], toClient: [set-cookie] } } }",
        &[("up", up.address, ""), ("authz", authz.address, "")],
        "",
    );
    let web = hop.at("web");
    let good = get_with(web, "shop.example", "/a?b=c", "authorization: good\r\nx-user: root\r\nx-secret: 1\r\n");
    assert_eq!((good.status(), good.header("set-cookie").as_deref()), (200, Some("s=1")), "{}", good.text());
    let seen = up.last().to_lowercase();
    assert!(seen.contains("x-user: ann\r\n") && !seen.contains("root"), "{seen}");
    let asked = authz.last().to_lowercase();
    assert!(asked.starts_with("get /check http/1.1\r\n") && asked.contains("x-forwarded-uri: /a?b=c\r\n"), "{asked}");
    assert!(asked.contains("x-forwarded-host: shop.example\r\n") && !asked.contains("x-secret"), "{asked}");

    let away = get(web, "shop.example", "/");
    assert_eq!((away.status(), away.body().as_str()), (401, "who are you?"), "{}", away.text());
    assert_eq!(away.header("www-authenticate").as_deref(), Some("Basic realm=\"x\""));
    let login = get_with(web, "shop.example", "/", "cookie: a=b\r\n");
    assert_eq!((login.status(), login.header("location").as_deref()), (302, Some("https://id.example/login")));
    assert_eq!(up.seen(), 1);
    assert_eq!(metric(&hop, "onehop_ext_auth_total", &["result=\"denied\""]), 2.0);
    assert!(!hop.log().contains("is used by no route"), "{}", hop.log());
}

#[test]
fn a_filter_s_call_is_retried_and_the_check_is_not_repeated() {
    let turn = AtomicUsize::new(0);
    let up = Endpoint::start(move |_, _| match turn.fetch_add(1, SeqCst) {
        0 => says("503 Service Unavailable", "", ""),
        _ => says("200 OK", "", "in"),
    });
    let turn = AtomicUsize::new(0);
    let authz = Endpoint::start(move |_, _| match turn.fetch_add(1, SeqCst) {
        0 => says("503 Service Unavailable", "", ""),
        _ => says("200 OK", "", ""),
    });
    let retry = ", retry: { attempts: 1, retryOn: [503], backoff: 1ms }";
    let hop = start(
        "- { name: all, to: up, extAuth: { http: { service: authz, prefix: /auth }, timeout: 5s, body: { limit: 1KiB } } }",
        &[("up", up.address, retry), ("authz", authz.address, retry)],
        "",
    );
    let answer = exchange(
        hop.at("web"),
        b"PUT /x HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
    );
    assert_eq!((answer.status(), answer.body().as_str()), (200, "in"), "{}", answer.text());
    assert_eq!((up.seen(), authz.seen()), (2, 2), "each was tried twice, and the check was made once");
    let asked = authz.last().to_lowercase();
    assert!(asked.starts_with("put /auth/x http/1.1\r\n") && asked.contains("host: a.test\r\n"), "{asked}");
    assert!(asked.contains("x-onehop-attempt: 2\r\n"), "{asked}");
    // The service that was asked is counted as any other.
    assert_eq!(metric(&hop, "onehop_upstream_retries_total", &["service=\"authz\""]), 1.0);
}

#[test]
fn nobody_passes_while_nobody_answers() {
    let up = Endpoint::ok();
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let hop = start(
        "- { name: closed, to: up, extAuth: { http: { service: authz, path: / } } }\n\
         - { name: open, matches: [{ path: { prefix: /open } }], to: up, \
         extAuth: { http: { service: authz, path: / }, failOpen: true, headers: { toUpstream: [x-user] } } }",
        &[("up", up.address, ""), ("authz", nowhere, "")],
        "",
    );
    let closed = get(hop.at("web"), "a", "/");
    assert_eq!(closed.status(), 503, "{}", closed.text());
    assert!(closed.body().contains("authorization-unavailable"), "{}", closed.text());
    assert_eq!(up.seen(), 0);
    assert_eq!(get_with(hop.at("web"), "a", "/open", "x-user: root\r\n").status(), 200);
    assert!(!up.last().contains("x-user"), "{}", up.last());
    assert_eq!(metric(&hop, "onehop_ext_auth_total", &["result=\"let-pass\""]), 1.0);
}

/// An authorization server that speaks gRPC: what it was asked, as bytes, and what it answers to a path.
struct Authz {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A protobuf field of bytes.
fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag << 3 | 2, u8::try_from(content.len()).expect("short")], content].concat()
}

fn option(key: &str, value: &str) -> Vec<u8> {
    field(1, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
}

impl Authz {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("an option");
        let address = listener.local_addr().expect("bound");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        background().spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
            while let Ok((stream, _)) = listener.accept().await {
                let seen = seen.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(answer(request, respond, seen.clone()));
                    }
                });
            }
        });
        Self { address, asked }
    }
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
) {
    assert_eq!(request.uri().path(), "/envoy.service.auth.v3.Authorization/Check");
    assert_eq!(request.headers()["te"], "trailers");
    assert!(request.headers().contains_key("grpc-timeout"));
    let mut body = request.into_body();
    let mut question = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        question.extend_from_slice(&data);
    }
    let says = |words: &str| question.windows(words.len()).any(|w| w == words.as_bytes());
    let (good, rude) = (says("/good"), says("/rude"));
    seen.lock().expect("no panic").push(question);
    // CheckResponse: status = 1, denied_response = 2, ok_response = 3.
    let message = if good {
        let ok = [field(2, &option("x-user", "ann")), field(6, &option("x-seen", "1"))].concat();
        [field(1, &[]), field(3, &ok)].concat()
    } else if rude {
        let denied =
            [field(1, &[8, 0x92, 3]), field(2, &option("content-type", "text/x")), field(3, b"go away")].concat();
        [field(1, &[8, 7]), field(2, &denied)].concat()
    } else {
        field(1, &[8, 16])
    };
    let framed = [&[0, 0, 0, 0, u8::try_from(message.len()).expect("short")][..], &message].concat();
    let head = Response::builder().header("content-type", "application/grpc").body(()).expect("a head");
    let Ok(mut out) = respond.send_response(head, false) else { return };
    let _ = out.send_data(framed.into(), false);
    let status = HeaderMap::from_iter([("grpc-status".parse().expect("a name"), HeaderValue::from_static("0"))]);
    let _ = out.send_trailers(status);
}

#[test]
fn an_envoy_style_server_decides_by_grpc() {
    let (up, authz) = (Endpoint::ok(), Authz::start());
    let hop = start(
        "- { name: all, to: up, extAuth: { grpc: { service: authz }, timeout: 5s, context: { shop: \"${request.host}\" }, \
         cache: { by: request.path, ttl: 1h } } }",
        &[("up", up.address, ""), ("authz", authz.address, ", protocol: grpc")],
        "",
    );
    let web = hop.at("web");
    for _ in 0..2 {
        let good = get_with(web, "shop.test", "/good", "x-user: root\r\n");
        assert_eq!((good.status(), good.header("x-seen").as_deref()), (200, Some("1")), "{}", good.text());
        let seen = up.last().to_lowercase();
        assert!(seen.contains("x-user: ann\r\n") && !seen.contains("root"), "{seen}");
    }
    assert_eq!(authz.asked.lock().expect("no panic").len(), 1, "the second was remembered");
    let rude = get(web, "shop.test", "/rude");
    assert_eq!((rude.status(), rude.body().as_str()), (402, "go away"), "{}", rude.text());
    let other = get(web, "shop.test", "/other");
    assert_eq!(other.status(), 401, "{}", other.text());
    assert!(other.body().contains("\"filter\":\"extAuth\""), "{}", other.text());
    let asked = authz.asked.lock().expect("no panic").concat();
    assert!(asked.windows(9).any(|w| w == b"shop.test"));
    assert_eq!(up.seen(), 2);
}

#[test]
fn pages_of_other_sites_are_refused() {
    let up = Endpoint::ok();
    let hop = start(
        "- { name: all, to: up, csrf: { allowOrigins: [\"https://partner.test\"] } }",
        &[("up", up.address, "")],
        "",
    );
    let post = |fields: &str| {
        let text =
            format!("POST /buy HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\ncontent-length: 0\r\n{fields}\r\n");
        exchange(hop.at("web"), text.as_bytes())
    };
    let refused = post("sec-fetch-site: cross-site\r\norigin: https://evil.test\r\n");
    assert_eq!(refused.status(), 403, "{}", refused.text());
    assert!(refused.body().contains("cross-site"), "{}", refused.text());
    assert_eq!(post("origin: https://evil.test\r\n").status(), 403);
    assert_eq!(up.seen(), 0);
    assert_eq!(post("sec-fetch-site: same-origin\r\n").status(), 200);
    assert_eq!(post("sec-fetch-site: cross-site\r\norigin: https://partner.test\r\n").status(), 200);
    assert_eq!(post("origin: http://shop.test\r\n").status(), 200);
    assert_eq!(post("").status(), 200);
    assert_eq!(metric(&hop, "onehop_csrf_refused_total", &["route=\"all\""]), 2.0);
}
