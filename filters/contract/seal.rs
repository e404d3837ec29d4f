//! What we hand to browsers for safekeeping: sealed, so that it can be neither read nor changed nor used for another
//! purpose.
//!
//! AES-256-GCM under a key of its own for every text, drawn from the secret by HKDF (RFC 5869) with a random salt of 24
//! bytes: no two texts share a key, so the nonce can stay zero, and no number of sessions wears the secret out.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

const VERSION: u8 = 1;
const SALT: usize = 24;
/// Least secret, in bytes.
pub const LEAST_SECRET: usize = 32;

/// The secrets in use: the first seals, all open.
pub struct Keys(Vec<Prk>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

impl Keys {
    /// From these secrets, each of [`LEAST_SECRET`] bytes or more; at least one.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let salt = Salt::new(HKDF_SHA256, b"onehop session");
        Self(secrets.into_iter().map(|secret| salt.extract(secret)).collect())
    }

    /// Seals a text for a purpose.
    ///
    /// # Panics
    /// There is no secret, or the text has gigabytes.
    #[must_use]
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> String {
        let salt: [u8; SALT] = random();
        let secret = self.0.first().expect("there is a secret to seal with");
        let mut sealed = Vec::with_capacity(1 + SALT + plain.len() + 16);
        sealed.push(VERSION);
        sealed.extend_from_slice(&salt);
        let mut body = plain.to_vec();
        key(secret, purpose, &salt)
            .seal_in_place_append_tag(zero(), Aad::from(purpose), &mut body)
            .expect("a text of some KiB can be sealed");
        sealed.extend_from_slice(&body);
        URL_SAFE_NO_PAD.encode(sealed)
    }

    /// Opens what one of the secrets sealed for this purpose; anything else is `None`.
    #[must_use]
    pub fn open(&self, purpose: &str, text: &str) -> Option<Vec<u8>> {
        let sealed = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (version, rest) = sealed.split_first()?;
        let (salt, body) = rest.split_at_checked(SALT).filter(|_| *version == VERSION)?;
        self.0.iter().find_map(|secret| {
            let mut body = body.to_vec();
            let plain = key(secret, purpose, salt).open_in_place(zero(), Aad::from(purpose), &mut body).ok()?;
            Some(plain.to_vec())
        })
    }
}

fn key(secret: &Prk, purpose: &str, salt: &[u8]) -> LessSafeKey {
    let info = [purpose.as_bytes(), salt];
    let drawn = secret.expand(&info, &AES_256_GCM).expect("HKDF-SHA256 gives 32 bytes");
    LessSafeKey::new(UnboundKey::from(drawn))
}

/// Never repeated under one key: each key seals one text.
fn zero() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// Unguessable bytes.
///
/// # Panics
/// The system has no random bytes to give.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

/// An unguessable word of 43 letters: 256 bits, as PKCE wants its verifier (RFC 7636 section 4.1).
#[must_use]
pub fn word() -> String {
    URL_SAFE_NO_PAD.encode(random::<32>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(secrets: &[&[u8]]) -> Keys {
        Keys::new(secrets.iter().copied())
    }

    #[test]
    fn only_the_right_secret_and_purpose_open() {
        let (old, new) = (&[1u8; 32][..], &[2u8; 32][..]);
        let sealed = keys(&[old]).seal("session shop", b"hello");
        assert_eq!(keys(&[old]).open("session shop", &sealed).as_deref(), Some(&b"hello"[..]));
        assert_eq!(keys(&[new, old]).open("session shop", &sealed).as_deref(), Some(&b"hello"[..]), "rotated");
        assert_eq!(keys(&[new]).open("session shop", &sealed), None);
        assert_eq!(keys(&[old]).open("login shop", &sealed), None);
        assert_ne!(sealed, keys(&[old]).seal("session shop", b"hello"), "salted");
    }

    proptest! {
        #[test]
        fn every_changed_letter_is_noticed(plain in proptest::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
            let keys = keys(&[&[7; 32]]);
            let sealed = keys.seal("p", &plain);
            prop_assert_eq!(keys.open("p", &sealed), Some(plain));
            let mut changed = sealed.into_bytes();
            let at = at.index(changed.len());
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("ASCII");
            prop_assert_eq!(keys.open("p", &changed), None);
        }
        #[test]
        fn no_text_panics(text in "\\PC{0,80}") {
            prop_assert_eq!(keys(&[&[7; 32]]).open("p", &text), None);
        }
    }
}
