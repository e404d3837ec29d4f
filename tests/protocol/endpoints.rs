//! Endpoints with habits: they close early, speak HTTP/1.0, or end a stream as if nothing had happened.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};

use crate::common::h2::{
    DATA, END_HEADERS, END_STREAM, Fate, Frames, HEADERS, PING, RST_STREAM, SETTINGS, frame, plain,
};
use crate::common::{Client, Onehop, before, scripted};

fn head_of(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut one = [0; 1];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut one).ok()?;
        bytes.push(one[0]);
    }
    String::from_utf8(bytes).ok()
}

fn post(client: &mut Client) -> u16 {
    client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi");
    client.answer().status()
}

#[test]
fn a_connection_closed_while_idle_costs_no_request() {
    let (closed, is_closed) = mpsc::channel();
    let up = scripted(move |mut stream| {
        let Some(_) = head_of(&mut stream) else { return };
        let _ = stream.read_exact(&mut [0; 2]);
        // Announces nothing, and closes after each answer.
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
        drop(stream);
        let _ = closed.send(());
    });
    let hop = Onehop::start(&before(up));
    let mut client = Client::to(hop.at("edge"));
    for round in 0..20 {
        assert_eq!(post(&mut client), 200, "round {round}");
        is_closed.recv().unwrap();
    }
}

#[test]
fn bytes_after_an_answer_are_nobodys_answer() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let up = scripted(move |mut stream| {
        while head_of(&mut stream).is_some() {
            let _ = stream.read_exact(&mut [0; 2]);
            count.fetch_add(1, SeqCst);
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 299 Poisoned\r\ncontent-length: 0\r\n\r\n",
            );
        }
    });
    let hop = Onehop::start(&before(up));
    let mut client = Client::to(hop.at("edge"));
    for round in 0..10 {
        assert_eq!(post(&mut client), 200, "round {round}");
    }
    assert_eq!(seen.load(SeqCst), 10);
}

#[test]
fn http_1_0_endpoints_are_understood() {
    let up = scripted(|mut stream| {
        let Some(head) = head_of(&mut stream) else { return };
        assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nto the end");
    });
    let hop = Onehop::start(&before(up));
    let mut client = Client::to(hop.at("edge"));
    for _ in 0..2 {
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        let answer = client.answer();
        assert!(answer.text().starts_with("HTTP/1.1 200 "), "{}", answer.text());
        assert_eq!(answer.body(), "A\r\nto the end\r\n0\r\n\r\n");
    }
}

/// An HTTP/2 endpoint that sends these frames after its first HEADERS arrive.
fn frames(answer: Vec<u8>) -> std::net::SocketAddr {
    let answer = Mutex::new(answer);
    scripted(move |mut stream| {
        let mut preface = [0; 24];
        if stream.read_exact(&mut preface).is_err() {
            return;
        }
        let _ = stream.write_all(&[frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, 1, 0, &[])].concat());
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).is_err() {
                return;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if stream.read_exact(&mut payload).is_err() {
                return;
            }
            if head[3] == PING && head[4] == 0 {
                let _ = stream.write_all(&frame(PING, 1, 0, &payload));
            } else if head[3] == HEADERS {
                let _ = stream.write_all(&answer.lock().unwrap());
            }
        }
    })
}

#[test]
fn an_http2_answer_that_breaks_off_is_no_whole_one() {
    let ok = frame(HEADERS, END_HEADERS, 1, &[0x88]);
    let half = frame(DATA, 0, 1, b"half");
    for (name, end) in [
        ("RST_STREAM(NO_ERROR)", frame(RST_STREAM, 0, 1, &[0; 4])),
        ("RST_STREAM(INTERNAL_ERROR)", frame(RST_STREAM, 0, 1, &2u32.to_be_bytes())),
        ("GOAWAY", frame(0x7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2])),
    ] {
        let up = frames([&ok[..], &half, &end].concat());
        let hop = Onehop::start(&before(up).replace("up: { discover", "up: { protocol: h2, discover"));
        let mut client = Client::to(hop.at("edge"));
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        let text = String::from_utf8(client.rest()).unwrap();
        // A head whose body breaks at once may not have gone out yet.
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 200"), "{name}: {text}");
        assert!(!text.ends_with("0\r\n\r\n") && !text.contains("content-length: 4"), "{name}: {text}");
    }
    // With its end, the same answer is whole.
    let up = frames([&ok[..], &half, &frame(DATA, END_STREAM, 1, b"!")].concat());
    let hop = Onehop::start(&before(up).replace("up: { discover", "up: { protocol: h2, discover"));
    let fate = Frames::to(hop.at("edge")).ask(1, &plain("GET", "/"));
    assert_eq!(fate, Fate::Answered(200, "half!".to_owned()));
}

#[test]
fn http2_endpoints_cannot_smuggle_into_http1() {
    let field = |name: &[u8], value: &[u8]| crate::common::h2::block(&[(name, value)]);
    for (name, block) in [
        ("CRLF in a value", field(b"x-a", b"b\r\nset-cookie: c=d")),
        ("connection", field(b"connection", b"close")),
        ("transfer-encoding", field(b"transfer-encoding", b"chunked")),
        ("a length that does not fit", field(b"content-length", b"99")),
    ] {
        let head = [&[0x88][..], &block].concat();
        let up = frames([frame(HEADERS, END_HEADERS, 1, &head), frame(DATA, END_STREAM, 1, b"body")].concat());
        let hop = Onehop::start(&before(up).replace("up: { discover", "up: { protocol: h2, discover"));
        let mut client = Client::to(hop.at("edge"));
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let text = String::from_utf8(client.rest()).unwrap();
        assert!(!text.contains("set-cookie: c=d\r\n"), "{name}: {text}");
        let whole = text.starts_with("HTTP/1.1 200")
            && text.ends_with("\r\n\r\nbody")
            && text.contains("content-length: 4\r\n");
        assert!(!whole, "{name}: {text}");
    }
}
