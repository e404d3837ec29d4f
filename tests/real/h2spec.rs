//! h2spec, the conformance suite for HTTP/2 and HPACK, against both kinds of listener.

use std::time::Duration;

use super::common::Onehop;
use super::kit::{Authority, run, texts, tool};

#[test]
fn h2spec_passes() {
    let authority = Authority::new();
    let (cert, key) = authority.issue(&["localhost", "127.0.0.1"]);
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners:\n\
         \x20 plain: {{ bind: '127.0.0.1:0' }}\n\
         \x20 tls: {{ bind: '127.0.0.1:0', tls: {{ certificates: [{{ cert: {cert}, key: {key} }}] }} }}\n\
         routes: [{{ name: all, respond: {{ status: 200, body: 'a body of some length' }} }}]\n"
    ));
    for (listener, tls) in [("plain", &[][..]), ("tls", &["--tls", "--insecure"])] {
        let port = onehop.at(listener).port().to_string();
        let output = run(
            tool("h2spec")
                .args(["--host", "127.0.0.1", "--port", &port, "--timeout", "5"])
                .args(tls)
                .args(["generic", "http2", "hpack"]),
            Duration::from_secs(300),
        );
        let (out, err) = texts(&output);
        assert!(output.status.success() && out.contains(" 0 failed"), "{listener}: {out}{err}");
    }
}
