//! Query values that look like secrets are not logged.

/// What stands in place of a secret.
pub const MASK: &[u8] = b"REDACTED";

/// Names that are secrets by themselves, lower-case and without separators.
const EXACT: [&str; 16] = [
    "key", "sig", "code", "auth", "pwd", "pass", "jwt", "sid", "session", "pin", "otp", "nonce", "hmac", "sas",
    "ticket", "cookie",
];

/// Words that make a name a secret wherever they stand in it.
const WITHIN: [&str; 12] = [
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "apikey",
    "accesskey",
    "privatekey",
    "signature",
    "credential",
    "authorization",
    "sessionid",
];

/// Longest parameter name that is looked at; a longer one is taken for a secret.
const MAX_NAME: usize = 64;

/// Appends path and query through `escape`, with the values of sensitive parameters masked.
pub fn target(out: &mut Vec<u8>, target: &[u8], escape: fn(&mut Vec<u8>, &[u8])) {
    let Some(mark) = memchr::memchr(b'?', target) else {
        return escape(out, target);
    };
    escape(out, &target[..mark]);
    query(out, &target[mark + 1..], escape);
}

/// Appends `?` and a query through `escape`, masked as in [`target`].
pub fn query(out: &mut Vec<u8>, query: &[u8], escape: fn(&mut Vec<u8>, &[u8])) {
    // In one piece where nothing is to hide.
    if !pairs(query).any(|(name, value)| !value.is_empty() && sensitive(name)) {
        out.push(b'?');
        return escape(out, query);
    }
    let mut separator = b'?';
    for (name, value) in pairs(query) {
        out.push(separator);
        separator = b'&';
        escape(out, name);
        if !value.is_empty() {
            out.push(b'=');
            // `value` starts with its own `=`.
            if sensitive(name) { out.extend_from_slice(MASK) } else { escape(out, &value[1..]) }
        }
    }
}

/// Name, and value with its `=` in front; `;` separates too, as some servers have it.
fn pairs(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.split(|b| matches!(b, b'&' | b';')).map(|pair| {
        let at = memchr::memchr(b'=', pair).unwrap_or(pair.len());
        pair.split_at(at)
    })
}

/// Whether a parameter of this name holds a secret, however it is spelt: `api_key`, `Api-Key` and `api%5Fkey` are one.
#[must_use]
pub fn sensitive(name: &[u8]) -> bool {
    let mut folded = [0u8; MAX_NAME];
    let mut len = 0;
    let mut rest = name;
    while let [first, tail @ ..] = rest {
        let mut byte = *first;
        rest = tail;
        if let (b'%', [high, low, after @ ..]) = (byte, tail)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            byte = high << 4 | low;
            rest = after;
        }
        if matches!(byte, b'-' | b'_' | b'.' | b'+' | b' ' | b'[' | b']') {
            continue;
        }
        let Some(slot) = folded.get_mut(len) else {
            return true;
        };
        *slot = byte.to_ascii_lowercase();
        len += 1;
    }
    let name = &folded[..len];
    EXACT.iter().any(|word| name == word.as_bytes())
        || WITHIN.iter().any(|word| word.len() <= len && memchr::memmem::find(name, word.as_bytes()).is_some())
}

const fn hex(b: u8) -> Option<u8> {
    match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::observe::json;

    fn of(text: &str) -> String {
        let mut out = Vec::new();
        target(&mut out, text.as_bytes(), json::escape);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn masks() {
        assert_eq!(of("/a?x=1&y"), "/a?x=1&y");
        assert_eq!(of("/a"), "/a");
        assert_eq!(of("/a?token=abc&x=1"), "/a?token=REDACTED&x=1");
        assert_eq!(of("/a?x=1&access_token=a=b"), "/a?x=1&access_token=REDACTED");
        assert_eq!(of("/a?api%5fkey=k&API-Key=k&b"), "/a?api%5fkey=REDACTED&API-Key=REDACTED&b");
        assert_eq!(of("/cb?code=4/0A&state=s"), "/cb?code=REDACTED&state=s");
        assert_eq!(of("/s3?X-Amz-Signature=f00&X-Amz-Date=1"), "/s3?X-Amz-Signature=REDACTED&X-Amz-Date=1");
        assert_eq!(of("/a?x=1;password=p"), "/a?x=1&password=REDACTED");
        assert_eq!(of("/a?token&key="), "/a?token&key=REDACTED");
    }

    #[test]
    fn ordinary_names_pass() {
        for name in ["page", "q", "keyword", "codec", "author", "monkey", "sort", "signal", "zipcode", ""] {
            assert!(!sensitive(name.as_bytes()), "{name}");
        }
        assert!(sensitive(&[b'a'; 65]), "too long to tell");
    }

    proptest! {
        #[test]
        fn a_secret_never_passes(before in "[a-z]{0,9}=[a-z0-9]{0,9}", name in "(api_key|sig|client-secret|Code|id_token)") {
            let line = of(&format!("/p?{before}&{name}=S3CR3T&z=1"));
            prop_assert!(!line.contains("S3CR3T"));
            prop_assert!(line.ends_with("&z=1"));
        }
    }
}
