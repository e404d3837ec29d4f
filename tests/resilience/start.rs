//! What it depends on is not there when it starts.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::common::backend::{Backend, Mood};
use super::common::{Onehop, get, get_with};
use super::{head, until};

#[test]
fn names_that_cannot_be_resolved_yet() {
    let app = Backend::start(Mood::Well);
    let server = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("a free port");
    let hop = Onehop::start(
        &(head("")
            + &format!(
                "routes: [{{ name: app, to: app }}]\nservices:\n  app:\n    discover: \
                 {{ dns: {{ name: app.test, port: {}, resolver: \"{server}\", minTtl: 1s }} }}\n",
                app.address.port()
            )),
    );
    assert_eq!(hop.admin_get("/readyz").status(), 200, "a start waits for nobody");
    let answer = get(hop.at("web"), "localhost", "/");
    assert!(answer.status() == 503 && answer.text().contains("no-endpoint"), "{}", answer.text());
    answer_for_ever(server);
    until("the name is known", || get(hop.at("web"), "localhost", "/").status() == 200);
}

/// A DNS server that answers 127.0.0.1 to whoever asks for an IPv4 address (RFC 1035 section 4).
fn answer_for_ever(at: SocketAddr) {
    let socket = UdpSocket::bind(at).expect("the port is still free");
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer) {
            // The question ends with the root label, its type and its class.
            let name = buffer[12..n].iter().position(|b| *b == 0).expect("a name") + 13;
            let wants_a = buffer[name..name + 2] == [0, 1];
            let mut reply = Vec::from(&buffer[..2]);
            reply.extend([0x81, 0x80, 0, 1, 0, u8::from(wants_a), 0, 0, 0, 0]);
            reply.extend(&buffer[12..name + 4]);
            if wants_a {
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            let _ = socket.send_to(&reply, peer);
        }
    });
}

#[test]
fn keys_that_cannot_be_fetched_yet() {
    let at = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let hop = Onehop::start(
        &(head("")
            + &format!(
                "identities:\n  corp:\n    jwt:\n      issuer: https://id.test/\n      audiences: [shop]\n      \
                 jwks: {{ url: \"http://{at}/jwks.json\" }}\n      algorithms: [ES256]\n\
                 routes:\n- {{ name: in, auth: {{ require: corp }}, respond: {{ body: in }} }}\n"
            )),
    );
    assert_eq!(hop.admin_get("/readyz").status(), 200, "a start waits for nobody");
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let bearer = format!("authorization: Bearer {}\r\n", token(&key));
    let ask = || get_with(hop.at("web"), "localhost", "/", &bearer);
    let answer = ask();
    assert!(answer.status() == 503 && answer.text().contains("identity-unavailable"), "{}", answer.text());
    assert_eq!(get(hop.at("web"), "localhost", "/").status(), 401, "who shows no token is told so");
    publish(at, &key);
    until("the keys are there", || ask().status() == 200);
}

fn token(key: &EcdsaKeyPair) -> String {
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let head = part(serde_json::json!({ "alg": "ES256", "typ": "JWT", "kid": "k" }));
    let claims = serde_json::json!({ "iss": "https://id.test/", "aud": "shop", "sub": "ada", "exp": now + 600 });
    let message = format!("{head}.{}", part(claims));
    let signature = key.sign(&SystemRandom::new(), message.as_bytes()).expect("a signature");
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// Serves the key set from now on.
fn publish(at: SocketAddr, key: &EcdsaKeyPair) {
    let point = key.public_key().as_ref();
    let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
    let set =
        serde_json::json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k", "alg": "ES256", "x": x, "y": y }] });
    let body = set.to_string();
    let listener = TcpListener::bind(at).expect("the port is still free");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            use std::io::{BufRead as _, Write as _};
            let mut lines = std::io::BufReader::new(&stream).lines();
            while lines.next().is_some_and(|l| l.is_ok_and(|l| !l.is_empty())) {}
            drop(lines);
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
            let _ = write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len());
        }
    });
}
