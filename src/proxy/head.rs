//! Admission of a request head: every judgement that the parser leaves to a proxy.
//!
//! What comes out is unambiguous: one authority, one path, one length. Nothing after this room looks at `host`, framing
//! or hop-by-hop fields again.

use std::cell::RefCell;
use std::net::Ipv6Addr;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Version, request};
use onehop_filters::contract::{Conn, Fault, Reason};

use super::headers::hop::{Seen, strip_seen, tokens};
use crate::config::plan::{Limits, Paths};
use crate::route::path;

/// A request head that passed.
#[derive(Debug)]
pub struct Admitted {
    /// Method. CONNECT only with `upgrade` (RFC 8441).
    pub method: Method,
    /// Version the client spoke.
    pub version: Version,
    /// Whether the connection itself is TLS.
    pub https: bool,
    /// Lower-case, no userinfo, no trailing dot; the port as a number, if any.
    pub authority: Authority,
    /// Normalised path, and query; `*` only for OPTIONS.
    pub target: PathAndQuery,
    /// Without hop-by-hop fields, `host`, `expect`, `content-length`.
    pub headers: HeaderMap,
    /// The client takes trailers.
    pub te_trailers: bool,
    /// The client waits for 100 Continue.
    pub expect_continue: bool,
    /// The protocol asked for, lower-case; never `h2c`.
    pub upgrade: Option<HeaderValue>,
    /// The one length, if the head gave it.
    pub content_length: Option<u64>,
    /// What the pass over the fields found.
    pub seen: Seen,
}

/// Judges a request head, and takes it if it passes: method and fields move out of `parts`.
///
/// # Errors
/// A fault of the client's side; its detail says what is wrong.
pub fn admit(parts: &mut request::Parts, conn: &Conn, limits: &Limits, paths: Paths) -> Result<Admitted, Fault> {
    let request::Parts { method, uri, version, headers, extensions, .. } = parts;
    let version = *version;
    let protocol = extensions.get::<h2::ext::Protocol>();
    check_method(method, protocol.is_some())?;

    let h2 = version == Version::HTTP_2;
    let seen = survey(headers, h2, paths)?;
    if h2 && seen.has(Seen::COOKIE) {
        join_cookies(headers);
    }
    if headers.len() > limits.fields {
        return Err(fault(Reason::HeadTooLarge, "the head has too many fields"));
    }

    if uri.scheme().is_some_and(|s| *s != Scheme::HTTP && *s != Scheme::HTTPS) {
        return Err(fault(Reason::BadRequest, "the scheme is neither http nor https"));
    }
    // A lone word as target parses as an authority: only plain CONNECT may send that.
    if !h2 && uri.authority().is_some() && uri.scheme().is_none() {
        return Err(fault(Reason::BadPath, "the target is neither a path nor a URI"));
    }
    let target = target(uri.path_and_query().cloned(), method, limits.uri, paths)?;
    let authority = authority(uri.authority().cloned(), headers, version)?;
    let content_length = framing(headers, seen, version)?;
    let expect_continue = expectation(headers, seen, version)?;
    let te_trailers =
        seen.has(Seen::TE) && tokens(headers.get_all(TE)).any(|token| token.eq_ignore_ascii_case(b"trailers"));
    let upgrade = match protocol {
        Some(protocol) => lower_case(protocol.as_str().as_bytes()),
        None if seen.has(Seen::UPGRADE) && seen.has(Seen::CONNECTION) && version == Version::HTTP_11 => {
            asked_upgrade(headers)
        }
        None => None,
    };

    strip_seen(headers, seen);
    for (flag, name) in [(Seen::HOST, HOST), (Seen::CONTENT_LENGTH, CONTENT_LENGTH), (Seen::EXPECT, EXPECT)] {
        if seen.has(flag) {
            headers.remove(name);
        }
    }
    let https = conn.tls.is_some();
    Ok(Admitted {
        method: std::mem::take(method),
        version,
        https,
        authority,
        target,
        headers: std::mem::take(headers),
        te_trailers,
        expect_continue,
        upgrade,
        content_length,
        seen,
    })
}

fn fault(reason: Reason, detail: &'static str) -> Fault {
    Fault::new(reason).detail(detail).by("head")
}

fn check_method(method: &Method, extended_connect: bool) -> Result<(), Fault> {
    match *method {
        Method::GET | Method::POST | Method::PUT | Method::DELETE | Method::HEAD | Method::PATCH | Method::OPTIONS => {
            Ok(())
        }
        Method::CONNECT if extended_connect => Ok(()),
        // TRACE would show the client what proxies add (RFC 9110 section 9.3.8); CONNECT would tunnel past every rule.
        Method::CONNECT | Method::TRACE => {
            let allow = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
            Err(fault(Reason::MethodRefused, "CONNECT and TRACE are not served").header(ALLOW, allow))
        }
        // Methods are case-sensitive (RFC 9110 section 9.1), but not every upstream knows: `get` must not slip past a
        // rule for GET.
        _ if KNOWN_METHODS.iter().any(|known| method.as_str().eq_ignore_ascii_case(known)) => {
            Err(fault(Reason::BadRequest, "the method is not in capitals"))
        }
        _ => Ok(()),
    }
}

const KNOWN_METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// The one pass over the fields.
fn survey(headers: &HeaderMap, h2: bool, paths: Paths) -> Result<Seen, Fault> {
    let mut seen = Seen::default();
    for (name, value) in headers {
        let kind = Seen::of(name);
        seen.add(kind);
        // CGI-like upstreams read `x_user` and `x-user` as one.
        if kind.is_none() && paths.reject_underscores && name.as_str().as_bytes().contains(&b'_') {
            return Err(fault(Reason::BadHeader, "a field name has an underscore"));
        }
        // RFC 9113 section 8.2.1. HTTP/1 parsers trim.
        if h2 && let [first, .., last] | [first @ last] = value.as_bytes() {
            let blank = |b: &u8| matches!(b, b' ' | b'\t');
            if blank(first) || blank(last) {
                return Err(fault(Reason::BadHeader, "a field value begins or ends with white space"));
            }
        }
    }
    Ok(seen)
}

/// Cookie pairs may arrive one a line in HTTP/2 only (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let joined = crumbs.join(&b"; "[..]);
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(joined)) {
        headers.insert(COOKIE, value);
    }
}

fn target(given: Option<PathAndQuery>, method: &Method, limit: usize, paths: Paths) -> Result<PathAndQuery, Fault> {
    let Some(target) = given else {
        return Err(fault(Reason::BadPath, "the target has no path"));
    };
    if target.as_str().len() > limit {
        return Err(fault(Reason::UriTooLong, ""));
    }
    match target.as_str().as_bytes().first() {
        // `http://a?x`: an empty path is `/` (RFC 9110 section 4.2.3).
        Some(b'?') => {
            let text = ["/", target.as_str()].concat();
            let slashed = PathAndQuery::from_maybe_shared(Bytes::from(text));
            path::normalise(slashed.map_err(|_| fault(Reason::BadPath, "the target is malformed"))?, paths)
        }
        Some(b'*') if *method != Method::OPTIONS || target.as_str() != "*" => {
            Err(fault(Reason::BadPath, "only OPTIONS asks for `*`"))
        }
        _ => path::normalise(target, paths),
    }
}

/// RFC 9112 section 3.2 and 3.2.2, RFC 9113 section 8.3.1.
fn authority(of_uri: Option<Authority>, headers: &HeaderMap, version: Version) -> Result<Authority, Fault> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(fault(Reason::BadHost, "there are several Host fields"));
    }
    match (of_uri, host) {
        // Absolute-form: its authority wins, yet HTTP/1.1 asks for a well-formed Host all the same.
        (Some(_), None) if version == Version::HTTP_11 => Err(fault(Reason::BadHost, "Host is missing")),
        (Some(given), None) => tidy(given),
        (Some(given), Some(host)) => {
            let given = tidy(given)?;
            let host = from_host(host)?;
            if version == Version::HTTP_2 && host != given {
                return Err(fault(Reason::BadHost, ":authority and host differ"));
            }
            Ok(given)
        }
        (None, Some(host)) => from_host(host),
        (None, None) => Err(fault(Reason::BadHost, "there is neither Host nor :authority")),
    }
}

fn tidy(given: Authority) -> Result<Authority, Fault> {
    match spelling(given.as_str().as_bytes())? {
        None => Ok(given),
        Some(text) => Authority::from_maybe_shared(Bytes::from(text)).map_err(|_| bad_host()),
    }
}

thread_local! {
    /// Authorities this thread saw last, by a cheap hash of their bytes: a connection sends the same Host again and
    /// again, and this spares a copy and a parse. Bounded by the slots and [`MAX_HOST`].
    static RECENT: RefCell<[Option<Authority>; 16]> = const { RefCell::new([const { None }; 16]) };
}

fn from_host(host: &HeaderValue) -> Result<Authority, Fault> {
    let raw = host.as_bytes();
    let mix = |b: Option<&u8>| b.map_or(0, |b| usize::from(*b));
    let slot = (raw.len() ^ mix(raw.first()) ^ mix(raw.last()).rotate_left(1) ^ mix(raw.get(raw.len() / 2))) % 16;
    RECENT.with_borrow_mut(|recent| {
        if let Some(known) = &recent[slot]
            && known.as_str().as_bytes() == raw
        {
            return Ok(known.clone());
        }
        let text = spelling(raw)?;
        let is_tidy = text.is_none();
        // Copied: the value is a slice of the connection's read buffer, which must not live on because of it.
        let bytes = text.map_or_else(|| Bytes::copy_from_slice(raw), Bytes::from);
        let authority = Authority::from_maybe_shared(bytes).map_err(|_| bad_host())?;
        if is_tidy {
            recent[slot] = Some(authority.clone());
        }
        Ok(authority)
    })
}

fn bad_host() -> Fault {
    fault(Reason::BadHost, "the authority is malformed")
}

/// RFC 1035 section 2.3.4; nothing that resolves is longer.
const MAX_HOST: usize = 255;

/// Checks an authority against RFC 3986 section 3.2, narrowed to what names a host: letters, digits, `-._~` and bracketed
/// IPv6 addresses; no userinfo, no escapes. `None`: tidy as it is; else how it should be spelt.
fn spelling(raw: &[u8]) -> Result<Option<String>, Fault> {
    let text = std::str::from_utf8(raw).map_err(|_| bad_host())?;
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']').ok_or_else(bad_host)?;
            rest[..end].parse::<Ipv6Addr>().map_err(|_| bad_host())?;
            let port = match &rest[end + 1..] {
                "" => None,
                tail => Some(tail.strip_prefix(':').ok_or_else(bad_host)?),
            };
            (&text[..end + 2], port)
        }
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            let labels = host.strip_suffix('.').unwrap_or(host);
            let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
            let empty_label =
                labels.is_empty() || labels.starts_with('.') || labels.contains("..") || labels.ends_with('.');
            if empty_label || labels.len() > MAX_HOST || !labels.bytes().all(legal) {
                return Err(bad_host());
            }
            (labels, port)
        }
    };
    let port = match port {
        // `a:` is legal (RFC 3986 section 3.2.3) and means no port.
        None | Some("") => None,
        Some(digits) if digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some(digits.parse::<u16>().map_err(|_| fault(Reason::BadHost, "the port is beyond 65535"))?)
        }
        Some(_) => return Err(fault(Reason::BadHost, "the port is not a number")),
    };
    let mut digits = itoa::Buffer::new();
    let port = port.map(|p| digits.format(p));
    let tidy_len = host.len() + port.map_or(0, |p| 1 + p.len());
    if tidy_len == text.len() && !host.bytes().any(|b| b.is_ascii_uppercase()) {
        return Ok(None);
    }
    let mut out = host.to_ascii_lowercase();
    if let Some(port) = port {
        out.push(':');
        out.push_str(port);
    }
    Ok(Some(out))
}

/// RFC 9112 section 6.3, without its lenient arms.
fn framing(headers: &HeaderMap, seen: Seen, version: Version) -> Result<Option<u64>, Fault> {
    let bad = |detail| fault(Reason::BadFraming, detail);
    if seen.has(Seen::TRANSFER_ENCODING) {
        if version != Version::HTTP_11 {
            return Err(bad("Transfer-Encoding belongs to HTTP/1.1"));
        }
        if seen.has(Seen::CONTENT_LENGTH) {
            return Err(bad("there are both Transfer-Encoding and Content-Length"));
        }
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let chunked = codings.next().is_some_and(|c| c.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !chunked || codings.next().is_some() {
            return Err(bad("Transfer-Encoding is not exactly `chunked`"));
        }
        return Ok(None);
    }
    if !seen.has(Seen::CONTENT_LENGTH) {
        return Ok(None);
    }
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let digits = std::str::from_utf8(value.as_bytes()).unwrap_or_default();
        // `parse` alone would take a sign.
        let this = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
        let this = this.filter(|n| i64::try_from(*n).is_ok()).ok_or_else(|| bad("Content-Length is not a length"))?;
        if length.is_some_and(|earlier| earlier != this) {
            return Err(bad("Content-Length fields differ"));
        }
        length = Some(this);
    }
    Ok(length)
}

/// RFC 9110 section 10.1.1.
fn expectation(headers: &HeaderMap, seen: Seen, version: Version) -> Result<bool, Fault> {
    // A server must ignore the expectation of an HTTP/1.0 client.
    if !seen.has(Seen::EXPECT) || version == Version::HTTP_10 {
        return Ok(false);
    }
    if tokens(headers.get_all(EXPECT)).all(|token| token.eq_ignore_ascii_case(b"100-continue")) {
        Ok(true)
    } else {
        Err(fault(Reason::ExpectationFailed, ""))
    }
}

/// The first protocol of `Upgrade` that is not h2c, if `Connection` names `upgrade` (RFC 9110 section 7.8).
fn asked_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    if !tokens(headers.get_all(CONNECTION)).any(|token| token.eq_ignore_ascii_case(b"upgrade")) {
        return None;
    }
    let protocol = tokens(headers.get_all(UPGRADE)).find(|token| !token.eq_ignore_ascii_case(b"h2c"))?;
    lower_case(protocol)
}

fn lower_case(protocol: &[u8]) -> Option<HeaderValue> {
    if protocol.eq_ignore_ascii_case(b"websocket") {
        return Some(HeaderValue::from_static("websocket"));
    }
    HeaderValue::from_maybe_shared(Bytes::from(protocol.to_ascii_lowercase())).ok()
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
