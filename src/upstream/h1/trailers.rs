//! Trailer fields: which may pass, reading and writing them.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::chunked::Bad;
use super::parse::MAX_FIELDS;

/// Whether a field may stand in a trailer section (RFC 9110 section 6.5.1): nothing that frames, routes, authorises,
/// controls caches or describes the content, all of which was decided when the head passed.
#[must_use]
pub fn permitted(name: &HeaderName) -> bool {
    const REFUSED: &[HeaderName] = &[
        header::AGE,
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::DATE,
        header::EXPECT,
        header::EXPIRES,
        header::FORWARDED,
        header::HOST,
        header::IF_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_NONE_MATCH,
        header::IF_RANGE,
        header::IF_UNMODIFIED_SINCE,
        header::LOCATION,
        header::MAX_FORWARDS,
        header::PRAGMA,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::RANGE,
        header::RETRY_AFTER,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::VARY,
        header::VIA,
        header::WWW_AUTHENTICATE,
    ];
    let text = name.as_str();
    !REFUSED.contains(name)
        && !text.starts_with("x-forwarded-")
        && !matches!(text, "keep-alive" | "proxy-connection" | "x-real-ip" | "http2-settings")
}

/// Reads a complete section, empty line included. `None` if no field may pass.
pub(super) fn parse(section: &Bytes) -> Result<Option<HeaderMap>, Bad> {
    let mut parsed = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let list = match httparse::parse_headers(section, &mut parsed) {
        Ok(httparse::Status::Complete((_, list))) => list,
        Err(httparse::Error::TooManyHeaders) => return Err(Bad::TrailersTooLarge),
        _ => return Err(Bad::Trailers),
    };
    let mut map = HeaderMap::with_capacity(list.len());
    for field in list {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Bad::Trailers)?;
        let value = HeaderValue::from_maybe_shared(section.slice_ref(field.value)).map_err(|_| Bad::Trailers)?;
        if permitted(&name) {
            map.append(name, value);
        }
    }
    Ok((!map.is_empty()).then_some(map))
}

/// The end of a chunked message: last chunk, trailer fields, empty line.
pub(super) fn write(trailers: &HeaderMap, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.iter().filter(|(n, _)| permitted(n)) {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Cuts a trailer frame down to what may pass; `None` if nothing is left.
#[must_use]
pub fn filter(mut trailers: HeaderMap) -> Option<HeaderMap> {
    if !trailers.keys().all(permitted) {
        let refused: Vec<HeaderName> = trailers.keys().filter(|n| !permitted(n)).cloned().collect();
        for name in refused {
            trailers.remove(name);
        }
    }
    (!trailers.is_empty()).then_some(trailers)
}
