//! The two loops: request scope (`request`) and attempt scope (`attempt`), and what one request owns (`exchange`).

pub mod attempt;
mod callout;
mod carry;
mod claims;
pub mod deadline;
pub mod embed;
pub mod exchange;
pub mod head;
pub mod headers;
mod hedge;
mod inject;
pub mod ledger;
mod passthrough;
mod relay;
pub mod replay;
pub mod request;
pub mod session;
mod tcp;
pub mod upgrade;

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher};

use http::HeaderName;

/// `x-request-id`.
pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Number of the try, sent upstream from the second try on.
pub static ATTEMPT: HeaderName = HeaderName::from_static("x-onehop-attempt");

thread_local! {
    static SEED: Cell<u64> = Cell::new(foldhash::quality::RandomState::default().build_hasher().finish());
}

/// A fresh random number for choices that need no secrecy (SplitMix64 over a random start).
#[must_use]
pub fn seed() -> u64 {
    let state = SEED.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
    SEED.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
