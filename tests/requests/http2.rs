//! HTTP/2 by prior knowledge: pseudo-header fields, connection fields, lengths, and floods.

use onehop_filters::contract::now;

use crate::common::h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Fate, Frames, HEADERS, PING, RST_STREAM, SETTINGS, block, frame, plain,
};
use crate::{Bench, reason_in};

type Fields = Vec<(&'static [u8], &'static [u8])>;

const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

fn with(mut fields: Fields, more: &[(&'static [u8], &'static [u8])]) -> Fields {
    fields.extend_from_slice(more);
    fields
}

fn without(name: &str) -> Fields {
    plain("GET", "/").into_iter().filter(|f| f.0 != name.as_bytes()).collect()
}

fn replaced(name: &str, value: &'static [u8]) -> Fields {
    plain("GET", "/").into_iter().map(|f| if f.0 == name.as_bytes() { (f.0, value) } else { f }).collect()
}

fn first(field: (&'static [u8], &'static [u8])) -> Fields {
    [vec![field], plain("GET", "/")].concat()
}

/// What a broken request comes to.
#[derive(Debug)]
enum Want {
    /// This status and reason, and the connection goes on.
    Refused(u16, &'static str),
    /// RST_STREAM, and the connection goes on.
    Reset,
    /// GOAWAY.
    Gone,
}
use Want::{Gone, Refused, Reset};

#[test]
fn messages_are_read_strictly() {
    let bench = Bench::start();
    let get = || plain("GET", "/");
    let cases: Vec<(&str, Fields, Want)> = vec![
        ("no method", without(":method"), Reset),
        ("no scheme", without(":scheme"), Reset),
        ("no path", without(":path"), Reset),
        ("no authority, no host", without(":authority"), Refused(400, "bad-host")),
        ("two methods", first((b":method", b"GET")), Reset),
        ("two paths", first((b":path", b"/other")), Reset),
        ("two authorities", first((b":authority", b"b.example")), Reset),
        ("two schemes", first((b":scheme", b"https")), Reset),
        ("a late pseudo-field", [vec![(&b"x-a"[..], &b"b"[..])], get()].concat(), Reset),
        ("a late, second path", with(get(), &[(b"x-a", b"b"), (b":path", b"/other")]), Reset),
        ("an unknown pseudo-field", first((b":user", b"root")), Gone),
        ("a response's pseudo-field", first((b":status", b"200")), Reset),
        ("an empty path", replaced(":path", b""), Reset),
        ("a path without slash", replaced(":path", b"a"), Reset),
        ("a path of another form", replaced(":path", b"http://b.example/"), Reset),
        ("a path with a blank", replaced(":path", b"/a b"), Reset),
        ("a path with CRLF", replaced(":path", b"/ HTTP/1.1\r\nx: y"), Reset),
        ("a path with an encoded slash", replaced(":path", b"/a%2fb"), Refused(400, "bad-path")),
        ("a path with an encoded NUL", replaced(":path", b"/%00"), Refused(400, "bad-path")),
        ("a star with GET", replaced(":path", b"*"), Refused(400, "bad-path")),
        ("an empty method", replaced(":method", b""), Gone),
        ("a method with a blank", replaced(":method", b"GET /x HTTP/1.1"), Gone),
        ("a method in small letters", replaced(":method", b"get"), Refused(400, "bad-request")),
        ("TRACE", replaced(":method", b"TRACE"), Refused(405, "method-refused")),
        ("a scheme of another kind", replaced(":scheme", b"ftp"), Refused(400, "bad-request")),
        ("a scheme that is none", replaced(":scheme", b"https://x?"), Reset),
        ("an empty authority", replaced(":authority", b""), Reset),
        ("an authority with userinfo", replaced(":authority", b"u@a.example"), Refused(400, "bad-host")),
        ("an authority with a bad port", replaced(":authority", b"a.example:80x"), Refused(400, "bad-host")),
        ("an authority with a blank", replaced(":authority", b"a b"), Reset),
        ("another host", with(get(), &[(b"host", b"b.example")]), Refused(400, "bad-host")),
        (
            "two hosts",
            with(without(":authority"), &[(b"host", b"a.example"), (b"host", b"a.example")]),
            Refused(400, "bad-host"),
        ),
        ("connection", with(get(), &[(b"connection", b"close")]), Reset),
        ("keep-alive", with(get(), &[(b"keep-alive", b"1")]), Reset),
        ("proxy-connection", with(get(), &[(b"proxy-connection", b"close")]), Reset),
        ("transfer-encoding", with(plain("POST", "/"), &[(b"transfer-encoding", b"chunked")]), Reset),
        ("upgrade", with(get(), &[(b"upgrade", b"h2c")]), Reset),
        ("te other than trailers", with(get(), &[(b"te", b"gzip")]), Reset),
        ("a name in capitals", with(get(), &[(b"X-A", b"b")]), Gone),
        ("a name with a blank", with(get(), &[(b"x a", b"b")]), Gone),
        ("a name with a colon", with(get(), &[(b"x:a", b"b")]), Gone),
        ("an empty name", with(get(), &[(b"", b"b")]), Gone),
        ("a name with an underscore", with(get(), &[(b"x_a", b"b")]), Refused(400, "bad-header")),
        ("a value with CRLF", with(get(), &[(b"x-a", b"b\r\nx-b: c")]), Gone),
        ("a value with LF", with(get(), &[(b"x-a", b"b\nc")]), Gone),
        ("a value with NUL", with(get(), &[(b"x-a", b"b\0c")]), Gone),
        ("a value with a blank first", with(get(), &[(b"x-a", b" b")]), Refused(400, "bad-header")),
        ("a value with a tab last", with(get(), &[(b"x-a", b"b\t")]), Refused(400, "bad-header")),
        ("a length without a body", with(plain("POST", "/"), &[(b"content-length", b"5")]), Reset),
        (
            "lengths that differ",
            with(plain("POST", "/"), &[(b"content-length", b"0"), (b"content-length", b"5")]),
            Reset,
        ),
        ("a length that is none", with(plain("POST", "/"), &[(b"content-length", b"+0")]), Reset),
        (
            "an upgrade that no route allows",
            with(plain("CONNECT", "/"), &[(b":protocol", b"websocket")]),
            Refused(403, "upgrade-refused"),
        ),
        (
            "an expectation of another kind",
            with(get(), &[(b"expect", b"200-maybe")]),
            Refused(417, "expectation-failed"),
        ),
    ];
    for (name, fields, want) in cases {
        let before = bench.up.seen();
        let mut frames = Frames::to(bench.hop.at("edge"));
        let fate = frames.ask(1, &fields);
        let case = format!("h2: {name}: wanted {want:?}, got {fate:?}");
        match (want, fate) {
            (Refused(status, why), Fate::Answered(found, body)) => {
                assert_eq!((found, reason_in(&body).as_str()), (status, why), "{case}");
                assert!(matches!(frames.ask(3, &get()), Fate::Answered(200, _)), "{case}: the connection goes on");
            }
            (Reset, Fate::Reset(code)) => {
                assert_eq!(code, PROTOCOL_ERROR, "{case}");
                assert!(matches!(frames.ask(3, &get()), Fate::Answered(200, _)), "{case}: the connection goes on");
            }
            (Gone, Fate::Gone(code)) => {
                assert_eq!(code, PROTOCOL_ERROR, "{case}");
                assert_eq!(bench.up.seen(), before, "{case}");
                bench.untouched("edge", before, &case);
                continue;
            }
            _ => panic!("{case}"),
        }
        assert_eq!(bench.up.seen(), before + 1, "{case}: only the good request reached the endpoint");
        assert!(bench.up.last().starts_with("GET / HTTP/1.1"), "{case}: {}", bench.up.last());
    }
}

#[test]
fn extended_connect_needs_a_route_that_allows_it() {
    let bench = Bench::start();
    let ask = |path: &'static str, protocol: &'static [u8]| {
        let mut fields = plain("CONNECT", path);
        fields.insert(1, (b":protocol", protocol));
        let mut frames = Frames::to(bench.hop.at("edge"));
        let open = frame(HEADERS, END_HEADERS, 1, &block(&fields));
        frames.send(&open);
        frames.fate(1)
    };
    for (path, protocol) in [("/", &b"websocket"[..]), ("/chat", b"connect-udp")] {
        let Fate::Answered(403, body) = ask(path, protocol) else { panic!("{path} opens") };
        assert_eq!(reason_in(&body), "upgrade-refused");
    }
    // Plain CONNECT has neither scheme nor path (RFC 9113 section 8.5).
    let mut frames = Frames::to(bench.hop.at("edge"));
    let Fate::Answered(405, body) = frames.ask(1, &[(b":method", b"CONNECT"), (b":authority", b"a.example:80")]) else {
        panic!("CONNECT passes")
    };
    assert_eq!(reason_in(&body), "method-refused");
    bench.untouched("edge", 0, "CONNECT");
}

#[test]
fn bodies_are_as_long_as_they_say() {
    let bench = Bench::start();
    let head = |length: &'static [u8]| block(&with(plain("POST", "/"), &[(b"content-length", length)]));
    for (name, length, data) in [("longer", &b"3"[..], &b"abcde"[..]), ("shorter", b"5", b"abc")] {
        let before = bench.up.seen();
        let mut frames = Frames::to(bench.hop.at("edge"));
        // In one piece: a head that comes alone is on its way to the endpoint before its body can be judged.
        frames.send(&[frame(HEADERS, END_HEADERS, 1, &head(length)), frame(DATA, END_STREAM, 1, data)].concat());
        let fate = frames.fate(1);
        assert!(matches!(fate, Fate::Reset(PROTOCOL_ERROR) | Fate::Answered(400, _)), "{name}: {fate:?}");
        bench.untouched("edge", before, name);
    }
    // Counted without a length, too.
    let mut frames = Frames::to(bench.hop.at("tight"));
    frames.send(&frame(HEADERS, END_HEADERS, 1, &block(&plain("POST", "/"))));
    frames.send(&frame(DATA, END_STREAM, 1, &[b'a'; 1025]));
    let Fate::Answered(413, body) = frames.fate(1) else { panic!("a large body passes") };
    assert_eq!(reason_in(&body), "body-too-large");
    // A body that stops.
    let mut frames = Frames::to(bench.hop.at("tight"));
    frames.send(&frame(HEADERS, END_HEADERS, 1, &block(&plain("POST", "/"))));
    let Fate::Answered(408, body) = frames.fate(1) else { panic!("a stalled body waits") };
    assert_eq!(reason_in(&body), "body-timeout");
    // The same length twice is one length.
    let mut frames = Frames::to(bench.hop.at("edge"));
    let twice = with(plain("POST", "/"), &[(b"content-length", b"2"), (b"content-length", b"2")]);
    frames.send(&frame(HEADERS, END_HEADERS, 1, &block(&twice)));
    frames.send(&frame(DATA, END_STREAM, 1, b"hi"));
    assert_eq!(frames.fate(1), Fate::Answered(200, "hi".to_owned()));
    assert!(bench.up.last().contains("content-length: 2\r\n"), "{}", bench.up.last());
    assert_eq!(bench.up.last().matches("content-length").count(), 1);
}

#[test]
fn a_cut_upload_is_not_a_whole_one() {
    let bench = Bench::start();
    for code in [0u32, 8] {
        let mut frames = Frames::to(bench.hop.at("edge"));
        frames.send(&frame(HEADERS, END_HEADERS, 1, &block(&plain("POST", "/cut"))));
        frames.send(&frame(DATA, 0, 1, b"half"));
        frames.send(&frame(RST_STREAM, 0, 1, &code.to_be_bytes()));
        assert!(matches!(frames.ask(3, &plain("GET", "/")), Fate::Answered(200, _)), "code {code}");
    }
    // Whatever the endpoint read of it, no answer to it was ever made.
    let log = bench.hop.log();
    assert!(!log.lines().any(|l| l.contains("/cut") && l.contains("\"status\":200")), "{log}");
}

#[test]
fn heads_have_limits() {
    let bench = Bench::start();
    let value = vec![b'a'; 10 << 10];
    let mut long = plain("GET", "/");
    for name in [&b"x-a"[..], b"x-b", b"x-c", b"x-d"] {
        long.push((name, &value));
    }
    let mut frames = Frames::to(bench.hop.at("edge"));
    // 40 KiB do not fit a frame of 16.
    let bytes = block(&long);
    let parts: Vec<&[u8]> = bytes.chunks(16 << 10).collect();
    frames.send(&frame(HEADERS, END_STREAM, 1, parts[0]));
    frames.send(&frame(CONTINUATION, 0, 1, parts[1]));
    frames.send(&frame(CONTINUATION, END_HEADERS, 1, parts[2]));
    assert!(matches!(frames.fate(1), Fate::Answered(431, _)));
    assert!(matches!(frames.ask(3, &plain("GET", "/")), Fate::Answered(200, _)));
    let names: Vec<String> = (0..101).map(|i| format!("x-{i}")).collect();
    let mut many = plain("GET", "/");
    many.extend(names.iter().map(|n| (n.as_bytes(), &b"a"[..])));
    let mut frames = Frames::to(bench.hop.at("edge"));
    let Fate::Answered(431, body) = frames.ask(1, &many) else { panic!("101 fields pass") };
    assert_eq!(reason_in(&body), "head-too-large");
    // Crumbs of one cookie are one field (RFC 9113 section 8.2.3).
    let mut crumbs = plain("GET", "/");
    crumbs.extend(std::iter::repeat_n((&b"cookie"[..], &b"a=b"[..]), 120));
    assert!(matches!(frames.ask(3, &crumbs), Fate::Answered(200, _)));
    assert_eq!(bench.up.last().matches("cookie:").count(), 1);
}

/// Reads until the server has had enough; says what it said.
fn flooded(frames: &mut Frames) -> Fate {
    frames.fate(u32::MAX >> 1)
}

#[test]
fn floods_end_the_connection() {
    let bench = Bench::start();
    let open = |id: u32| frame(HEADERS, END_STREAM | END_HEADERS, id, &block(&plain("GET", "/")));
    let floods: Vec<(&str, Vec<u8>)> = vec![
        (
            "rapid reset",
            (0..400)
                .flat_map(|i| [open(2 * i + 1), frame(RST_STREAM, 0, 2 * i + 1, &8u32.to_be_bytes())].concat())
                .collect(),
        ),
        (
            "CONTINUATION",
            [frame(HEADERS, END_STREAM, 1, &block(&plain("GET", "/"))), frame(CONTINUATION, 0, 1, &[]).repeat(2000)]
                .concat(),
        ),
        (
            "CONTINUATION with fields",
            [
                frame(HEADERS, END_STREAM, 1, &block(&plain("GET", "/"))),
                frame(CONTINUATION, 0, 1, &block(&[(b"x-a", &[b'a'; 1000])])).repeat(1000),
            ]
            .concat(),
        ),
        (
            "empty DATA",
            [frame(HEADERS, END_HEADERS, 1, &block(&plain("POST", "/"))), frame(DATA, 0, 1, &[]).repeat(1000)].concat(),
        ),
        ("PING", frame(PING, 0, 0, &[0; 8]).repeat(5000)),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[]).repeat(2000)),
        ("PRIORITY", frame(0x2, 0, 1, &[0, 0, 0, 0, 1]).repeat(5000)),
        ("WINDOW_UPDATE", frame(0x8, 0, 0, &1u32.to_be_bytes()).repeat(5000)),
        ("unknown", frame(0xee, 0, 0, &[]).repeat(5000)),
    ];
    for (name, bytes) in floods {
        let mut frames = Frames::to(bench.hop.at("edge"));
        frames.send(&bytes);
        let fate = flooded(&mut frames);
        assert!(matches!(fate, Fate::Closed | Fate::Gone(PROTOCOL_ERROR | ENHANCE_YOUR_CALM)), "{name}: {fate:?}");
        // Others are served as before.
        let mut other = Frames::to(bench.hop.at("edge"));
        assert!(matches!(other.ask(1, &plain("GET", "/")), Fate::Answered(200, _)), "{name}");
    }
}

#[test]
fn slow_frames_end_the_connection() {
    let bench = Bench::start();
    let block = block(&plain("GET", "/"));
    for (name, bytes) in [
        ("an open header block", frame(HEADERS, END_STREAM, 1, &block[..10])),
        ("half a frame", frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)[..20].to_vec()),
    ] {
        let mut frames = Frames::to(bench.hop.at("tight"));
        let begun = now();
        frames.send(&bytes);
        let fate = frames.fate(1);
        assert!(matches!(fate, Fate::Closed | Fate::Gone(_)), "{name}: {fate:?}");
        assert!(now().since(begun) < std::time::Duration::from_secs(4), "{name}: {:?}", now().since(begun));
    }
    assert_eq!(bench.up.seen(), 0);
}
