//! WebSocket: HTTP/1.1 on both sides, and HTTP/2 before an HTTP/1.1 endpoint.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::common::h2::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, block, frame, plain};
use crate::common::{Client, Endpoint, Onehop, before, scripted, simple};

const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nhost: a.example\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// RFC 6455 section 1.3.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// A masked text frame, `Hello` (RFC 6455 section 5.7), and its unmasked answer.
const HELLO: &[u8] = &[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
const ANSWER: &[u8] = &[0x81, 0x05, b'H', b'e', b'l', b'l', b'o'];

fn head_of(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut one = [0; 1];
    while !bytes.ends_with(b"\r\n\r\n") && stream.read(&mut one).is_ok_and(|n| n > 0) {
        bytes.push(one[0]);
    }
    String::from_utf8(bytes).unwrap()
}

/// The proof for a key, by the crate the binary uses too; the example of the RFC pins it down elsewhere.
fn proof(key: &str) -> String {
    use base64::Engine as _;
    let mut sha1 = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key.as_bytes());
    sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(sha1.finish())
}

/// Upgrades, then answers every `Hello`; plain requests get 200. `/refuse` is refused.
fn endpoint() -> SocketAddr {
    scripted(|mut stream| {
        loop {
            let head = head_of(&mut stream);
            let field = |name: &str| {
                head.lines().find_map(|l| {
                    let (n, v) = l.split_once(':')?;
                    n.eq_ignore_ascii_case(name).then(|| v.trim().to_owned())
                })
            };
            if head.is_empty() {
                return;
            }
            if head.starts_with("GET /chat/refuse") || field("upgrade").is_none() {
                let length = field("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
                let _ = std::io::copy(&mut (&stream).take(length), &mut std::io::sink());
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno");
                continue;
            }
            assert_eq!(field("upgrade").as_deref(), Some("websocket"), "{head}");
            assert!(field("connection").unwrap().eq_ignore_ascii_case("upgrade"), "{head}");
            let accept = proof(&field("sec-websocket-key").unwrap());
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).unwrap();
            let mut frame = [0; HELLO.len()];
            while stream.read_exact(&mut frame).is_ok() {
                assert_eq!(frame, HELLO);
                stream.write_all(ANSWER).unwrap();
            }
            return;
        }
    })
}

fn config(up: SocketAddr) -> String {
    before(up).replace("to: up }", "to: up, upgrades: [websocket], timeouts: { request: 300ms } }")
}

#[test]
fn frames_pass_and_survive_a_reload() {
    let up = endpoint();
    let hop = Onehop::start(&config(up));
    let mut client = Client::to(hop.at("edge"));
    client.send(HANDSHAKE.as_bytes());
    let answer = client.head();
    assert_eq!(answer.status(), 101, "{}", answer.text());
    assert_eq!(answer.header("sec-websocket-accept").as_deref(), Some(ACCEPT));
    assert_eq!(answer.header("upgrade").as_deref(), Some("websocket"));
    for round in 0..3 {
        client.send(HELLO);
        assert_eq!(client.exactly(ANSWER.len()), ANSWER, "round {round}");
        let (status, body) = hop.reload(&format!("{}# {round}\n", config(up)));
        assert_eq!(status, 200, "{body}");
    }
    // Older than any request may be: a tunnel is bound by idle time only.
    std::thread::sleep(std::time::Duration::from_millis(350));
    client.send(HELLO);
    assert_eq!(client.exactly(ANSWER.len()), ANSWER);
    drop(client);
    let line = "\"status\":101";
    crate::common::eventually(line, || hop.log().contains(line));
}

/// What a tunnel has moved is in the log also when it is cut at the end of the drain.
#[test]
fn a_tunnel_that_is_cut_has_its_bytes_in_the_log() {
    let mut hop = Onehop::start(&(config(endpoint()) + "lifecycle: { drain: 300ms }\n"));
    let mut client = Client::to(hop.at("edge"));
    client.send(HANDSHAKE.as_bytes());
    assert_eq!(client.head().status(), 101);
    for _ in 0..2 {
        client.send(HELLO);
        assert_eq!(client.exactly(ANSWER.len()), ANSWER);
    }
    hop.signal("TERM");
    assert!(hop.wait(std::time::Duration::from_secs(10)).is_some());
    let log = hop.log();
    let line = log.lines().find(|l| l.contains("\"status\":101")).unwrap_or_else(|| panic!("{log}"));
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["reason"], "draining", "{line}");
    assert_eq!(
        (&line["bytes_in"], &line["bytes_out"]),
        (&(2 * HELLO.len()).into(), &(2 * ANSWER.len()).into()),
        "{line}"
    );
}

#[test]
fn a_handshake_may_say_that_it_has_no_body() {
    let hop = Onehop::start(&config(endpoint()));
    let mut client = Client::to(hop.at("edge"));
    client.send(HANDSHAKE.replace("\r\n\r\n", "\r\ncontent-length: 0\r\n\r\n").as_bytes());
    assert_eq!(client.head().status(), 101);
    client.send(HELLO);
    assert_eq!(client.exactly(ANSWER.len()), ANSWER);
    // With a body, the upgrade is ignored (RFC 9110 section 7.8).
    let mut client = Client::to(hop.at("edge"));
    client.send(HANDSHAKE.replace("\r\n\r\n", "\r\ncontent-length: 2\r\n\r\nhi").as_bytes());
    let answer = client.answer();
    assert_eq!((answer.status(), answer.body().as_str()), (200, "no"), "{}", answer.text());
}

#[test]
fn nothing_is_tunnelled_before_the_endpoint_agrees() {
    let hop = Onehop::start(&config(endpoint()));
    // Sent at once with the handshake: delivered after the 101.
    let mut client = Client::to(hop.at("edge"));
    client.send(&[HANDSHAKE.as_bytes(), HELLO].concat());
    assert_eq!(client.head().status(), 101);
    assert_eq!(client.exactly(ANSWER.len()), ANSWER);
    // Refused: what came early is never a tunnel's content, nor is a request in it served as one.
    let mut client = Client::to(hop.at("edge"));
    let refused = HANDSHAKE.replace("/chat", "/chat/refuse");
    client.send(&[refused.as_bytes(), b"GET /chat/smuggled HTTP/1.1\r\nhost: a.example\r\n\r\n"].concat());
    let answer = client.answer();
    assert_eq!((answer.status(), answer.body().as_str()), (200, "no"), "{}", answer.text());
}

#[test]
fn an_endpoint_that_does_not_upgrade_answers() {
    let up = Endpoint::start(|_, _| b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\n\r\nno".to_vec());
    let hop = Onehop::start(&simple(&up).replace("to: up }", "to: up, upgrades: [websocket] }"));
    let mut client = Client::to(hop.at("edge"));
    client.send(HANDSHAKE.as_bytes());
    let answer = client.answer();
    assert_eq!((answer.status(), answer.body().as_str()), (426, "no"), "{}", answer.text());
    // Another protocol than asked for.
    let up = Endpoint::start(|_, _| {
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n".to_vec()
    });
    let hop = Onehop::start(&simple(&up).replace("to: up }", "to: up, upgrades: [websocket] }"));
    let mut client = Client::to(hop.at("edge"));
    client.send(HANDSHAKE.as_bytes());
    let answer = client.answer();
    assert_eq!(answer.status(), 502, "{}", answer.text());
}

#[test]
fn http2_clients_get_a_tunnel_to_an_http1_endpoint() {
    let hop = Onehop::start(&config(endpoint()));
    let mut frames = Frames::to(hop.at("edge"));
    let mut fields = plain("CONNECT", "/chat");
    fields.insert(1, (b":protocol", b"websocket"));
    fields.push((b"sec-websocket-version", b"13"));
    frames.send(&frame(HEADERS, END_HEADERS, 1, &block(&fields)));
    let mut got = Vec::new();
    let mut opened = false;
    for _ in 0..2 {
        frames.send(&frame(DATA, 0, 1, HELLO));
        got.clear();
        while got.len() < ANSWER.len() {
            let (kind, flags, stream, payload) = frames.next().expect("a frame");
            if kind == HEADERS && stream == 1 {
                assert_eq!(payload[0], 0x88, "200 opens the tunnel (RFC 8441 section 5)");
                assert_eq!(flags & END_STREAM, 0);
                opened = true;
            } else if kind == DATA && stream == 1 {
                assert!(opened);
                got.extend(payload);
            } else {
                assert!(!matches!(kind, 0x3 | 0x7), "{kind}: {payload:?}");
            }
        }
        assert_eq!(got, ANSWER);
    }
}
