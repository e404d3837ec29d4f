//! Opaque tokens that a real issuer (oidc-provider) is asked about.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::common::{Answer, Onehop, exchange, get_with};
use super::kit::Server;
use super::oidc::node;

/// A form that the machine posts to the issuer.
fn post(issuer: SocketAddr, path: &str, form: &str) -> Answer {
    let who = STANDARD.encode("machine:hush-hush-machine");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {issuer}\r\nauthorization: Basic {who}\r\nconnection: close\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
        form.len()
    );
    exchange(issuer, head.as_bytes())
}

fn token(issuer: SocketAddr, scope: &str) -> String {
    let answer = post(issuer, "/token", &format!("grant_type=client_credentials&scope={scope}"));
    let text = answer.body();
    let json = text.find('{').and_then(|from| text.get(from..=text.rfind('}')?)).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {}", answer.text()));
    json["access_token"].as_str().unwrap_or_else(|| panic!("{json}")).to_owned()
}

#[test]
fn a_token_is_good_until_its_issuer_says_otherwise() {
    let (issuer, at) = Server::start_on_a_port(node("issuer.mjs").arg("https://localhost:1"));
    let identity = |client: &str, more: &str| {
        format!(
            "{{ introspection: {{ url: 'http://{at}/token/introspection', {client}, consumerClaim: client_id, \
             claimsToHeaders: {{ client_id: x-client }}, {more} }} }}"
        )
    };
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         telemetry: {{ accessLog: {{ path: /dev/stderr }} }}\n\
         identities:\n\
         \x20 asking: {}\n\
         \x20 posting: {}\n\
         \x20 nobody: {}\n\
         \x20 believing: {}\n\
         consumers: {{ acme: {{ clientIds: [machine] }} }}\n\
         routes:\n\
         - {{ name: asking, matches: [{{ path: {{ prefix: /asking }} }}], auth: {{ require: asking, scopes: [orders], consumers: [acme] }}, \
              transform: {{ response: {{ set: {{ x-seen: '${{consumer.name}} ${{user.scopes[0]}}' }} }} }}, respond: {{ status: 204 }} }}\n\
         - {{ name: posting, matches: [{{ path: {{ prefix: /posting }} }}], auth: {{ require: posting }}, respond: {{ status: 204 }} }}\n\
         - {{ name: nobody, matches: [{{ path: {{ prefix: /nobody }} }}], auth: {{ require: nobody }}, respond: {{ status: 204 }} }}\n\
         - {{ name: believing, matches: [{{ path: {{ prefix: /believing }} }}], auth: {{ require: believing }}, respond: {{ status: 204 }} }}\n",
        identity("clientId: gate way, clientSecret: 'hush:hush%gateway'", "cache: 0s, negativeCache: 0s"),
        identity("clientId: poster, clientSecret: hush-hush-poster, clientAuth: post", "cache: 0s"),
        identity("clientId: gate way, clientSecret: hush-wrong", "cache: 0s"),
        identity("clientId: gate way, clientSecret: 'hush:hush%gateway'", "cache: 1h"),
    ));
    let ask = |path: &str, token: &str| {
        get_with(onehop.at("web"), "a.example", path, &format!("authorization: Bearer {token}\r\n"))
    };
    let orders = token(at, "orders");
    let good = ask("/asking", &orders);
    assert_eq!((good.status(), good.header("x-seen").as_deref()), (204, Some("acme orders")), "{}", onehop.log());
    assert_eq!(ask("/posting", &orders).status(), 204, "{}", onehop.log());
    assert_eq!(ask("/believing", &orders).status(), 204);
    assert_eq!(ask("/asking", &token(at, "stock")).status(), 403, "another scope");
    let stranger = ask("/asking", "of-no-issuer");
    assert_eq!(stranger.status(), 401);
    assert!(stranger.header("www-authenticate").is_some_and(|challenge| challenge.contains("invalid_token")));
    assert_eq!(ask("/nobody", &orders).status(), 503, "the issuer refuses to answer us: no word, no pass");

    // Taken back: from now on for who asks, later for who believes what it heard.
    let revoked = post(at, "/token/revocation", &format!("token={orders}"));
    assert_eq!(revoked.status(), 200, "{}", revoked.text());
    assert_eq!(ask("/asking", &orders).status(), 401);
    assert_eq!(ask("/believing", &orders).status(), 204);

    drop(issuer);
    assert_eq!(ask("/asking", &orders).status(), 503);
    assert_eq!(ask("/believing", &orders).status(), 204);
    for shown in [onehop.log(), onehop.admin_get("/config").text(), onehop.admin_get("/metrics").text()] {
        assert!(!shown.contains("hush") && !shown.contains(&orders), "{shown}");
    }
}
