//! Credentials of every kind against the built binary: who comes in, what goes on, and what shows of secrets.

mod common;

use std::time::SystemTime;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Answer, Endpoint, Onehop, eventually, exchange, get, get_with};
use serde_json::Value as Json;

/// `demo-password`, by bcrypt.
const HASH: &str = "$2b$10$abcdefghijklmnopqrstuumOX3wqKQuHY/PTmnb0O6AUk/AWAuQ1W";
const SECRET: &str = "a-shared-secret-of-thirty-two-bytes-or-more";

/// An issuer that knows one token.
fn issuer() -> Endpoint {
    Endpoint::start(|_, body| {
        let known = String::from_utf8_lossy(body).contains("token=opaque-good&");
        let says = if known {
            r#"{"active":true,"sub":"ann","client_id":"web-1","scope":"read"}"#
        } else {
            r#"{"active":false}"#
        };
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{says}", says.len())
            .into_bytes()
    })
}

fn edge(up: &Endpoint, issuer: &Endpoint) -> String {
    format!(
        r#"
version: 1
admin: {{ bind: "127.0.0.1:0" }}
listeners:
  edge: {{ bind: "127.0.0.1:0", trustedProxies: [127.0.0.0/8] }}
identities:
  keys: {{ apiKey: {{}} }}
  people: {{ basic: {{}} }}
  signed: {{ signature: {{ nonceRequired: true }} }}
  tokens:
    introspection: {{ url: "http://{}/introspect", clientId: gw, clientSecret: client-secret-value, consumerClaim: client_id }}
plans:
  gold: {{}}
  free: {{}}
routes:
- {{ name: any, matches: [{{ path: {{ prefix: /any }} }}], auth: {{ require: [keys, people, signed, tokens] }}, to: up }}
- {{ name: both, matches: [{{ path: {{ prefix: /both }} }}], auth: {{ require: {{ all: [keys, tokens] }} }}, to: up }}
- {{ name: gold, matches: [{{ path: {{ prefix: /gold }} }}], auth: {{ require: keys, plans: gold }}, to: up }}
- {{ name: trial, matches: [{{ path: {{ prefix: /trial }} }}], auth: {{ require: keys, plans: gold, audit: true }}, to: up }}
- {{ name: near, matches: [{{ path: {{ prefix: /near }} }}], ipRules: {{ allow: [198.51.100.0/24], deny: [198.51.100.9] }}, to: up }}
- {{ name: rest, auth: {{ deny: "request.path.startsWith('/admin')" }}, to: up }}
services:
  up: {{ discover: {{ static: ["{}"] }} }}
telemetry: {{ accessLog: {{ path: /dev/stderr }} }}
"#,
        issuer.address, up.address
    )
}

fn consumers(key: &str) -> String {
    format!(
        r#"
consumers:
  acme:
    plan: gold
    apiKeys: [{key}]
    passwords: ["acme:{HASH}"]
    signatureKeys: [{{ id: acme-1, algorithm: hmac-sha256, secret: {SECRET} }}]
    clientIds: [web-1]
  other: {{ plan: free, apiKeys: [other-key-value] }}
"#
    )
}

struct Bench {
    hop: Onehop,
    up: Endpoint,
    folder: tempfile::TempDir,
    _issuer: Endpoint,
}

impl Bench {
    /// Two files of one folder: consumers apart from the rest.
    fn start() -> Self {
        let (up, issuer) = (Endpoint::ok(), issuer());
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("a-edge.yaml"), edge(&up, &issuer)).expect("written");
        std::fs::write(folder.path().join("consumers.yaml"), consumers("acme-key-value")).expect("written");
        Self { hop: Onehop::run_file(folder.path(), &[]), up, folder, _issuer: issuer }
    }
    fn get(&self, path: &str, headers: &str) -> Answer {
        get_with(self.hop.at("edge"), "api.example", path, headers)
    }
    fn status(&self, path: &str, headers: &str) -> u16 {
        self.get(path, headers).status()
    }
}

fn basic(credential: &str) -> String {
    format!("authorization: Basic {}\r\n", STANDARD.encode(credential))
}

/// A signed POST.
fn signed(path: &str, body: &str, nonce: &str) -> String {
    let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let digest = STANDARD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body.as_bytes()));
    let input = format!(
        "(\"@method\" \"@authority\" \"@path\" \"content-digest\");created={created};nonce=\"{nonce}\";keyid=\"acme-1\""
    );
    let base = format!(
        "\"@method\": POST\n\"@authority\": api.example\n\"@path\": {path}\n\"content-digest\": sha-256=:{digest}:\n\
         \"@signature-params\": {input}"
    );
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), base.as_bytes());
    format!(
        "POST {path} HTTP/1.1\r\nhost: api.example\r\nconnection: close\r\ncontent-length: {}\r\ncontent-digest: \
         sha-256=:{digest}:\r\nsignature-input: s={input}\r\nsignature: s=:{}:\r\n\r\n{body}",
        body.len(),
        STANDARD.encode(signature)
    )
}

#[test]
fn a_consumer_proves_itself_with_whatever_it_holds() {
    let bench = Bench::start();
    assert_eq!(bench.status("/any", "x-api-key: acme-key-value\r\n"), 200);
    assert!(!bench.up.last().contains("x-api-key"), "{}", bench.up.last());
    assert_eq!(bench.status("/any", &basic("acme:demo-password")), 200);
    assert_eq!(bench.status("/any", &basic("acme:demo-password")), 200, "from memory");
    assert!(!bench.up.last().contains("authorization"), "{}", bench.up.last());
    assert_eq!(bench.status("/any", "authorization: Bearer opaque-good\r\n"), 200);
    let once = signed("/any/x", "{\"a\":1}", "n-1");
    let answer = exchange(bench.hop.at("edge"), once.as_bytes());
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let again = exchange(bench.hop.at("edge"), once.as_bytes());
    assert_eq!(again.status(), 401, "a nonce is good once");
    let forged = signed("/any/x", "{\"a\":1}", "n-2").replace("{\"a\":1}", "{\"a\":2}");
    assert_eq!(exchange(bench.hop.at("edge"), forged.as_bytes()).status(), 401);
    for bad in [basic("acme:guess"), "x-api-key: guess\r\n".into(), "authorization: Bearer opaque-bad\r\n".into()] {
        assert_eq!(bench.status("/any", &bad), 401, "{bad}");
    }
    eventually("the log names the consumer", || bench.hop.log().matches("\"consumer\":\"acme\"").count() >= 5);
}

#[test]
fn a_refusal_tells_what_was_tried() {
    let bench = Bench::start();
    let answer = bench.get("/any", "x-api-key: guess\r\n");
    let problem: Json = serde_json::from_str(&answer.body()).expect("a problem");
    let tried = problem["tried"].as_array().expect("a list");
    let told: Vec<String> = tried.iter().map(|t| format!("{} {} {}", t["identity"], t["outcome"], t["why"])).collect();
    assert_eq!(
        told,
        [
            "\"keys\" \"refused\" \"the API key is not known\"",
            "\"people\" \"absent\" null",
            "\"signed\" \"absent\" null",
            "\"tokens\" \"absent\" null",
        ]
    );
    let text = answer.text().to_ascii_lowercase();
    for scheme in ["apikey", "basic", "signature", "bearer"] {
        assert!(text.contains(&format!("www-authenticate: {scheme} realm=")), "{scheme}: {text}");
    }
    // Every one of two.
    assert_eq!(bench.status("/both", "x-api-key: acme-key-value\r\n"), 401);
    assert_eq!(bench.status("/both", "x-api-key: acme-key-value\r\nauthorization: Bearer opaque-good\r\n"), 200);
}

#[test]
fn plans_are_rules_and_rules_can_be_tried_dry() {
    let bench = Bench::start();
    assert_eq!(bench.status("/gold", "x-api-key: acme-key-value\r\n"), 200);
    assert_eq!(bench.status("/gold", "x-api-key: other-key-value\r\n"), 403);
    assert_eq!(bench.status("/trial", "x-api-key: other-key-value\r\n"), 200);
    assert_eq!(bench.status("/trial", ""), 401);
    let metrics = bench.hop.admin_get("/metrics").body();
    assert!(metrics.contains("onehop_auth_requests_total{route=\"trial\",result=\"audited\"} 1"), "{metrics}");
    eventually("the log says why", || bench.hop.log().contains("the consumer's plan is not on the list"));
}

/// Rules compare the path that the router matched: no spelling of it slips through.
#[test]
fn rules_and_router_see_one_path() {
    let bench = Bench::start();
    for path in ["/admin", "/x/../admin", "//admin", "/./admin/a", "/%61dmin", "/a/%2e%2e/admin"] {
        let answer = bench.get(path, "");
        assert_eq!(answer.status(), 403, "{path}: {}", answer.text());
    }
    assert_eq!(bench.status("/public/admin", ""), 200);
    let seen = bench.up.seen();
    for path in ["/x%2f..%2fadmin", "/x\\..\\admin"] {
        assert!(matches!(bench.status(path, ""), 400 | 403), "{path}");
    }
    assert_eq!(bench.up.seen(), seen);
}

#[test]
fn addresses_are_judged_behind_trusted_proxies_only() {
    let bench = Bench::start();
    for (forwarded, status) in [
        ("198.51.100.1", 200),
        ("198.51.100.9", 403),
        ("203.0.113.1", 403),
        ("::ffff:198.51.100.1", 200),
        // The right-most that is not trusted counts: what a client puts in front does not.
        ("198.51.100.1, 203.0.113.1", 403),
        ("203.0.113.1, 198.51.100.1, 127.0.0.2", 200),
    ] {
        assert_eq!(bench.status("/near", &format!("x-forwarded-for: {forwarded}\r\n")), status, "{forwarded}");
    }
    assert_eq!(bench.status("/near", ""), 403, "ourselves");
}

#[test]
fn consumers_change_without_a_restart() {
    let bench = Bench::start();
    assert_eq!(bench.status("/any", "x-api-key: acme-key-value\r\n"), 200);
    let (file, new) = (bench.folder.path().join("consumers.yaml"), bench.folder.path().join("consumers.new"));
    std::fs::write(&new, consumers("a-newer-key-value")).expect("written");
    std::fs::rename(&new, &file).expect("replaced");
    eventually("the new key is good", || bench.status("/any", "x-api-key: a-newer-key-value\r\n") == 200);
    assert_eq!(bench.status("/any", "x-api-key: acme-key-value\r\n"), 401);
    assert_eq!(get(bench.hop.at("edge"), "api.example", "/any").status(), 401);
}

#[test]
fn no_credential_shows_anywhere() {
    let bench = Bench::start();
    let token = STANDARD.encode("acme:demo-password");
    let wrong = STANDARD.encode("acme:wrong-password");
    let mut answers = String::new();
    for headers in [
        "x-api-key: acme-key-value\r\n".to_owned(),
        "x-api-key: guessed-key-value\r\n".to_owned(),
        format!("authorization: Basic {token}\r\n"),
        format!("authorization: Basic {wrong}\r\n"),
        "authorization: Bearer opaque-good\r\n".to_owned(),
        "authorization: Bearer opaque-unknown\r\n".to_owned(),
    ] {
        let answer = bench.get("/any", &headers);
        if answer.status() == 401 {
            answers.push_str(&answer.text());
        }
    }
    let shown = bench.hop.admin_get("/config").body();
    assert!(shown.contains("signatureKeys") && shown.contains("passwords"), "{shown}");
    let metrics = bench.hop.admin_get("/metrics").body();
    eventually("all is logged", || bench.hop.log().matches("\"route\":\"any\"").count() >= 6);
    let log = bench.hop.log();
    for secret in [
        "acme-key-value",
        "other-key-value",
        "guessed-key-value",
        "demo-password",
        "wrong-password",
        token.as_str(),
        wrong.as_str(),
        HASH,
        SECRET,
        "client-secret-value",
        "opaque-good",
        "opaque-unknown",
    ] {
        for (place, text) in [("answers", &answers), ("/config", &shown), ("metrics", &metrics), ("log", &log)] {
            assert!(!text.contains(secret), "{secret} in {place}:\n{text}");
        }
    }
}
