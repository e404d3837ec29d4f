//! Malformed and ambiguous requests against the built binary: each gets exactly one answer, and nothing of it reaches
//! the endpoint.

mod common;
#[path = "requests/fields.rs"]
mod fields;
#[path = "requests/http1.rs"]
mod http1;
#[path = "requests/http2.rs"]
mod http2;
#[path = "requests/sizes.rs"]
mod sizes;

use common::{Answer, Endpoint, Onehop, get};

/// Listeners of every strictness before one endpoint.
pub struct Bench {
    pub hop: Onehop,
    pub up: Endpoint,
}

impl Bench {
    pub fn start() -> Self {
        let up = Endpoint::start(|head, body| {
            let head_only = head.starts_with("HEAD ");
            let length = body.len();
            let body = if head_only { String::new() } else { String::from_utf8_lossy(body).into_owned() };
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
        });
        let hop = Onehop::start(&format!(
            r#"
version: 1
admin: {{ bind: "127.0.0.1:0" }}
listeners:
  edge: {{ bind: "127.0.0.1:0" }}
  mesh: {{ bind: "127.0.0.1:0", exposure: mesh }}
  trusting: {{ bind: "127.0.0.1:0", trustedProxies: [127.0.0.0/8] }}
  tight:
    bind: "127.0.0.1:0"
    limits: {{ head: 1KiB, uri: 256B, fields: 10, body: 1KiB, headTimeout: 300ms, bodyIdleTimeout: 300ms }}
routes:
- {{ name: all, to: up }}
- {{ name: chat, matches: [{{ path: {{ prefix: /chat }} }}], upgrades: [websocket], to: up }}
services:
  up: {{ discover: {{ static: ["{}"] }} }}
telemetry: {{ accessLog: {{ path: /dev/stderr }} }}
"#,
            up.address
        ));
        Self { hop, up }
    }

    /// Asserts that the endpoint has seen nothing since `before`, and that the next good request goes through.
    pub fn untouched(&self, listener: &str, before: usize, case: &str) {
        assert_eq!(self.up.seen(), before, "{case}: reached the endpoint as\n{}", self.up.last());
        let good = get(self.hop.at(listener), "a.example", "/good");
        assert_eq!(good.status(), 200, "{case}: a good request afterwards: {}", good.text());
        assert_eq!(self.up.seen(), before + 1, "{case}: more than the good request reached the endpoint");
    }
}

/// The `reason` of a problem.
pub fn reason(answer: &Answer) -> String {
    reason_in(&answer.body())
}

/// The `reason` of a problem's text.
pub fn reason_in(body: &str) -> String {
    serde_json::from_str::<serde_json::Value>(body)
        .ok()
        .and_then(|problem| Some(problem["reason"].as_str()?.to_owned()))
        .unwrap_or_default()
}
