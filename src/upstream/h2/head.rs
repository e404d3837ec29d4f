//! The head of a request on a stream.

use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Uri, Version};
use onehop_filters::contract::{Fault, Reason};

use crate::upstream::Head;
use crate::upstream::h1::encode::ours;
use crate::upstream::h1::upload::Coding;

/// The head of a request whose body is framed as `coding` says.
pub(super) fn request(head: &Head<'_>, coding: Coding, hold: bool) -> Result<Request<()>, Fault> {
    let refused =
        || Fault::never_ran(Reason::BadHost).detail("the host cannot be written as :authority").by("upstream");
    let authority = Authority::try_from(head.host).map_err(|_| refused())?;
    let uri = Uri::builder()
        .scheme(if head.https { Scheme::HTTPS } else { Scheme::HTTP })
        .authority(authority)
        .path_and_query(head.target.clone())
        .build()
        .map_err(|_| refused())?;
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    let mut fields = fields(head);
    if head.te_trailers {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if hold {
        fields.insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    }
    // gRPC frames its messages itself, and its clients do not say lengths; the end of the stream says it all.
    if let Coding::Length(length) = coding
        && !head.grpc
    {
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    if let Some(protocol) = head.upgrade {
        let protocol = protocol.to_str().map_err(|_| {
            Fault::never_ran(Reason::UpgradeRefused).detail("the protocol's name is malformed").by("upstream")
        })?;
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(Protocol::from(protocol));
        // The handshake key belongs to the HTTP/1 form (RFC 8441 section 5).
        fields.remove(header::SEC_WEBSOCKET_KEY);
    }
    *request.headers_mut() = fields;
    Ok(request)
}

/// The fields, in a map of their own.
fn fields(head: &Head<'_>) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(head.headers.len() + head.extra.len() + 2);
    for (name, value) in head.headers.iter().filter(|(name, _)| !ours(name)) {
        map.append(name, value.clone());
    }
    for (i, (name, value)) in head.extra.iter().enumerate().filter(|(_, (name, _))| !ours(name)) {
        if head.extra[..i].iter().any(|(earlier, _)| earlier == name) {
            map.append(name, value.clone());
        } else {
            map.insert(name, value.clone());
        }
    }
    for (name, value) in &mut map {
        if is_fleeting(name) {
            value.set_sensitive(true);
        }
    }
    map
}

/// Fields whose value never comes again. They go as literals that are never indexed (RFC 7541 section 6.2.3): in the
/// encoder's table each would push out one that does come again, and each look-up would walk past all of them.
fn is_fleeting(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "x-request-id" | "traceparent" | "grpc-timeout" | "x-onehop-timeout-ms" | "x-b3-traceid" | "x-b3-spanid" | "b3"
    )
}

#[cfg(test)]
mod tests {
    use http::uri::PathAndQuery;

    use super::*;

    fn named(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    }

    #[test]
    fn own_fields_replace_the_callers_and_fleeting_ones_are_not_indexed() {
        let said =
            [named("a", "1"), named("a", "2"), named("b", "1"), named("connection", "x"), named("x-request-id", "r")];
        let mut headers = HeaderMap::new();
        for (name, value) in said {
            headers.append(name, value);
        }
        let extra = [named("b", "2"), named("b", "3"), named("c", "4"), named("host", "evil")];
        let head = Head {
            method: &Method::GET,
            target: &PathAndQuery::from_static("/"),
            https: false,
            host: b"a.example",
            headers: &headers,
            extra: &extra,
            te_trailers: true,
            expect_continue: false,
            upgrade: None,
            grpc: false,
            client: None,
        };
        let request = request(&head, Coding::Length(7), false).expect("a request");
        let mut all: Vec<_> =
            request.headers().iter().map(|(n, v)| format!("{n}: {}", v.to_str().expect("text"))).collect();
        all.sort();
        assert_eq!(
            all,
            ["a: 1", "a: 2", "b: 2", "b: 3", "c: 4", "content-length: 7", "te: trailers", "x-request-id: r"]
        );
        assert!(request.headers()["x-request-id"].is_sensitive());
        assert!(!request.headers()["a"].is_sensitive());
    }
}
