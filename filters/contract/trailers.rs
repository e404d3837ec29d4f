//! Which fields may stand in a trailer section: one rule for both sides and both directions.

use http::{HeaderMap, HeaderName};

/// Whether a field may pass as a trailer. RFC 9110 section 6.5.1: nothing that frames, routes, modifies, authenticates
/// or describes the content, all of which was decided when the head passed; and nothing that only a proxy writes. Others
/// pass: gRPC lets applications choose names.
#[must_use]
pub fn permitted(name: &HeaderName) -> bool {
    const FAMILIES: [&str; 6] = ["x-forwarded-", "x-onehop-", "access-control-", "if-", "proxy-", "x-b3-"];
    let name = name.as_str();
    let refused = matches!(
        name,
        // Framing, connection, and what describes the content.
        "connection" | "content-encoding" | "content-length" | "content-range" | "content-type" | "http2-settings"
        | "keep-alive" | "te" | "trailer" | "transfer-encoding" | "upgrade"
        // Routing and origin.
        | "alt-svc" | "b3" | "baggage" | "forwarded" | "host" | "location" | "max-forwards" | "origin" | "traceparent"
        | "tracestate" | "via" | "x-real-ip" | "x-request-id"
        // Modifiers of request and response.
        | "accept-ranges" | "age" | "cache-control" | "date" | "expect" | "expires" | "pragma" | "range"
        | "retry-after" | "vary" | "warning"
        // Authentication, sessions, and what browsers enforce.
        | "authentication-info" | "authorization" | "content-security-policy" | "cookie" | "set-cookie"
        | "strict-transport-security" | "www-authenticate"
    );
    !refused && !FAMILIES.iter().any(|family| name.starts_with(family))
}

/// Cuts a trailer section down to what may pass; `None` if nothing is left.
#[must_use]
pub fn filter(mut trailers: HeaderMap) -> Option<HeaderMap> {
    strip(&mut trailers);
    (!trailers.is_empty()).then_some(trailers)
}

/// Removes what may not pass. Costs nothing where all may.
pub fn strip(trailers: &mut HeaderMap) {
    if trailers.keys().all(permitted) {
        return;
    }
    let refused: Vec<HeaderName> = trailers.keys().filter(|name| !permitted(name)).cloned().collect();
    for name in refused {
        trailers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn nothing_that_steers_passes() {
        let refused = [
            "accept-ranges",
            "access-control-allow-origin",
            "age",
            "alt-svc",
            "authentication-info",
            "authorization",
            "b3",
            "baggage",
            "cache-control",
            "connection",
            "content-encoding",
            "content-length",
            "content-range",
            "content-security-policy",
            "content-type",
            "cookie",
            "date",
            "expect",
            "expires",
            "forwarded",
            "host",
            "http2-settings",
            "if-match",
            "if-modified-since",
            "if-none-match",
            "if-range",
            "if-unmodified-since",
            "keep-alive",
            "location",
            "max-forwards",
            "origin",
            "pragma",
            "proxy-authenticate",
            "proxy-authentication-info",
            "proxy-authorization",
            "proxy-connection",
            "proxy-status",
            "range",
            "retry-after",
            "set-cookie",
            "strict-transport-security",
            "te",
            "traceparent",
            "tracestate",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "vary",
            "via",
            "warning",
            "www-authenticate",
            "x-b3-traceid",
            "x-forwarded-for",
            "x-onehop-user",
            "x-real-ip",
            "x-request-id",
        ];
        let good =
            ["content-digest", "etag", "grpc-message", "grpc-status", "my-own-bin", "server-timing", "x-checksum"];
        let mut fields = HeaderMap::new();
        for name in refused.iter().chain(&good) {
            fields.append(*name, HeaderValue::from_static("1"));
            fields.append(*name, HeaderValue::from_static("2"));
        }
        let left = filter(fields).expect("some may pass");
        let mut names: Vec<_> = left.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!((names.as_slice(), left.len()), (&good[..], 2 * good.len()));
        assert_eq!(filter(HeaderMap::from_iter([(http::header::TE, HeaderValue::from_static("1"))])), None);
    }
}
