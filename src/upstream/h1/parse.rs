//! Reading a response head. A security border: whoever reads this message differently from us could be fed a second
//! response, so everything ambiguous is refused and the connection closed.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::{StatusCode, Version};
use onehop_filters::contract::{Fault, Reason};

use super::fields;
use super::names::{self, Kind};
use crate::upstream::bad;

/// Fields a head or trailer section may have.
pub(in crate::upstream) const MAX_FIELDS: usize = 100;

/// How the body is delimited (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// This many bytes, perhaps none.
    Length(u64),
    /// Chunked coding.
    Chunked,
    /// Until the connection closes.
    Close,
}

/// A response head.
#[derive(Debug)]
pub struct ResponseHead {
    /// Between 100 and 599.
    pub status: StatusCode,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// Without connection-specific fields and framing, except `content-length` where there is no body to frame, and
    /// `upgrade` on a 101.
    pub headers: HeaderMap,
    /// Where the body ends.
    pub framing: Framing,
    /// The connection may be used again after the last byte, and nothing odd was seen.
    pub keep: bool,
}

/// Takes one head off the buffer; `None` while it is incomplete. `scanned` is carried from call to call.
///
/// # Errors
/// The head breaks a rule or a limit.
pub fn response(
    buf: &mut BytesMut,
    scanned: &mut usize,
    limit: usize,
    to_head: bool,
) -> Result<Option<ResponseHead>, Fault> {
    // Another protocol is recognised by its first bytes, not by a time-out; this also refuses leading empty lines.
    const START: &[u8] = b"HTTP/1.";
    if !buf.iter().zip(START).all(|(a, b)| a == b) {
        return Err(bad("the answer is not HTTP/1"));
    }
    let end = fields::section_end(buf, *scanned).map_err(|_| bad("a line of the head ends in LF alone"))?;
    if end.unwrap_or(buf.len()) > limit {
        return Err(too_large("the head is over its limit"));
    }
    let Some(end) = end else {
        *scanned = fields::resume(buf);
        return Ok(None);
    };
    *scanned = 0;
    let head = buf.split_to(end).freeze();
    let mut slots = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, &head, &mut slots) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(bad("the head is malformed")),
        Err(httparse::Error::TooManyHeaders) => return Err(too_large("the head has too many fields")),
        Err(_) => return Err(bad("the head is malformed")),
    }
    let status = parsed
        .code
        .filter(|code| (100..600).contains(code))
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| bad("the status is out of range"))?;
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    build(&head, status, version, parsed.headers, to_head).map(Some)
}

fn build(
    head: &Bytes,
    status: StatusCode,
    version: Version,
    list: &[httparse::Header<'_>],
    to_head: bool,
) -> Result<ResponseHead, Fault> {
    let mut framing = Declared::default();
    let mut connection = Connection::default();
    for field in list {
        if field.name.eq_ignore_ascii_case("connection") {
            connection.read(field.value);
        }
    }
    let bodiless = to_head || status == StatusCode::NOT_MODIFIED;
    let mut headers = HeaderMap::with_capacity(list.len());
    for field in list {
        let (name, kind) = names::name(field.name.as_bytes()).ok_or_else(|| bad("a field name is malformed"))?;
        match kind {
            Kind::Length => {
                framing.length(field.value)?;
                continue;
            }
            Kind::Coding => {
                framing.coding(field.value)?;
                continue;
            }
            Kind::Upgrade if status == StatusCode::SWITCHING_PROTOCOLS => {}
            Kind::Upgrade | Kind::Hop => continue,
            Kind::Plain if connection.names(field.name) => continue,
            Kind::Plain => {}
        }
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
            .map_err(|_| bad("a field value is malformed"))?;
        headers.append(name, value);
    }
    if framing.chunked && framing.length.is_some() {
        return Err(bad("both content-length and transfer-encoding are present"));
    }
    if framing.chunked && version == Version::HTTP_10 {
        return Err(bad("HTTP/1.0 has no transfer-encoding"));
    }
    let none = bodiless || status.is_informational() || status == StatusCode::NO_CONTENT;
    if let (true, Some(length)) = (bodiless, framing.length) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    // Framing where none belongs (RFC 9110 section 8.6, RFC 9112 section 6.1): whether bytes follow is anyone's guess.
    let odd = none && !bodiless && (framing.chunked || framing.length.is_some_and(|n| n > 0));
    let delimited = match (none, framing.chunked, framing.length) {
        (true, ..) => Framing::Length(0),
        (_, true, _) => Framing::Chunked,
        (_, _, Some(length)) => Framing::Length(length),
        (false, false, None) => Framing::Close,
    };
    let persistent = if version == Version::HTTP_10 { connection.keep_alive } else { true };
    let keep = persistent && !connection.close && !odd && delimited != Framing::Close;
    Ok(ResponseHead { status, version, headers, framing: delimited, keep })
}

/// What the head says about its length.
#[derive(Default)]
struct Declared {
    length: Option<u64>,
    chunked: bool,
}

impl Declared {
    /// Equal values are one value (RFC 9110 section 8.6); anything else is an attack or a broken peer.
    fn length(&mut self, value: &[u8]) -> Result<(), Fault> {
        for part in value.split(|b| *b == b',') {
            let digits = part.trim_ascii();
            let number = std::str::from_utf8(digits)
                .ok()
                .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|t| t.parse::<u64>().ok())
                .filter(|n| *n <= i64::MAX as u64)
                .ok_or_else(|| bad("content-length is malformed"))?;
            if self.length.is_some_and(|known| known != number) {
                return Err(bad("content-length differs from itself"));
            }
            self.length = Some(number);
        }
        Ok(())
    }

    /// One field, exactly `chunked`: we asked for no other coding and undo none.
    fn coding(&mut self, value: &[u8]) -> Result<(), Fault> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(bad("transfer-encoding is not exactly chunked"));
        }
        self.chunked = true;
        Ok(())
    }
}

/// The `connection` fields, read as one list.
#[derive(Default)]
struct Connection<'a> {
    close: bool,
    keep_alive: bool,
    named: smallvec::SmallVec<[&'a [u8]; 4]>,
}

impl<'a> Connection<'a> {
    fn read(&mut self, value: &'a [u8]) {
        for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if !token.is_empty() {
                self.named.push(token);
            }
        }
    }

    /// Whether a field belongs to this hop only (RFC 9110 section 7.6.1).
    fn names(&self, field: &str) -> bool {
        self.named.iter().any(|n| n.eq_ignore_ascii_case(field.as_bytes()))
    }
}

fn too_large(detail: &'static str) -> Fault {
    Fault::new(Reason::ResponseTooLarge).detail(detail).by("upstream")
}
