//! `x-request-id`: one id from the edge to the last service.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The field.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer ids are replaced: they end up in every log line.
const MAX_LEN: usize = 128;

/// Keeps the request's id if `keep` (a trusted proxy, or a peer in the mesh) and it is sound, else makes one of `draw`;
/// the id is in the headers afterwards. Strangers do not choose ids: one id must not stand for two requests in a log.
pub fn settle(headers: &mut HeaderMap, keep: bool, mut draw: impl FnMut() -> u64) -> HeaderValue {
    if keep {
        let mut given = headers.get_all(X_REQUEST_ID).iter();
        if let (Some(id), None) = (given.next(), given.next())
            && is_sound(id.as_bytes())
        {
            // Copied: logs keep it, and the value is a slice of the connection's read buffer.
            let id = HeaderValue::from_bytes(id.as_bytes()).unwrap_or_else(|_| id.clone());
            return id;
        }
    }
    let id = hex(draw(), draw());
    headers.insert(X_REQUEST_ID, id.clone());
    id
}

/// An id of our own, for what has no headers to carry one.
#[must_use]
pub fn fresh() -> HeaderValue {
    hex(draw(), draw())
}

fn is_sound(id: &[u8]) -> bool {
    (1..=MAX_LEN).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

fn hex(high: u64, low: u64) -> HeaderValue {
    let mut text = [0; 32];
    for (at, digit) in text.iter_mut().enumerate() {
        let word = if at < 16 { high } else { low };
        *digit = b"0123456789abcdef"[(word >> (60 - 4 * (at % 16)) & 15) as usize];
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

thread_local! {
    static STREAM: (RandomState, Cell<u64>) = (RandomState::new(), const { Cell::new(0) });
}

/// A random number for ids: SipHash of a counter under keys that the operating system gave this thread once. Not
/// guessable from the ids seen, no system call, no lock; no use as a secret.
#[must_use]
pub fn draw() -> u64 {
    STREAM.with(|(keys, counter)| {
        counter.set(counter.get().wrapping_add(1));
        keys.hash_one(counter.get())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(id: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_static(id))])
    }

    #[test]
    fn a_sound_id_of_a_friend_is_kept() {
        let mut headers = with("abc-1~!");
        assert_eq!(settle(&mut headers, true, || 7), "abc-1~!");
        assert_eq!(headers[X_REQUEST_ID], "abc-1~!");
    }

    #[test]
    fn any_other_id_is_replaced() {
        let long: &'static str = "x".repeat(129).leak();
        for (id, keep) in [("abc", false), ("", true), ("a b", true), ("a\u{e9}", true), (long, true)] {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_bytes(id.as_bytes()).unwrap());
            let made = settle(&mut headers, keep, || 0x0123_4567_89ab_cdef);
            assert_eq!(made, "0123456789abcdef0123456789abcdef", "{id}");
            assert_eq!(headers[X_REQUEST_ID], made);
        }
        let mut twice = with("a");
        twice.append(X_REQUEST_ID, HeaderValue::from_static("b"));
        settle(&mut twice, true, || 1);
        assert_eq!(twice.get_all(X_REQUEST_ID).iter().count(), 1);
        assert_ne!(twice[X_REQUEST_ID], "a");
    }

    #[test]
    fn draws_do_not_repeat() {
        let mine: std::collections::HashSet<u64> = (0..1000).map(|_| draw()).collect();
        let other = std::thread::spawn(|| (0..1000).map(|_| draw()).collect::<Vec<_>>()).join().unwrap();
        assert_eq!(mine.len(), 1000);
        assert!(other.iter().all(|n| !mine.contains(n)));
    }
}
