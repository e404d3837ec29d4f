//! curl as a client: every version it speaks, a large upload behind `Expect: 100-continue`, early hints.

use super::common::{Endpoint, Onehop};
use super::kit::{Authority, run, succeed, texts, tool};

struct Bed {
    onehop: Onehop,
    endpoint: Endpoint,
    authority: Authority,
}

fn bed() -> Bed {
    let endpoint = Endpoint::start(|head, body| {
        let line = head.lines().next().unwrap_or_default();
        let sum = body.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        let text = format!("{line} {} {sum:x}\n", body.len());
        let hints = if line.contains("/hints") {
            "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n"
        } else {
            ""
        };
        format!("{hints}HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()).into_bytes()
    });
    let authority = Authority::new();
    let (cert, key) = authority.issue(&["shop.example"]);
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners:\n\
         \x20 plain: {{ bind: '127.0.0.1:0', limits: {{ body: 64MiB }} }}\n\
         \x20 tls: {{ bind: '127.0.0.1:0', limits: {{ body: 64MiB }}, tls: {{ certificates: [{{ cert: {cert}, key: {key} }}] }} }}\n\
         routes: [{{ name: all, to: up }}]\n\
         services: {{ up: {{ discover: {{ static: ['{}'] }} }} }}\n",
        endpoint.address
    ));
    Bed { onehop, endpoint, authority }
}

impl Bed {
    /// curl with these options against a listener; verbose output on standard error.
    fn curl(&self, listener: &str, options: &[&str], path: &str) -> (String, String) {
        let port = self.onehop.at(listener).port();
        let scheme = if listener == "tls" { "https" } else { "http" };
        let mut curl = tool("curl");
        curl.args(["--silent", "--show-error", "--verbose", "--noproxy", "*", "--max-time", "60"])
            .args(["--cacert", &self.authority.ca(), "--resolve", &format!("shop.example:{port}:127.0.0.1")])
            .args(options)
            .arg(format!("{scheme}://shop.example:{port}{path}"));
        let output = run(&mut curl, super::kit::PATIENCE * 3);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{curl:?}: {}\n{err}", output.status);
        (out, err)
    }
}

#[test]
fn curl_speaks_every_version() {
    let bed = bed();
    for (listener, option, version) in [
        ("plain", "--http1.0", "HTTP/1.0 200"),
        ("plain", "--http1.1", "HTTP/1.1 200"),
        ("plain", "--http2-prior-knowledge", "HTTP/2 200"),
        ("tls", "--http1.1", "HTTP/1.1 200"),
        ("tls", "--http2", "HTTP/2 200"),
    ] {
        let (out, err) = bed.curl(listener, &[option], "/a?b=c");
        assert_eq!(out, "GET /a?b=c HTTP/1.1 0 0\n", "{listener} {option}");
        // HTTP/1.0 may be answered with the server's own version (RFC 9110 section 6.2).
        let version = if option == "--http1.0" { "HTTP/1." } else { version };
        assert!(err.contains(&format!("< {version}")), "{listener} {option}: {err}");
    }
    // An offer to upgrade to h2c is not taken (RFC 9113 section 3.1), the request is served as it is.
    let (out, err) = bed.curl("plain", &["--http2"], "/a");
    assert_eq!(out, "GET /a HTTP/1.1 0 0\n");
    assert!(err.contains("< HTTP/1.1 200"), "{err}");
    assert!(!bed.endpoint.last().to_ascii_lowercase().contains("http2-settings"), "{}", bed.endpoint.last());
}

#[test]
fn curl_waits_for_100_continue_before_a_large_upload() {
    let bed = bed();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("large");
    let bytes: Vec<u8> = (0..20u32 << 20).map(|n| (n % 251) as u8).collect();
    std::fs::write(&file, &bytes).expect("a file");
    let sum = bytes.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let data = format!("@{}", file.display());
    for (listener, version, says) in [
        ("plain", "--http1.1", "< HTTP/1.1 100"),
        ("tls", "--http1.1", "< HTTP/1.1 100"),
        ("plain", "--http2-prior-knowledge", "< HTTP/2 100"),
        ("tls", "--http2", "< HTTP/2 100"),
    ] {
        let options = [version, "-H", "expect: 100-continue", "--expect100-timeout", "50", "--data-binary", &data];
        let (out, err) = bed.curl(listener, &options, "/up");
        assert_eq!(out, format!("POST /up HTTP/1.1 {} {sum:x}\n", bytes.len()), "{listener} {version}");
        assert!(err.contains(says), "{listener} {version}: {err}");
    }
}

#[test]
fn curl_sees_early_hints() {
    let bed = bed();
    for listener in ["plain", "tls"] {
        let (out, err) = bed.curl(listener, &["--http1.1"], "/hints");
        assert_eq!(out, "GET /hints HTTP/1.1 0 0\n");
        assert!(
            err.contains("< HTTP/1.1 103") && err.contains("< link: </style.css>; rel=preload"),
            "{listener}: {err}"
        );
        assert!(err.contains("< HTTP/1.1 200"), "{listener}: {err}");
    }
    for (listener, option) in [("plain", "--http2-prior-knowledge"), ("tls", "--http2")] {
        let (out, err) = bed.curl(listener, &[option], "/hints");
        assert_eq!(out, "GET /hints HTTP/1.1 0 0\n");
        let hints = err.contains("< HTTP/2 103") && err.contains("< link: </style.css>; rel=preload");
        assert!(hints && err.contains("< HTTP/2 200"), "{listener}: {err}");
    }
}

#[test]
fn curl_sends_many_requests_on_one_connection() {
    let bed = bed();
    let (port, ca) = (bed.onehop.at("tls").port(), bed.authority.ca());
    let urls = format!("https://shop.example:{port}/n/[1-50]");
    let out = succeed(tool("curl").args(["--silent", "--noproxy", "*", "--http2", "--cacert", &ca]).args([
        "--resolve",
        &format!("shop.example:{port}:127.0.0.1"),
        "--write-out",
        "%{num_connects} ",
        &urls,
    ]));
    assert_eq!(out.matches("GET /n/").count(), 50, "{out}");
    assert_eq!(bed.endpoint.seen(), 50);
    assert_eq!(out.matches("\n1 ").count() + usize::from(out.starts_with("1 ")), 1, "one connection: {out}");
}
