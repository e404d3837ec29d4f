//! h2spec, the conformance suite for HTTP/2 and HPACK, against every kind of listener.

use std::collections::BTreeSet;
use std::time::Duration;

use super::common::{Endpoint, Onehop};
use super::kit::{Authority, run, texts, tool};

/// Bytes that are no preface are a bad HTTP/1.1 request where HTTP/1.1 is spoken too, and get its answer, 400, before the
/// connection ends. The suite only knows GOAWAY, or an end without a word.
const EXCEPTION: &str = "Sends invalid connection preface";

#[test]
fn h2spec_passes() {
    let authority = Authority::new();
    let (cert, key) = authority.issue(&["localhost", "127.0.0.1"]);
    // Answers after the whole request, so that a stream is open while the suite breaks its rules.
    let body = "x".repeat(64);
    let endpoint =
        Endpoint::start(move |_, _| format!("HTTP/1.1 200 OK\r\ncontent-length: 64\r\n\r\n{body}").into_bytes());
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners:\n\
         \x20 h2c: {{ bind: '127.0.0.1:0', protocols: [h2] }}\n\
         \x20 both: {{ bind: '127.0.0.1:0' }}\n\
         \x20 tls: {{ bind: '127.0.0.1:0', tls: {{ certificates: [{{ cert: {cert}, key: {key} }}] }} }}\n\
         routes: [{{ name: all, to: up }}]\n\
         services: {{ up: {{ discover: {{ static: ['{}'] }} }} }}\n",
        endpoint.address
    ));
    for (listener, options) in [("h2c", &[][..]), ("both", &[]), ("tls", &["--tls", "--insecure"])] {
        let port = onehop.at(listener).port().to_string();
        let broken = || {
            let output = run(
                tool("h2spec")
                    .args(["--host", "127.0.0.1", "--port", &port, "--timeout", "5"])
                    .args(options)
                    .args(["generic", "http2", "hpack"]),
                Duration::from_secs(300),
            );
            let (out, err) = texts(&output);
            assert!(out.contains(" tests, ") && out.contains(" 0 skipped"), "{listener}: {out}{err}");
            // The summary repeats the list: each failure stands there twice.
            let excused = |line: &&str| listener == "both" && line.contains(EXCEPTION);
            let cases = out.lines().map(str::trim).filter(|line| line.starts_with('×') && !excused(line));
            (cases.map(str::to_owned).collect::<BTreeSet<_>>(), out)
        };
        // An answer that was on its way before the suite broke a rule looks to it like one that ignores the rule: where the
        // endpoint is that fast, the suite is asked again. What is really broken is broken twice.
        let (first, _) = broken();
        if !first.is_empty() {
            let (second, out) = broken();
            assert!(first.is_disjoint(&second), "{listener}: {out}");
        }
    }
}
