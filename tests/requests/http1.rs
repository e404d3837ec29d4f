//! HTTP/1: framing, request lines, hosts, fields and targets.

use crate::common::Client;
use crate::{Bench, reason};

/// What becomes of the connection after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Kept,
    Closed,
}
use Then::{Closed, Kept};

type Case = (&'static str, &'static [u8], u16, &'static str, Then);

/// The bytes after a message whose end is in doubt: a second request that must never be served.
macro_rules! smuggled {
    ($head:literal) => {
        concat!($head, "GET /smuggled HTTP/1.1\r\nhost: a.example\r\n\r\n").as_bytes()
    };
}

const FRAMING: &[Case] = &[
    (
        "length and coding",
        smuggled!(
            "POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "coding and length",
        smuggled!(
            "POST / HTTP/1.1\r\nhost: a.example\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n"
        ),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "coding and junk length",
        smuggled!(
            "POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\ncontent-length: x\r\n\r\n0\r\n\r\n"
        ),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "lengths differ",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\ncontent-length: 5\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "lengths in a list",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0, 0\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "length with plus",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: +0\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "length with minus",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: -1\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "length in hex",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0x0\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "length empty",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: \r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "length with a decimal",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0.0\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "length beyond 63 bits",
        b"POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 9223372036854775808\r\n\r\n",
        400,
        "bad-framing",
        Closed,
    ),
    (
        "length beyond 64 bits",
        b"POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 18446744073709551616\r\n\r\n",
        400,
        "bad-request",
        Closed,
    ),
    (
        "length with a blank inside",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0 0\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "coding identity",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: identity\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "coding identity, chunked",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "coding gzip, chunked",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "coding chunked, chunked",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "coding ,chunked",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: ,chunked\r\n\r\n0\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "coding xchunked",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "coding with parameter",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "coding with a vertical tab",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "coding twice",
        smuggled!(
            "POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "coding chunked, then identity",
        smuggled!(
            "POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n"
        ),
        400,
        "bad-request",
        Closed,
    ),
    (
        "coding empty",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: \r\n\r\n0\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "coding on 1.0",
        smuggled!("POST / HTTP/1.0\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "coding with a blank before the colon",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "coding in a folded line",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
    (
        "length in a folded line",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\nx-a: b\r\n content-length: 9\r\n\r\n"),
        400,
        "bad-request",
        Closed,
    ),
];

const CHUNKS: &[Case] = &[
    (
        "size not hex",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\nx\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "size 0x1",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "size with sign",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "size empty",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n\r\n0\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "size with a blank",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "size of seventeen digits",
        smuggled!(
            "POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n00000000000000001\r\na\r\n0\r\n\r\n"
        ),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "bare LF after the size",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "bare LF after the data",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "bare LF in an extension",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n1;x\n\r\na\r\n0\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "NUL in an extension",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n1;\0\r\na\r\n0\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "data longer than said",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "fold in a trailer",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: b\r\n c\r\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
    (
        "bare LF after a trailer",
        smuggled!("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: b\n\r\n"),
        400,
        "bad-framing",
        Closed,
    ),
];

const LINES: &[Case] = &[
    ("no version", b"GET /\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("version 0.9", b"GET / HTTP/0.9\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("version 1.2", b"GET / HTTP/1.2\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("version 2.0 outside of the preface", b"GET / HTTP/2.0\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("version in small letters", b"GET / http/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("version 1.10", b"GET / HTTP/1.10\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("two blanks", b"GET  / HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("blank at the end", b"GET / HTTP/1.1 \r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("tabs", b"GET\t/\tHTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("blank in the target", b"GET /a b HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("blank first", b" GET / HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("method with a delimiter", b"G(T / HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "bad-request", Closed),
    ("bare LF after the request line", b"GET / HTTP/1.1\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("bare LF after a field", b"GET / HTTP/1.1\r\nhost: a.example\n\r\n", 400, "bad-request", Closed),
    ("bare LF at the end", smuggled!("GET / HTTP/1.1\r\nhost: a.example\r\n\n"), 400, "bad-request", Closed),
    ("bare CR in a value", b"GET / HTTP/1.1\r\nhost: a.example\r\nx-a: b\rc\r\n\r\n", 400, "bad-request", Closed),
    ("NUL in a value", b"GET / HTTP/1.1\r\nhost: a.example\r\nx-a: b\0c\r\n\r\n", 400, "bad-request", Closed),
    ("DEL in a value", b"GET / HTTP/1.1\r\nhost: a.example\r\nx-a: b\x7fc\r\n\r\n", 400, "bad-request", Closed),
    ("NUL in a name", b"GET / HTTP/1.1\r\nhost: a.example\r\nx\0a: b\r\n\r\n", 400, "bad-request", Closed),
    ("folded line", b"GET / HTTP/1.1\r\nhost: a.example\r\nx-a: b\r\n c\r\n\r\n", 400, "bad-request", Closed),
    ("fold before any field", b"GET / HTTP/1.1\r\n host: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("blank before the colon", b"GET / HTTP/1.1\r\nhost : a.example\r\n\r\n", 400, "bad-request", Closed),
    ("no colon", b"GET / HTTP/1.1\r\nhost: a.example\r\nx-a\r\n\r\n", 400, "bad-request", Closed),
    ("no name", b"GET / HTTP/1.1\r\nhost: a.example\r\n: b\r\n\r\n", 400, "bad-request", Closed),
    ("name in parentheses", b"GET / HTTP/1.1\r\nhost: a.example\r\n(x): b\r\n\r\n", 400, "bad-request", Closed),
    ("name beyond ASCII", b"GET / HTTP/1.1\r\nhost: a.example\r\nx-\xc3\xa4: b\r\n\r\n", 400, "bad-request", Closed),
];

const HOSTS: &[Case] = &[
    ("none", b"GET / HTTP/1.1\r\n\r\n", 400, "bad-host", Kept),
    ("two", b"GET / HTTP/1.1\r\nhost: a.example\r\nhost: b.example\r\n\r\n", 400, "bad-host", Kept),
    ("twice the same", b"GET / HTTP/1.1\r\nhost: a.example\r\nHost: a.example\r\n\r\n", 400, "bad-host", Kept),
    ("empty", b"GET / HTTP/1.1\r\nhost:\r\n\r\n", 400, "bad-host", Kept),
    ("with a blank", b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n", 400, "bad-host", Kept),
    ("with a slash", b"GET / HTTP/1.1\r\nhost: a.example/b\r\n\r\n", 400, "bad-host", Kept),
    ("with userinfo", b"GET / HTTP/1.1\r\nhost: u@a.example\r\n\r\n", 400, "bad-host", Kept),
    ("with a comma", b"GET / HTTP/1.1\r\nhost: a.example,b.example\r\n\r\n", 400, "bad-host", Kept),
    ("with a port that is no number", b"GET / HTTP/1.1\r\nhost: a.example:80x\r\n\r\n", 400, "bad-host", Kept),
    ("with a port beyond 65535", b"GET / HTTP/1.1\r\nhost: a.example:65536\r\n\r\n", 400, "bad-host", Kept),
    ("with two ports", b"GET / HTTP/1.1\r\nhost: a.example:80:80\r\n\r\n", 400, "bad-host", Kept),
    ("with only a port", b"GET / HTTP/1.1\r\nhost: :80\r\n\r\n", 400, "bad-host", Kept),
    ("with an escape", b"GET / HTTP/1.1\r\nhost: a%2eexample\r\n\r\n", 400, "bad-host", Kept),
    ("with an empty label", b"GET / HTTP/1.1\r\nhost: a..example\r\n\r\n", 400, "bad-host", Kept),
    ("beyond ASCII", b"GET / HTTP/1.1\r\nhost: \xc3\xa4.example\r\n\r\n", 400, "bad-host", Kept),
    ("open bracket", b"GET / HTTP/1.1\r\nhost: [::1\r\n\r\n", 400, "bad-host", Kept),
    ("no address in brackets", b"GET / HTTP/1.1\r\nhost: [a]\r\n\r\n", 400, "bad-host", Kept),
    ("with a query", b"GET / HTTP/1.1\r\nhost: a.example?x\r\n\r\n", 400, "bad-host", Kept),
    ("absolute form without Host", b"GET http://a.example/ HTTP/1.1\r\n\r\n", 400, "bad-host", Kept),
    (
        "absolute form with userinfo",
        b"GET http://u:p@a.example/ HTTP/1.1\r\nhost: a.example\r\n\r\n",
        400,
        "bad-host",
        Kept,
    ),
    ("absolute form with a bad Host", b"GET http://a.example/ HTTP/1.1\r\nhost: a b\r\n\r\n", 400, "bad-host", Kept),
    (
        "absolute form of another scheme",
        b"GET ftp://a.example/ HTTP/1.1\r\nhost: a.example\r\n\r\n",
        400,
        "bad-request",
        Kept,
    ),
    ("absolute form without a host", b"GET http:///a HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
];

const TARGETS: &[Case] = &[
    ("fragment", b"GET /a#b HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-path", Closed),
    ("fragment in the query", b"GET /a?b#c HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-path", Closed),
    ("encoded slash", b"GET /a%2fb HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-path", Kept),
    ("encoded backslash", b"GET /a%5Cb HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-path", Kept),
    ("backslash", b"GET /a\\b HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-path", Kept),
    ("encoded NUL", b"GET /a%00 HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-path", Kept),
    ("broken escape", b"GET /a%zz HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-path", Kept),
    ("cut escape", b"GET /a%2 HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-path", Kept),
    ("dots with a parameter", b"GET /a/..;x/b HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-path", Kept),
    ("control byte", b"GET /a\x01 HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("DEL", b"GET /a\x7f HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("beyond ASCII", b"GET /\xc3\xa4 HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-path", Kept),
    ("a lone word", b"GET a HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-path", Kept),
    ("no slash first", b"GET a/b HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("query alone", b"GET ?a HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("quotes in the query", b"GET /?\"a\" HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-request", Closed),
    ("star with GET", b"GET * HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-path", Kept),
];

const METHODS: &[Case] = &[
    ("CONNECT", b"CONNECT a.example:80 HTTP/1.1\r\nhost: a.example:80\r\n\r\n", 405, "method-refused", Closed),
    ("CONNECT with a path", b"CONNECT / HTTP/1.1\r\nhost: a.example\r\n\r\n", 405, "method-refused", Closed),
    ("TRACE", b"TRACE / HTTP/1.1\r\nhost: a.example\r\n\r\n", 405, "method-refused", Kept),
    ("get", b"get / HTTP/1.1\r\nhost: a.example\r\n\r\n", 400, "bad-request", Kept),
    ("Post", b"Post / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\n\r\n", 400, "bad-request", Kept),
    (
        "a method of forty letters",
        b"AAAAAAAAAABBBBBBBBBBCCCCCCCCCCDDDDDDDDDD / HTTP/1.1\r\nhost: a.example\r\n\r\n",
        400,
        "bad-request",
        Closed,
    ),
    (
        "expectation of another kind",
        b"GET / HTTP/1.1\r\nhost: a.example\r\nexpect: 200-maybe\r\n\r\n",
        417,
        "expectation-failed",
        Kept,
    ),
    (
        "expectations of two kinds",
        b"GET / HTTP/1.1\r\nhost: a.example\r\nexpect: 100-continue, x\r\n\r\n",
        417,
        "expectation-failed",
        Kept,
    ),
    (
        "upgrade that no route allows",
        b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        403,
        "upgrade-refused",
        Kept,
    ),
    (
        "upgrade that this route does not allow",
        b"GET /chat HTTP/1.1\r\nhost: a.example\r\nconnection: upgrade\r\nupgrade: spdy/3\r\n\r\n",
        403,
        "upgrade-refused",
        Kept,
    ),
    ("underscore in a name", b"GET / HTTP/1.1\r\nhost: a.example\r\nx_user: root\r\n\r\n", 400, "bad-header", Kept),
    (
        "look-alike of a framing field",
        smuggled!(
            "POST / HTTP/1.1\r\nhost: a.example\r\ncontent_length: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        ),
        400,
        "bad-header",
        Closed,
    ),
];

fn judge(group: &str, cases: &[Case]) {
    let bench = Bench::start();
    for &(name, bytes, status, why, then) in cases {
        let case = format!("{group}: {name}");
        let before = bench.up.seen();
        let mut client = Client::to(bench.hop.at("edge"));
        client.send(bytes);
        let answer = client.answer();
        let found = (answer.status(), reason(&answer));
        assert_eq!(found, (status, why.to_owned()), "{case}: {}", answer.text());
        assert_eq!(answer.header("content-type").as_deref(), Some("application/problem+json"), "{case}");
        assert!(answer.header("proxy-status").unwrap().starts_with("onehop; error="), "{case}");
        match then {
            Closed => {
                assert_eq!(answer.header("connection").as_deref(), Some("close"), "{case}: {}", answer.text());
                let rest = client.rest();
                assert!(rest.is_empty(), "{case}: also answered\n{}", String::from_utf8_lossy(&rest));
            }
            Kept => {
                assert_eq!(answer.header("connection"), None, "{case}");
                assert_eq!(bench.up.seen(), before, "{case}");
                client.send(b"GET /next HTTP/1.1\r\nhost: a.example\r\n\r\n");
                assert_eq!(client.answer().status(), 200, "{case}: the connection stays");
            }
        }
        let seen = before + usize::from(then == Kept);
        bench.untouched("edge", seen, &case);
    }
    let heads = bench.up.heads.lock().unwrap().concat();
    assert!(!heads.contains("smuggled"), "{heads}");
    // Whoever reads the log learns of every one of them.
    let reasons: std::collections::BTreeSet<&str> = cases.iter().map(|c| c.3).collect();
    for why in reasons {
        let line = format!("\"reason\":\"{why}\"");
        crate::common::eventually(&line, || bench.hop.log().contains(&line));
    }
}

#[test]
fn framing_is_never_in_doubt() {
    judge("framing", FRAMING);
}

#[test]
fn chunks_are_read_strictly() {
    let bench = Bench::start();
    for &(name, bytes, status, why, _) in CHUNKS {
        let mut client = Client::to(bench.hop.at("edge"));
        client.send(bytes);
        let answer = client.answer();
        assert_eq!((answer.status(), reason(&answer)), (status, why.to_owned()), "chunks: {name}: {}", answer.text());
        assert_eq!(answer.header("connection").as_deref(), Some("close"), "chunks: {name}: {}", answer.text());
        let rest = client.rest();
        assert!(rest.is_empty(), "chunks: {name}: also answered\n{}", String::from_utf8_lossy(&rest));
        assert_eq!(crate::common::get(bench.hop.at("edge"), "a.example", "/good").status(), 200, "{name}");
    }
    // The head may have gone out before the body broke, so an endpoint may have begun to read; it never saw the end.
    let heads = bench.up.heads.lock().unwrap().clone();
    assert!(!heads.iter().any(|h| h.contains("smuggled")), "{heads:?}");
}

#[test]
fn lines_are_read_strictly() {
    judge("lines", LINES);
}

#[test]
fn there_is_one_host() {
    judge("hosts", HOSTS);
}

#[test]
fn targets_have_one_reading() {
    judge("targets", TARGETS);
}

#[test]
fn methods_expectations_and_upgrades() {
    judge("methods", METHODS);
}

/// What is accepted reaches the endpoint in one normal form.
#[test]
fn what_passes_is_normal() {
    let bench = Bench::start();
    let cases: &[(&str, &[u8], &str, &[&str])] = &[
        ("empty lines first", b"\r\n\r\nGET / HTTP/1.1\r\nhost: a.example\r\n\r\n", "GET / HTTP/1.1", &[]),
        ("absolute form", b"GET http://B.example:8080/x?y HTTP/1.1\r\nhost: a.example\r\n\r\n", "GET /x?y HTTP/1.1", &["host: b.example:8080"]),
        ("absolute form without a path", b"GET http://b.example HTTP/1.1\r\nhost: a.example\r\n\r\n", "GET / HTTP/1.1", &["host: b.example"]),
        ("dot segments", b"GET /a/./b/../../c HTTP/1.1\r\nhost: a.example\r\n\r\n", "GET /c HTTP/1.1", &[]),
        ("encoded dots", b"GET /a/%2e%2E/c HTTP/1.1\r\nhost: a.example\r\n\r\n", "GET /c HTTP/1.1", &[]),
        ("above the root", b"GET /../../etc/passwd HTTP/1.1\r\nhost: a.example\r\n\r\n", "GET /etc/passwd HTTP/1.1", &[]),
        ("double slashes", b"GET //a///b HTTP/1.1\r\nhost: a.example\r\n\r\n", "GET /a/b HTTP/1.1", &[]),
        ("unreserved escapes", b"GET /%61%7e HTTP/1.1\r\nhost: a.example\r\n\r\n", "GET /a~ HTTP/1.1", &[]),
        ("escapes in small letters", b"GET /%c3%a4 HTTP/1.1\r\nhost: a.example\r\n\r\n", "GET /%C3%A4 HTTP/1.1", &[]),
        ("double escape", b"GET /%252f HTTP/1.1\r\nhost: a.example\r\n\r\n", "GET /%252f HTTP/1.1", &[]),
        ("query as it is", b"GET /?a=/../b HTTP/1.1\r\nhost: a.example\r\n\r\n", "GET /?a=/../b HTTP/1.1", &[]),
        ("host in capitals with a dot", b"GET / HTTP/1.1\r\nhost: A.Example.\r\n\r\n", "GET / HTTP/1.1", &["host: a.example"]),
        ("equal lengths", b"POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nhi", "POST / HTTP/1.1", &["content-length: 2"]),
        ("length with zeros", b"POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 002\r\n\r\nhi", "POST / HTTP/1.1", &["content-length: 2"]),
        ("chunks with an extension", b"POST / HTTP/1.1\r\nhost: a.example\r\nTransfer-Encoding: Chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\n\r\n", "POST / HTTP/1.1", &["transfer-encoding: chunked"]),
        ("OPTIONS *", b"OPTIONS * HTTP/1.1\r\nhost: a.example\r\n\r\n", "OPTIONS * HTTP/1.1", &[]),
        ("a method of its own", b"PURGE / HTTP/1.1\r\nhost: a.example\r\n\r\n", "PURGE / HTTP/1.1", &[]),
        ("bytes beyond ASCII in a value", b"GET / HTTP/1.1\r\nhost: a.example\r\nx-a: \xe4\r\n\r\n", "GET / HTTP/1.1", &[]),
        ("h2c is not taken up", b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAAA\r\n\r\n", "GET / HTTP/1.1", &[]),
        ("HTTP/1.0", b"GET /old HTTP/1.0\r\nhost: a.example\r\n\r\n", "GET /old HTTP/1.1", &["host: a.example"]),
        ("HTTP/1.0 expects nothing", b"POST / HTTP/1.0\r\nhost: a.example\r\nexpect: 200-maybe\r\ncontent-length: 2\r\n\r\nhi", "POST / HTTP/1.1", &["content-length: 2"]),
    ];
    for (name, bytes, line, fields) in cases {
        let mut client = Client::to(bench.hop.at("edge"));
        client.send(bytes);
        let answer = client.answer();
        assert_eq!(answer.status(), 200, "{name}: {}", answer.text());
        let seen = bench.up.last();
        assert_eq!(seen.lines().next(), Some(*line), "{name}");
        for field in *fields {
            assert!(seen.lines().any(|l| l.eq_ignore_ascii_case(field)), "{name}: no {field} in\n{seen}");
        }
        for gone in ["upgrade:", "http2-settings:", "expect:"] {
            assert!(!seen.lines().any(|l| l.to_ascii_lowercase().starts_with(gone)), "{name}: {gone} in\n{seen}");
        }
        let framing =
            |l: &&str| ["content-length", "transfer-encoding"].iter().any(|f| l.to_ascii_lowercase().starts_with(f));
        assert!(seen.lines().filter(framing).count() <= 1, "{name}: {seen}");
    }
}

/// In the mesh, where both ends are known, what is odd but harmless passes.
#[test]
fn the_mesh_keeps_what_the_edge_rejects() {
    let bench = Bench::start();
    for (bytes, line, field) in [
        (&b"GET /a%2Fb HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"[..], "GET /a%2Fb HTTP/1.1", ""),
        (b"GET /a HTTP/1.1\r\nhost: a\r\nx_user: me\r\nconnection: close\r\n\r\n", "GET /a HTTP/1.1", "x_user: me"),
    ] {
        let answer = crate::common::exchange(bench.hop.at("mesh"), bytes);
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let seen = bench.up.last();
        assert_eq!(seen.lines().next(), Some(line));
        assert!(field.is_empty() || seen.lines().any(|l| l == field), "{seen}");
    }
    // A NUL is no one's business.
    let answer = crate::common::get(bench.hop.at("mesh"), "a", "/a%00");
    assert_eq!((answer.status(), reason(&answer)), (400, "bad-path".to_owned()));
}
