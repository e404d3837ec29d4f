//! Any forwarded fields: a stranger is never believed, and what goes upstream is one well-formed line each.
#![no_main]

use std::sync::Arc;

use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use onehop::proxy::headers::{forwarded::{Fields, Stamp}, hop, trace, via};
use onehop_filters::contract::Conn;

const NAMES: [&str; 9] = [
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "forwarded",
    "x-real-ip",
    "connection",
    "traceparent",
    "b3",
    "via",
];

fuzz_target!(|input: (bool, Vec<(u8, Vec<u8>)>)| {
    let (trusted, fields) = input;
    let peer = if trusted { "10.0.0.1:1" } else { "203.0.113.9:1" }.parse().expect("an address");
    let conn = Conn { id: 0, listener: "l".into(), peer, local: peer, client: peer, trusted, mesh: false, tls: None };
    let stamp = Stamp::new(&conn, Arc::new(["10.0.0.0/8".parse().expect("a network")]), None);
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            headers.append(HeaderName::from_static(NAMES[usize::from(name) % NAMES.len()]), value);
        }
    }
    hop::strip(&mut headers);
    let context = trace::trace(&headers, false, 0.5, || 7);
    trace::write(&mut headers, &context, context.span);
    via::add(&mut headers, http::Version::HTTP_11, "onehop-fuzz");
    assert!(via::is_loop(&headers, "onehop-fuzz"));
    let mut told = Fields::new();
    let client = stamp.apply(&mut headers, &Authority::from_static("a.example"), &mut told);
    // What is told takes the place of the client's own, as it does when the head is sent on.
    for (name, value) in told {
        headers.insert(name, value);
    }
    assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
    if !trusted {
        assert_eq!(client.ip, peer.ip());
        assert_eq!(headers["x-forwarded-for"], "203.0.113.9");
        assert!(!headers.contains_key("forwarded") && !headers.contains_key("x-real-ip"));
    }
});
