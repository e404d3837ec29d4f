//! SHA-256 of tokens, remembered for those seen last: a caller sends one token with many requests, and comparing it costs
//! a small part of hashing it again.

use std::cell::RefCell;

use aws_lc_rs::digest::{SHA256, digest};

/// Tokens remembered per worker.
const SLOTS: usize = 64;
/// Longer ones are hashed each time, which bounds what is kept.
const LONGEST: usize = 2048;

type Digest = [u8; 32];

struct Seen {
    token: Box<[u8]>,
    digest: Digest,
}

thread_local! {
    /// By a cheap hash of the token's end, which is its signature: any two tokens differ there.
    static SEEN: RefCell<[Option<Seen>; SLOTS]> = const { RefCell::new([const { None }; SLOTS]) };
}

/// The digest of a token.
pub fn of(token: &str) -> Digest {
    let token = token.as_bytes();
    let Some(end) = token.last_chunk::<8>().filter(|_| token.len() <= LONGEST) else { return hash(token) };
    // The last character of base64 may carry two bits only.
    let mixed = u64::from_le_bytes(*end).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let slot = usize::try_from(mixed >> 58).unwrap_or(0) % SLOTS;
    SEEN.with_borrow_mut(|seen| {
        if let Some(seen) = &seen[slot]
            && *seen.token == *token
        {
            return seen.digest;
        }
        let digest = hash(token);
        seen[slot] = Some(Seen { token: token.into(), digest });
        digest
    })
}

fn hash(token: &[u8]) -> Digest {
    digest(&SHA256, token).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_the_token_given_whatever_was_seen() {
        let tokens: Vec<String> = (0..200).map(|n| format!("head{n}.claims.signature{}", n % 3)).collect();
        let long = "x".repeat(LONGEST + 1);
        for _ in 0..2 {
            for token in tokens.iter().map(String::as_str).chain(["", "short", &long]) {
                assert_eq!(of(token), hash(token.as_bytes()), "{token}");
            }
        }
    }
}
