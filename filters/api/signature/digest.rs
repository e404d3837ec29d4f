//! `Content-Digest` (RFC 9530 section 2).

use aws_lc_rs::constant_time;
use aws_lc_rs::digest::{SHA256, SHA512, digest};
use sfv::{Dictionary, ListEntry, Parser};

/// What a digest says about a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    Fits,
    Differs,
    /// No digest of an algorithm that is still good: section 5 of the RFC leaves `sha-256` and `sha-512`.
    Unusable,
}

/// Compares a body with every digest of it that we can compute.
pub fn judge(field: &str, body: &[u8]) -> Judgement {
    let Ok(digests) = Parser::new(field).parse::<Dictionary>() else { return Judgement::Unusable };
    let mut seen = Judgement::Unusable;
    for (name, algorithm) in [("sha-256", &SHA256), ("sha-512", &SHA512)] {
        let Some(ListEntry::Item(item)) = digests.get(name) else { continue };
        let Some(said) = item.bare_item.as_byte_sequence() else { return Judgement::Unusable };
        if constant_time::verify_slices_are_equal(said, digest(algorithm, body).as_ref()).is_err() {
            return Judgement::Differs;
        }
        seen = Judgement::Fits;
    }
    seen
}
