//! Hop-by-hop fields: what concerns one connection only and must not pass a proxy (RFC 9110 section 7.6.1).

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Fields that need a judgement, found in one pass over a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen(u16);

impl Seen {
    pub const HOST: Self = Self(1);
    pub const CONTENT_LENGTH: Self = Self(1 << 1);
    pub const TRANSFER_ENCODING: Self = Self(1 << 2);
    pub const CONNECTION: Self = Self(1 << 3);
    pub const KEEP_ALIVE: Self = Self(1 << 4);
    pub const PROXY_CONNECTION: Self = Self(1 << 5);
    pub const TE: Self = Self(1 << 6);
    pub const UPGRADE: Self = Self(1 << 7);
    pub const TRAILER: Self = Self(1 << 8);
    pub const HTTP2_SETTINGS: Self = Self(1 << 9);
    pub const EXPECT: Self = Self(1 << 10);
    pub const COOKIE: Self = Self(1 << 11);
    pub const PROXY_AUTHORIZATION: Self = Self(1 << 12);
    pub const CONTENT_TYPE: Self = Self(1 << 13);
    /// Some trace context, see [`super::trace`].
    pub const TRACE: Self = Self(1 << 14);

    /// What one field is; nothing for most.
    #[must_use]
    pub fn of(name: &HeaderName) -> Self {
        match name.as_str() {
            "host" => Self::HOST,
            "content-length" => Self::CONTENT_LENGTH,
            "transfer-encoding" => Self::TRANSFER_ENCODING,
            "connection" => Self::CONNECTION,
            "keep-alive" => Self::KEEP_ALIVE,
            "proxy-connection" => Self::PROXY_CONNECTION,
            "te" => Self::TE,
            "upgrade" => Self::UPGRADE,
            "trailer" => Self::TRAILER,
            "http2-settings" => Self::HTTP2_SETTINGS,
            "expect" => Self::EXPECT,
            "cookie" => Self::COOKIE,
            "proxy-authorization" => Self::PROXY_AUTHORIZATION,
            "content-type" => Self::CONTENT_TYPE,
            "traceparent" | "b3" | "x-b3-traceid" => Self::TRACE,
            _ => Self(0),
        }
    }

    /// Notes one more.
    pub fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether it was found.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether it is none of them.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// Removes what must not pass, given what a pass over the head found. `expect`, `cookie`, `host` and `content-length`
/// are the caller's to judge.
pub fn strip_seen(headers: &mut HeaderMap, seen: Seen) {
    // First what Connection names, for which it is still needed.
    if seen.has(Seen::CONNECTION) {
        strip_named(headers);
        headers.remove(CONNECTION);
    }
    for (flag, name) in [
        (Seen::KEEP_ALIVE, KEEP_ALIVE),
        (Seen::PROXY_CONNECTION, PROXY_CONNECTION),
        (Seen::TE, TE),
        (Seen::UPGRADE, UPGRADE),
        (Seen::TRAILER, TRAILER),
        (Seen::TRANSFER_ENCODING, TRANSFER_ENCODING),
        (Seen::HTTP2_SETTINGS, HTTP2_SETTINGS),
        (Seen::PROXY_AUTHORIZATION, PROXY_AUTHORIZATION),
    ] {
        if seen.has(flag) {
            headers.remove(name);
        }
    }
}

/// Removes the hop-by-hop fields of a response (or of any head), in one pass and without a copy if there are none.
/// `content-length` stays.
pub fn strip(headers: &mut HeaderMap) {
    let mut seen = Seen::default();
    for name in headers.keys() {
        seen.add(Seen::of(name));
    }
    strip_seen(headers, seen);
}

fn strip_named(headers: &mut HeaderMap) {
    // Nearly always `close`, `keep-alive` or `upgrade`, which name nothing that is not removed anyway.
    let ordinary = |token: &[u8]| {
        [&b"close"[..], b"keep-alive", b"upgrade", b"te", b"http2-settings"]
            .iter()
            .any(|o| token.eq_ignore_ascii_case(o))
    };
    let named: Vec<HeaderName> = tokens(headers.get_all(CONNECTION))
        .filter(|token| !ordinary(token))
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| !is_protected(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// Fields that Connection cannot take away: routing, framing, and what tells the next hop who the client is.
fn is_protected(name: &HeaderName) -> bool {
    *name == HOST
        || *name == CONTENT_LENGTH
        || *name == TRANSFER_ENCODING
        || matches!(name.as_str(), "forwarded" | "via" | "x-real-ip" | "x-request-id" | "traceparent" | "tracestate")
        || name.as_str().starts_with("x-forwarded-")
        || name.as_str().starts_with("x-onehop-")
}

/// The members of a list-valued field, over all its lines, without surrounding white space and without empty ones.
pub fn tokens<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> impl Iterator<Item = &'a [u8]> {
    lines
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn nothing_hop_by_hop_passes() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("connection", "keep-alive,,x-other , bad name"),
            ("x-private", "1"),
            ("x-other", "2"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers, gzip"),
            ("upgrade", "h2c"),
            ("trailer", "x-sum"),
            ("transfer-encoding", "chunked"),
            ("http2-settings", "AAMAAABk"),
            ("proxy-authorization", "Basic eDp5"),
            ("accept", "*/*"),
        ]);
        strip(&mut headers);
        assert_eq!(names(&headers), ["accept"]);
    }

    #[test]
    fn connection_cannot_take_everything() {
        let mut headers = map(&[
            ("connection", "host, content-length, X-Forwarded-For, x-onehop-hop, forwarded, authorization"),
            ("host", "a"),
            ("content-length", "3"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-onehop-hop", "1"),
            ("forwarded", "for=1.2.3.4"),
            ("authorization", "Bearer x"),
        ]);
        strip(&mut headers);
        assert_eq!(names(&headers), ["content-length", "forwarded", "host", "x-forwarded-for", "x-onehop-hop"]);
    }

    #[test]
    fn an_ordinary_head_stays() {
        let mut headers = map(&[("accept", "*/*"), ("cookie", "a=b"), ("content-length", "1")]);
        strip(&mut headers);
        assert_eq!(headers.len(), 3);
    }

    #[test]
    fn lists_are_split_over_lines() {
        let lines = [HeaderValue::from_static("a, b,,"), HeaderValue::from_static(" ,c")];
        assert_eq!(tokens(&lines).collect::<Vec<_>>(), [&b"a"[..], b"b", b"c"]);
    }
}
