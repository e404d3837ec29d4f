//! The one path normalisation: router, rules and upstream all see its result, so none can be led past another.
//!
//! RFC 3986 section 6.2.2 (case, percent-encoding, dot segments) plus merged slashes. What stays ambiguous to some
//! upstream whatever we do (`%2F`, `\`, NUL) is refused, or kept as written where the listener says so.

use std::borrow::Cow;

use bytes::Bytes;
use http::uri::PathAndQuery;
use onehop_filters::contract::{Fault, Reason};

use crate::config::plan::Paths;

/// Normalises the path; the query stays as it is. An already normal path costs one scan and no allocation.
///
/// `*` passes: whether the method allows it is for `proxy::head` to judge.
///
/// # Errors
/// [`Reason::BadPath`], with what is wrong.
pub fn normalise(target: PathAndQuery, policy: Paths) -> Result<PathAndQuery, Fault> {
    let text = match normalise_str(target.as_str(), policy.reject_escaped_slashes)? {
        Cow::Borrowed(_) => return Ok(target),
        Cow::Owned(text) => text,
    };
    PathAndQuery::from_maybe_shared(Bytes::from(text)).map_err(|_| bad("the path has bytes no URI may have"))
}

/// As [`normalise`], on text.
///
/// # Errors
/// [`Reason::BadPath`], with what is wrong.
pub fn normalise_str(target: &str, reject_escaped_slashes: bool) -> Result<Cow<'_, str>, Fault> {
    if target == "*" {
        return Ok(Cow::Borrowed(target));
    }
    if !target.starts_with('/') {
        return Err(bad("the path does not start with a slash"));
    }
    let bytes = target.as_bytes();
    let (end, plain) = scan(bytes);
    let (path, query) = bytes.split_at(end);
    check_query(query)?;
    if plain {
        return Ok(Cow::Borrowed(target));
    }
    let mut out = Vec::with_capacity(target.len());
    resolve(path, reject_escaped_slashes, &mut out)?;
    if out == path {
        return Ok(Cow::Borrowed(target));
    }
    out.extend_from_slice(query);
    // `resolve` writes ASCII only and `check_query` passes ASCII only.
    String::from_utf8(out).map(Cow::Owned).map_err(|_| bad("the path is not ASCII"))
}

fn bad(detail: &'static str) -> Fault {
    Fault::new(Reason::BadPath).detail(detail).by("path")
}

const PLAIN: u8 = 0;
const SLASH: u8 = 1;
const DOT: u8 = 2;
const END: u8 = 3;
const ODD: u8 = 4;

/// What each byte is to the fast scan. Plain: `pchar` of RFC 3986 without `%` and `.`.
const CLASS: [u8; 256] = {
    let mut class = [ODD; 256];
    let mut b = 0usize;
    while b < 128 {
        let c = b as u8;
        class[b] = match c {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => PLAIN,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@' => PLAIN,
            b'/' => SLASH,
            b'.' => DOT,
            b'?' => END,
            _ => ODD,
        };
        b += 1;
    }
    class
};

/// Where the path ends, and whether it is normal already.
fn scan(bytes: &[u8]) -> (usize, bool) {
    let mut plain = true;
    // Whether the byte before was a slash: then a slash doubles it, and a dot may start a dot segment.
    let mut fresh = false;
    for (at, &b) in bytes.iter().enumerate() {
        match CLASS[usize::from(b)] {
            PLAIN => fresh = false,
            SLASH => {
                plain &= !fresh;
                fresh = true;
            }
            DOT => {
                plain &= !(fresh && is_dot_segment(&bytes[at..]));
                fresh = false;
            }
            END => return (at, plain),
            _ => {
                plain = false;
                fresh = false;
            }
        }
    }
    (bytes.len(), plain)
}

fn is_dot_segment(rest: &[u8]) -> bool {
    let dots = rest.iter().take(3).take_while(|b| **b == b'.').count();
    dots <= 2 && matches!(rest.get(dots), None | Some(b'/' | b'?' | b';'))
}

/// Raw controls, spaces, quotes, angle brackets, fragments and 8-bit bytes never belong in a request target (RFC 3986
/// section 3.4 and appendix C).
fn check_query(query: &[u8]) -> Result<(), Fault> {
    match query.iter().find(|b| !(0x21..=0x7e).contains(*b) || matches!(b, b'#' | b'"' | b'<' | b'>')) {
        None => Ok(()),
        Some(b'#') => Err(bad("the target has a fragment")),
        Some(_) => {
            Err(bad("the query has a control character, a space, a quote, an angle bracket or a byte beyond ASCII"))
        }
    }
}

/// Writes the normal form of `path` to the empty `out`.
fn resolve(path: &[u8], reject_escaped_slashes: bool, out: &mut Vec<u8>) -> Result<(), Fault> {
    // Where the segment being written starts: just behind its slash.
    let mut segment = 0;
    let mut at = 0;
    while let Some(&raw) = path.get(at) {
        at += 1;
        match raw {
            b'/' => {
                close_segment(out, &mut segment, reject_escaped_slashes)?;
                if out.last() != Some(&b'/') {
                    out.push(b'/');
                }
                segment = out.len();
            }
            b'%' => {
                let Some(byte) = path.get(at..at + 2).and_then(|hex| Some(nibble(hex[0])? << 4 | nibble(hex[1])?))
                else {
                    return Err(bad("the path has a broken percent escape"));
                };
                at += 2;
                match byte {
                    0 => return Err(bad("the path has an escaped NUL")),
                    b'/' | b'\\' if reject_escaped_slashes => return Err(bad("the path has an escaped slash")),
                    _ if is_unreserved(byte) => out.push(byte),
                    _ => escape(byte, out),
                }
            }
            b'\\' if reject_escaped_slashes => return Err(bad("the path has a backslash")),
            b'#' => return Err(bad("the target has a fragment")),
            0..=b' ' | 0x7f => return Err(bad("the path has a control character or a space")),
            0x80.. => return Err(bad("the path has a byte beyond ASCII")),
            // `"<>[]^{|}`, the backtick and a kept backslash are no URI characters: one spelling, the escaped one.
            _ if CLASS[usize::from(raw)] == ODD => escape(raw, out),
            _ => out.push(raw),
        }
    }
    close_segment(out, &mut segment, reject_escaped_slashes)
}

/// Resolves the last segment if it is a dot segment (RFC 3986 section 5.2.4; `..` above the root stays at the root).
fn close_segment(out: &mut Vec<u8>, segment: &mut usize, strict: bool) -> Result<(), Fault> {
    match &out[*segment..] {
        // Servers that cut path parameters before they resolve dots read `..` here.
        [b'.', b';', ..] | [b'.', b'.', b';', ..] if strict => return Err(bad("the path has dots with a parameter")),
        b"." => out.truncate(*segment),
        b".." => {
            // `out[..segment]` ends in the slash before the dots; what goes is the segment before that slash.
            let parent = out[..segment.saturating_sub(1)].iter().rposition(|b| *b == b'/').map_or(1, |slash| slash + 1);
            out.truncate(parent);
        }
        _ => {}
    }
    *segment = out.len();
    Ok(())
}

const fn is_unreserved(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~')
}

const fn nibble(hex: u8) -> Option<u8> {
    match hex {
        b'0'..=b'9' => Some(hex - b'0'),
        b'a'..=b'f' => Some(hex - b'a' + 10),
        b'A'..=b'F' => Some(hex - b'A' + 10),
        _ => None,
    }
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strict(text: &str) -> Result<String, String> {
        normalise_str(text, true).map(Cow::into_owned).map_err(|f| {
            assert_eq!(f.reason, Reason::BadPath);
            f.detail.into_owned()
        })
    }

    #[test]
    fn normal_paths_are_borrowed() {
        for path in
            ["/", "/a", "/a/b.c/", "/.well-known/x", "/...", "/a..b/..c/d..", "/a?x=//../%2f", "/a%20b", "/a;v=1", "*"]
        {
            assert!(matches!(normalise_str(path, true), Ok(Cow::Borrowed(p)) if p == path), "{path}");
        }
    }

    #[test]
    fn one_form_for_each_path() {
        for (from, to) in [
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a/b/../", "/a/"),
            ("/..", "/"),
            ("/../../x", "/x"),
            ("/a/../../../x", "/x"),
            ("//", "/"),
            ("//a///b//", "/a/b/"),
            ("/a//../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b?q=..", "/b?q=.."),
            ("/%61%7E%2d", "/a~-"),
            ("/%c3%a9", "/%C3%A9"),
            ("/%252f%252e", "/%252f%252e"),
            ("/a%3fb", "/a%3Fb"),
            ("/{id}|\"", "/%7Bid%7D%7C%22"),
            ("/./", "/"),
            ("/.?x", "/?x"),
        ] {
            assert_eq!(strict(from).as_deref(), Ok(to), "{from}");
        }
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for path in [
            "",
            "a",
            "?q",
            "/?a=<b>",
            "/?\"a\"",
            "/%",
            "/%4",
            "/%4g",
            "/%g4",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/a%00",
            "/a#b",
            "/a?b#c",
            "/a b",
            "/a\u{7f}",
            "/a\tb",
            "/a?b\nc",
            "/é",
            "/a?é",
            "**",
            "/a/..%2f..%2fetc",
            "/a/..;/b",
            "/a/%2e%2e;x=1/b",
            "/.;",
        ] {
            assert!(strict(path).is_err(), "{path}");
        }
    }

    #[test]
    fn kept_slashes_stay_escaped() {
        for (from, to) in
            [("/a%2fb", "/a%2Fb"), ("/a%5Cb", "/a%5Cb"), ("/a\\..\\b", "/a%5C..%5Cb"), ("/a/%2e%2e%2fb", "/a/..%2Fb")]
        {
            assert_eq!(normalise_str(from, false).unwrap(), to, "{from}");
        }
        assert!(normalise_str("/a%00", false).is_err());
    }

    #[test]
    fn a_target_keeps_its_query() {
        let policy = Paths { reject_escaped_slashes: true, reject_underscores: true };
        let target = PathAndQuery::from_static("/a/../b%41?x=%2F..");
        assert_eq!(normalise(target, policy).unwrap(), "/bA?x=%2F..");
    }

    /// Bytes that matter to the rules, often enough.
    fn tricky() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("/"),
            Just("."),
            Just(".."),
            Just("%2e"),
            Just("%2E"),
            Just("%2f"),
            Just("%5c"),
            Just("\\"),
            Just("%25"),
            Just("a"),
            Just("%61"),
            Just("%zz"),
            Just("{"),
            Just("?"),
            Just("%c3"),
            Just(";"),
            Just("%00"),
            Just("#"),
        ];
        proptest::collection::vec(piece, 0..24).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    proptest! {
        #[test]
        fn the_normal_form_is_normal(path in prop_oneof![tricky(), "\\PC*"], reject in any::<bool>()) {
            if let Ok(once) = normalise_str(&path, reject) {
                let again = normalise_str(&once, reject).map(Cow::into_owned).ok();
                prop_assert_eq!(again.as_deref(), Some(&*once));
                if &*once != "*" {
                    let only_path = once.split('?').next().unwrap_or_default();
                    prop_assert!(only_path.starts_with('/') && !only_path.contains("//"));
                    prop_assert!(!only_path.split('/').any(|s| s == ".." || s == "."), "{}", only_path);
                    prop_assert!(once.is_ascii());
                    prop_assert!(once.parse::<PathAndQuery>().is_ok());
                }
                if reject {
                    let lower = only_lower(&once);
                    prop_assert!(!lower.contains("%2f") && !lower.contains("%5c") && !lower.contains('\\'));
                }
            }
        }
    }

    fn only_lower(target: &str) -> String {
        target.split('?').next().unwrap_or_default().to_ascii_lowercase()
    }
}
