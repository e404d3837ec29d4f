use http::Request;
use http::uri::Uri;
use proptest::prelude::*;

use super::*;

const STRICT: Paths = Paths { reject_escaped_slashes: true, reject_underscores: true };

fn limits() -> Limits {
    use std::time::Duration;
    Limits {
        head: 32 << 10,
        uri: 8 << 10,
        fields: 100,
        body: None,
        streams: 100,
        connections: 10,
        per_client: None,
        head_timeout: Duration::ZERO,
        body_idle_timeout: Duration::ZERO,
        idle_timeout: Duration::ZERO,
        tls_timeout: Duration::ZERO,
        requests: None,
    }
}

fn conn() -> Conn {
    let address = "203.0.113.9:4000".parse().unwrap();
    let local = "127.0.0.1:80".parse().unwrap();
    Conn { id: 1, listener: "l".into(), peer: address, local, client: address, trusted: false, mesh: false, tls: None }
}

/// `lines`: `METHOD target VERSION`, then fields; as a parser would hand it over.
fn parse(lines: &[&str]) -> request::Parts {
    let mut words = lines[0].split(' ');
    let (method, target, version) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let version = match version {
        "1.0" => Version::HTTP_10,
        "1.1" => Version::HTTP_11,
        _ => Version::HTTP_2,
    };
    let mut rq = Request::builder().method(method).uri(target.parse::<Uri>().unwrap()).version(version);
    for line in &lines[1..] {
        let (name, value) = line.split_once(':').unwrap();
        let value = if version == Version::HTTP_2 { value } else { value.trim() };
        rq = rq.header(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    rq.body(()).unwrap().into_parts().0
}

fn run(lines: &[&str]) -> Result<Admitted, Reason> {
    admit(&mut parse(lines), &conn(), &limits(), STRICT).map_err(|f| f.reason)
}

#[test]
fn an_ordinary_request_passes_unchanged() {
    let got = run(&["GET /a/b?c=%2f 1.1", "host: shop.example", "accept: */*", "cookie: a=b"]).unwrap();
    assert_eq!((got.method, got.version, got.https), (Method::GET, Version::HTTP_11, false));
    assert_eq!((got.authority.as_str(), got.target.as_str()), ("shop.example", "/a/b?c=%2f"));
    assert_eq!(got.headers.len(), 2);
    assert!(!got.te_trailers && !got.expect_continue && got.upgrade.is_none() && got.content_length.is_none());
}

#[test]
fn hostile_heads_are_refused() {
    use Reason::{BadFraming, BadHeader, BadHost, BadPath, BadRequest, ExpectationFailed, MethodRefused};
    let table: &[(&[&str], Reason)] = &[
        // Host.
        (&["GET / 1.1"], BadHost),
        (&["GET / 1.0"], BadHost),
        (&["GET / 1.1", "host: a", "host: a"], BadHost),
        (&["GET / 1.1", "host:"], BadHost),
        (&["GET / 1.1", "host: u@a"], BadHost),
        (&["GET / 1.1", "host: a b"], BadHost),
        (&["GET / 1.1", "host: a/c"], BadHost),
        (&["GET / 1.1", "host: a,b"], BadHost),
        (&["GET / 1.1", "host: a:80x"], BadHost),
        (&["GET / 1.1", "host: a:65536"], BadHost),
        (&["GET / 1.1", "host: a:000080"], BadHost),
        (&["GET / 1.1", "host: a:80:80"], BadHost),
        (&["GET / 1.1", "host: :80"], BadHost),
        (&["GET / 1.1", "host: a..b"], BadHost),
        (&["GET / 1.1", "host: .a"], BadHost),
        (&["GET / 1.1", "host: ."], BadHost),
        (&["GET / 1.1", "host: a.."], BadHost),
        (&["GET / 1.1", "host: a%41"], BadHost),
        (&["GET / 1.1", "host: é"], BadHost),
        (&["GET / 1.1", "host: [::1"], BadHost),
        (&["GET / 1.1", "host: [::1]x"], BadHost),
        (&["GET / 1.1", "host: [fe80::1%25eth0]"], BadHost),
        (&["GET / 1.1", "host: ::1"], BadHost),
        (&["GET http://a/ 1.1"], BadHost),
        (&["GET http://u@a/ 1.1", "host: a"], BadHost),
        (&["GET http://a/ 1.1", "host: u@a"], BadHost),
        (&["GET http://a/ 2", "host:b"], BadHost),
        (&["GET http://a/ 2", "host:a", "host:a"], BadHost),
        (&["GET http://u@a/ 2"], BadHost),
        (&["GET / 2"], BadHost),
        // Target.
        (&["GET ftp://a/ 1.1", "host: a"], BadRequest),
        (&["GET ftp://a/ 2"], BadRequest),
        (&["GET word 1.1", "host: a"], BadPath),
        (&["GET * 1.1", "host: a"], BadPath),
        (&["GET /a%2fb 1.1", "host: a"], BadPath),
        (&["GET /a%zz 1.1", "host: a"], BadPath),
        (&["GET /a%00 1.1", "host: a"], BadPath),
        (&["GET /a\\b 1.1", "host: a"], BadPath),
        // Method.
        (&["CONNECT a:443 1.1", "host: a:443"], MethodRefused),
        (&["TRACE / 1.1", "host: a"], MethodRefused),
        (&["get / 1.1", "host: a"], BadRequest),
        (&["Trace / 1.1", "host: a"], BadRequest),
        // Framing.
        (&["POST / 1.1", "host: a", "content-length: 3", "transfer-encoding: chunked"], BadFraming),
        (&["POST / 1.1", "host: a", "transfer-encoding: identity, chunked"], BadFraming),
        (&["POST / 1.1", "host: a", "transfer-encoding: chunked, chunked"], BadFraming),
        (&["POST / 1.1", "host: a", "transfer-encoding: gzip"], BadFraming),
        (&["POST / 1.1", "host: a", "transfer-encoding: ,chunked"], BadFraming),
        (&["POST / 1.1", "host: a", "transfer-encoding: chunked", "transfer-encoding: chunked"], BadFraming),
        (&["POST / 1.0", "host: a", "transfer-encoding: chunked"], BadFraming),
        (&["POST http://a/ 2", "transfer-encoding:chunked"], BadFraming),
        (&["POST / 1.1", "host: a", "content-length: 3", "content-length: 4"], BadFraming),
        (&["POST / 1.1", "host: a", "content-length: 3, 3"], BadFraming),
        (&["POST / 1.1", "host: a", "content-length: +3"], BadFraming),
        (&["POST / 1.1", "host: a", "content-length:"], BadFraming),
        (&["POST / 1.1", "host: a", "content-length: 9223372036854775808"], BadFraming),
        (&["POST / 1.1", "host: a", "content-length: 0x3"], BadFraming),
        // Fields.
        (&["GET / 1.1", "host: a", "x_user: root"], BadHeader),
        (&["GET / 1.1", "host: a", "content_length: 3"], BadHeader),
        (&["GET http://a/ 2", "x-a: b"], BadHeader),
        (&["GET http://a/ 2", "x-a:b\t"], BadHeader),
        (&["POST / 1.1", "host: a", "expect: 200-ok"], ExpectationFailed),
        (&["POST / 1.1", "host: a", "expect: 100-continue, x"], ExpectationFailed),
    ];
    for (lines, reason) in table {
        assert_eq!(run(lines).map(|a| a.target), Err(*reason), "{lines:?}");
    }
}

#[test]
fn refused_methods_say_what_is_allowed() {
    let fault = admit(&mut parse(&["TRACE / 1.1", "host: a"]), &conn(), &limits(), STRICT).unwrap_err();
    assert!(fault.headers.unwrap().contains_key(ALLOW));
}

#[test]
fn one_authority_comes_out() {
    for (lines, expected) in [
        (&["GET / 1.1", "host: Shop.Example:8080"][..], "shop.example:8080"),
        (&["GET / 1.1", "host: shop.example."], "shop.example"),
        (&["GET / 1.1", "host: shop.example.:80"], "shop.example:80"),
        (&["GET / 1.1", "host: a:"], "a"),
        (&["GET / 1.1", "host: a:080"], "a:80"),
        (&["GET / 1.1", "host: [2001:DB8::1]:80"], "[2001:db8::1]:80"),
        (&["GET / 1.1", "host: 127.0.0.1"], "127.0.0.1"),
        (&["GET / 1.1", "host: a_b.svc"], "a_b.svc"),
        (&["GET http://B.example/x 1.1", "host: a"], "b.example"),
        (&["GET https://b/ 2", "host:B"], "b"),
        (&["GET / 2", "host:b"], "b"),
        (&["GET / 1.0", "host: a"], "a"),
    ] {
        // Twice: the second time the authority comes from memory.
        for _ in 0..2 {
            assert_eq!(run(lines).unwrap().authority.as_str(), expected, "{lines:?}");
        }
    }
}

#[test]
fn one_target_comes_out() {
    for (line, expected) in [
        ("GET http://a 1.1", "/"),
        ("GET http://a?x=1 1.1", "/?x=1"),
        ("GET http://a/./b/%2e%2e/c 1.1", "/c"),
        ("GET //a//b 1.1", "/a/b"),
        ("OPTIONS * 1.1", "*"),
    ] {
        assert_eq!(run(&[line, "host: a"]).unwrap().target.as_str(), expected, "{line}");
    }
}

#[test]
fn sizes_are_limited() {
    let long = format!("GET /{} 1.1", "a".repeat(8 << 10));
    assert_eq!(run(&[&long, "host: a"]).unwrap_err(), Reason::UriTooLong);
    let fields: Vec<String> = (0..100).map(|n| format!("x-{n}: 1")).collect();
    let mut lines = vec!["GET / 1.1", "host: a"];
    lines.extend(fields.iter().map(String::as_str));
    assert_eq!(run(&lines).unwrap_err(), Reason::HeadTooLarge);
    lines.pop();
    assert!(run(&lines).is_ok());
}

#[test]
fn cookie_crumbs_are_joined_before_counting() {
    let mut lines = vec!["GET http://a/ 2"];
    lines.extend(std::iter::repeat_n("cookie:a=b", 150));
    let got = run(&lines).unwrap();
    assert_eq!(got.headers.get_all("cookie").iter().count(), 1);
    assert!(got.headers["cookie"].to_str().unwrap().starts_with("a=b; a=b; "));
    // HTTP/1.1 has no crumbs.
    lines[0] = "GET / 1.1";
    lines.push("host: a");
    assert_eq!(run(&lines).unwrap_err(), Reason::HeadTooLarge);
}

#[test]
fn framing_is_read_and_removed() {
    let got = run(&["POST / 1.1", "host: a", "content-length: 03", "content-length: 3"]).unwrap();
    assert_eq!((got.content_length, got.headers.len()), (Some(3), 0));
    let got = run(&["POST / 1.1", "host: a", "content-length: 9223372036854775807"]).unwrap();
    assert_eq!(got.content_length, Some(i64::MAX as u64));
    let got = run(&["POST / 1.1", "host: a", "transfer-encoding: Chunked"]).unwrap();
    assert_eq!((got.content_length, got.headers.len()), (None, 0));
}

#[test]
fn wishes_become_flags() {
    let got = run(&[
        "POST / 1.1",
        "host: a",
        "te: gzip, Trailers",
        "expect: 100-Continue",
        "connection: te, x-a, Upgrade",
        "upgrade: h2c, WebSocket",
        "http2-settings: AA",
        "x-a: 1",
        "x-b: 2",
    ])
    .unwrap();
    assert!(got.te_trailers && got.expect_continue);
    assert_eq!(got.upgrade.unwrap(), "websocket");
    assert_eq!(got.headers.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["x-b"]);

    for lines in [
        &["GET / 1.1", "host: a", "connection: upgrade, http2-settings", "upgrade: h2c"][..],
        &["GET / 1.1", "host: a", "upgrade: websocket"],
        &["GET / 1.0", "host: a", "connection: upgrade", "upgrade: websocket"],
    ] {
        let got = run(lines).unwrap();
        assert!(got.upgrade.is_none() && got.headers.is_empty(), "{lines:?}");
    }
    assert!(!run(&["POST / 1.0", "host: a", "expect: 100-continue"]).unwrap().expect_continue);
}

#[test]
fn extended_connect_is_an_upgrade() {
    let mut parts = parse(&["CONNECT https://a/chat 2"]);
    parts.extensions.insert(h2::ext::Protocol::from_static("WebSocket"));
    let got = admit(&mut parts, &conn(), &limits(), STRICT).unwrap();
    assert_eq!((got.method, got.upgrade), (Method::CONNECT, Some(HeaderValue::from_static("websocket"))));
    assert_eq!(got.target, "/chat");
}

#[test]
fn a_mesh_may_keep_odd_names() {
    let keep = Paths { reject_escaped_slashes: false, reject_underscores: false };
    let got = admit(&mut parse(&["GET /a%2fb 1.1", "host: a", "x_user: 1"]), &conn(), &limits(), keep).unwrap();
    assert_eq!((got.target.as_str(), got.headers.len()), ("/a%2Fb", 1));
}

proptest! {
    #[test]
    fn whatever_passes_is_unambiguous(host in "[aA.:@\\[\\]0-9%,_-]{0,12}", path in "(/|[a.%2eEfF5c?#\\\\]){0,16}", cl in "[0-9+, ]{0,4}") {
        let Ok(uri) = format!("/{path}").parse::<Uri>() else { return Ok(()) };
        let mut parts = parse(&["POST / 1.1"]);
        parts.uri = uri;
        parts.headers.insert(HOST, HeaderValue::from_str(&host).unwrap());
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from_str(&cl).unwrap());
        if let Ok(got) = admit(&mut parts, &conn(), &limits(), STRICT) {
            let authority = got.authority.as_str();
            prop_assert!(!authority.contains(['@', ',', '%']) && *authority == authority.to_ascii_lowercase());
            prop_assert!(!got.authority.host().is_empty() && !got.authority.host().ends_with('.'));
            prop_assert_eq!(&spelling(authority.as_bytes()).unwrap(), &None);
            prop_assert!(got.target.path().split('/').all(|s| s != ".." && s != "."));
            prop_assert!(got.content_length.is_some());
            prop_assert!(got.headers.is_empty());
        }
    }
}
