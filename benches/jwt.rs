//! A token that was verified before: the same direct response without and with the `jwt` identity, and with a second
//! issuer whose tokens they are. The difference between two lines is what the token costs.

use std::time::SystemTime;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use http::Request;
use onehop::config::Source;
use onehop::hop::Hop;
use onehop_filters::contract::Body;
use tower::Service;

const SECRET: [u8; 32] = [7; 32];

fn config() -> String {
    let key = URL_SAFE_NO_PAD.encode(SECRET);
    let identity = |issuer: &str| {
        format!(
            "jwt: {{ issuer: \"{issuer}\", audiences: [shop], algorithms: [HS256], claimsToHeaders: {{ sub: x-user }}, \
             jwks: {{ inline: {{ keys: [{{ kty: oct, k: {key} }}] }} }} }}"
        )
    };
    format!(
        r#"
version: 1
admin: {{ bind: none }}
runtime: {{ workers: 1 }}
listeners: {{ api: {{ bind: "127.0.0.1:0" }} }}
identities:
  ours: {{ {} }}
  theirs: {{ {} }}
routes:
- {{ name: open, matches: [{{ path: {{ exact: /open }} }}], respond: {{ status: 200 }} }}
- {{ name: jwt, matches: [{{ path: {{ exact: /jwt }} }}], auth: {{ require: ours }}, respond: {{ status: 200 }} }}
- {{ name: second, matches: [{{ path: {{ exact: /second }} }}], auth: {{ require: [theirs, ours] }}, respond: {{ status: 200 }} }}
"#,
        identity("https://id.example.com/"),
        identity("https://id.example.net/"),
    )
}

/// A token of the usual size.
fn token() -> String {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = serde_json::json!({"iss": "https://id.example.com/", "aud": "shop", "sub": "ann", "exp": unix + 36_000,
        "scope": "orders:read orders:write", "name": "Ann Example", "email": "ann@example.com", "roles": ["a", "b", "c"]});
    let header = r#"{"alg":"HS256","typ":"JWT"}"#;
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &SECRET), signed.as_bytes());
    format!("Bearer {signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn tokens(c: &mut Criterion) {
    let dir = std::env::current_dir().expect("a working directory");
    let source = Source::Text { name: "bench.yaml".to_owned(), text: config(), dir };
    let hop = Hop::start(vec![source], onehop_filters::BUILTIN).unwrap_or_else(|e| panic!("{e}"));
    let mut service = hop.service("api").expect("the listener is there");
    let token = token();
    let mut group = c.benchmark_group("jwt");
    for path in ["/open", "/jwt", "/second"] {
        let mut ask = || {
            let rq = Request::get(path).header("host", "localhost").header("authorization", token.as_str());
            let rq = rq.body(Body::Empty).expect("a good request");
            service.call(rq).now_or_never().expect("nothing waits").expect("never fails")
        };
        assert_eq!(ask().status(), 200, "{path}");
        group.bench_function(&path[1..], |b| b.iter(&mut ask));
    }
    group.finish();
}

criterion_group!(benches, tokens);
criterion_main!(benches);
