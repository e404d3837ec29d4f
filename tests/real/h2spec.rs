//! h2spec, the conformance suite for HTTP/2 and HPACK, against every kind of listener.

use std::time::Duration;

use super::common::Onehop;
use super::kit::{Authority, run, texts, tool};

/// Where HTTP/1.1 is spoken too, bytes that are no preface are a bad HTTP/1.1 request and get its answer, 400, before
/// the connection ends. The suite wants it to end without a word.
const NOT_H2: &str = "Sends invalid connection preface";

#[test]
fn h2spec_passes() {
    let authority = Authority::new();
    let (cert, key) = authority.issue(&["localhost", "127.0.0.1"]);
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners:\n\
         \x20 h2c: {{ bind: '127.0.0.1:0', protocols: [h2] }}\n\
         \x20 both: {{ bind: '127.0.0.1:0' }}\n\
         \x20 tls: {{ bind: '127.0.0.1:0', tls: {{ certificates: [{{ cert: {cert}, key: {key} }}] }} }}\n\
         routes: [{{ name: all, respond: {{ status: 200, body: 'a body of some length' }} }}]\n"
    ));
    for (listener, options, exception) in
        [("h2c", &[][..], None), ("both", &[], Some(NOT_H2)), ("tls", &["--tls", "--insecure"], None)]
    {
        let port = onehop.at(listener).port().to_string();
        let output = run(
            tool("h2spec")
                .args(["--host", "127.0.0.1", "--port", &port, "--timeout", "5"])
                .args(options)
                .args(["generic", "http2", "hpack"]),
            Duration::from_secs(300),
        );
        let (out, err) = texts(&output);
        assert!(out.contains(" tests, ") && out.contains(" 0 skipped"), "{listener}: {out}{err}");
        let failed: Vec<&str> = out.lines().filter(|line| line.trim_start().starts_with('×')).collect();
        // The summary repeats the list: each failure stands there twice.
        assert!(
            failed.iter().all(|line| exception.is_some_and(|known| line.contains(known))),
            "{listener}: {out}{err}"
        );
    }
}
