//! Chance and hashing for the mesh roles: small, seeded, and the same in every process.

use std::hash::{BuildHasher, Hasher};

pub use crate::contract::mesh::stable_hash;

/// SplitMix64 (Steele, Lea, Flood 2014): a few instructions a number, good enough to choose with, not to keep secrets.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Numbers that follow from a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }
    /// Numbers that differ between processes and calls. For start-up and background tasks.
    #[must_use]
    pub fn fresh() -> Self {
        // The standard library seeds its hasher from the system and counts on from there.
        Self(std::collections::hash_map::RandomState::new().build_hasher().finish())
    }
    /// The next number.
    pub const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }
    /// A number below `n`, which is not zero. The bias is below `n / 2^32`.
    pub const fn below(&mut self, n: usize) -> usize {
        (((self.roll() >> 32) * n as u64) >> 32) as usize
    }
    /// A fraction in [0, 1).
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
    pub const fn fraction(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// `d` lengthened or shortened by up to `by` (a fraction), so that many instances do not act in step.
    pub fn jitter(&mut self, d: std::time::Duration, by: f64) -> std::time::Duration {
        d.mul_f64(1.0 + by * (2.0 * self.fraction() - 1.0))
    }
}

/// Finaliser of SplitMix64: every input bit changes half of the output bits.
#[must_use]
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_is_even_and_in_range() {
        let mut dice = Dice::new(7);
        let mut seen = [0u32; 10];
        for _ in 0..100_000 {
            seen[dice.below(10)] += 1;
        }
        assert!(seen.iter().all(|n| (9_500..10_500).contains(n)), "{seen:?}");
    }
    #[test]
    fn hash_is_pinned() {
        // A change of this value moves every key of every user: never by accident.
        assert_eq!(stable_hash(&[b"10.0.0.1:80"]), 6_501_889_285_170_079_345);
        assert_ne!(stable_hash(&[b"ab", b"c"]), stable_hash(&[b"a", b"bc"]));
    }
    #[test]
    fn jitter_stays_in_its_band() {
        let mut dice = Dice::new(1);
        for _ in 0..1000 {
            let d = dice.jitter(std::time::Duration::from_secs(10), 0.2).as_secs_f64();
            assert!((8.0..=12.0).contains(&d));
        }
    }
}
