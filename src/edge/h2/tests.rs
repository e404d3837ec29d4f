//! HTTP/2 over real sockets: the h2 crate's client, and frames written by hand.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::atomic::Ordering::SeqCst;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{Method, Request, StatusCode};
use onehop_filters::contract::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::frames::PREFACE;
use crate::edge::conn::room::{CHUNK, PATIENCE, Room, closed, limits, rest, settings, statuses};
use crate::edge::drain_signal::Phase;
use crate::edge::serve::Settings;

async fn connect(room: &Room) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let (send, conn) = client::handshake(room.dial().await).await.expect("a handshake");
    (send, tokio::spawn(conn))
}

fn request(path: &str) -> Request<()> {
    Request::builder().uri(format!("http://a{path}")).body(()).expect("a request")
}

/// A whole exchange, flow control included.
async fn exchange(
    mut send: SendRequest<Bytes>,
    path: &str,
    upload: Option<Bytes>,
) -> Result<(StatusCode, Vec<u8>), h2::Error> {
    timeout(PATIENCE, async {
        poll_fn(|cx| send.poll_ready(cx)).await?;
        let (response, mut body) = send.send_request(request(path), upload.is_none())?;
        if let Some(upload) = upload {
            body.send_data(upload, true)?;
        }
        let (head, mut body) = response.await?.into_parts();
        let mut all = Vec::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            all.extend_from_slice(&data);
        }
        Ok((head.status, all))
    })
    .await
    .expect("in time")
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let n = u32::try_from(payload.len()).expect("small").to_be_bytes();
    let mut frame = vec![n[1], n[2], n[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// `GET http://a/hold`, in HPACK's static table and literals.
const GET_HOLD: &[u8] = b"\x82\x86\x41\x01a\x44\x05/hold";

async fn raw(room: &Room, frames: &[u8]) -> TcpStream {
    let mut tcp = room.dial().await;
    tcp.write_all(PREFACE).await.expect("sent");
    tcp.write_all(&frame(0x4, 0, 0, &[])).await.expect("sent");
    // The connection may be gone before all of it is written.
    let _ = tcp.write_all(frames).await;
    tcp
}

/// The code of the last GOAWAY before the end of the connection.
async fn goaway(tcp: &mut TcpStream) -> Option<u32> {
    let mut all = Vec::new();
    // A reset ends it, too; what came before counts.
    let _ = timeout(PATIENCE, tcp.read_to_end(&mut all)).await.expect("the connection ends");
    let (mut rest, mut code) = (&all[..], None);
    while let [a, b, c, kind, _, _, _, _, _, more @ ..] = rest {
        let (payload, next) = more.split_at(usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c));
        if *kind == 0x7 {
            code = Some(u32::from_be_bytes(payload[4..8].try_into().expect("four bytes")));
        }
        rest = next;
    }
    code
}

const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

#[tokio::test]
async fn streams_run_side_by_side_and_large_bodies_stay_whole() {
    let room = Room::open(settings()).await;
    let (send, _conn) = connect(&room).await;
    let mut all = tokio::task::JoinSet::new();
    for n in 0..40 {
        let send = send.clone();
        all.spawn(async move {
            match n % 3 {
                0 => {
                    let (status, body) = exchange(send, "/stream", None).await.expect("an answer");
                    assert_eq!((status, body.len()), (StatusCode::OK, 100 * CHUNK));
                    assert!(body.iter().all(|&b| b == b'x'));
                }
                1 => {
                    let path = format!("/n/{n}");
                    let (_, body) = exchange(send, &path, None).await.expect("an answer");
                    assert_eq!(body, path.as_bytes());
                }
                _ => {
                    let upload = Bytes::from(vec![u8::try_from(n).expect("small"); 90_000]);
                    let (_, body) = exchange(send, "/echo", Some(upload.clone())).await.expect("an answer");
                    assert_eq!(body, upload);
                }
            }
        });
    }
    all.join_all().await;
    assert_eq!(room.link().requests(), 40);
    assert!(room.link().bytes_out() > 14 * 100 * CHUNK as u64);
}

#[tokio::test]
async fn a_slow_reader_holds_only_itself_back() {
    let room = Room::open(settings()).await;
    // A wide window for the connection, a narrow one for each stream.
    let wide = client::Builder::new().initial_connection_window_size(1 << 20).handshake(room.dial().await).await;
    let (mut send, conn) = wide.expect("a handshake");
    tokio::spawn(conn);
    let (response, _) = send.send_request(request("/stream"), true).expect("open");
    let mut slow = timeout(PATIENCE, response).await.expect("in time").expect("a head").into_body();
    // Nothing is released: its window closes, others go on.
    for _ in 0..5 {
        let (_, body) = exchange(send.clone(), "/stream", None).await.expect("an answer");
        assert_eq!(body.len(), 100 * CHUNK);
    }
    let mut got = 0;
    let end = timeout(PATIENCE, async {
        loop {
            match slow.data().await {
                Some(Ok(data)) => got += data.len(),
                Some(Err(e)) => return e.reason(),
                None => return None,
            }
        }
    })
    .await
    .expect("the stream is cut");
    assert_eq!(end, Some(h2::Reason::CANCEL));
    assert!(got < 100 * CHUNK);
    assert!(exchange(send, "/after", None).await.is_ok(), "the connection goes on");
}

#[tokio::test]
async fn a_client_that_stops_reading_holds_the_connection_back() {
    const STREAMS: usize = 12;
    let room = Room::open(settings()).await;
    let mut builder = client::Builder::new();
    builder.initial_window_size(1 << 24).initial_connection_window_size(1 << 28);
    for (nth, resumes) in [(1, true), (2, false)] {
        let tcp = room.dial().await;
        socket2::SockRef::from(&tcp).set_recv_buffer_size(16 * 1024).expect("set");
        let (mut send, mut conn) = builder.handshake::<_, Bytes>(tcp).await.expect("a handshake");
        let mut responses = Vec::new();
        for _ in 0..STREAMS {
            responses.push(send.send_request(request("/stream"), true).expect("open").0);
        }
        // One poll sends the requests; then nobody looks at the socket.
        poll_fn(|cx| Poll::Ready(Pin::new(&mut conn).poll(cx).is_ready())).await;
        room.until("there", |room| room.rooms.links.lock().len() == nth).await;
        room.until("all asked", |room| room.link().requests() == STREAMS as u64).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(room.link().bytes_out() < (STREAMS * 100 * CHUNK) as u64, "held back, not buffered");
        if !resumes {
            room.until("cut", |room| *room.rooms.ends.lock() == ["slow-reader"]).await;
            return;
        }
        let conn = tokio::spawn(conn);
        for response in responses {
            let mut body = timeout(PATIENCE, response).await.expect("in time").expect("a head").into_body();
            let mut got = 0;
            while let Some(data) = timeout(PATIENCE, body.data()).await.expect("in time") {
                let data = data.expect("whole");
                assert!(data.iter().all(|&b| b == b'x'));
                got += data.len();
            }
            assert_eq!(got, 100 * CHUNK);
        }
        conn.abort();
    }
}

#[tokio::test]
async fn cut_bodies_and_panics_reset_their_stream_only() {
    let room = Room::open(settings()).await;
    let (send, _conn) = connect(&room).await;
    for path in ["/cut", "/panic", "/early-1xx"] {
        let error = exchange(send.clone(), path, None).await.expect_err("a reset");
        assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR), "{path}");
    }
    assert!(exchange(send, "/after", None).await.is_ok(), "the connection goes on");
}

#[tokio::test]
async fn an_upload_that_is_reset_is_not_complete() {
    let room = Room::open(settings()).await;
    let head = frame(0x1, 0x4, 1, b"\x83\x86\x41\x01a\x44\x09/detached");
    // NO_ERROR, too, is no end of the body.
    let cut = [head, frame(0x0, 0, 1, b"abc"), frame(0x3, 0, 1, &[0; 4])].concat();
    let _tcp = raw(&room, &cut).await;
    room.until("cut", |room| *room.rooms.uploads.lock() == [Err(Reason::ClientGone)]).await;
}

#[tokio::test]
async fn uploads_have_limits_and_clocks() {
    let room = Room::open(settings()).await;
    let (mut send, _conn) = connect(&room).await;
    for (upload, status) in [(100_001, StatusCode::PAYLOAD_TOO_LARGE), (0, StatusCode::REQUEST_TIMEOUT)] {
        let (response, mut body) = send.send_request(request("/echo"), false).expect("open");
        body.send_data(Bytes::from(vec![b'x'; upload]), false).expect("sent");
        assert_eq!(timeout(PATIENCE, response).await.expect("in time").expect("a head").status(), status);
    }
}

/// Opens a tunnel to the echo.
async fn tunnel(mut send: SendRequest<Bytes>) -> (h2::SendStream<Bytes>, h2::RecvStream) {
    // The permission comes with the server's SETTINGS.
    timeout(PATIENCE, async {
        while !send.is_extended_connect_protocol_enabled() {
            exchange(send.clone(), "/", None).await.expect("an answer");
        }
    })
    .await
    .expect("enabled");
    let mut connect = request("/upgrade");
    *connect.method_mut() = Method::CONNECT;
    connect.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let (response, up) = send.send_request(connect, false).expect("open");
    (up, timeout(PATIENCE, response).await.expect("in time").expect("a head").into_body())
}

async fn echoes(up: &mut h2::SendStream<Bytes>, down: &mut h2::RecvStream) {
    up.send_data(Bytes::from_static(b"ping"), false).expect("sent");
    let echo = timeout(PATIENCE, down.data()).await.expect("in time").expect("data").expect("data");
    assert_eq!(echo, b"ping"[..]);
}

#[tokio::test]
async fn extended_connect_upgrades() {
    let room = Room::open(settings()).await;
    let (send, _conn) = connect(&room).await;
    let (mut up, mut down) = tunnel(send).await;
    echoes(&mut up, &mut down).await;
    up.send_data(Bytes::new(), true).expect("sent");
    assert!(timeout(PATIENCE, down.data()).await.expect("in time").is_none(), "half-closed, then closed");
    room.until("over", |room| room.link().wire.in_flight.load(SeqCst) == 0).await;
}

#[tokio::test]
async fn a_connection_with_a_tunnel_is_not_idle() {
    let mut short = limits();
    short.idle_timeout = Duration::from_millis(50);
    let room = Room::open(Settings { limits: short, ..settings() }).await;
    let (send, _conn) = connect(&room).await;
    let (mut up, mut down) = tunnel(send).await;
    tokio::time::sleep(super::FAREWELL + Duration::from_millis(300)).await;
    echoes(&mut up, &mut down).await;
    drop((up, down));
    room.until("over", |room| room.live.load(SeqCst) == 0).await;
}

#[tokio::test]
async fn floods_end_the_connection() {
    for (frames, why) in [
        (frame(0x6, 0, 0, &[0; 8]).repeat(2000), "ping-flood"),
        (frame(0x4, 0, 0, &[]).repeat(200), "settings-flood"),
        (frame(0x8, 0, 0, &[0, 0, 0, 1]).repeat(2000), "window-flood"),
        (frame(0x2, 0, 1, &[0, 0, 0, 0, 1]).repeat(300), "priority-flood"),
        (frame(0xb7, 0, 0, &[]).repeat(1100), "frame-flood"),
    ] {
        let room = Room::open(settings()).await;
        let mut tcp = raw(&room, &frames).await;
        assert_eq!(goaway(&mut tcp).await, Some(ENHANCE_YOUR_CALM), "{why}");
        room.until(why, |room| *room.rooms.ends.lock() == [why]).await;
        assert_eq!(room.rooms.calls.load(SeqCst), 0);
    }
}

#[tokio::test]
async fn rapid_reset_ends_the_connection_however_it_is_paced() {
    let room = Room::open(settings()).await;
    let mut tcp = raw(&room, &[]).await;
    room.until("there", |room| room.live.load(SeqCst) == 1).await;
    let mut stream = 1;
    timeout(PATIENCE, async {
        while room.rooms.ends.lock().is_empty() {
            // Paced, so that each stream is accepted before it is reset: h2 counts only those that are not.
            if tcp.write_all(&frame(0x1, 0x5, stream, GET_HOLD)).await.is_err() {
                break;
            }
            let calls = u64::from(stream).div_ceil(2);
            room.until("accepted", |room| room.rooms.calls.load(SeqCst) == calls || room.live.load(SeqCst) == 0).await;
            if tcp.write_all(&frame(0x3, 0, stream, &[0, 0, 0, 8])).await.is_err() {
                break;
            }
            stream += 2;
        }
    })
    .await
    .expect("it ends");
    assert_eq!(goaway(&mut tcp).await, Some(ENHANCE_YOUR_CALM));
    room.until("cut", |room| *room.rooms.ends.lock() == ["rapid-reset"]).await;
    // What was begun has been cancelled.
    room.until("cancelled", |room| room.link().wire.in_flight.load(SeqCst) == 0).await;
}

#[tokio::test]
async fn empty_frames_end_the_connection() {
    let data = frame(0x0, 0, 1, &[]).repeat(200);
    let post = b"\x83\x86\x41\x01a\x44\x05/hold";
    let continuations = frame(0x9, 0, 1, &[]).repeat(200);
    for frames in [[frame(0x1, 0x4, 1, post), data].concat(), [frame(0x1, 0x1, 1, GET_HOLD), continuations].concat()] {
        let room = Room::open(settings()).await;
        let mut tcp = raw(&room, &frames).await;
        assert_eq!(goaway(&mut tcp).await, Some(ENHANCE_YOUR_CALM));
        room.until("over", |room| room.rooms.ends.lock().len() == 1).await;
    }
}

#[tokio::test]
async fn what_is_begun_must_be_finished() {
    let room = Room::open(settings()).await;
    // Half a preface could still be a method that starts with `PRI`.
    let mut tcp = room.dial().await;
    tcp.write_all(&PREFACE[..10]).await.expect("sent");
    assert_eq!(statuses(&rest(&mut tcp).await), [408]);
    let mut tcp = raw(&room, &frame(0x1, 0x1, 1, GET_HOLD)).await;
    rest(&mut tcp).await;
    room.until("cut", |room| room.rooms.ends.lock().contains(&"head-timeout")).await;
    // Where ALPN has said h2, a client that says nothing gets no idle timeout.
    let alpn = crate::edge::serve::Alpn::H2;
    let room = Room::open_as(settings(), alpn, |tcp| async { Some(tcp.into()) }).await;
    room.talk(b"").await;
    room.until("cut", |room| *room.rooms.ends.lock() == ["preface-timeout"]).await;
}

#[tokio::test]
async fn an_idle_connection_and_a_full_one_say_goodbye() {
    let mut short = limits();
    short.idle_timeout = Duration::from_millis(150);
    let room = Room::open(Settings { limits: short, ..settings() }).await;
    let (send, conn) = connect(&room).await;
    exchange(send.clone(), "/", None).await.expect("an answer");
    timeout(PATIENCE, conn).await.expect("in time").expect("no panic").expect("in good order");

    let mut few = limits();
    few.requests = Some(3);
    let room = Room::open(Settings { limits: few, ..settings() }).await;
    let (send, conn) = connect(&room).await;
    for _ in 0..3 {
        exchange(send.clone(), "/", None).await.expect("an answer");
    }
    timeout(PATIENCE, conn).await.expect("in time").expect("no panic").expect("in good order");
    room.until("over", |room| room.live.load(SeqCst) == 0).await;
    assert!(room.rooms.ends.lock().is_empty());
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight() {
    let room = Room::open(settings()).await;
    let (send, conn) = connect(&room).await;
    let held = tokio::spawn(exchange(send.clone(), "/hold", None));
    room.until("in flight", |room| room.rooms.calls.load(SeqCst) == 1).await;
    room.drain.send_replace(Phase::Draining);
    room.until("told", |room| room.link().drain()).await;
    room.rooms.go.notify_one();
    assert_eq!(held.await.expect("no panic").expect("an answer").1, b"held");
    timeout(PATIENCE, conn).await.expect("in time").expect("no panic").expect("in good order");
    assert!(room.rooms.ends.lock().is_empty());
}

#[tokio::test]
async fn a_drain_does_not_wait_for_an_acknowledgement() {
    let room = Room::open(settings()).await;
    let mut tcp = raw(&room, &[]).await;
    room.until("there", |room| room.live.load(SeqCst) == 1 && room.link().bytes_in() > 24).await;
    room.drain.send_replace(Phase::Draining);
    assert_eq!(goaway(&mut tcp).await, Some(NO_ERROR));
    // A client that has not even begun goes at once; `Kill` cuts the rest.
    let room = Room::open(settings()).await;
    let mut mute = room.dial().await;
    let mut busy = raw(&room, &frame(0x1, 0x5, 1, GET_HOLD)).await;
    room.until("in flight", |room| room.rooms.calls.load(SeqCst) == 1).await;
    room.drain.send_replace(Phase::Draining);
    assert!(closed(&mut mute).await);
    room.drain.send_replace(Phase::Kill);
    rest(&mut busy).await;
    room.until("cancelled", |room| room.rooms.cancelled.load(SeqCst) == 1).await;
}

#[tokio::test]
async fn a_breach_of_the_protocol_is_named() {
    let alpn = crate::edge::serve::Alpn::H2;
    let room = Room::open_as(settings(), alpn, |tcp| async { Some(tcp.into()) }).await;
    // No preface at all (RFC 9113 section 3.4).
    let mut tcp = room.dial().await;
    tcp.write_all(b"INVALID CONNECTION PREFACE\r\n\r\n").await.expect("sent");
    assert_eq!(goaway(&mut tcp).await, Some(PROTOCOL_ERROR));
    // DATA on stream 0, and a second SETTINGS of a wrong size, behind a good one.
    for breach in [frame(0x0, 0, 0, b"x"), frame(0x5, 4, 1, &[0; 4])] {
        let mut tcp = raw(&room, &breach).await;
        assert_eq!(goaway(&mut tcp).await, Some(PROTOCOL_ERROR));
    }
    room.until("over", |room| *room.rooms.ends.lock() == ["protocol"; 3]).await;
}

#[tokio::test]
async fn hints_come_before_their_answer() {
    let room = Room::open(settings()).await;
    let (mut send, _conn) = connect(&room).await;
    let (mut response, _) = send.send_request(request("/hints"), true).expect("open");
    let hints = timeout(PATIENCE, poll_fn(|cx| response.poll_informational(cx))).await.expect("in time");
    let hints = hints.expect("an interim answer").expect("no error");
    assert_eq!(hints.status(), StatusCode::EARLY_HINTS);
    assert_eq!(hints.headers()["link"], "</a.css>");
    let mut answer = timeout(PATIENCE, response).await.expect("in time").expect("a head").into_body();
    assert_eq!(answer.data().await.expect("a body").expect("whole"), b"hinted"[..]);
}

#[tokio::test]
async fn continue_is_asked_for_when_the_body_is() {
    let room = Room::open(settings()).await;
    let (mut send, _conn) = connect(&room).await;
    let waits = |path: &str, expect: &str| {
        let mut request = request(path);
        *request.method_mut() = Method::POST;
        request.headers_mut().insert("expect", expect.parse().expect("a value"));
        request
    };
    let (mut response, mut body) = send.send_request(waits("/echo", "100-Continue"), false).expect("open");
    let go = timeout(PATIENCE, poll_fn(|cx| response.poll_informational(cx))).await.expect("in time");
    assert_eq!(go.expect("an interim answer").expect("no error").status(), StatusCode::CONTINUE);
    body.send_data(Bytes::from_static(b"abc"), true).expect("sent");
    let mut echo = timeout(PATIENCE, response).await.expect("in time").expect("a head").into_body();
    assert_eq!(echo.data().await.expect("a body").expect("whole"), b"abc"[..]);
    // Nobody reads it: nobody asks for it.
    let (mut response, _body) = send.send_request(waits("/early", "100-continue"), false).expect("open");
    let go = timeout(PATIENCE, poll_fn(|cx| response.poll_informational(cx))).await.expect("in time");
    assert!(go.is_none());
    assert_eq!(timeout(PATIENCE, response).await.expect("in time").expect("a head").status().as_u16(), 413);
}

#[tokio::test]
async fn an_upload_that_nobody_reads_stops_at_its_window() {
    let room = Room::open(settings()).await;
    let (mut send, _conn) = connect(&room).await;
    let (response, mut body) = send.send_request(request("/hold"), false).expect("open");
    let mut sent = 0;
    let stopped = timeout(Duration::from_millis(500), async {
        loop {
            body.reserve_capacity(1 << 20);
            let room = poll_fn(|cx| body.poll_capacity(cx)).await.expect("open").expect("no error");
            body.send_data(Bytes::from(vec![b'x'; room]), false).expect("sent");
            sent += room;
        }
    })
    .await;
    assert!(stopped.is_err(), "it goes on for ever");
    // One window, and what was taken at once when it arrived.
    assert!((60_000..=2 * 65_536).contains(&sent), "{sent}");
    // Others are not held up.
    let upload = Bytes::from(vec![b'y'; 90_000]);
    assert_eq!(exchange(send, "/echo", Some(upload.clone())).await.expect("an answer").1, upload);
    room.rooms.go.notify_one();
    assert!(timeout(PATIENCE, response).await.expect("in time").is_ok());
}

#[tokio::test]
async fn an_early_answer_ends_the_upload_without_an_error() {
    let room = Room::open(settings()).await;
    let (mut send, _conn) = connect(&room).await;
    let (response, mut body) = send.send_request(request("/early"), false).expect("open");
    let mut answer = timeout(PATIENCE, response).await.expect("in time").expect("a head").into_body();
    assert_eq!(answer.data().await.expect("a body").expect("whole"), b"early"[..]);
    let reset = timeout(PATIENCE, poll_fn(|cx| body.poll_reset(cx))).await.expect("in time").expect("no error");
    assert_eq!(reset, h2::Reason::NO_ERROR);
}
