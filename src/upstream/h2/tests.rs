//! Sessions against a server made of the h2 crate, which can be told to misbehave frame by frame.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason as Code, RecvStream};
use http::header::{HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use onehop_filters::contract::{Body, Proof, Reason};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::plan;
use crate::config::plan::Protocol;
use crate::upstream::tests::{Ask, Peer, answering, channel, failing, limits, peer, settings, text};
use crate::upstream::{Settings, Upstream};

type Call = (Request<RecvStream>, SendResponse<Bytes>);

fn upstream() -> Upstream {
    Upstream::new(Settings { protocol: Protocol::H2, ..settings() })
}

/// A server that handles every stream by itself.
async fn streams<F, R>(handle: F) -> Peer
where
    F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    connections(Builder::new(), move |mut connection| {
        let handle = handle.clone();
        async move {
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(handle(request, respond));
            }
        }
    })
    .await
}

async fn connections<F, R>(builder: Builder, handle: F) -> Peer
where
    F: Fn(Connection<TcpStream, Bytes>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    peer(move |_, socket| {
        let (handle, builder) = (handle.clone(), builder.clone());
        async move {
            if let Ok(connection) = builder.handshake(socket).await {
                handle(connection).await;
            }
        }
    })
    .await
}

fn head(status: u16) -> Response<()> {
    Response::builder().status(status).body(()).unwrap()
}

async fn echo((request, mut respond): Call) {
    let mut body = request.into_body();
    let mut out = respond.send_response(head(200), false).unwrap();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        out.send_data(data, false).unwrap();
    }
    match body.trailers().await.unwrap() {
        Some(trailers) => out.send_trailers(trailers).unwrap(),
        None => out.send_data(Bytes::new(), true).unwrap(),
    }
}

#[tokio::test]
async fn bodies_and_trailers_pass_both_ways() {
    let peer = streams(|rq, rs| echo((rq, rs))).await;
    let (feed, body) = channel();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("host", HeaderValue::from_static("evil"));
    feed.send(Frame::data(Bytes::from_static(b"hello"))).await.unwrap();
    feed.send(Frame::trailers(trailers)).await.unwrap();
    drop(feed);
    let up = upstream();
    let reply = Ask::post().with(&up, &peer, body).await.unwrap();
    assert_eq!((reply.status, reply.protocol, reply.reused), (StatusCode::OK, Version::HTTP_2, false));
    let got = reply.body.collect().await.unwrap();
    assert_eq!(got.trailers().unwrap().len(), 1);
    assert_eq!(got.to_bytes(), "hello");
    assert!(Ask::post().with(&up, &peer, Body::full("x")).await.unwrap().reused);
    assert_eq!(peer.accepted.load(Relaxed), 1);
}

#[tokio::test]
async fn a_body_larger_than_every_window_passes() {
    let peer = streams(|rq, rs| echo((rq, rs))).await;
    let reply = Ask::post().with(&upstream(), &peer, Body::full(vec![b'x'; 6 << 20])).await.unwrap();
    assert_eq!(reply.body.collect().await.unwrap().to_bytes().len(), 6 << 20);
}

#[tokio::test]
async fn both_directions_flow_at_once() {
    let peer = streams(|rq, rs| echo((rq, rs))).await;
    let (feed, body) = channel();
    feed.send(Frame::data(Bytes::from_static(b"1"))).await.unwrap();
    let reply = Ask::post().with(&upstream(), &peer, body).await.unwrap();
    let mut answer = reply.body;
    for n in ["1", "2", "3"] {
        if n != "1" {
            feed.send(Frame::data(Bytes::from(n))).await.unwrap();
        }
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), n);
    }
    drop(feed);
    assert!(answer.frame().await.is_none());
}

#[tokio::test]
async fn the_head_is_legal_http2() {
    let peer = streams(|request, mut respond| async move {
        let (parts, _) = request.into_parts();
        assert_eq!(parts.uri, "http://example.com/a?b");
        let fields: Vec<_> = parts.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        let mut answer = Response::new(());
        answer.headers_mut().insert("seen", HeaderValue::from_str(&fields.join(", ")).unwrap());
        respond.send_response(answer, true).unwrap();
    })
    .await;
    let mut ask = Ask { te: true, ..Ask::post() };
    for name in ["connection", "host", "upgrade", "keep-alive", "transfer-encoding", "content-length", "x-a"] {
        ask.headers.insert(name, HeaderValue::from_static("1"));
    }
    let reply = ask.with(&upstream(), &peer, Body::full("abc")).await.unwrap();
    assert_eq!(reply.headers["seen"], "x-a: 1, te: trailers, content-length: 3");
    assert!(reply.body.is_end_stream());
}

#[tokio::test]
async fn a_refused_stream_never_ran() {
    let peer = streams(|_, mut respond| async move { respond.send_reset(Code::REFUSED_STREAM) }).await;
    let up = upstream();
    let fault = Ask::post().send(&up, &peer).await.err().unwrap();
    assert_eq!((fault.reason, fault.proof), (Reason::RefusedStream, Proof::NeverRan));
    assert!(Ask::get().send(&up, &peer).await.is_err());
    assert_eq!(peer.accepted.load(Relaxed), 1, "the session is as good as before");
}

#[tokio::test]
async fn any_other_reset_may_have_run() {
    for code in [Code::CANCEL, Code::INTERNAL_ERROR, Code::ENHANCE_YOUR_CALM] {
        let peer = streams(move |_, mut respond| async move { respond.send_reset(code) }).await;
        let fault = Ask::get().send(&upstream(), &peer).await.err().unwrap();
        assert_eq!((fault.reason, fault.proof), (Reason::Reset, Proof::MayHaveRun), "{code:?}");
    }
}

#[tokio::test]
async fn a_stream_above_goaway_never_ran() {
    // By hand: settings, then GOAWAY with last stream 0 once the request is there.
    let peer = peer(|_, mut socket| async move {
        socket.read_exact(&mut [0; 24]).await.unwrap();
        socket.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        loop {
            let mut frame = [0; 9];
            socket.read_exact(&mut frame).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize];
            socket.read_exact(&mut payload).await.unwrap();
            match frame[3..5] {
                [1, _] => break,
                [6, 0] => {
                    let pong = [&[0, 0, 8, 6, 1, 0, 0, 0, 0], payload.as_slice()].concat();
                    socket.write_all(&pong).await.unwrap();
                }
                _ => {}
            }
        }
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        socket.write_all(&goaway).await.unwrap();
        let _ = socket.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let fault = Ask::post().send(&upstream(), &peer).await.err().unwrap();
    assert_eq!((fault.reason, fault.proof), (Reason::RefusedStream, Proof::NeverRan));
}

#[tokio::test]
async fn a_session_that_says_goaway_is_replaced() {
    let peer = connections(Builder::new(), |mut connection| async move {
        let (request, respond) = connection.accept().await.unwrap().unwrap();
        connection.graceful_shutdown();
        tokio::spawn(echo((request, respond)));
        while let Some(Ok(call)) = connection.accept().await {
            tokio::spawn(echo(call));
        }
    })
    .await;
    let up = upstream();
    for _ in 0..4 {
        let reply = Ask::post().with(&up, &peer, Body::full("x")).await.unwrap();
        assert_eq!(text(reply).await.unwrap(), "x");
    }
    assert!(peer.accepted.load(Relaxed) > 1);
}

#[tokio::test]
async fn a_reset_in_mid_body_is_a_cut_whatever_its_code() {
    for code in [Code::NO_ERROR, Code::CANCEL, Code::INTERNAL_ERROR] {
        // The reset would overtake data still queued: it waits until the data was seen.
        let seen = Arc::new(tokio::sync::Notify::new());
        let go = seen.clone();
        let peer = streams(move |_, mut respond| {
            let go = go.clone();
            async move {
                let mut out = respond.send_response(head(200), false).unwrap();
                out.send_data(Bytes::from_static(b"half"), false).unwrap();
                go.notified().await;
                out.send_reset(code);
            }
        })
        .await;
        let mut body = Ask::get().send(&upstream(), &peer).await.unwrap().body;
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
        seen.notify_one();
        let end = body.frame().await.unwrap();
        assert_eq!(end.err().unwrap().reason, Reason::Truncated, "{code:?}");
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test]
async fn a_complete_answer_survives_the_reset_behind_it() {
    let peer = streams(|_, mut respond| async move {
        let mut out = respond.send_response(head(200), false).unwrap();
        out.send_data(Bytes::from_static(b"all"), true).unwrap();
    })
    .await;
    let (_feed, body) = channel();
    let reply = Ask::post().with(&upstream(), &peer, body).await.unwrap();
    assert_eq!(text(reply).await.unwrap(), "all");
}

#[tokio::test]
async fn statuses_without_a_body_have_none() {
    let peer = streams(|request, mut respond| async move {
        let status = if request.method() == Method::HEAD { 200 } else { 204 };
        let mut answer = head(status);
        answer.headers_mut().insert("content-length", HeaderValue::from_static("3"));
        let mut out = respond.send_response(answer, false).unwrap();
        let _ = out.send_data(Bytes::from_static(b"abc"), true);
    })
    .await;
    let up = upstream();
    let reply = Ask::new(Method::HEAD).send(&up, &peer).await.unwrap();
    assert_eq!((&reply.headers["content-length"], reply.body.is_end_stream()), (&HeaderValue::from_static("3"), true));
    let reply = Ask::get().send(&up, &peer).await.unwrap();
    assert_eq!((reply.headers.len(), reply.body.is_end_stream()), (0, true));
}

#[tokio::test]
async fn a_head_has_limits() {
    let peer = streams(|_, mut respond| async move {
        let mut answer = head(200);
        for _ in 0..101 {
            answer.headers_mut().append("x", HeaderValue::from_static("y"));
        }
        respond.send_response(answer, true).unwrap();
    })
    .await;
    assert_eq!(Ask::get().send(&upstream(), &peer).await.err().unwrap().reason, Reason::ResponseTooLarge);
    let peer = streams(|_, mut respond| async move {
        let mut answer = head(200);
        answer.headers_mut().append("x", HeaderValue::from_bytes(&[b'y'; 40_000]).unwrap());
        respond.send_response(answer, true).unwrap();
    })
    .await;
    assert!(Ask::get().send(&upstream(), &peer).await.is_err());
}

#[tokio::test]
async fn interim_answers_pass() {
    let peer = streams(|_, mut respond| async move {
        let mut hints = head(103);
        hints.headers_mut().insert("link", HeaderValue::from_static("</a>"));
        respond.send_informational(hints).unwrap();
        respond.send_response(head(200), true).unwrap();
    })
    .await;
    let seen = Mutex::new(Vec::new());
    let tell = |status: StatusCode, headers: HeaderMap| seen.lock().push((status.as_u16(), headers.len()));
    Ask::get().told(&upstream(), &peer, &mut Body::Empty, Some(&tell)).await.unwrap();
    assert_eq!(*seen.lock(), [(103, 1)]);
}

#[tokio::test]
async fn a_body_waits_for_continue() {
    let peer = streams(|request, mut respond| async move {
        assert_eq!(request.headers()["expect"], "100-continue");
        respond.send_informational(head(100)).unwrap();
        echo((request, respond)).await;
    })
    .await;
    let ask = Ask { expect: true, ..Ask::post() };
    let reply = ask.with(&upstream(), &peer, Body::full("abc")).await.unwrap();
    assert_eq!(text(reply).await.unwrap(), "abc");
}

#[tokio::test]
async fn a_failed_upload_resets_the_stream() {
    let (end, wait) = tokio::sync::oneshot::channel();
    let end = Arc::new(Mutex::new(Some(end)));
    let peer = streams(move |request, _respond| {
        let end = end.clone();
        async move {
            let mut body = request.into_body();
            let code = loop {
                match body.data().await {
                    Some(Ok(_)) => {}
                    Some(Err(e)) => break e.reason(),
                    None => break None,
                }
            };
            end.lock().take().unwrap().send(code).unwrap();
        }
    })
    .await;
    let fault = Ask::post().with(&upstream(), &peer, failing(Reason::ClientGone)).await.err().unwrap();
    assert_eq!(fault.reason, Reason::ClientGone);
    assert_eq!(wait.await.unwrap(), Some(Code::CANCEL));
}

#[tokio::test]
async fn a_burst_opens_one_session_and_more_only_when_it_is_full() {
    let mut builder = Builder::new();
    builder.max_concurrent_streams(2);
    let peer = connections(builder, |mut connection| async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let _out = respond.send_response(head(200), false);
                std::future::pending::<()>().await;
            });
        }
    })
    .await;
    let up = upstream();
    let ask = Ask::get();
    let (one, two) = tokio::join!(ask.send(&up, &peer), ask.send(&up, &peer));
    let held = (one.unwrap(), two.unwrap());
    assert_eq!(peer.accepted.load(Relaxed), 1);
    let third = ask.send(&up, &peer).await.unwrap();
    assert_eq!(peer.accepted.load(Relaxed), 2);
    assert_eq!((up.connections()[&7].h2, up.connections()[&7].streams), (2, 3));
    drop((held, third));
    assert_eq!(up.connections()[&7].streams, 0);
}

#[tokio::test]
async fn an_idle_session_is_closed() {
    let (end, wait) = tokio::sync::oneshot::channel();
    let end = Arc::new(Mutex::new(Some(end)));
    let peer = connections(Builder::new(), move |mut connection| {
        let end = end.clone();
        async move {
            while let Some(Ok(call)) = connection.accept().await {
                tokio::spawn(echo(call));
            }
            end.lock().take().unwrap().send(()).unwrap();
        }
    })
    .await;
    let up = upstream();
    text(Ask::post().with(&up, &peer, Body::full("x")).await.unwrap()).await.unwrap();
    up.sweep(crate::upstream::now() + Duration::from_secs(60));
    wait.await.unwrap();
}

#[tokio::test]
async fn a_websocket_goes_over_extended_connect() {
    let mut builder = Builder::new();
    builder.enable_connect_protocol();
    let peer = connections(builder, |mut connection| async move {
        while let Some(Ok((request, respond))) = connection.accept().await {
            assert_eq!(request.method(), Method::CONNECT);
            assert_eq!(request.extensions().get::<h2::ext::Protocol>().unwrap().as_str(), "websocket");
            assert!(!request.headers().contains_key("sec-websocket-key"));
            tokio::spawn(echo((request, respond)));
        }
    })
    .await;
    let mut ask = Ask::upgrade("websocket");
    ask.headers.insert("sec-websocket-key", HeaderValue::from_static("x"));
    let reply = ask.send(&upstream(), &peer).await.unwrap();
    let mut tunnel = reply.upgraded.unwrap();
    tunnel.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    tunnel.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
    tunnel.shutdown().await.unwrap();
    assert_eq!(tunnel.read(&mut back).await.unwrap(), 0);
}

#[tokio::test]
async fn a_peer_without_extended_connect_is_not_asked() {
    let peer = streams(|rq, rs| echo((rq, rs))).await;
    let fault = Ask::upgrade("websocket").send(&upstream(), &peer).await.err().unwrap();
    assert_eq!((fault.reason, fault.proof), (Reason::BadResponse, Proof::NeverRan));
}

#[tokio::test]
async fn grpc_speaks_http2_where_nothing_was_said() {
    let peer = streams(|rq, rs| echo((rq, rs))).await;
    let up = Upstream::new(settings());
    let ask = Ask { grpc: true, ..Ask::post() };
    assert_eq!(ask.with(&up, &peer, Body::full("x")).await.unwrap().protocol, Version::HTTP_2);
}

#[tokio::test]
async fn a_peer_that_is_no_http2_server_is_a_failure() {
    let peer = answering("HTTP/1.1 400 No\r\n\r\n", true).await;
    let fault = Ask::post().send(&upstream(), &peer).await.err().unwrap();
    assert_eq!((fault.reason, fault.proof), (Reason::ConnectFailed, Proof::NeverRan));
}

#[tokio::test]
async fn a_silent_peer_runs_into_the_connect_timeout() {
    let peer = peer(|_, mut socket| async move { drop(socket.read_to_end(&mut Vec::new()).await) }).await;
    let up =
        Upstream::new(Settings { protocol: Protocol::H2, connect_timeout: Duration::from_millis(50), ..settings() });
    let fault = Ask::post().send(&up, &peer).await.err().unwrap();
    assert_eq!((fault.reason, fault.proof), (Reason::ConnectTimeout, Proof::NeverRan));
}

#[tokio::test]
async fn a_burst_respects_the_stream_limit_of_a_new_session() {
    let mut builder = Builder::new();
    builder.max_concurrent_streams(2);
    let peer = connections(builder, |mut connection| async move {
        while let Some(Ok(call)) = connection.accept().await {
            tokio::spawn(echo(call));
        }
    })
    .await;
    let (up, ask) = (upstream(), Ask::post());
    let calls = (0..40).map(|_| async { text(ask.with(&up, &peer, Body::full("x")).await.unwrap()).await.unwrap() });
    assert!(futures_util::future::join_all(calls).await.iter().all(|t| t == "x"));
    assert!(peer.accepted.load(Relaxed) <= 8);
}

fn limited(change: impl FnOnce(&mut plan::Connections)) -> Upstream {
    Upstream::new(Settings { protocol: Protocol::H2, connections: limits(change), ..settings() })
}

async fn exchange(up: &Upstream, peer: &Peer) -> bool {
    let reply = Ask::post().with(up, peer, Body::full("x")).await.unwrap();
    let reused = reply.reused;
    assert_eq!(text(reply).await.unwrap(), "x");
    reused
}

#[tokio::test]
async fn a_request_outlives_the_farewell_of_every_session() {
    let (tell, told) = tokio::sync::watch::channel(());
    let mut builder = Builder::new();
    builder.max_concurrent_streams(2);
    let peer = connections(builder, move |mut connection| {
        let mut told = told.clone();
        // Who comes after the farewell is welcome.
        told.mark_unchanged();
        async move {
            let mut leaving = false;
            loop {
                tokio::select! {
                    _ = told.changed(), if !leaving => {
                        connection.graceful_shutdown();
                        leaving = true;
                    }
                    call = connection.accept() => match call {
                        Some(Ok(call)) => drop(tokio::spawn(echo(call))),
                        _ => return,
                    },
                }
            }
        }
    })
    .await;
    let up = upstream();
    // Three sessions, each with a stream that goes on and room for another.
    let mut open = Vec::new();
    for _ in 0..6 {
        let (feed, body) = channel();
        feed.send(Frame::data(Bytes::from_static(b"1"))).await.unwrap();
        let reply = Ask::post().with(&up, &peer, body).await.unwrap();
        open.push(Some((feed, reply)));
    }
    assert_eq!(peer.accepted.load(Relaxed), 3);
    for n in [1, 3, 5] {
        let (feed, reply) = open[n].take().unwrap();
        drop(feed);
        text(reply).await.unwrap();
    }
    while up.connections()[&7].streams != 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tell.send(()).unwrap();
    // Whether or not the farewells have arrived: none of these fails.
    for _ in 0..20 {
        exchange(&up, &peer).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(peer.accepted.load(Relaxed) > 3);
    // And what was under way goes on to its end.
    for (feed, reply) in open.into_iter().flatten() {
        drop(feed);
        assert_eq!(text(reply).await.unwrap(), "1");
    }
}

#[tokio::test]
async fn a_session_carries_no_more_requests_than_allowed() {
    let peer = streams(|rq, rs| echo((rq, rs))).await;
    let up = limited(|l| l.max_requests = 2);
    for reused in [false, true, false, true, false] {
        assert_eq!(exchange(&up, &peer).await, reused);
    }
    assert_eq!(peer.accepted.load(Relaxed), 3);
}

#[tokio::test]
async fn a_session_that_grew_old_is_replaced_and_ends_after_what_it_carries() {
    let peer = streams(|rq, rs| echo((rq, rs))).await;
    let age = Duration::from_millis(80);
    let up = limited(|l| l.max_age = Some(age));
    let (feed, body) = channel();
    feed.send(Frame::data(Bytes::from_static(b"1"))).await.unwrap();
    let long = Ask::post().with(&up, &peer, body).await.unwrap();
    assert!(exchange(&up, &peer).await);
    // A tenth more, at most.
    tokio::time::sleep(age.mul_f32(1.2)).await;
    assert!(!exchange(&up, &peer).await, "another session");
    feed.send(Frame::data(Bytes::from_static(b"2"))).await.unwrap();
    drop(feed);
    assert_eq!(text(long).await.unwrap(), "12");
}

#[tokio::test]
async fn no_more_sessions_are_opened_than_allowed() {
    let mut builder = Builder::new();
    builder.max_concurrent_streams(2);
    let peer = connections(builder, |mut connection| async move {
        while let Some(Ok(call)) = connection.accept().await {
            tokio::spawn(echo(call));
        }
    })
    .await;
    let up = limited(|l| l.h2_max = 2);
    let calls = (0..30).map(|_| exchange(&up, &peer));
    futures_util::future::join_all(calls).await;
    assert!(peer.accepted.load(Relaxed) <= 2);
}

/// Answers one call on each connection, then hears and says nothing more, though the connection stays open.
async fn half_dead() -> Peer {
    connections(Builder::new(), |mut connection| async move {
        let call = connection.accept().await.unwrap().unwrap();
        let done = tokio::spawn(echo(call));
        while !done.is_finished() {
            let step = std::future::poll_fn(|cx| connection.poll_closed(cx));
            let _ = tokio::time::timeout(Duration::from_millis(5), step).await;
        }
        let step = std::future::poll_fn(|cx| connection.poll_closed(cx));
        let _ = tokio::time::timeout(Duration::from_millis(30), step).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(connection);
    })
    .await
}

#[tokio::test]
async fn a_dead_connection_is_found_out_while_it_is_idle() {
    let peer = half_dead().await;
    let up = limited(|l| {
        (l.ping, l.pong, l.ping_idle) = (Some(Duration::from_millis(60)), Duration::from_millis(100), true);
    });
    exchange(&up, &peer).await;
    let waited = tokio::time::timeout(Duration::from_secs(5), async {
        while up.connections()[&7].open > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("the session is closed");
    assert!(!exchange(&up, &peer).await, "a request does not meet it");
}

#[tokio::test]
async fn a_dead_connection_fails_what_it_carries_in_bounded_time() {
    let peer = half_dead().await;
    let up = limited(|l| (l.ping, l.pong) = (Some(Duration::from_millis(60)), Duration::from_millis(100)));
    exchange(&up, &peer).await;
    let stuck = tokio::time::timeout(Duration::from_secs(5), Ask::post().with(&up, &peer, Body::full("x"))).await;
    let fault = stuck.expect("not for ever").err().expect("nobody answers");
    assert_eq!((fault.reason, fault.proof), (Reason::Reset, Proof::MayHaveRun));
    assert!(!exchange(&up, &peer).await, "the next one has another session");
}
