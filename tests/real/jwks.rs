//! Keys from a real HTTPS server whose certificate only `jwks.ca` knows.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;
use std::time::{SystemTime, UNIX_EPOCH};

use super::common::{Endpoint, Onehop, get_with};
use super::kit::{Authority, Server, eventually, python};

const KEY: &[u8] = include_bytes!("../data/example-issuer.key");
const SET: &str = include_str!("../../examples/jwks.json");

fn token(key_id: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = json!({ "iss": "https://id.example.com/", "aud": "shop-api", "sub": "anna", "exp": now + 300 });
    let header = Header { kid: Some(key_id.to_owned()), ..Header::new(Algorithm::ES256) };
    encode(&header, &claims, &EncodingKey::from_ec_pem(KEY).expect("a key")).expect("a token")
}

#[test]
fn keys_come_over_https_and_a_new_one_is_fetched_when_a_token_names_it() {
    let authority = Authority::new();
    let (cert, key) = authority.issue(&["127.0.0.1", "localhost"]);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let keys = dir.path().join("jwks.json");
    std::fs::write(&keys, SET.replace("\"example\"", "\"first\"")).expect("a file");
    let (server, https) = Server::start_on_a_port(python("https_files.py").arg(dir.path()).arg(&cert).arg(&key));
    let fetches = || server.lines().iter().filter(|line| line.contains("GET /jwks.json")).count();

    let endpoint = Endpoint::ok();
    let config = |ca: &str| {
        format!(
            "version: 1\n\
             admin: {{ bind: '127.0.0.1:0' }}\n\
             listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
             identities:\n\
             \x20 corp:\n\
             \x20   jwt:\n\
             \x20     issuer: https://id.example.com/\n\
             \x20     audiences: [shop-api]\n\
             \x20     algorithms: [ES256]\n\
             \x20     jwks: {{ url: 'https://localhost:{}/jwks.json', refresh: 1h{ca} }}\n\
             routes: [{{ name: all, auth: {{ require: corp }}, to: up }}]\n\
             services: {{ up: {{ discover: {{ static: ['{}'] }} }} }}\n",
            https.port(),
            endpoint.address
        )
    };
    let call = |onehop: &Onehop, token: &str| {
        get_with(onehop.at("web"), "a.example", "/", &format!("authorization: Bearer {token}\r\n")).status()
    };

    let onehop = Onehop::start(&config(&format!(", ca: {}", authority.ca())));
    assert_eq!(call(&onehop, &token("first")), 200);
    assert_eq!(call(&onehop, "no.token.here"), 401);
    eventually("the first fetch shows", || fetches() == 1);

    std::fs::write(&keys, SET.replace("\"example\"", "\"second\"")).expect("a file");
    // At most one such fetch in ten seconds.
    eventually("the new key is fetched", || call(&onehop, &token("second")) == 200);
    eventually("the second fetch shows", || fetches() == 2);

    // Nobody vouches for this server: no keys, and that is our fault, not the caller's.
    let stranger = Onehop::start(&config(""));
    assert_eq!(call(&stranger, &token("second")), 503);
    assert_eq!(endpoint.seen(), 2);
}
