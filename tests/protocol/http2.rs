//! What a client sees of HTTP/2 beside its answers: interim ones, early ends, farewells.

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, ResponseFuture, SendRequest};
use http::{HeaderMap, Request, StatusCode};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::http1::read_until;
use crate::common::h2::{
    DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, RST_STREAM, block, frame, plain,
};
use crate::common::{Endpoint, Onehop, before, eventually, scripted, simple};

const PATIENCE: Duration = Duration::from_secs(10);

fn block_on<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(PATIENCE, what).await.expect("in time") })
}

async fn connect(to: SocketAddr) -> SendRequest<Bytes> {
    let (send, connection) = client::handshake(TcpStream::connect(to).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    send
}

fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://a.example{path}"))
}

/// The next interim answer; `None` where the final one is next.
async fn interim(response: &mut ResponseFuture) -> Option<(StatusCode, HeaderMap)> {
    let interim = poll_fn(|cx| response.poll_informational(cx)).await?.unwrap();
    Some((interim.status(), interim.headers().clone()))
}

async fn answer(response: ResponseFuture) -> (StatusCode, String) {
    let (head, mut body) = response.await.unwrap().into_parts();
    let mut text = Vec::new();
    while let Some(data) = body.data().await {
        text.extend_from_slice(&data.unwrap());
    }
    (head.status, String::from_utf8(text).unwrap())
}

#[test]
fn early_hints_go_on() {
    let up = Endpoint::start(|_, _| {
        b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nconnection: x\r\nx: 1\r\n\r\n\
          HTTP/1.1 103 Early Hints\r\nlink: </b.css>; rel=preload\r\n\r\n\
          HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
            .to_vec()
    });
    let hop = Onehop::start(&simple(&up));
    block_on(async {
        let mut send = connect(hop.at("edge")).await;
        for _ in 0..2 {
            let (mut response, _) = send.send_request(request("GET", "/").body(()).unwrap(), true).unwrap();
            for link in ["</a.css>; rel=preload", "</b.css>; rel=preload"] {
                let (status, headers) = interim(&mut response).await.expect("hints");
                assert_eq!((status, headers["link"].to_str().unwrap()), (StatusCode::EARLY_HINTS, link));
                assert!(!headers.contains_key("x"), "{headers:?}");
            }
            assert_eq!(interim(&mut response).await, None);
            assert_eq!(answer(response).await, (StatusCode::OK, "hi".to_owned()));
        }
    });
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
    block_on(async {
        let mut send = connect(hop.at("edge")).await;
        let waits = |path| request("POST", path).header("expect", "100-continue").header("content-length", "2");
        let (mut response, mut body) = send.send_request(waits("/yes").body(()).unwrap(), false).unwrap();
        assert_eq!(interim(&mut response).await.expect("an interim answer").0, StatusCode::CONTINUE);
        body.send_data(Bytes::from_static(b"hi"), true).unwrap();
        assert_eq!(answer(response).await, (StatusCode::OK, "yes".to_owned()));
        let (mut response, _body) = send.send_request(waits("/no").body(()).unwrap(), false).unwrap();
        assert_eq!(interim(&mut response).await, None);
        assert_eq!(answer(response).await, (StatusCode::FORBIDDEN, "no".to_owned()));
    });
}

/// RFC 9113 section 8.1: the answer is whole, and the rest of the request is not wanted.
#[test]
fn an_answer_before_the_end_of_the_request_stops_the_request() {
    let up = scripted(|mut stream| {
        read_until(&mut stream, b"\r\n\r\n");
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let hop = Onehop::start(&before(up));
    let mut frames = Frames::to(hop.at("edge"));
    frames.send(&frame(HEADERS, END_HEADERS, 1, &block(&plain("POST", "/"))));
    frames.send(&frame(DATA, 0, 1, b"beginning"));
    let mut body = Vec::new();
    let mut ended = false;
    loop {
        match frames.next().expect("the connection lives") {
            (DATA, flags, 1, payload) => {
                body.extend_from_slice(&payload);
                ended |= flags & END_STREAM != 0;
            }
            (RST_STREAM, _, 1, code) => {
                assert!(ended, "reset before the end of the answer");
                assert_eq!((body.as_slice(), code.as_slice()), (&b"early"[..], &[0, 0, 0, 0][..]));
                break;
            }
            _ => {}
        }
    }
}

#[test]
fn a_reset_cancels_the_try_and_the_log_says_so() {
    let up = scripted(|mut stream| {
        read_until(&mut stream, b"\r\n\r\n");
        // Never answers; the connection is closed over it.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let hop = Onehop::start(&before(up));
    let mut frames = Frames::to(hop.at("edge"));
    frames.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&plain("GET", "/left"))));
    let in_flight = |n: u64| {
        let view: serde_json::Value = serde_json::from_str(&hop.admin_get("/endpoints").body()).expect("JSON");
        let services = view["services"].as_object().expect("services");
        services.values().any(|s| s["endpoints"][0]["inflight"].as_u64() == Some(n))
    };
    eventually("the try is in flight", || in_flight(1));
    frames.send(&frame(RST_STREAM, 0, 1, &8u32.to_be_bytes()));
    eventually("the try is over", || in_flight(0));
    eventually("logged", || hop.log().lines().any(|l| l.contains("/left") && l.contains("client-gone")));
}

/// RFC 9113 section 6.8: first a warning with the highest number, then the last stream that was served.
#[test]
fn a_drain_says_goodbye_twice_and_keeps_its_word() {
    let up = Endpoint::start(|_, _| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_vec());
    let hop = Onehop::start(&simple(&up));
    let mut frames = Frames::to(hop.at("edge"));
    assert!(matches!(frames.ask(1, &plain("GET", "/")), crate::common::h2::Fate::Answered(200, _)));
    hop.signal("TERM");
    let mut goodbyes = Vec::new();
    while let Some((kind, flags, _, payload)) = frames.next() {
        match kind {
            GOAWAY => goodbyes.push((payload[..4].to_vec(), payload[4..8].to_vec())),
            PING if flags & 1 == 0 => frames.send(&frame(PING, 1, 0, &payload)),
            _ => {}
        }
    }
    let no_error = vec![0; 4];
    assert_eq!(goodbyes, [(vec![0x7f, 0xff, 0xff, 0xff], no_error.clone()), (vec![0, 0, 0, 1], no_error)]);
}
