//! `grpcWeb`: gRPC-Web for callers, gRPC for the service.

mod body;
mod config;
pub mod framing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::Body as _;

use self::body::{Inward, Outward};
use crate::contract::filter::{Filter, Needs, Step};
use crate::contract::{Body, Build, ConfigError, Dialect, Entry, Node, Phase, RequestCx, ResponseCx, Role};
use config::Config;

const NAME: &str = "grpcWeb";

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Lets browsers call gRPC services",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Encode, implied: |_, _| false, build },
};

/// Fields of a status, in trailers or, where there is nothing else, in the head.
const STATUS: [HeaderName; 3] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
];

struct GrpcWeb;

/// What a caller gets back, noted on the way in.
struct Call {
    content_type: HeaderValue,
    text: bool,
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let Config {} = node.expect("grpcWeb is never implied").read()?;
    build.speaks_http2()?;
    Ok(Arc::new(GrpcWeb))
}

/// What follows `application/grpc-web` in a media type, and whether it is the text form.
fn web_type(media_type: &[u8]) -> Option<(bool, &[u8])> {
    const PREFIX: &[u8] = b"application/grpc-web";
    let (prefix, rest) = media_type.split_at_checked(PREFIX.len())?;
    if !prefix.eq_ignore_ascii_case(PREFIX) {
        return None;
    }
    let (text, rest) = match rest.strip_prefix(b"-text") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    matches!(rest.first(), None | Some(b'+' | b';' | b' ')).then_some((text, rest))
}

/// `+proto` of `+proto; charset=utf-8`: the codec of messages, without parameters.
fn codec(rest: &[u8]) -> &[u8] {
    let end = rest.iter().position(|b| matches!(b, b';' | b' ')).unwrap_or(rest.len());
    &rest[..end]
}

fn media_type(prefix: &[u8], rest: &[u8]) -> Option<HeaderValue> {
    HeaderValue::from_bytes(&[prefix, codec(rest)].concat()).ok()
}

impl Filter for GrpcWeb {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        let Some(asked) = rq.headers.get(CONTENT_TYPE).cloned() else { return Step::NEXT };
        let Some((text, rest)) = web_type(asked.as_bytes()) else { return Step::NEXT };
        // What the caller wants back, by default as it asked.
        let wants_text = match rq.headers.get(ACCEPT).and_then(|accept| web_type(accept.as_bytes())) {
            Some((text, _)) => text,
            None => text,
        };
        let prefix: &[u8] = if wants_text { b"application/grpc-web-text" } else { b"application/grpc-web" };
        let codec = if codec(rest).is_empty() { b"+proto" } else { codec(rest) };
        let (Some(inward), Some(outward)) = (media_type(b"application/grpc", rest), media_type(prefix, codec)) else {
            return Step::NEXT;
        };
        rq.headers.insert(CONTENT_TYPE, inward);
        rq.headers.remove(ACCEPT);
        rq.scratch.put(Dialect { grpc: Some(outward.clone()) });
        rq.scratch.put(Call { content_type: outward, text: wants_text });
        if text && !rq.body.is_end_stream() {
            rq.body = Body::stream(Inward { body: std::mem::take(&mut rq.body), decoder: Default::default() });
        }
        Step::NEXT
    }

    fn on_response<'a>(&'a self, rq: &'a mut RequestCx, rs: &'a mut ResponseCx) -> Step<'a> {
        let Some(Call { content_type, text }) = rq.scratch.take() else { return Step::NEXT };
        let is_grpc = rs.status == StatusCode::OK
            && rs.headers.get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
        let trailers = if is_grpc { head_trailers(&mut rs.headers) } else { Some(translated(rs)) };
        if trailers.is_some() {
            rs.body = Body::Empty;
        }
        rs.status = StatusCode::OK;
        rs.headers.insert(CONTENT_TYPE, content_type);
        rs.headers.remove(CONTENT_LENGTH);
        rs.headers.remove(http::header::TRAILER);
        rs.body = Body::stream(Outward { body: std::mem::take(&mut rs.body), text, ended: false, trailers });
        Step::NEXT
    }

    fn needs(&self) -> Needs {
        Needs { response: true }
    }
}

/// A status that stands in the head ("Trailers-Only"): moved to where scripts can read it without CORS exposing it.
fn head_trailers(headers: &mut HeaderMap) -> Option<HeaderMap> {
    if !headers.contains_key(&STATUS[0]) {
        return None;
    }
    Some(STATUS.iter().filter_map(|name| Some((name.clone(), headers.remove(name)?))).collect())
}

/// The status of an answer that is no gRPC ("HTTP to gRPC Status Code Mapping").
fn translated(rs: &ResponseCx) -> HeaderMap {
    let code = match rs.status.as_u16() {
        400 => 13u16,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    };
    let message = format!("the service answered with status {} and no gRPC", rs.status.as_u16());
    let message = HeaderValue::try_from(message).expect("a number among plain words");
    [(STATUS[0].clone(), HeaderValue::from(code)), (STATUS[1].clone(), message)].into_iter().collect()
}
