//! Chance for filters: which requests are mirrored, delayed, sampled. Needs no secrecy.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher};

thread_local! {
    // The standard library seeds its hasher from the system and counts on from there.
    static STATE: Cell<u64> = Cell::new(std::collections::hash_map::RandomState::new().build_hasher().finish());
}

/// A fresh random number (SplitMix64 over a random start, one sequence per thread).
#[must_use]
pub fn draw() -> u64 {
    let state = STATE.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// A fraction in [0, 1) from a random number.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
pub const fn fraction(draw: u64) -> f64 {
    (draw >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_even() {
        let below = (0..100_000).filter(|_| fraction(draw()) < 0.1).count();
        assert!((9_500..10_500).contains(&below), "{below}");
        assert!(fraction(u64::MAX) < 1.0);
    }
}
