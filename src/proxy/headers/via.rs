//! `Via` (RFC 9110 section 7.6.3), where a listener asks for it, and the loops it shows.

use bytes::Bytes;
use http::Version;
use http::header::{HeaderMap, HeaderValue, VIA};

use super::hop::tokens;

/// Appends this proxy, under a pseudonym that no other instance uses (or two of them in a row would look like a loop).
/// `received` is the version of the message as it arrived.
pub fn add(headers: &mut HeaderMap, received: Version, pseudonym: &str) {
    let version: &[u8] = match received {
        Version::HTTP_10 => b"1.0 ",
        Version::HTTP_2 => b"2 ",
        _ => b"1.1 ",
    };
    let mut list = Vec::with_capacity(48);
    for line in headers.get_all(VIA) {
        list.extend_from_slice(line.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(version);
    list.extend_from_slice(pseudonym.as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(list)) {
        headers.insert(VIA, value);
    }
}

/// Whether the message has been here before.
#[must_use]
pub fn is_loop(headers: &HeaderMap, pseudonym: &str) -> bool {
    tokens(headers.get_all(VIA)).any(|member| {
        // `[name/]version received-by [comment]`
        let mut words = member.split(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty());
        words.nth(1).is_some_and(|by| by.eq_ignore_ascii_case(pseudonym.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hop_adds_itself() {
        let mut headers = HeaderMap::new();
        add(&mut headers, Version::HTTP_2, "onehop-1");
        assert_eq!(headers[VIA], "2 onehop-1");
        headers.append(VIA, HeaderValue::from_static("1.0 fred"));
        add(&mut headers, Version::HTTP_11, "onehop-2");
        assert_eq!(headers[VIA], "2 onehop-1, 1.0 fred, 1.1 onehop-2");
        assert_eq!(headers.get_all(VIA).iter().count(), 1);
        assert!(is_loop(&headers, "onehop-1") && is_loop(&headers, "ONEHOP-2"));
        assert!(!is_loop(&headers, "onehop") && !is_loop(&headers, "onehop-3"));
    }

    #[test]
    fn comments_and_prefixes_are_not_names() {
        let headers = HeaderMap::from_iter([(VIA, HeaderValue::from_static("HTTP/1.1 a (onehop-1), onehop-1, 1.1"))]);
        assert!(!is_loop(&headers, "onehop-1"));
        assert!(is_loop(&headers, "a"));
    }
}
