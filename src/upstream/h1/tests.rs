//! The codec against peers made of raw bytes, and the chunked decoder against another one.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version};
use http_body::Frame;
use http_body_util::BodyExt;
use onehop_filters::contract::mesh::Address;
use onehop_filters::contract::{Body, Proof, Reason};
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

use super::chunked::{Decoder, Event};
use crate::upstream::dial::{Dial, Dialer};
use crate::upstream::pool::Shard;
use crate::upstream::tests::{Ask, answering, channel, failing, peer, read_head, text, upstream};
use crate::upstream::tls::Offer;
use crate::upstream::{Head, Settings};

/// Sends a GET to a peer that answers with these bytes and closes.
async fn outcome(method: Method, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<String, Reason> {
    let peer = answering(bytes, true).await;
    let reply = Ask::new(method).send(&upstream(), &peer).await.map_err(|f| f.reason)?;
    text(reply).await.map_err(|f| f.reason)
}

#[tokio::test]
async fn bodies_end_where_their_framing_says() {
    let get = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", "abc"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\ncontent-length: 3\r\n\r\nabcd", "abc"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 3, 3\r\n\r\nabcd", "abc"),
        ("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", ""),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=\"y\"\r\n0123456789\r\n0\r\n\r\n",
            "abc0123456789",
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n0003\r\nabc\r\n000\r\n\r\n", "abc"),
        ("HTTP/1.1 200 OK\r\n\r\nuntil the end", "until the end"),
        ("HTTP/1.0 200 OK\r\n\r\nold", "old"),
        ("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\noldest", "old"),
        ("HTTP/1.1 204 No Content\r\n\r\nbody", ""),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", ""),
        ("HTTP/1.1 599 Own\r\ncontent-length: 0\r\n\r\n", ""),
        ("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", "x"),
    ];
    for (bytes, body) in get {
        assert_eq!(outcome(Method::GET, bytes).await.as_deref(), Ok(body), "{bytes}");
    }
    for bytes in
        ["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]
    {
        assert_eq!(outcome(Method::HEAD, bytes).await.as_deref(), Ok(""), "{bytes}");
    }
}

#[tokio::test]
async fn ambiguous_heads_are_refused() {
    let heads: &[&[u8]] = &[
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3, 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0x3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3,\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9223372036854775808\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n x: a\r\n\r\n",
        b"HTTP/1.1 200 OK\nx: a\n\n",
        b"HTTP/1.1 200 OK\r\nx: a\ny: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\rb\r\n\r\n",
        b"HTTP/1.1 200 O\rK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx : a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nnocolon\r\n\r\n",
        b"HTTP/1.1 099 No\r\n\r\n",
        b"HTTP/1.1 99 No\r\n\r\n",
        b"HTTP/1.1 600 No\r\n\r\n",
        b"HTTP/1.1 999 No\r\n\r\n",
        b"HTTP/1.1 1000 No\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    ];
    for bytes in heads {
        let got = outcome(Method::GET, *bytes).await;
        assert_eq!(got, Err(Reason::BadResponse), "{}", bytes.escape_ascii());
    }
}

#[tokio::test]
async fn a_head_has_limits() {
    let wide = format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", "x: y\r\n".repeat(100));
    assert_eq!(outcome(Method::GET, wide).await, Err(Reason::ResponseTooLarge));
    let full = format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", "x: y\r\n".repeat(99));
    assert_eq!(outcome(Method::GET, full).await.as_deref(), Ok(""));
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "y".repeat(33 * 1024));
    assert_eq!(outcome(Method::GET, long).await, Err(Reason::ResponseTooLarge));
    let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(40 * 1024));
    assert_eq!(outcome(Method::GET, endless).await, Err(Reason::ResponseTooLarge));
}

#[tokio::test]
async fn a_cut_body_is_an_error() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for rest in
        ["", "3", "3\r\n", "3\r\nab", "3\r\nabc", "3\r\nabc\r\n", "3\r\nabc\r\n0", "3\r\nabc\r\n0\r\n", "0\r\nx: y\r\n"]
    {
        assert_eq!(outcome(Method::GET, format!("{chunked}{rest}")).await, Err(Reason::Truncated), "{rest:?}");
    }
    let length = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc";
    assert_eq!(outcome(Method::GET, length).await, Err(Reason::Truncated));
}

#[tokio::test]
async fn broken_chunks_are_an_error() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let extension = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(17 * 1024));
    let trailers = format!("0\r\nx: {}\r\n\r\n", "y".repeat(33 * 1024));
    let fields = format!("0\r\n{}\r\n", "x: y\r\n".repeat(101));
    let bad = [
        "0x3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nab\r\n0\r\n\r\n",
        "\r\nabc",
        "00000000000000003\r\nabc\r\n0\r\n\r\n",
        "g\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "3;a\0\r\nabc\r\n0\r\n\r\n",
        "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "0\r\nx: y\n\r\n",
        "0\r\n\n",
        "0\r\nx y\r\n\r\n",
        "0\r\nx: a\r\n b\r\n\r\n",
        "0\r\nx : a\r\n\r\n",
        ";x\r\n",
        "-1\r\n",
        extension.as_str(),
        trailers.as_str(),
        fields.as_str(),
    ];
    for rest in bad {
        let got = outcome(Method::GET, format!("{chunked}{rest}")).await;
        assert_eq!(got, Err(Reason::BadResponse), "{:?}", &rest[..rest.len().min(40)]);
    }
}

#[tokio::test]
async fn a_connection_idles_only_after_a_clean_exchange() {
    let cases: &[(&str, bool)] = &[
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", true),
        ("HTTP/1.1 204 No Content\r\n\r\n", true),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", true),
        ("HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\ncontent-length: 1\r\n\r\nx", true),
        ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx", false),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx", false),
        ("HTTP/1.1 200 OK\r\nconnection: keep-alive, Close\r\ncontent-length: 1\r\n\r\nx", false),
        ("HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n", false),
        ("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxx", false),
    ];
    for (bytes, reused) in cases {
        let (up, peer) = (upstream(), answering(*bytes, false).await);
        text(Ask::get().send(&up, &peer).await.unwrap()).await.unwrap();
        assert_eq!(Ask::get().send(&up, &peer).await.unwrap().reused, *reused, "{bytes}");
    }
}

#[tokio::test]
async fn fields_of_one_hop_do_not_pass() {
    let bytes = b"HTTP/1.1 200 OK\r\nconnection: x-secret, keep-alive\r\nX-Secret: 1\r\nkeep-alive: timeout=5\r\n\
        proxy-connection: keep-alive\r\nupgrade: h2c\r\nte: trailers\r\nset-cookie: a\r\nSet-Cookie: b\r\nx: \xff\r\n\
        content-length: 0\r\n\r\n";
    let peer = answering(bytes, true).await;
    let reply = Ask::get().send(&upstream(), &peer).await.unwrap();
    let names: Vec<&str> = reply.headers.keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["set-cookie", "x"]);
    assert_eq!(reply.headers.get_all("set-cookie").iter().count(), 2);
    assert_eq!(reply.headers["x"].as_bytes(), b"\xff");
    assert_eq!(reply.protocol, Version::HTTP_11);
}

#[tokio::test]
async fn the_length_of_what_is_not_sent_passes() {
    let peer = answering("HTTP/1.1 200 OK\r\ncontent-length: 007\r\n\r\n", false).await;
    let up = upstream();
    let reply = Ask::new(Method::HEAD).send(&up, &peer).await.unwrap();
    assert_eq!(reply.headers["content-length"], "7");
    assert!(Ask::new(Method::HEAD).send(&up, &peer).await.unwrap().reused);
}

/// What goes over the wire for a request: head, then body.
async fn wire(ask: Ask, body: Body) -> (String, String) {
    let seen = Arc::new(Mutex::new(None));
    let sink = seen.clone();
    let peer = peer(move |_, mut socket| {
        let sink = sink.clone();
        async move {
            let head = read_head(&mut socket).await.unwrap();
            let mut body = Vec::new();
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).map(|n| n.parse().unwrap());
            if let Some(length) = length {
                body.resize(length, 0);
                socket.read_exact(&mut body).await.unwrap();
            } else if head.contains("transfer-encoding: chunked") {
                while !(body.starts_with(b"0\r\n") || body.windows(5).any(|w| w == b"\r\n0\r\n"))
                    || !body.ends_with(b"\r\n\r\n")
                {
                    body.push(socket.read_u8().await.unwrap());
                }
            }
            *sink.lock() = Some((head, String::from_utf8(body).unwrap()));
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    ask.with(&upstream(), &peer, body).await.unwrap();
    let seen = seen.lock().take();
    seen.unwrap()
}

#[tokio::test]
async fn a_request_is_framed_by_its_body() {
    let start = |m: &str| format!("{m} /a?b HTTP/1.1\r\nhost: example.com\r\n");
    assert_eq!(wire(Ask::get(), Body::Empty).await.0, start("GET") + "\r\n");
    assert_eq!(wire(Ask::new(Method::DELETE), Body::Empty).await.0, start("DELETE") + "\r\n");
    for method in [Method::POST, Method::PUT, Method::PATCH] {
        let name = method.to_string();
        assert_eq!(wire(Ask::new(method), Body::Empty).await.0, start(&name) + "content-length: 0\r\n\r\n");
    }
    let (head, body) = wire(Ask::get(), Body::full("abc")).await;
    assert_eq!((head, body.as_str()), (start("GET") + "content-length: 3\r\n\r\n", "abc"));

    let (feed, body) = channel();
    feed.send(Frame::data(Bytes::from_static(b"hello"))).await.unwrap();
    feed.send(Frame::data(Bytes::new())).await.unwrap();
    feed.send(Frame::data(Bytes::from(vec![b'x'; 17]))).await.unwrap();
    drop(feed);
    let (head, body) = wire(Ask::post(), body).await;
    assert_eq!(head, start("POST") + "transfer-encoding: chunked\r\n\r\n");
    assert_eq!(body, format!("5\r\nhello\r\n11\r\n{}\r\n0\r\n\r\n", "x".repeat(17)));
}

#[tokio::test]
async fn what_the_caller_left_in_the_head_cannot_frame_it() {
    let mut ask = Ask::post();
    for (name, value) in [
        ("content-length", "999"),
        ("transfer-encoding", "chunked"),
        ("host", "evil"),
        ("connection", "close"),
        ("keep-alive", "1"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("expect", "100-continue"),
        ("trailer", "x"),
        ("x-a", "old"),
        ("x-b", "kept"),
    ] {
        ask.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    ask.extra.push((HeaderName::from_static("x-a"), HeaderValue::from_static("new")));
    ask.te = true;
    let (head, _) = wire(ask, Body::full("ab")).await;
    let expected = "POST /a?b HTTP/1.1\r\nhost: example.com\r\nx-b: kept\r\nx-a: new\r\nte: trailers\r\n\
        connection: te\r\ncontent-length: 2\r\n\r\n";
    assert_eq!(head, expected);
}

#[tokio::test]
async fn trailers_pass_both_ways_if_permitted() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("1"));
    trailers.insert("content-length", HeaderValue::from_static("9"));
    let (feed, body) = channel();
    feed.send(Frame::data(Bytes::from_static(b"a"))).await.unwrap();
    feed.send(Frame::trailers(trailers)).await.unwrap();
    drop(feed);
    let mut ask = Ask::post();
    ask.headers.insert("trailer", HeaderValue::from_static("x-sum"));
    let (head, body) = wire(ask, body).await;
    assert!(head.contains("trailer: x-sum\r\n"));
    assert_eq!(body, "1\r\na\r\n0\r\nx-sum: 1\r\n\r\n");

    let bytes =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\ngrpc-status: 0\r\nhost: evil\r\n\r\n";
    let (up, peer) = (upstream(), answering(bytes, false).await);
    let reply = Ask::get().send(&up, &peer).await.unwrap();
    let got = reply.body.collect().await.unwrap();
    let trailers = got.trailers().unwrap();
    assert_eq!((trailers.len(), &trailers["grpc-status"]), (1, &HeaderValue::from_static("0")));
    assert!(Ask::get().send(&up, &peer).await.unwrap().reused);
}

#[tokio::test]
async fn an_early_answer_does_not_deadlock_a_large_upload() {
    const SIZE: usize = 8 << 20;
    let peer = peer(|_, mut socket| async move {
        read_head(&mut socket).await;
        // Both directions are far larger than any socket buffer: only a peer that reads while it writes gets through.
        socket.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n").as_bytes()).await.unwrap();
        socket.write_all(&vec![b'd'; SIZE - 1]).await.unwrap();
        let mut upload = vec![0; SIZE];
        socket.read_exact(&mut upload).await.unwrap();
        assert!(upload.iter().all(|b| *b == b'u'));
        socket.write_all(b"d").await.unwrap();
        read_head(&mut socket).await;
    })
    .await;
    let up = upstream();
    let reply = Ask::post().with(&up, &peer, Body::full(vec![b'u'; SIZE])).await.unwrap();
    let body = reply.body.collect().await.unwrap().to_bytes();
    assert_eq!(body.len(), SIZE);
    assert_eq!(up.connections()[&7].idle, 1, "the request went out whole: the connection stays");
}

#[tokio::test]
async fn an_answer_before_the_upload_ends_costs_the_connection() {
    let peer = peer(|_, mut socket| async move {
        read_head(&mut socket).await;
        socket.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
    })
    .await;
    let (feed, body) = channel();
    feed.send(Frame::data(Bytes::from_static(b"part"))).await.unwrap();
    let up = upstream();
    let reply = Ask::post().with(&up, &peer, body).await.unwrap();
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(text(reply).await.unwrap(), "no");
    assert_eq!(up.connections()[&7].open, 0);
}

#[tokio::test]
async fn a_failed_upload_is_not_made_to_look_complete() {
    let rest = Arc::new(Mutex::new(None));
    let (sink, (done, wait)) = (rest.clone(), tokio::sync::oneshot::channel());
    let done = Arc::new(Mutex::new(Some(done)));
    let peer = peer(move |_, mut socket| {
        let (sink, done) = (sink.clone(), done.clone());
        async move {
            read_head(&mut socket).await;
            let mut bytes = Vec::new();
            let _ = socket.read_to_end(&mut bytes).await;
            *sink.lock() = Some(bytes);
            let _ = done.lock().take().unwrap().send(());
        }
    })
    .await;
    let fault = Ask::post().with(&upstream(), &peer, failing(Reason::BodyTooLarge)).await.err().unwrap();
    assert_eq!(fault.reason, Reason::BodyTooLarge);
    wait.await.unwrap();
    let bytes = rest.lock().take().unwrap();
    assert!(!bytes.ends_with(b"0\r\n\r\n"), "{}", bytes.escape_ascii());
}

#[tokio::test]
async fn a_body_waits_for_continue() {
    let peer = peer(|_, mut socket| async move {
        let head = read_head(&mut socket).await.unwrap();
        assert!(head.contains("expect: 100-continue\r\n"));
        let mut byte = [0];
        assert_eq!(socket.try_read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let mut body = [0; 3];
        socket.read_exact(&mut body).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n").await.unwrap();
        socket.write_all(&body).await.unwrap();
        read_head(&mut socket).await;
    })
    .await;
    let ask = Ask { expect: true, ..Ask::post() };
    let up = upstream();
    assert_eq!(text(ask.with(&up, &peer, Body::full("abc")).await.unwrap()).await.unwrap(), "abc");
    assert_eq!(up.connections()[&7].idle, 1);
}

#[tokio::test]
async fn a_body_that_is_not_wanted_is_not_sent() {
    let peer = answering("HTTP/1.1 417 No\r\ncontent-length: 5\r\n\r\nsorry", false).await;
    let ask = Ask { expect: true, ..Ask::post() };
    let up = upstream();
    assert_eq!(text(ask.with(&up, &peer, Body::full("abc")).await.unwrap()).await.unwrap(), "sorry");
    assert_eq!(up.connections()[&7].open, 0);
}

#[tokio::test]
async fn a_body_does_not_wait_for_ever() {
    let peer = peer(|_, mut socket| async move {
        read_head(&mut socket).await;
        socket.read_exact(&mut [0; 3]).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    })
    .await;
    let ask = Ask { expect: true, ..Ask::post() };
    assert_eq!(ask.with(&upstream(), &peer, Body::full("abc")).await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn interim_answers_pass_up_to_a_limit() {
    let seen = Mutex::new(Vec::new());
    let tell = |status: StatusCode, headers: HeaderMap| seen.lock().push((status, headers.len()));
    let bytes = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let peer = answering(bytes, true).await;
    Ask::get().told(&upstream(), &peer, &mut Body::Empty, Some(&tell)).await.unwrap();
    assert_eq!(*seen.lock(), [(StatusCode::from_u16(103).unwrap(), 1)]);

    let fine = "HTTP/1.1 102 Processing\r\n\r\n".repeat(100) + "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(outcome(Method::GET, fine).await.as_deref(), Ok(""));
    let flood = "HTTP/1.1 102 Processing\r\n\r\n".repeat(101) + "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(outcome(Method::GET, flood).await, Err(Reason::BadResponse));
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let peer = peer(|_, mut socket| async move {
        let head = read_head(&mut socket).await.unwrap();
        assert!(head.ends_with("connection: upgrade\r\nupgrade: websocket\r\n\r\n"), "{head}");
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: WebSocket\r\nx: y\r\n\r\nfirst";
        socket.write_all(answer).await.unwrap();
        let mut echo = [0; 4];
        socket.read_exact(&mut echo).await.unwrap();
        socket.write_all(&echo).await.unwrap();
    })
    .await;
    let reply = Ask::upgrade("websocket").send(&upstream(), &peer).await.unwrap();
    assert_eq!((reply.status, &reply.headers["x"]), (StatusCode::SWITCHING_PROTOCOLS, &HeaderValue::from_static("y")));
    let mut tunnel = reply.upgraded.unwrap();
    tunnel.write_all(b"ping").await.unwrap();
    let mut all = String::new();
    tunnel.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "firstping");
}

#[tokio::test]
async fn a_websocket_from_http2_goes_on_as_a_get() {
    let mut ask = Ask { method: Method::CONNECT, ..Ask::upgrade("websocket") };
    ask.extra.push((HeaderName::from_static("sec-websocket-key"), HeaderValue::from_static("k")));
    let (head, _) = wire(ask, Body::Empty).await;
    let expected = "GET /a?b HTTP/1.1\r\nhost: example.com\r\nsec-websocket-key: k\r\nconnection: upgrade\r\n\
        upgrade: websocket\r\n\r\n";
    assert_eq!(head, expected);
}

#[tokio::test]
async fn both_directions_flow_at_once() {
    let peer = peer(|_, mut socket| async move {
        read_head(&mut socket).await;
        socket.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        // The coding of the request is the coding of the answer: an echo needs no parser.
        let (mut from, mut to) = socket.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await;
    let (feed, body) = channel();
    let up = upstream();
    let mut answer = Ask::post().with(&up, &peer, body).await.unwrap().body;
    for n in ["1", "22", "333"] {
        feed.send(Frame::data(Bytes::from(n))).await.unwrap();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), n);
    }
    drop(feed);
    assert!(answer.frame().await.is_none());
    assert_eq!(up.connections()[&7].idle, 1);
}

#[tokio::test]
async fn only_the_protocol_asked_for_is_switched_to() {
    for upgrade in ["upgrade: h2c\r\n", "", "upgrade: websocket\r\nupgrade: h2c\r\n", "upgrade: websocket, h2c\r\n"] {
        let bytes = format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n{upgrade}\r\n");
        let peer = answering(bytes, true).await;
        let fault = Ask::upgrade("websocket").send(&upstream(), &peer).await.err().unwrap();
        assert_eq!(fault.reason, Reason::BadResponse);
    }
    let peer = answering("HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n", true).await;
    let reply = Ask::upgrade("websocket").send(&upstream(), &peer).await.unwrap();
    assert!(reply.upgraded.is_none());
}

#[tokio::test]
async fn an_answer_byte_by_byte_is_the_same_answer() {
    let peer = peer(|_, mut socket| async move {
        socket.set_nodelay(true).unwrap();
        read_head(&mut socket).await;
        for byte in b"HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nz: 1\r\n\r\n" {
            socket.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        read_head(&mut socket).await;
    })
    .await;
    let up = upstream();
    let got = Ask::get().send(&up, &peer).await.unwrap().body.collect().await.unwrap();
    assert_eq!(got.trailers().unwrap()["z"], "1");
    assert_eq!(got.to_bytes(), "abc");
    assert_eq!(up.connections()[&7].idle, 1);
}

#[tokio::test]
async fn a_kept_body_survives_a_failed_try() {
    let peer = answering("HTTP/9", true).await;
    let mut body = Body::full("again");
    let fault = Ask::post().told(&upstream(), &peer, &mut body, None).await.err().unwrap();
    assert_eq!(fault.proof, Proof::MayHaveRun);
    assert_eq!(body.collect().await.unwrap().to_bytes(), "again");
}

#[tokio::test]
async fn nothing_written_proves_that_nothing_ran_and_keeps_the_body() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let dialer = Dialer { tls: None, name: None };
    let (dialed, accepted) =
        tokio::join!(dialer.oneshot(Dial { address, offer: Offer::H1, preface: Vec::new() }), listener.accept());
    // A reset on the loopback has arrived when this returns.
    socket2::SockRef::from(&accepted.as_ref().unwrap().0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(accepted);
    let shard = Shard::new(Settings::new("s"));
    let conn = Box::new(super::Conn::new(dialed.unwrap().wire, std::sync::Weak::new(), shard.open(1, 1)));
    let (feed, mut body) = channel();
    feed.send(Frame::data(Bytes::from_static(b"whole"))).await.unwrap();
    drop(feed);
    let (method, target, headers) = (Method::POST, PathAndQuery::from_static("/"), HeaderMap::new());
    let head = Head {
        method: &method,
        target: &target,
        https: false,
        host: b"a",
        headers: &headers,
        extra: &[],
        te_trailers: false,
        expect_continue: false,
        upgrade: None,
        grpc: false,
        client: None,
    };
    let limits = super::Limits { head: 1024, requests: 1 };
    let failed = super::send(conn, &head, &mut body, None, limits).await.err().unwrap();
    assert_eq!((failed.fault.reason, failed.fault.proof, failed.silent), (Reason::Reset, Proof::NeverRan, true));
    assert_eq!(body.collect().await.unwrap().to_bytes(), "whole");
}

/// A message, its payload, and what follows it, decoded in one piece by the book.
fn reference(mut bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut payload = Vec::new();
    fn line<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
        let all = *bytes;
        let at = all.windows(2).position(|w| w == b"\r\n")?;
        *bytes = &all[at + 2..];
        let line = &all[..at];
        (!line.contains(&b'\n') && !line.contains(&b'\r')).then_some(line)
    }
    loop {
        let head = line(&mut bytes)?;
        let digits = head.split(|b| *b == b';').next()?;
        let plain = head.iter().all(|b| *b == b'\t' || (*b >= 0x20 && *b != 0x7f));
        if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) || !plain {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        if size == 0 {
            while !line(&mut bytes)?.is_empty() {}
            return Some((payload, bytes.len()));
        }
        payload.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

fn decoded(bytes: &[u8], cuts: &[usize]) -> Option<(Vec<u8>, usize)> {
    let (mut decoder, mut buf, mut payload) = (Decoder::new(32 * 1024), BytesMut::new(), Vec::new());
    let mut ends: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut from = 0;
    for to in ends {
        buf.extend_from_slice(&bytes[from..to]);
        from = to;
        loop {
            match decoder.decode(&mut buf).ok()? {
                Event::Data(data) => payload.extend_from_slice(&data),
                Event::Need => break,
                Event::End => return Some((payload, buf.len() + bytes.len() - to)),
            }
        }
    }
    None
}

proptest! {
    #[test]
    fn chunks_decode_like_the_reference(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
        extension in "(;[a-z]{0,3}(=[a-z]{1,3})?)?",
        trailer in "(x-[a-z]{1,4}: [a-z]{0,6}\r\n){0,2}",
        rest in prop::collection::vec(any::<u8>(), 0..10),
        spoil in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut bytes = Vec::new();
        for chunk in &chunks {
            bytes.extend_from_slice(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(format!("0\r\n{trailer}\r\n").as_bytes());
        let framed = bytes.len();
        bytes.extend_from_slice(&rest);
        match spoil {
            None => {
                let got = decoded(&bytes, &cuts);
                prop_assert_eq!(&got, &reference(&bytes));
                prop_assert_eq!(got, Some((chunks.concat(), rest.len())));
            }
            Some((at, byte)) => {
                let at = at.index(framed);
                bytes[at] = byte;
                // Trailer names are judged by us alone, so ours may refuse more, never read otherwise.
                if let Some(got) = decoded(&bytes, &cuts) {
                    prop_assert_eq!(Some(got), reference(&bytes));
                }
            }
        }
    }

    #[test]
    fn a_head_means_the_same_however_it_is_cut(
        bytes in "HTTP/1.[01] [0-9]{3}( [a-zA-Z ]{0,6})?\r\n((content-length: [0-9]{1,2}|[a-z]{1,3}: [ -~]{0,8})\r\n){0,4}\r\n",
        cuts in prop::collection::vec(any::<usize>(), 0..8),
        to_head in any::<bool>(),
    ) {
        let bytes = bytes.as_bytes();
        let whole = super::parse::response(&mut BytesMut::from(bytes), &mut 0, 4096, to_head);
        let mut ends: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let (mut buf, mut scanned, mut from) = (BytesMut::new(), 0, 0);
        let mut pieces = Ok(None);
        for to in ends {
            buf.extend_from_slice(&bytes[from..to]);
            from = to;
            pieces = super::parse::response(&mut buf, &mut scanned, 4096, to_head);
            if !matches!(pieces, Ok(None)) {
                break;
            }
        }
        prop_assert_eq!(format!("{:?}", whole), format!("{:?}", pieces));
    }
}
