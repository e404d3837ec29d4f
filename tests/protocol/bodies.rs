//! Bodies: never held whole, flushed as they come, and never cut in silence.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::common::h2::{Fate, Frames, plain};
use crate::common::{Client, Onehop, before, scripted};

const MIB: usize = 1 << 20;
const BIG: usize = 64 * MIB;

fn head_of(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut one = [0; 1];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut one).ok()?;
        bytes.push(one[0]);
    }
    String::from_utf8(bytes).ok()
}

/// Resident memory of the process, in bytes.
fn resident(hop: &Onehop) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", hop.pid())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() << 10
}

/// Waits until a count stands still.
fn settled(count: &AtomicUsize) -> usize {
    loop {
        let before = count.load(SeqCst);
        thread::sleep(Duration::from_millis(100));
        if before > 0 && count.load(SeqCst) == before {
            return before;
        }
    }
}

#[test]
fn a_slow_reader_holds_the_endpoint_back() {
    for chunked in [false, true] {
        let written = Arc::new(AtomicUsize::new(0));
        let count = written.clone();
        let up = scripted(move |mut stream| {
            let Some(_) = head_of(&mut stream) else { return };
            let piece = vec![b'a'; 64 << 10];
            let head = if chunked { "transfer-encoding: chunked".to_owned() } else { format!("content-length: {BIG}") };
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes()).unwrap();
            for _ in 0..BIG / piece.len() {
                let framed = if chunked { [&b"10000\r\n"[..], &piece, b"\r\n"].concat() } else { piece.clone() };
                if stream.write_all(&framed).is_err() {
                    return;
                }
                count.fetch_add(piece.len(), SeqCst);
            }
            if chunked {
                let _ = stream.write_all(b"0\r\n\r\n");
            }
        });
        let hop = Onehop::start(&before(up));
        let at_rest = resident(&hop);
        let mut client = Client::to(hop.at("edge"));
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let ahead = settled(&written);
        assert!(ahead < BIG, "the endpoint could write everything although nobody reads");
        assert!(resident(&hop) < at_rest + BIG / 2, "{} -> {}", at_rest, resident(&hop));
        let answer = client.head();
        assert_eq!(answer.status(), 200);
        let mut total = 0;
        let mut most = 0;
        loop {
            let piece = client.exactly(MIB);
            total += piece.iter().filter(|b| **b == b'a').count();
            most = most.max(resident(&hop));
            if piece.len() < MIB {
                break;
            }
        }
        assert!((BIG..BIG + 100).contains(&total), "{total} of {BIG}");
        assert!(most < at_rest + BIG / 2, "{at_rest} -> {most}");
    }
}

#[test]
fn a_slow_endpoint_holds_the_client_back() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let up = scripted(move |mut stream| {
        let Some(_) = head_of(&mut stream) else { return };
        let _ = wait.lock().unwrap().recv();
        let mut left = BIG;
        let mut piece = vec![0; 256 << 10];
        while left > 0 {
            match stream.read(&mut piece) {
                Ok(0) | Err(_) => return,
                Ok(n) => left -= n,
            }
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
    });
    let hop = Onehop::start(&before(up).replace("to: up }", "to: up, bodyLimit: 0B }"));
    let at_rest = resident(&hop);
    let mut stream = TcpStream::connect(hop.at("edge")).unwrap();
    let mut client = Client::over(stream.try_clone().unwrap());
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let writer = thread::spawn(move || {
        stream.write_all(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {BIG}\r\n\r\n").as_bytes()).unwrap();
        let piece = vec![b'a'; 64 << 10];
        for _ in 0..BIG / piece.len() {
            stream.write_all(&piece).unwrap();
            count.fetch_add(piece.len(), SeqCst);
        }
    });
    assert!(settled(&written) < BIG, "everything was taken although the endpoint reads nothing");
    assert!(resident(&hop) < at_rest + BIG / 2, "{} -> {}", at_rest, resident(&hop));
    go.send(()).unwrap();
    assert_eq!(client.answer().body(), "hi");
    writer.join().unwrap();
    assert!(resident(&hop) < at_rest + BIG / 2, "{} -> {}", at_rest, resident(&hop));
}

#[test]
fn events_are_flushed_as_they_come() {
    let (next, turn) = mpsc::channel::<()>();
    let turn = std::sync::Mutex::new(turn);
    let up = scripted(move |mut stream| {
        let Some(_) = head_of(&mut stream) else { return };
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").unwrap();
        for n in 1..=3 {
            stream.write_all(format!("data: {n}\n\n").as_bytes()).unwrap();
            if turn.lock().unwrap().recv().is_err() {
                return;
            }
        }
    });
    // A stream is bound by idle time, not by the request's.
    let hop = Onehop::start(&before(up).replace("to: up }", "to: up, timeouts: { request: 200ms } }"));
    let mut client = Client::to(hop.at("edge"));
    client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.head().header("content-type").as_deref(), Some("text/event-stream"));
    for n in 1..=3 {
        let event = String::from_utf8(client.until(b"\n\n")).unwrap();
        assert!(event.ends_with(&format!("data: {n}\n\n")), "{event}");
        if n == 1 {
            thread::sleep(Duration::from_millis(300));
        }
        next.send(()).unwrap();
    }
    assert!(String::from_utf8(client.rest()).unwrap().ends_with("0\r\n\r\n"));
}

#[test]
fn a_refusal_arrives_while_the_body_is_sent() {
    let up = scripted(|mut stream| {
        let Some(_) = head_of(&mut stream) else { return };
        let _ = stream
            .write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 8\r\nconnection: close\r\n\r\nno more!");
        // Reads nothing, but stays until the other side has had its say.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = std::io::copy(&mut stream.take(1 << 20), &mut std::io::sink());
    });
    let hop = Onehop::start(&before(up));
    let mut stream = TcpStream::connect(hop.at("edge")).unwrap();
    let mut client = Client::over(stream.try_clone().unwrap());
    let writer = thread::spawn(move || {
        let length = 8 * MIB;
        let _ = stream.write_all(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n").as_bytes());
        for _ in 0..8 {
            if stream.write_all(&vec![b'a'; MIB]).is_err() {
                return;
            }
        }
    });
    let answer = client.answer();
    assert_eq!((answer.status(), answer.body().as_str()), (413, "no more!"), "{}", answer.text());
    drop(client);
    writer.join().unwrap();
}

#[test]
fn a_cut_answer_is_an_error_for_the_client() {
    let up = scripted(|mut stream| {
        let Some(head) = head_of(&mut stream) else { return };
        let _ = stream.write_all(match head.split(' ').nth(1).unwrap() {
            "/length" => &b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"[..],
            "/chunked" => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "/in-chunk" => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nhalf",
            _ => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf!!",
        });
    });
    let hop = Onehop::start(&before(up));
    for path in ["/length", "/chunked", "/in-chunk", "/garbled"] {
        let mut client = Client::to(hop.at("edge"));
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes());
        let text = String::from_utf8(client.rest()).unwrap();
        let whole = text.ends_with("0\r\n\r\n") || text.contains("content-length: 4\r\n");
        assert!(!whole, "{path} looks complete:\n{text}");
        let mut old = Client::to(hop.at("edge"));
        old.send(format!("GET {path} HTTP/1.0\r\nhost: a\r\n\r\n").as_bytes());
        old.rest();
        let fate = Frames::to(hop.at("edge")).ask(1, &plain("GET", path));
        assert!(!matches!(fate, Fate::Answered(200, _)), "{path}: {fate:?}");
    }
    let line = "\"reason\":\"truncated\"";
    crate::common::eventually(line, || hop.log().contains(line));
}
