//! Where a request head ends, and what hyper would let through in it. Pure: bytes in, verdict out.
//!
//! hyper parses and checks the grammar afterwards; this scan refuses only what it accepts or hides: bare LF, a fragment
//! in the target, `Transfer-Encoding` beside `Content-Length`, and heads over our limits.

use memchr::{memchr, memchr_iter};
use onehop_filters::contract::{Fault, Reason};

/// Longest method we wait for; every registered one is shorter (RFC 9110 section 16.1.1 registry: 17 bytes).
const METHOD: usize = 32;
/// ` HTTP/1.1` and CR after the target.
const VERSION: usize = 10;

/// Bounds of a head.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of the whole head, to and with its last CRLF.
    pub head: usize,
    /// Bytes of the request target.
    pub target: usize,
    /// Field lines.
    pub fields: usize,
}

/// What the bytes so far amount to.
#[derive(Debug)]
pub enum Scan {
    /// No end yet. Lines before `resume` have been checked; `fields` and `framing` carry over.
    More(Progress),
    /// A whole head.
    Complete(Head),
    /// Answer and close.
    Refuse(Fault),
}

/// A head that may go to hyper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its length in bytes.
    pub len: usize,
    /// Where an `Upgrade` field name starts that must be blanked, because the request has a body: RFC 9110 section 7.8
    /// lets a server ignore it, and hyper cannot flush an answer to a refused upgrade whose body was not read.
    pub blank_upgrade: Option<usize>,
}

/// Where to go on when more bytes are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    resume: usize,
    fields: usize,
    request_line: bool,
    connect: bool,
    length: bool,
    coding: bool,
    /// The length is not 0, or there is a coding.
    body: bool,
    upgrade: Option<usize>,
    upgrades: usize,
}

/// Scans `bytes`, which start at the first byte of the head, going on where `progress` stopped.
#[must_use]
pub fn scan(bytes: &[u8], mut progress: Progress, bounds: Bounds) -> Scan {
    let from = progress.resume;
    for lf in memchr_iter(b'\n', &bytes[from..]) {
        let lf = from + lf;
        let line = match bytes[progress.resume..lf].split_last() {
            Some((b'\r', line)) => line,
            _ => return refuse(Reason::BadRequest, "a line does not end with CRLF"),
        };
        let start = progress.resume;
        progress.resume = lf + 1;
        if lf + 1 > bounds.head {
            return too_long(&progress, bytes, bounds);
        }
        if !progress.request_line {
            // RFC 9112 section 2.2: empty lines before the request line are to be ignored.
            if line.is_empty() {
                continue;
            }
            if let Err(fault) = request_line(line, bounds) {
                return Scan::Refuse(fault);
            }
            progress.request_line = true;
            progress.connect = line.starts_with(b"CONNECT ");
            continue;
        }
        if line.is_empty() {
            if progress.length && progress.coding {
                return refuse(Reason::BadFraming, "Content-Length and Transfer-Encoding exclude each other");
            }
            // What hyper could not refuse without losing the answer: an upgrade it sees, with a body nobody reads.
            if progress.body && (progress.connect || progress.upgrades > 1) {
                return refuse(Reason::BadFraming, "an upgrade carries no content");
            }
            return Scan::Complete(Head { len: lf + 1, blank_upgrade: progress.upgrade.filter(|_| progress.body) });
        }
        progress.fields += 1;
        if progress.fields > bounds.fields {
            return refuse(Reason::HeadTooLarge, "too many fields");
        }
        field(line, start, &mut progress);
    }
    if bytes.len() >= bounds.head {
        return too_long(&progress, bytes, bounds);
    }
    let rest = &bytes[progress.resume..];
    if !progress.request_line
        && let Err(fault) = partial_request_line(rest, bounds)
    {
        return Scan::Refuse(fault);
    }
    Scan::More(progress)
}

/// Notes the fields that decide about framing.
fn field(line: &[u8], start: usize, progress: &mut Progress) {
    let named = |name: &[u8]| line.len() >= name.len() && line[..name.len()].eq_ignore_ascii_case(name);
    match line[0] | 0x20 {
        b'c' if named(b"content-length:") => {
            progress.length = true;
            progress.body |= line[b"content-length:".len()..].trim_ascii() != b"0";
        }
        b't' if named(b"transfer-encoding:") => (progress.coding, progress.body) = (true, true),
        b'u' if named(b"upgrade:") => {
            progress.upgrade = Some(start);
            progress.upgrades += 1;
        }
        _ => {}
    }
}

/// RFC 9112 section 3: `method SP request-target SP HTTP-version`, one space each.
fn request_line(line: &[u8], bounds: Bounds) -> Result<(), Fault> {
    let malformed = || Fault::new(Reason::BadRequest).detail("the request line is malformed").by("gate");
    let method = memchr(b' ', line).ok_or_else(malformed)?;
    if method == 0 || method > METHOD || !line[..method].iter().all(|&b| is_token(b)) {
        return Err(malformed());
    }
    let rest = &line[method + 1..];
    let target = memchr(b' ', rest).unwrap_or(rest.len());
    if target > bounds.target {
        return Err(Fault::new(Reason::UriTooLong).by("gate"));
    }
    if !matches!(&rest[target..], b" HTTP/1.1" | b" HTTP/1.0") {
        return Err(malformed());
    }
    if memchr(b'#', &rest[..target]).is_some() {
        return Err(Fault::new(Reason::BadPath).detail("a target has no fragment").by("gate"));
    }
    Ok(())
}

/// Ends the wait for a request line that cannot become one: something that is not HTTP, or a target over its limit.
fn partial_request_line(rest: &[u8], bounds: Bounds) -> Result<(), Fault> {
    let begun = rest.strip_prefix(b"\r").unwrap_or(rest);
    let method = memchr(b' ', begun).unwrap_or(begun.len());
    let bare = rest.len() > 1 && rest[0] == b'\r';
    if bare || method > METHOD || !begun[..method].iter().all(|&b| is_token(b)) {
        return Err(Fault::new(Reason::BadRequest).detail("this is not an HTTP/1.1 request").by("gate"));
    }
    if begun.len().saturating_sub(method + 1) > bounds.target + VERSION {
        return Err(Fault::new(Reason::UriTooLong).by("gate"));
    }
    Ok(())
}

/// Over the limit for heads: 414 if the request line alone is to blame, else 431.
fn too_long(progress: &Progress, bytes: &[u8], bounds: Bounds) -> Scan {
    if progress.request_line {
        return refuse(Reason::HeadTooLarge, "");
    }
    let rest = &bytes[progress.resume..];
    match partial_request_line(rest, bounds) {
        Err(fault) if rest.first() != Some(&b'\r') => Scan::Refuse(fault),
        _ => refuse(Reason::HeadTooLarge, ""),
    }
}

fn refuse(reason: Reason, detail: &'static str) -> Scan {
    Scan::Refuse(Fault::new(reason).detail(detail).by("gate"))
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { head: 1024, target: 64, fields: 8 };

    fn verdict(bytes: &[u8]) -> Result<Option<usize>, Reason> {
        match scan(bytes, Progress::default(), BOUNDS) {
            Scan::More(_) => Ok(None),
            Scan::Complete(head) => Ok(Some(head.len)),
            Scan::Refuse(fault) => Err(fault.reason),
        }
    }

    #[test]
    fn the_end_is_found_and_what_follows_is_left() {
        let head = b"\r\nGET /a?b HTTP/1.1\r\nhost: a\r\n\r\n";
        assert_eq!(verdict(head), Ok(Some(head.len())));
        assert_eq!(verdict(&[head, &b"GET /next"[..]].concat()), Ok(Some(head.len())));
        assert_eq!(verdict(&head[..head.len() - 1]), Ok(None));
    }

    #[test]
    fn what_hyper_would_let_through_is_refused() {
        for (bytes, reason) in [
            (&b"GET / HTTP/1.1\nhost: a\r\n\r\n"[..], Reason::BadRequest),
            (b"GET / HTTP/1.1\r\nhost: a\n\r\n", Reason::BadRequest),
            (b"GET / HTTP/1.1\r\nhost: a\r\n\n", Reason::BadRequest),
            (b"GET /a#b HTTP/1.1\r\n", Reason::BadPath),
            (b"GET /\r\n", Reason::BadRequest),
            (b"GET / HTTP/2.0\r\n", Reason::BadRequest),
            (b"\x16\x03\x01\x02\x00", Reason::BadRequest),
            (b"CONNECT a:1 HTTP/1.1\r\ncontent-length: 1\r\n\r\n", Reason::BadFraming),
            (b"P / HTTP/1.1\r\nupgrade: a\r\nupgrade: b\r\ncontent-length: 1\r\n\r\n", Reason::BadFraming),
            (b"P / HTTP/1.1\r\ncontent-length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", Reason::BadFraming),
        ] {
            assert_eq!(verdict(bytes), Err(reason), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn limits_hold_exactly() {
        let line = |n: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(n - 1));
        assert_eq!(verdict(line(64).as_bytes()), Ok(Some(64 + 17)));
        assert_eq!(verdict(line(65).as_bytes()), Err(Reason::UriTooLong));
        assert_eq!(verdict(format!("GET /{}", "a".repeat(200)).as_bytes()), Err(Reason::UriTooLong));
        let fields = |n: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(n));
        assert!(matches!(verdict(fields(8).as_bytes()), Ok(Some(_))));
        assert_eq!(verdict(fields(9).as_bytes()), Err(Reason::HeadTooLarge));
        let head = |n: usize| format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(n - 23));
        assert_eq!(verdict(head(1024).as_bytes()), Ok(Some(1024)));
        assert_eq!(verdict(head(1025).as_bytes()), Err(Reason::HeadTooLarge));
        assert_eq!(verdict("\r\n".repeat(600).as_bytes()), Err(Reason::HeadTooLarge));
    }

    #[test]
    fn an_upgrade_with_a_body_is_blanked() {
        let Scan::Complete(head) =
            scan(b"P / HTTP/1.1\r\nUpgrade: h2c\r\ncontent-length: 3\r\n\r\n", Progress::default(), BOUNDS)
        else {
            panic!("a whole head")
        };
        assert_eq!(head.blank_upgrade, Some(14));
        let Scan::Complete(head) =
            scan(b"G / HTTP/1.1\r\nUpgrade: websocket\r\ncontent-length: 0\r\n\r\n", Progress::default(), BOUNDS)
        else {
            panic!("a whole head")
        };
        assert_eq!(head.blank_upgrade, None, "no body, no harm");
    }

    proptest! {
        /// However the bytes are cut, the verdict is the same as for the whole.
        #[test]
        fn cuts_do_not_matter(
            bytes in prop::collection::vec(prop_oneof![
                Just(&b"GET / HTTP/1.1\r\n"[..]), Just(&b"\r\n"[..]), Just(&b"a: b\r\n"[..]), Just(&b"\n"[..]), Just(&b"\r"[..]),
                Just(&b"content-length: 1\r\n"[..]), Just(&b"transfer-encoding: chunked\r\n"[..]), Just(&b"x"[..]),
            ], 0..12).prop_map(|v| v.concat()),
            cut in 0usize..64,
        ) {
            let whole = verdict(&bytes);
            let cut = cut.min(bytes.len());
            let pieces = match scan(&bytes[..cut], Progress::default(), BOUNDS) {
                Scan::More(progress) => match scan(&bytes, progress, BOUNDS) {
                    Scan::More(_) => Ok(None),
                    Scan::Complete(head) => Ok(Some(head.len)),
                    Scan::Refuse(fault) => Err(fault.reason),
                },
                Scan::Complete(head) => Ok(Some(head.len)),
                Scan::Refuse(fault) => Err(fault.reason),
            };
            prop_assert_eq!(whole, pieces);
        }
    }
}
