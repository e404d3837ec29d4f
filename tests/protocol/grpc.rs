//! gRPC over HTTP/2 on both sides, with the h2 crate as client and as server.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, client, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use onehop_filters::contract::now;
use tokio::net::{TcpListener, TcpStream};

use crate::common::{Endpoint, Onehop, before, simple};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A gRPC server: `/Unary` echoes, `/Stream` echoes each message at once, `/Refuse` is trailers-only, `/Fail` ends with
/// an error after a message, `/Cut` resets in mid-answer, `/Slow` never answers. Echoes `grpc-timeout` and `x-in`.
pub fn server() -> SocketAddr {
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        runtime().block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut connection = server::handshake(stream).await?;
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(answer(request, respond));
                    }
                    Ok::<_, h2::Error>(())
                });
            }
        });
    });
    told.recv().unwrap()
}

async fn answer(request: Request<RecvStream>, mut respond: server::SendResponse<Bytes>) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let mut response = Response::builder().header("content-type", "application/grpc");
    for name in ["grpc-timeout", "te", "x-onehop-timeout-ms"] {
        if let Some(value) = head.headers.get(name) {
            response = response.header(format!("x-seen-{name}"), value);
        }
    }
    let trailers = |status: &'static str| {
        HeaderMap::from_iter([
            ("grpc-status".parse().unwrap(), HeaderValue::from_static(status)),
            ("x-custom-bin".parse().unwrap(), HeaderValue::from_static("AAEC")),
        ])
    };
    match head.uri.path() {
        "/Slow" => std::future::pending::<()>().await,
        "/Refuse" => {
            let response = response.header("grpc-status", "5").header("grpc-message", "not here");
            respond.send_response(response.body(()).unwrap(), true)?;
        }
        // Only the second try is answered.
        "/Busy" if !head.headers.contains_key("x-onehop-attempt") => {
            let response = response.header("grpc-status", "14").header("grpc-retry-pushback-ms", "150");
            respond.send_response(response.body(()).unwrap(), true)?;
        }
        "/Fail" | "/Cut" => {
            let mut out = respond.send_response(response.body(()).unwrap(), false)?;
            out.send_data(Bytes::from_static(b"first"), false)?;
            if head.uri.path() == "/Cut" {
                tokio::time::sleep(Duration::from_millis(50)).await;
                out.send_reset(h2::Reason::INTERNAL_ERROR);
            } else {
                out.send_trailers(trailers("13"))?;
            }
        }
        _ => {
            let mut out = respond.send_response(response.body(()).unwrap(), false)?;
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                out.send_data(data, false)?;
            }
            let mut end = trailers("0");
            if let Some(value) = body.trailers().await?.and_then(|t| t.get("x-in").cloned()) {
                end.insert("x-out", value);
            }
            out.send_trailers(end)?;
        }
    }
    Ok(())
}

async fn connect(to: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(to).await.unwrap();
    let (client, connection) = client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

fn call(path: &str) -> http::request::Builder {
    Request::post(format!("http://a.example{path}")).header("content-type", "application/grpc").header("te", "trailers")
}

/// Head, body and trailers of a call with one message.
async fn unary(to: SocketAddr, request: http::request::Builder) -> (http::response::Parts, Vec<u8>, Option<HeaderMap>) {
    let (response, mut out) = connect(to).await.send_request(request.body(()).unwrap(), false).unwrap();
    out.send_data(Bytes::from_static(b"\0\0\0\0\x02hi"), true).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        let _ = body.flow_control().release_capacity(data.len());
        bytes.extend_from_slice(&data);
    }
    (head, bytes, body.trailers().await.unwrap())
}

fn hop(up: SocketAddr) -> Onehop {
    Onehop::start(&before(up).replace("up: { discover", "up: { protocol: grpc, discover"))
}

fn status(headers: &HeaderMap) -> &str {
    headers.get("grpc-status").map_or("", |v| v.to_str().unwrap())
}

#[test]
fn unary_calls_have_trailers() {
    let hop = hop(server());
    runtime().block_on(async {
        for _ in 0..3 {
            let (head, body, trailers) = unary(hop.at("edge"), call("/Unary")).await;
            assert_eq!((head.status.as_u16(), &body[..]), (200, &b"\0\0\0\0\x02hi"[..]));
            let trailers = trailers.expect("trailers");
            assert_eq!((status(&trailers), trailers["x-custom-bin"].to_str().unwrap()), ("0", "AAEC"));
            assert_eq!(head.headers["x-seen-te"], "trailers");
            assert!(!head.headers.contains_key("content-length"));
        }
        let (head, body, trailers) = unary(hop.at("edge"), call("/Fail")).await;
        assert_eq!((head.status.as_u16(), &body[..], status(&trailers.unwrap())), (200, &b"first"[..], "13"));
        let (head, body, trailers) = unary(hop.at("edge"), call("/Refuse")).await;
        assert_eq!((status(&head.headers), body.len(), trailers), ("5", 0, None));
        assert_eq!(head.headers["grpc-message"], "not here");
    });
}

#[test]
fn an_answer_that_is_all_trailers_is_retried_after_the_pause_it_asks_for() {
    let up = "up: { protocol: grpc, retry: { retryOn: [unavailable], backoff: 1ms }, discover";
    let hop = Onehop::start(&before(server()).replace("up: { discover", up));
    runtime().block_on(async {
        let begun = tokio::time::Instant::now();
        let (head, body, trailers) = unary(hop.at("edge"), call("/Busy")).await;
        assert_eq!((head.status.as_u16(), &body[..]), (200, &b"\0\0\0\0\x02hi"[..]), "with its whole message");
        assert_eq!(status(&trailers.expect("trailers")), "0");
        assert!(begun.elapsed() >= Duration::from_millis(150), "{:?}", begun.elapsed());
        // A code that is not listed is the answer.
        let (head, ..) = unary(hop.at("edge"), call("/Refuse")).await;
        assert_eq!(status(&head.headers), "5");
    });
}

#[test]
fn a_host_that_no_route_names_is_called_over_http2() {
    let stranger = server();
    let hop = Onehop::start(
        "version: 1\nadmin: { bind: \"127.0.0.1:0\" }\nroutes: []\n\
         listeners: { out: { bind: \"127.0.0.1:0\", unknownHosts: passthrough } }\n",
    );
    runtime().block_on(async {
        let request = Request::post(format!("http://{stranger}/Unary")).header("content-type", "application/grpc");
        let (head, body, trailers) = unary(hop.at("out"), request.header("te", "trailers")).await;
        assert_eq!((head.status.as_u16(), &body[..]), (200, &b"\0\0\0\0\x02hi"[..]));
        assert_eq!(status(&trailers.expect("trailers")), "0");
    });
}

#[test]
fn messages_pass_one_by_one_both_ways() {
    let hop = hop(server());
    runtime().block_on(async {
        let mut client = connect(hop.at("edge")).await;
        let (response, mut out) = client.send_request(call("/Stream").body(()).unwrap(), false).unwrap();
        out.send_data(Bytes::from_static(b"0"), false).unwrap();
        let (_, mut body) = response.await.unwrap().into_parts();
        for n in 0..20u8 {
            // The answer to each message comes before the next one is sent.
            assert_eq!(&body.data().await.unwrap().unwrap()[..], &[b'0' + n]);
            out.send_data(Bytes::from(vec![b'1' + n]), false).unwrap();
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-in", HeaderValue::from_static("1"));
        trailers.insert("authorization", HeaderValue::from_static("no"));
        out.send_trailers(trailers).unwrap();
        assert!(body.data().await.unwrap().is_ok());
        assert!(body.data().await.is_none());
        let trailers = body.trailers().await.unwrap().expect("trailers");
        assert_eq!((status(&trailers), trailers["x-out"].to_str().unwrap()), ("0", "1"));
    });
}

#[test]
fn a_cut_call_is_no_success() {
    let hop = hop(server());
    runtime().block_on(async {
        let mut client = connect(hop.at("edge")).await;
        let (response, _) = client.send_request(call("/Cut").body(()).unwrap(), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(&body.data().await.unwrap().unwrap()[..], b"first");
        let end = match body.data().await {
            Some(Err(e)) => Err(e),
            None => body.trailers().await,
            Some(Ok(data)) => panic!("{data:?}"),
        };
        // Either way, the caller does not see `grpc-status: 0`.
        assert!(
            match &end {
                Err(_) => true,
                Ok(trailers) => trailers.as_ref().is_some_and(|t| status(t) != "0"),
            },
            "{end:?}"
        );
    });
}

#[test]
fn our_own_faults_are_grpc_statuses() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = before(server()).replace("up: { discover", "up: { protocol: grpc, discover").replace(
        "routes:\n",
        "routes:\n\
         - { name: secret, matches: [{ path: { prefix: /secret } }], auth: { require: keys }, to: up }\n\
         - { name: busy, matches: [{ path: { prefix: /busy } }], quota: [{ by: ip, limit: 1, per: 1h }], to: up }\n\
         - { name: dead, matches: [{ path: { prefix: /dead } }], to: dead }\n\
         - { name: slow, matches: [{ path: { prefix: /Slow } }], timeouts: { request: 200ms }, to: up }\n\
         - { name: small, matches: [{ path: { prefix: /small } }], bodyLimit: 4B, to: up }\n",
    );
    let config = config.replace(
        "- { name: all, to: up }",
        "- { name: all, hosts: [a.example], matches: [{ path: { prefix: /Unary } }], to: up }",
    );
    let config = format!("{config}identities: {{ keys: {{ apiKey: {{ header: x-api-key }} }} }}\n")
        .replace("services:\n", &format!("services:\n  dead: {{ discover: {{ static: [\"{dead}\"] }} }}\n"));
    let hop = Onehop::start(&config);
    runtime().block_on(async {
        unary(hop.at("edge"), call("/busy")).await;
        for (path, code) in [
            ("/secret", "16"),
            ("/busy", "8"),
            ("/dead", "14"),
            ("/Slow", "4"),
            ("/small", "8"),
            ("/nowhere", "12"),
            ("/%00", "13"),
        ] {
            let (head, body, trailers) = unary(hop.at("edge"), call(path)).await;
            assert_eq!((head.status.as_u16(), status(&head.headers)), (200, code), "{path}: {head:?}");
            assert!(body.is_empty() && trailers.is_none(), "{path}");
            assert_eq!(head.headers["content-type"], "application/grpc", "{path}");
            assert!(head.headers.contains_key("grpc-message") && head.headers.contains_key("proxy-status"), "{path}");
        }
    });
}

#[test]
fn the_callers_deadline_goes_on_and_holds() {
    let hop = hop(server());
    runtime().block_on(async {
        let (head, ..) = unary(hop.at("edge"), call("/Unary").header("grpc-timeout", "700m")).await;
        let left =
            head.headers["x-seen-grpc-timeout"].to_str().unwrap().strip_suffix('m').unwrap().parse::<u64>().unwrap();
        assert!(left <= 700, "{left}");
        assert!(!head.headers.contains_key("x-seen-x-onehop-timeout-ms"));
        // Without one, the route's own.
        let (head, ..) = unary(hop.at("edge"), call("/Unary")).await;
        assert!(head.headers.contains_key("x-seen-grpc-timeout"), "{head:?}");
        let begun = now();
        let (head, ..) = unary(hop.at("edge"), call("/Slow").header("grpc-timeout", "150m")).await;
        assert_eq!(status(&head.headers), "4", "{head:?}");
        assert!(now().since(begun) < Duration::from_secs(5));
    });
    // A plain request: from whom we do not know, the header does not count; from a trusted proxy it does.
    let up = Endpoint::ok();
    let hop = Onehop::start(
        &simple(&up)
            .replace("bind: \"127.0.0.1:0\" }\nroutes", "bind: \"127.0.0.1:0\", trustedProxies: [127.0.0.1] }\nroutes"),
    );
    crate::common::get_with(hop.at("edge"), "a", "/", "x-onehop-timeout-ms: 700\r\n");
    let left = up.last().lines().find_map(|l| l.strip_prefix("x-onehop-timeout-ms: ")).unwrap().parse::<u64>().unwrap();
    assert!(left <= 700, "{left}");
}

/// `carry.deadline: inherit` on an edge listener: the caller's deadline shortens the route's and never extends it, and the
/// routes beside it still know no stranger's.
#[test]
fn a_strangers_deadline_counts_where_the_route_says_so() {
    let up = Endpoint::ok();
    let hop = Onehop::start(&format!(
        "version: 1\nadmin: {{ bind: \"127.0.0.1:0\" }}\nlisteners: {{ edge: {{ bind: \"127.0.0.1:0\" }} }}\nroutes:\n\
         - {{ name: takes, matches: [{{ path: {{ prefix: /takes }} }}], carry: {{ deadline: inherit }}, to: up }}\n\
         - {{ name: plain, to: up }}\n\
         services: {{ up: {{ discover: {{ static: [\"{}\"] }} }} }}\n",
        up.address
    ));
    for (path, asked, least, most) in
        [("/takes", 700, 1, 700), ("/takes", 99_000_000, 5_000, 15_000), ("/plain", 700, 5_000, 15_000)]
    {
        crate::common::get_with(hop.at("edge"), "a", path, &format!("x-onehop-timeout-ms: {asked}\r\n"));
        let left =
            up.last().lines().find_map(|l| l.strip_prefix("x-onehop-timeout-ms: ")).unwrap().parse::<u64>().unwrap();
        assert!((least..=most).contains(&left), "{path} {asked}: {left}");
    }
}
