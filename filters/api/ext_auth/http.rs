//! The question and the answer as plain HTTP, in the two ways that servers know.

use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};

use super::core::{Changes, Denial, How, Names, Ruling, for_client, is_ours, passable};
use super::grpc::{Part, scheme};
use crate::contract::{Body, RequestCx};

/// Where the question goes.
pub enum Asks {
    /// Always there; the request is described by fields.
    Path(PathAndQuery),
    /// Where the request goes, behind this.
    Prefix(Box<str>),
}

/// What is asked. `None`: the request's path does not fit behind the prefix.
pub fn question(
    rq: &RequestCx,
    asks: &Asks,
    seen: &Names,
    body: Option<&Part>,
    context: &[(HeaderName, HeaderValue)],
) -> Option<Request<Body>> {
    let mut headers: HeaderMap =
        rq.headers.iter().filter(|(n, _)| seen.has(n) && !is_ours(n)).map(|(n, v)| (n.clone(), v.clone())).collect();
    let (method, uri) = match asks {
        Asks::Path(path) => {
            describe(rq, &mut headers);
            let method = if body.is_some_and(|part| !part.bytes.is_empty()) { Method::POST } else { Method::GET };
            (method, path.clone().into())
        }
        Asks::Prefix(prefix) => {
            let uri = Uri::builder().scheme(scheme(rq)).authority(rq.authority.clone());
            (rq.method.clone(), uri.path_and_query(format!("{prefix}{}", rq.target)).build().ok()?)
        }
    };
    headers.insert("x-request-id", rq.request_id.clone());
    for (name, value) in context {
        headers.insert(name.clone(), value.clone());
    }
    let mut request = Request::new(Body::Empty);
    if let Some(part) = body {
        headers.insert(super::PARTIAL, HeaderValue::from_static(if part.partial { "true" } else { "false" }));
        *request.body_mut() = Body::full(part.bytes.clone());
    }
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Some(request)
}

/// The fields of Traefik's forwardAuth, which oauth2-proxy, Authelia and others read.
fn describe(rq: &RequestCx, headers: &mut HeaderMap) {
    let client = rq.client_ip.to_string();
    for (name, value) in [
        ("x-forwarded-method", rq.method.as_str()),
        ("x-forwarded-proto", scheme(rq)),
        ("x-forwarded-host", rq.authority.as_str()),
        ("x-forwarded-uri", rq.target.as_str()),
        ("x-forwarded-for", client.as_str()),
    ] {
        // All of them were parsed from fields or URIs.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

/// What was answered.
///
/// # Errors
/// Whoever was asked failed.
pub fn ruling(
    status: StatusCode,
    headers: &HeaderMap,
    body: Bytes,
    upstream: &Names,
    client: &Names,
) -> Result<Ruling, &'static str> {
    if status.is_server_error() {
        return Err("it failed itself");
    }
    if !status.is_success() {
        let headers = passable(headers).map(|(n, v)| (n.clone(), v.clone())).collect();
        return Ok(Ruling::Deny(Arc::new(Denial { status, headers, body })));
    }
    let mut changes = Changes { reply: for_client(headers, client), ..Changes::default() };
    for (name, value) in headers.iter().filter(|(name, _)| upstream.has(name) && !is_ours(name)) {
        let how = if changes.fields.iter().any(|(n, ..)| n == name) { How::Append } else { How::Set };
        changes.fields.push((name.clone(), value.clone(), how));
    }
    Ok(Ruling::Allow(Arc::new(changes)))
}
