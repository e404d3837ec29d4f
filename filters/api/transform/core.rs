//! The pure part: paths that may go upstream, and queries edited without touching what is not named.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::contract::{RequestCx, Template};

/// What RFC 3986 section 2.3 calls unreserved stays as it is.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What must be encoded when a value goes into a path: what would end the path, and what a URI may not have. Slashes and
/// escapes stay, as `request.path` has them.
pub const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// A rewritten path must be as unambiguous as one from a client: no dot segment, nothing a URI may not have, and no
/// fragment. `None` if it is not.
pub fn checked(path: &str) -> Option<&str> {
    let (path_only, query) = path.split_once('?').unwrap_or((path, ""));
    let legal = |s: &str| s.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'#' | b'\\' | b'"' | b'<' | b'>'));
    let mut segments = path_only.as_bytes().split(|b| *b == b'/');
    (path_only.starts_with('/') && legal(path_only) && legal(query) && !segments.any(is_dots)).then_some(path)
}

/// Whether a segment, decoded, is `.` or `..`.
fn is_dots(mut segment: &[u8]) -> bool {
    let mut dots = 0;
    loop {
        segment = match segment {
            [] => return matches!(dots, 1 | 2),
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return false,
        };
        dots += 1;
    }
}

/// Edits of a query.
pub struct Query {
    pub set: Vec<(String, Template)>,
    pub add: Vec<(String, Template)>,
    pub remove: Vec<String>,
}

impl Query {
    pub const fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// Set (in the place of the first of that name), add, remove. Other parameters keep their bytes and their order.
    pub fn apply(&self, query: &str, rq: &RequestCx) -> String {
        let mut pairs: Vec<Cow<'_, str>> = query.split('&').filter(|p| !p.is_empty()).map(Cow::Borrowed).collect();
        for (name, template) in &self.set {
            let at = pairs.iter().position(|p| is_named(p, name)).unwrap_or(pairs.len());
            pairs.retain(|p| !is_named(p, name));
            if let Some(value) = template.text(rq) {
                pairs.insert(at.min(pairs.len()), Cow::Owned(pair(name, &value)));
            }
        }
        for (name, template) in &self.add {
            if let Some(value) = template.text(rq) {
                pairs.push(Cow::Owned(pair(name, &value)));
            }
        }
        pairs.retain(|p| !self.remove.iter().any(|name| is_named(p, name)));
        pairs.join("&")
    }
}

fn pair(name: &str, value: &str) -> String {
    format!("{}={}", utf8_percent_encode(name, VALUE), utf8_percent_encode(value, VALUE))
}

fn is_named(pair: &str, name: &str) -> bool {
    let written = pair.split_once('=').map_or(pair, |(n, _)| n);
    written == name || percent_decode_str(written).decode_utf8().is_ok_and(|n| n == name)
}
