//! `x-request-id`: one id from the edge to the last service.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The field.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer ids are replaced: they end up in every log line.
const MAX_LEN: usize = 128;

/// Keeps the request's id if `keep` (a trusted proxy, or a peer in the mesh) and it is sound, else makes one of `draw`;
/// whoever sends the head on adds it. Strangers do not choose ids: one id must not stand for two requests in a log.
pub fn settle(headers: &HeaderMap, keep: bool, mut draw: impl FnMut() -> u64) -> HeaderValue {
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
    hex(draw(), draw())
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
    let (first, second) = text.split_at_mut(16);
    put(first, high);
    put(second, low);
    // One allocation for all its holders: the exchange, the next hop's fields, and a fault's answer.
    HeaderValue::from_maybe_shared(Bytes::from_owner(text)).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

/// Sixteen digits, two at a time.
fn put(into: &mut [u8], word: u64) {
    for (digits, byte) in into.chunks_exact_mut(2).zip(word.to_be_bytes()) {
        digits.copy_from_slice(&PAIRS[usize::from(byte)]);
    }
}

const PAIRS: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    pairs
};

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

/// Two of them in one: as wide as a trace id.
#[must_use]
pub fn draw_wide() -> u128 {
    u128::from(draw()) << 64 | u128::from(draw())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(id: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_static(id))])
    }

    #[test]
    fn a_sound_id_of_a_friend_is_kept() {
        let headers = with("abc-1~!");
        assert_eq!(settle(&headers, true, || 7), "abc-1~!");
    }

    #[test]
    fn any_other_id_is_replaced() {
        let long: &'static str = "x".repeat(129).leak();
        for (id, keep) in [("abc", false), ("", true), ("a b", true), ("a\u{e9}", true), (long, true)] {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_bytes(id.as_bytes()).unwrap());
            let made = settle(&headers, keep, || 0x0123_4567_89ab_cdef);
            assert_eq!(made, "0123456789abcdef0123456789abcdef", "{id}");
        }
        let mut twice = with("a");
        twice.append(X_REQUEST_ID, HeaderValue::from_static("b"));
        assert_eq!(settle(&twice, true, || 1), "00000000000000010000000000000001");
    }

    #[test]
    fn draws_do_not_repeat() {
        let mine: std::collections::HashSet<u64> = (0..1000).map(|_| draw()).collect();
        let other = std::thread::spawn(|| (0..1000).map(|_| draw()).collect::<Vec<_>>()).join().unwrap();
        assert_eq!(mine.len(), 1000);
        assert!(other.iter().all(|n| !mine.contains(n)));
    }
}
