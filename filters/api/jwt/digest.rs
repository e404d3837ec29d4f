//! SHA-256 of tokens, remembered for those seen last: a caller sends one token with many requests, and comparing it costs
//! a small part of hashing it again.

use std::cell::RefCell;
use std::hash::BuildHasher as _;

use aws_lc_rs::digest::{SHA256, digest};
use foldhash::quality::RandomState;

/// Tokens remembered per worker.
const SLOTS: usize = 64;
/// Longer ones are hashed each time, which bounds what is kept.
const LONGEST: usize = 2048;

type Digest = [u8; 32];

struct Seen {
    key: u64,
    token: Box<[u8]>,
    digest: Digest,
}

thread_local! {
    /// Slots and keys are a hash of the whole token under a secret of this thread. So nobody learns from the time of the
    /// comparison how a token begins that others use: bytes are compared only where the keys are equal.
    static SEEN: (RandomState, RefCell<[Option<Seen>; SLOTS]>) =
        (RandomState::default(), const { RefCell::new([const { None }; SLOTS]) });
}

/// The digest of a token.
pub fn of(token: &str) -> Digest {
    let token = token.as_bytes();
    if token.len() > LONGEST {
        return hash(token);
    }
    SEEN.with(|(secret, seen)| {
        let key = secret.hash_one(token);
        let slot = &mut seen.borrow_mut()[usize::try_from(key % SLOTS as u64).unwrap_or(0)];
        if let Some(seen) = slot
            && seen.key == key
            && *seen.token == *token
        {
            return seen.digest;
        }
        let digest = hash(token);
        *slot = Some(Seen { key, token: token.into(), digest });
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
