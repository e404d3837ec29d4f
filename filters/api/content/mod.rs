//! What filters that work on bodies share: content codings, JSON media types, and the fields that describe a content and
//! turn false when it changes.

mod adapter;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use smallvec::SmallVec;

use crate::contract::{Body, BodyError, Buffered, Fault, Moment, Reason, now};

pub use adapter::{Limits, decode, encode};

/// A content coding (RFC 9110 section 8.4.1, RFC 7932, RFC 8878).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

impl Coding {
    /// By its registered name, or an alias that RFC 9110 section 8.4.1.3 asks for.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Self::Gzip,
            "deflate" => Self::Deflate,
            "br" => Self::Brotli,
            "zstd" => Self::Zstd,
            _ => return None,
        })
    }

    /// Its registered name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// Codings of a content in the order they were applied, few by nature.
pub type Codings = SmallVec<[Coding; 2]>;

/// Most codings on top of each other: each is another decoder.
const MAX_CODINGS: usize = 2;

/// Reads `content-encoding`. `None`: a coding that nobody here knows, or too many.
pub fn codings(headers: &HeaderMap) -> Option<Codings> {
    let mut found = Codings::new();
    for value in headers.get_all(CONTENT_ENCODING) {
        for name in value.to_str().ok()?.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if !name.eq_ignore_ascii_case("identity") {
                found.push(Coding::named(name)?);
            }
        }
    }
    (found.len() <= MAX_CODINGS).then_some(found)
}

/// The media type without parameters, as written.
pub fn media_type(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or_default().trim())
}

/// `application/json` and whatever ends in `+json` (RFC 6839 section 3.1).
pub fn is_json(media_type: &str) -> bool {
    let ends = |suffix: &str| {
        media_type.len() >= suffix.len()
            && media_type.as_bytes()[media_type.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
    };
    media_type.eq_ignore_ascii_case("application/json") || media_type.eq_ignore_ascii_case("text/json") || ends("+json")
}

/// Fields that hold for one sequence of bytes: digests (RFC 9530, RFC 3230, RFC 1864) of a content that changes are not
/// recomputed, because whoever signs them is not us.
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// The content will be another: forgets what no longer holds of it.
pub fn changed(headers: &mut HeaderMap) {
    for name in &DIGESTS {
        headers.remove(name);
    }
    headers.remove(http::header::CONTENT_LENGTH);
    headers.remove(http::header::ACCEPT_RANGES);
    weaken(headers);
}

/// A strong validator stands for the same bytes (RFC 9110 section 8.8.1), which these no longer are.
pub fn weaken(headers: &mut HeaderMap) {
    if let Some(tag) = headers.get_mut(ETAG)
        && tag.as_bytes().starts_with(b"\"")
    {
        let weak = [b"W/", tag.as_bytes()].concat();
        if let Ok(weak) = HeaderValue::from_bytes(&weak) {
            *tag = weak;
        }
    }
}

/// Reads a body ahead, no longer than until the request's deadline: a body that trickles must not be waited for for ever.
///
/// # Errors
/// The body broke off, or `late`.
pub async fn read_ahead(body: &mut Body, limit: usize, deadline: Moment, late: Reason) -> Result<Buffered, BodyError> {
    if deadline == Moment::MAX {
        return body.buffer(limit).await;
    }
    let left = deadline.since(now());
    tokio::time::timeout(left, body.buffer(limit)).await.unwrap_or_else(|_| Err(Box::new(Fault::new(late))))
}

/// Puts other bytes in the place of a body that was read ahead. Its trailers stay.
///
/// # Errors
/// None that its reading did not have: it lies in memory.
pub async fn replace(body: &mut Body, bytes: Vec<u8>) -> Result<(), BodyError> {
    let old = match std::mem::take(body) {
        Body::Stream(old) => old,
        Body::Empty | Body::Full(_) => {
            *body = Body::full(bytes);
            return Ok(());
        }
    };
    let trailers = old.collect().await?.trailers().cloned();
    let frames = [Some(Frame::data(Bytes::from(bytes))), trailers.map(Frame::trailers)];
    *body = Body::stream(StreamBody::new(stream::iter(frames.into_iter().flatten().map(Ok))));
    Ok(())
}

/// Adds a name to `vary`, unless it stands there or `*` does.
pub fn vary(headers: &mut HeaderMap, name: &'static str) {
    let stands = headers
        .get_all(http::header::VARY)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|listed| matches!(listed.trim(), "*") || listed.trim().eq_ignore_ascii_case(name));
    if !stands {
        headers.append(http::header::VARY, HeaderValue::from_static(name));
    }
}
