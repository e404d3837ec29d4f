//! HTTP/1 over real sockets, byte by byte.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use onehop_filters::contract::Reason;
use tokio::io::AsyncWriteExt;
use tokio_rustls::rustls;

use super::room::{CHUNK, PATIENCE, Room, closed, limits, rest, settings, statuses, until};
use crate::edge::accept_io::{Plain, Rewind};
use crate::edge::drain_signal::Phase;
use crate::edge::serve::{Alpn, Settings};
use crate::edge::stream::Stream;

/// Each sequence is all a client sends; the statuses are all it gets before the connection closes.
const HEADS: &[(&[u8], &[u16])] = &[
    // Well-formed, closing.
    (b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", &[200]),
    (b"\r\nGET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", &[200]),
    (b"GET / HTTP/1.1\r\nhost: a\r\nx: \xff\xfe\r\nconnection: close\r\n\r\n", &[200]),
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc", &[200]),
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc", &[200]),
    // Lines.
    (b"GET / HTTP/1.1\nhost: a\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\nhost: a\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\nhost: a\r\n\n", &[400]),
    (b"GET / HTTP/1.1\n\n", &[400]),
    (b"\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"\r\rGET / HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\nhost: a\rb: c\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\rhost: a\r\n\r\n", &[400]),
    (b"GET /\rHTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    // Request lines.
    (b"GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"GET # HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"GET  / HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"GET /  HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b" GET / HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"G@T / HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"GET / HTTP/1.2\r\nhost: a\r\n\r\n", &[400]),
    (b"GET / HTTP/2.0\r\nhost: a\r\n\r\n", &[400]),
    (b"GET / HTTP/0.9\r\nhost: a\r\n\r\n", &[400]),
    (b"GET / http/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"GET / HTTP/1.10\r\nhost: a\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1 \r\nhost: a\r\n\r\n", &[400]),
    (b"GET /\r\n\r\n", &[400]),
    (b"GET\r\n\r\n", &[400]),
    (b"GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"GET /\x7f HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"GET /\x01 HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"GET a/b HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"GET ?q HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &[400]),
    (b"SSH-2.0-OpenSSH_9.6\r\n", &[400]),
    (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", &[400]),
    (b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKLMNOP / HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    // Fields.
    (b"GET / HTTP/1.1\r\nhost : a\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\n: a\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\nhost\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\nhost: a\r\n folded\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\n host: a\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\nho st: a\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\nx(y): a\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\nx\xff: a\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\nhost: a\x00\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\nhost: a\x7f\r\n\r\n", &[400]),
    (b"GET / HTTP/1.1\r\nhost: a\x08\r\n\r\n", &[400]),
    // Framing.
    (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", &[400]),
    (b"POST / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: x\r\n\r\n0\r\n\r\n", &[400]),
    (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", &[400]),
    (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc", &[400]),
    (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3, 3\r\n\r\nabc", &[400]),
    (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", &[400]),
    (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x3\r\n\r\nabc", &[400]),
    (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\n", &[400]),
    (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n", &[400]),
    (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", &[400]),
    (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n", &[400]),
    (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked;q=1\r\n\r\n", &[400]),
    (b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", &[400]),
    // Chunks: the service reads, fails, and says so.
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n3;x=y\r\nabc\r\n0\r\nt: u\r\n\r\n", &[200]),
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n", &[400]),
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", &[400]),
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n00000000000000003\r\nabc\r\n0\r\n\r\n", &[400]),
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3;\x00\r\nabc\r\n0\r\n\r\n", &[400]),
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n", &[400]),
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", &[400]),
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n", &[400]),
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", &[400]),
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\n\r\n", &[400]),
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\r\n", &[400]),
    // A second request that is refused does not spoil the first.
    (b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /#x HTTP/1.1\r\n", &[200, 400]),
    (b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabcGET / HTTP/1.1\nhost: a\r\n\r\n", &[200, 400]),
    (b"GET / HTTP/1.1\r\nhost: a\r\n\r\nG@T / HTTP/1.1\r\n\r\n", &[200, 400]),
    (b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nx y: z\r\n\r\n", &[200, 400]),
];

#[tokio::test]
async fn heads_and_chunks_are_judged_byte_by_byte() {
    let room = Room::open(settings()).await;
    assert!(HEADS.len() >= 60);
    let mut wrong = Vec::new();
    for (bytes, expected) in HEADS {
        let got = statuses(&room.talk(bytes).await);
        if got != *expected {
            wrong.push(format!("{}: {got:?}, not {expected:?}", bytes.escape_ascii()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn what_hyper_refuses_is_answered_in_our_words() {
    let room = Room::open(settings()).await;
    let answer = room.talk(b"GET / HTTP/1.1\r\nx y: z\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno"),
        "{answer}"
    );
    assert!(answer.ends_with("no"), "one answer only: {answer}");
    assert_eq!(*room.rooms.rejected.lock(), [Reason::BadRequest]);
    assert_eq!(room.rooms.calls.load(SeqCst), 0);
}

#[tokio::test]
async fn sizes_have_limits() {
    let room = Room::open(settings()).await;
    let get = |target: &str, fields: &str| format!("GET {target} HTTP/1.1\r\n{fields}connection: close\r\n\r\n");
    let long = format!("/{}", "a".repeat(255));
    for (bytes, expected) in [
        (get(&long, ""), 200),
        (get(&format!("{long}a"), ""), 414),
        (format!("GET /{}", "a".repeat(300)), 414),
        (get("/", &"a: b\r\n".repeat(19)), 200),
        (get("/", &"a: b\r\n".repeat(20)), 431),
        (get("/", &format!("a: {}\r\n", "b".repeat(4000))), 200),
        (get("/", &format!("a: {}\r\n", "b".repeat(4100))), 431),
        (format!("GET / HTTP/1.1\r\na: {}", "b".repeat(5000)), 431),
        ("\r\n".repeat(3000), 431),
    ] {
        assert_eq!(statuses(&room.talk(bytes.as_bytes()).await), [expected], "{:.80}", bytes);
    }
}

#[tokio::test]
async fn a_head_that_drips_is_cut_with_408() {
    let room = Room::open(settings()).await;
    let mut tcp = room.dial().await;
    tcp.write_all(b"GET / HT").await.expect("sent");
    assert_eq!(statuses(&rest(&mut tcp).await), [408]);
    // The same after a request, when the connection has been parked.
    let mut tcp = room.dial().await;
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
    until(&mut tcp, "\r\n\r\n/").await;
    room.until("parked", |room| room.link().parked() == 1).await;
    tcp.write_all(b"G").await.expect("sent");
    assert_eq!(statuses(&rest(&mut tcp).await), [408]);
    // And when it has not.
    let busy = Room::open(Settings { park_after: PATIENCE, ..settings() }).await;
    let answers = busy.talk(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /").await;
    assert_eq!(statuses(&answers), [200, 408]);
    assert_eq!(busy.link().parked(), 0);
    assert_eq!(*room.rooms.rejected.lock(), [Reason::HeadTimeout; 2]);
}

#[tokio::test]
async fn an_idle_connection_closes_quietly() {
    let mut limits = limits();
    limits.idle_timeout = Duration::from_millis(150);
    let room = Room::open(Settings { limits, ..settings() }).await;
    assert_eq!(room.talk(b"").await, "");
    let answer = room.talk(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(statuses(&answer), [200]);
    room.until("over", |room| room.live.load(SeqCst) == 0).await;
    assert!(room.rooms.ends.lock().is_empty());
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let room = Room::open(settings()).await;
    let mut all = Vec::new();
    for n in 0..20 {
        all.extend_from_slice(format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes());
        all.extend_from_slice(format!("POST /echo HTTP/1.1\r\ncontent-length: 3\r\n\r\ne{n:02}").as_bytes());
        all.extend_from_slice(b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nch\r\n0\r\n\r\n");
    }
    all.extend_from_slice(b"GET /last HTTP/1.1\r\nconnection: close\r\n\r\n");
    let answers = room.talk(&all).await;
    assert_eq!(statuses(&answers), [200; 61]);
    let mut at = 0;
    for n in 0..20 {
        for body in [format!("\r\n\r\n/{n}"), format!("\r\n\r\ne{n:02}"), "\r\n\r\nch".to_owned()] {
            at += answers[at..].find(&body).unwrap_or_else(|| panic!("no {body:?} after {at}"));
        }
    }
    assert!(answers.ends_with("/last"));
}

#[tokio::test]
async fn cuts_between_segments_do_not_matter() {
    let room = Room::open(settings()).await;
    let all = [
        &b"GET /a HTTP/1.1\r\nhost: a\r\n\r\nPOST /echo HTTP/1.1\r\ncontent-length: 5\r\n\r\nfives"[..],
        b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;e\r\nabc\r\n2\r\nde\r\n0\r\nt: u\r\n\r\n",
        b"GET /hints HTTP/1.1\r\nx: y\r\n\r\nGET /z HTTP/1.1\r\nconnection: close\r\n\r\n",
    ]
    .concat();
    for size in [1, 2, 3, 5, 7, 13, 31, 64, 100, 150, 1000] {
        let mut tcp = room.dial().await;
        tcp.set_nodelay(true).expect("set");
        for piece in all.chunks(size) {
            tcp.write_all(piece).await.expect("sent");
            // Lets the server read each piece by itself, most of the time.
            tokio::task::yield_now().await;
        }
        let answers = rest(&mut tcp).await;
        assert_eq!(statuses(&answers), [200, 200, 200, 103, 200, 200], "pieces of {size}: {answers}");
        for body in ["\r\n\r\n/a", "\r\n\r\nfives", "\r\n\r\nabcde", "\r\n\r\nhinted", "\r\n\r\n/z"] {
            assert!(answers.contains(body), "pieces of {size}: {answers}");
        }
    }
}

#[tokio::test]
async fn a_head_larger_than_a_read_arrives_whole() {
    let mut large = limits();
    large.head = 64 * 1024;
    let room = Room::open(Settings { limits: large, ..settings() }).await;
    for n in [8_000, 9_000, 33_000, 60_000] {
        let head = format!("POST /echo HTTP/1.1\r\nx: {}\r\ncontent-length: 3\r\n\r\nabc", "y".repeat(n));
        let two = format!("{head}{head}GET /end HTTP/1.1\r\nconnection: close\r\n\r\n");
        let answers = room.talk(two.as_bytes()).await;
        assert_eq!(statuses(&answers), [200, 200, 200], "{n}");
        assert_eq!(answers.matches("\r\n\r\nabc").count(), 2, "{n}");
    }
}

#[tokio::test]
async fn held_back_requests_are_woken() {
    let room = Room::open(settings()).await;
    let mut tcp = room.dial().await;
    tcp.write_all(b"GET /hold HTTP/1.1\r\n\r\nGET /second HTTP/1.1\r\nconnection: close\r\n\r\n").await.expect("sent");
    room.until("in flight", |room| room.rooms.calls.load(SeqCst) == 1).await;
    room.rooms.go.notify_one();
    let answers = rest(&mut tcp).await;
    assert_eq!(statuses(&answers), [200, 200]);
    assert!(answers.ends_with("/second"), "{answers}");
}

#[tokio::test]
async fn hints_come_before_their_answer() {
    let room = Room::open(settings()).await;
    let one = "GET /hints HTTP/1.1\r\nhost: a\r\n\r\n";
    let answers = room
        .talk(format!("GET / HTTP/1.1\r\n\r\n{one}{one}GET / HTTP/1.1\r\nconnection: close\r\n\r\n").as_bytes())
        .await;
    assert_eq!(statuses(&answers), [200, 103, 200, 103, 200, 200]);
    assert_eq!(
        answers.matches("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 200").count(),
        2,
        "{answers}"
    );
    // Never to HTTP/1.0.
    let answer = room.talk(b"GET /hints HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("plain") && !answer.contains("103"), "{answer}");
}

#[tokio::test]
async fn continue_is_asked_for_when_the_body_is() {
    let room = Room::open(settings()).await;
    let mut tcp = room.dial().await;
    tcp.write_all(b"POST /echo HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 3\r\nconnection: close\r\n\r\n")
        .await
        .expect("sent");
    until(&mut tcp, "HTTP/1.1 100 Continue\r\n\r\n").await;
    tcp.write_all(b"abc").await.expect("sent");
    assert!(rest(&mut tcp).await.ends_with("abc"));
}

#[tokio::test]
async fn an_early_answer_survives_an_unread_body() {
    let room = Room::open(settings()).await;
    let mut tcp = room.dial().await;
    tcp.write_all(b"POST /early HTTP/1.1\r\ncontent-length: 200000\r\n\r\n").await.expect("sent");
    // The client only looks for an answer when it is done.
    let _ = tcp.write_all(&vec![b'x'; 200_000]).await;
    let answer = rest(&mut tcp).await;
    assert_eq!(statuses(&answer), [413]);
    assert!(answer.ends_with("early"), "{answer}");
}

#[tokio::test]
async fn bodies_have_limits_and_clocks() {
    let room = Room::open(settings()).await;
    let answer = room.talk(b"POST /echo HTTP/1.1\r\ncontent-length: 100001\r\n\r\n").await;
    assert_eq!(statuses(&answer), [413]);
    let mut long = b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    long.extend(format!("20000\r\n{}", "x".repeat(0x20000)).bytes());
    assert_eq!(statuses(&room.talk(&long).await), [413]);
    let answer = room.talk(b"POST /echo HTTP/1.1\r\ncontent-length: 3\r\n\r\na").await;
    assert_eq!(statuses(&answer), [408]);
}

#[tokio::test]
async fn a_half_closed_client_gets_its_answer_and_a_lost_one_is_given_up() {
    let room = Room::open(settings()).await;
    let mut tcp = room.dial().await;
    tcp.write_all(b"GET /hints HTTP/1.1\r\n\r\n").await.expect("sent");
    tcp.shutdown().await.expect("half-closed");
    assert_eq!(statuses(&rest(&mut tcp).await), [103, 200]);

    let mut tcp = room.dial().await;
    // The pipelined byte would keep hyper from looking at the socket.
    tcp.write_all(b"GET /hold HTTP/1.1\r\n\r\nG").await.expect("sent");
    room.until("in flight", |room| room.rooms.calls.load(SeqCst) == 2).await;
    drop(tcp);
    room.until("cancelled", |room| room.rooms.cancelled.load(SeqCst) == 1).await;
    room.until("over", |room| room.live.load(SeqCst) == 0).await;
    assert_eq!(*room.rooms.ends.lock(), ["client-gone"]);

    let mut tcp = room.dial().await;
    tcp.write_all(b"GET /hold HTTP/1.1\r\n\r\n").await.expect("sent");
    room.until("in flight", |room| room.rooms.calls.load(SeqCst) == 3).await;
    tcp.set_zero_linger().expect("set");
    drop(tcp);
    room.until("reset is noticed", |room| room.rooms.cancelled.load(SeqCst) == 2).await;
}

#[tokio::test]
async fn large_answers_arrive_whole_and_cut_ones_look_cut() {
    let room = Room::open(settings()).await;
    let answer = room.talk(b"GET /stream HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    assert_eq!(answer.matches('x').count(), 100 * CHUNK);
    assert!(answer.ends_with("0\r\n\r\n"));
    let answer = room.talk(b"GET /cut HTTP/1.1\r\n\r\n").await;
    assert_eq!(answer.matches('x').count(), 3 * CHUNK);
    assert!(!answer.ends_with("0\r\n\r\n"), "no clean end");
    assert_eq!(*room.rooms.ends.lock(), ["body"]);
    // HTTP/1.0 has no chunks: only a reset tells.
    let mut tcp = room.dial().await;
    tcp.write_all(b"GET /cut HTTP/1.0\r\n\r\n").await.expect("sent");
    let mut all = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut tcp, &mut all).await;
    assert_eq!(end.expect_err("a reset").kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut() {
    let room = Room::open(settings()).await;
    let mut tcp = room.dial().await;
    socket2::SockRef::from(&tcp).set_recv_buffer_size(4096).expect("set");
    for _ in 0..10 {
        tcp.write_all(b"GET /stream HTTP/1.1\r\n\r\n").await.expect("sent");
    }
    room.until("cut", |room| *room.rooms.ends.lock() == ["slow-reader"]).await;
}

#[tokio::test]
async fn connections_end_when_told() {
    let room = Room::open(settings()).await;
    let answer = room.talk(b"GET / HTTP/1.0\r\nhost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with('/'), "{answer}");
    let mut limits = limits();
    limits.requests = Some(2);
    let room = Room::open(Settings { limits, ..settings() }).await;
    let answers = room.talk(&b"GET / HTTP/1.1\r\n\r\n".repeat(3)).await;
    assert_eq!(statuses(&answers), [200, 200]);
    assert_eq!(answers.matches("connection: close").count(), 1);
}

#[tokio::test]
async fn panics_end_their_connection_only() {
    let room = Room::open(settings()).await;
    assert_eq!(room.talk(b"GET /panic HTTP/1.1\r\n\r\n").await, "");
    assert_eq!(room.talk(b"GET /panic-at-once HTTP/1.1\r\n\r\n").await, "");
    assert_eq!(room.talk(b"GET /early-1xx HTTP/1.1\r\n\r\n").await, "");
    assert_eq!(*room.rooms.ends.lock(), ["panic", "panic", "body"]);
    assert_eq!(statuses(&room.talk(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n").await), [200]);
}

#[tokio::test]
async fn idle_connections_park_and_come_back() {
    let room = Room::open(settings()).await;
    let mut tcp = room.dial().await;
    for n in 1..=3 {
        // In two pieces: the head is put together without HTTP state.
        tcp.write_all(b"GET /again HT").await.expect("sent");
        tokio::task::yield_now().await;
        tcp.write_all(b"TP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
        until(&mut tcp, "/again").await;
        room.until("parked", |room| room.link().parked() == n).await;
    }
    assert_eq!(room.link().requests(), 3);
    assert!(room.link().bytes_in() > 0 && room.link().bytes_out() > 0);
}

#[tokio::test]
async fn the_future_of_a_parked_connection_is_small() {
    let room = Room::open(settings()).await;
    let tcp = tokio::net::TcpStream::connect(room.addr).await.expect("the room listens");
    let (_trigger, signal) = crate::edge::drain_signal::DrainSignal::new();
    let future = crate::edge::serve::serve(
        Stream::from(tcp),
        room.rooms.clone(),
        crate::edge::serve::Link::new(Arc::new(onehop_filters::contract::Conn {
            id: 1,
            listener: "test".into(),
            peer: room.addr,
            local: room.addr,
            client: room.addr,
            trusted: false,
            mesh: false,
            tls: None,
        })),
        Arc::new(settings()),
        Alpn::H1,
        signal,
    );
    assert!(size_of_val(&future) <= 448, "{} bytes", size_of_val(&future));
}

#[tokio::test]
async fn tls_parks_too() {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let cert = key.cert.der().clone();
    let secret = rustls::pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], secret.into())
        .expect("a key that fits");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let room = Room::open_as(settings(), Alpn::H1, move |tcp| {
        let acceptor = acceptor.clone();
        let under = Rewind::new(bytes::Bytes::new(), Plain::Tcp(tcp));
        async move { acceptor.accept(under).await.ok().map(Stream::from) }
    })
    .await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert).expect("a root");
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().expect("a name");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let mut tls = connector.connect(name, room.dial().await).await.expect("a handshake");
    for n in 1..=3 {
        tls.write_all(b"GET /tls HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
        until(&mut tls, "/tls").await;
        room.until("parked", |room| room.link().parked() == n).await;
    }
    tls.write_all(b"GET /stream HTTP/1.1\r\nconnection: close\r\n\r\n").await.expect("sent");
    assert_eq!(rest(&mut tls).await.matches('x').count(), 100 * CHUNK);
}

#[tokio::test]
async fn an_upgrade_gets_the_socket_and_what_was_sent_early() {
    let room = Room::open(settings()).await;
    let mut tcp = room.dial().await;
    tcp.write_all(b"GET /upgrade HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nearly")
        .await
        .expect("sent");
    let head = until(&mut tcp, "\r\n\r\n").await;
    assert_eq!(statuses(&head), [101]);
    until(&mut tcp, "early").await;
    tcp.write_all(b"\x00\n#later").await.expect("sent");
    until(&mut tcp, "\x00\n#later").await;
}

#[tokio::test]
async fn an_upgrade_with_a_body_is_ignored() {
    let room = Room::open(settings()).await;
    let answer =
        room.talk(b"POST /echo HTTP/1.1\r\nUpgrade: h2c\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc").await;
    assert!(answer.ends_with("abc"), "{answer}");
}

#[tokio::test]
async fn a_drain_fails_nobody() {
    let room = Room::open(settings()).await;
    let mut held = room.dial().await;
    held.write_all(b"GET /hold HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n").await.expect("sent");
    let mut late = room.dial().await;
    late.write_all(b"GET /one HTTP/1.1\r\n\r\n").await.expect("sent");
    until(&mut late, "/one").await;
    room.until("parked", |room| room.rooms.links.lock().iter().any(|link| link.parked() == 1)).await;
    let mut parked = room.dial().await;
    room.until("all there", |room| room.live.load(SeqCst) == 3).await;
    room.drain.send_replace(Phase::Draining);
    // A request that was on its way is answered, and the connection told to go.
    late.write_all(b"GET /two HTTP/1.1\r\n\r\n").await.expect("sent");
    let answer = rest(&mut late).await;
    assert!(answer.contains("connection: close") && answer.ends_with("/two"), "{answer}");
    assert!(closed(&mut parked).await);
    room.rooms.go.notify_one();
    let answer = rest(&mut held).await;
    assert_eq!(statuses(&answer), [200]);
    assert!(answer.contains("connection: close"), "{answer}");
    room.until("over", |room| room.live.load(SeqCst) == 0).await;

    let room = Room::open(settings()).await;
    let mut tcp = room.dial().await;
    tcp.write_all(b"GET /hold HTTP/1.1\r\n\r\n").await.expect("sent");
    room.until("in flight", |room| room.rooms.calls.load(SeqCst) == 1).await;
    room.drain.send_replace(Phase::Kill);
    assert!(closed(&mut tcp).await);
    assert_eq!(room.rooms.cancelled.load(SeqCst), 1);
}
