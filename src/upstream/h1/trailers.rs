//! Trailer fields on the wire. Which may pass is the contract's rule.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use onehop_filters::contract::trailers::permitted;

use super::chunked::Bad;
use super::parse::MAX_FIELDS;

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
