//! Writing a request head straight into the connection's buffer. The head is borrowed: another try clones nothing.

use http::Method;
use http::header::{self, HeaderName, HeaderValue};

use super::upload::Coding;
use crate::upstream::Head;

/// Writes the head of a request whose body is framed as `coding` says.
pub(super) fn request(head: &Head<'_>, coding: Coding, hold: bool, out: &mut Vec<u8>) {
    // A WebSocket that came in as extended CONNECT (RFC 8441) goes on as the GET it stands for (RFC 6455 section 4.1).
    let tunnel_get = head.upgrade.is_some() && head.method == Method::CONNECT;
    let method = if tunnel_get { &Method::GET } else { head.method };
    put(out, &[method.as_str().as_bytes(), b" "]);
    let target = head.target.as_str();
    if target.is_empty() || target.starts_with('?') {
        out.push(b'/');
    }
    put(out, &[target.as_bytes(), b" HTTP/1.1\r\nhost: ", head.host, b"\r\n"]);
    let keep_trailer = coding == Coding::Chunked;
    for (name, value) in head.headers {
        let replaced = head.extra.iter().any(|(n, _)| n == name);
        if !replaced && !ours(name) && (keep_trailer || name != header::TRAILER) {
            line(out, name, value);
        }
    }
    for (name, value) in head.extra.iter().filter(|(name, _)| !ours(name)) {
        line(out, name, value);
    }
    match (head.upgrade, head.te_trailers) {
        (Some(protocol), false) => put(out, &[b"connection: upgrade\r\nupgrade: ", protocol.as_bytes(), b"\r\n"]),
        (Some(protocol), true) => {
            put(out, &[b"te: trailers\r\nconnection: upgrade, te\r\nupgrade: ", protocol.as_bytes(), b"\r\n"]);
        }
        // TE needs its connection option (RFC 9110 section 10.1.4).
        (None, true) => put(out, &[b"te: trailers\r\nconnection: te\r\n"]),
        (None, false) => {}
    }
    if hold {
        put(out, &[b"expect: 100-continue\r\n"]);
    }
    match coding {
        Coding::None => {}
        Coding::Length(length) => {
            put(out, &[b"content-length: ", itoa::Buffer::new().format(length).as_bytes(), b"\r\n"]);
        }
        Coding::Chunked => put(out, &[b"transfer-encoding: chunked\r\n"]),
    }
    put(out, &[b"\r\n"]);
}

fn line(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Fields this side writes itself or that end here (RFC 9110 section 7.6.1), whatever the caller left in.
pub(in crate::upstream) fn ours(name: &HeaderName) -> bool {
    match *name {
        header::HOST
        | header::CONTENT_LENGTH
        | header::TRANSFER_ENCODING
        | header::CONNECTION
        | header::UPGRADE
        | header::TE
        | header::EXPECT => true,
        _ => matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings"),
    }
}
