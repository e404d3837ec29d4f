//! Keys of an issuer: a JWK set (RFC 7517), each key pinned to the algorithms it may be used with.

use aws_lc_rs::hmac;
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{self, ParsedPublicKey, RsaParameters, VerificationAlgorithm};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value as Json;

/// Keys of one set; a larger set is refused whole.
pub const MAX_KEYS: usize = 32;
/// Bytes of a set.
pub const MAX_SET: usize = 1 << 20;
/// Keys a token without `kid` is tried against.
const MAX_TRIES: usize = 8;

/// RFC 7518 section 3.1 and RFC 8037. There is no `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    ES512,
    EdDSA,
    HS256,
    HS384,
    HS512,
}

use Algorithm::{ES256, ES384, ES512, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512};

impl Algorithm {
    /// By its `alg` name, exactly.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => RS256,
            "RS384" => RS384,
            "RS512" => RS512,
            "PS256" => PS256,
            "PS384" => PS384,
            "PS512" => PS512,
            "ES256" => ES256,
            "ES384" => ES384,
            "ES512" => ES512,
            "EdDSA" => EdDSA,
            "HS256" => HS256,
            "HS384" => HS384,
            "HS512" => HS512,
            _ => return None,
        })
    }

    /// Whether it uses a shared secret.
    pub const fn is_symmetric(self) -> bool {
        matches!(self, HS256 | HS384 | HS512)
    }

    fn fits(self, kty: &str, crv: Option<&str>) -> bool {
        match self {
            RS256 | RS384 | RS512 | PS256 | PS384 | PS512 => kty == "RSA",
            ES256 => kty == "EC" && crv == Some("P-256"),
            ES384 => kty == "EC" && crv == Some("P-384"),
            ES512 => kty == "EC" && crv == Some("P-521"),
            EdDSA => kty == "OKP" && crv == Some("Ed25519"),
            HS256 | HS384 | HS512 => kty == "oct",
        }
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            PS256 => &signature::RSA_PSS_2048_8192_SHA256,
            PS384 => &signature::RSA_PSS_2048_8192_SHA384,
            PS512 => &signature::RSA_PSS_2048_8192_SHA512,
            _ => return None,
        })
    }

    /// The curve's verifier and the length of a coordinate.
    fn curve(self) -> Option<(&'static dyn VerificationAlgorithm, usize)> {
        Some(match self {
            ES256 => (&signature::ECDSA_P256_SHA256_FIXED, 32),
            ES384 => (&signature::ECDSA_P384_SHA384_FIXED, 48),
            ES512 => (&signature::ECDSA_P521_SHA512_FIXED, 66),
            _ => return None,
        })
    }

    /// The keyed hash and the least secret RFC 7518 section 3.2 allows with it.
    fn hmac(self) -> Option<(hmac::Algorithm, usize)> {
        Some(match self {
            HS256 => (hmac::HMAC_SHA256, 32),
            HS384 => (hmac::HMAC_SHA384, 48),
            HS512 => (hmac::HMAC_SHA512, 64),
            _ => return None,
        })
    }
}

/// A key for one algorithm.
struct Key {
    kid: Option<Box<str>>,
    algorithm: Algorithm,
    check: Check,
}

enum Check {
    Public(Box<ParsedPublicKey>),
    Secret(Box<hmac::Key>),
}

/// Keys in use.
#[derive(Default)]
pub struct KeySet {
    keys: Vec<Key>,
    /// Unique per set in this process; 0 = no keys were ever there. A cached verdict is good for its generation only.
    pub generation: u64,
}

/// What a key set says about a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    Good,
    Bad,
    /// The key is there, but for other algorithms.
    WrongAlgorithm,
    /// No key of this name: perhaps a new one that was not fetched yet.
    UnknownKey,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Json>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

impl KeySet {
    /// Reads a JWK set. Keys that are not understood or not meant for signatures are passed over (RFC 7517 section 5).
    pub fn parse(text: &[u8], algorithms: &[Algorithm], generation: u64) -> Result<Self, String> {
        if text.len() > MAX_SET {
            return Err(format!("the key set is larger than {MAX_SET} bytes"));
        }
        let document: Document = serde_json::from_slice(text).map_err(|e| format!("not a JWK set: {e}"))?;
        if document.keys.len() > MAX_KEYS {
            return Err(format!("the key set has more than {MAX_KEYS} keys"));
        }
        let keys: Vec<Key> = document
            .keys
            .into_iter()
            .filter_map(|json| serde_json::from_value::<Jwk>(json).ok())
            .flat_map(|jwk| jwk.keys(algorithms))
            .collect();
        if keys.is_empty() {
            return Err("the key set has no usable key for the algorithms that are allowed".to_owned());
        }
        Ok(Self { keys, generation })
    }

    /// Judges a signature. The algorithm comes from the key; the token's `alg` only selects among what keys allow.
    pub fn verify(&self, kid: Option<&str>, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> Signature {
        let named = |key: &&Key| match (kid, key.kid.as_deref()) {
            (Some(wanted), Some(kid)) => wanted == kid,
            _ => true,
        };
        if !self.keys.iter().any(|k| named(&k)) {
            return Signature::UnknownKey;
        }
        let mut fitting = self.keys.iter().filter(named).filter(|k| k.algorithm == algorithm).peekable();
        if fitting.peek().is_none() {
            return Signature::WrongAlgorithm;
        }
        if fitting.take(MAX_TRIES).any(|key| key.check.verify(signed, signature)) {
            Signature::Good
        } else {
            Signature::Bad
        }
    }
}

impl Check {
    fn verify(&self, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Public(key) => key.verify_sig(signed, signature).is_ok(),
            // Constant time.
            Self::Secret(key) => hmac::verify(key, signed, signature).is_ok(),
        }
    }
}

impl Jwk {
    fn keys(&self, algorithms: &[Algorithm]) -> Vec<Key> {
        let signs = self.usage.as_deref().is_none_or(|u| u == "sig")
            && self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|o| o == "verify"));
        let own = self.alg.as_deref().map(Algorithm::named);
        algorithms
            .iter()
            .filter(|_| signs)
            // A key that names its algorithm is good for that one only.
            .filter(|a| own.is_none_or(|own| own == Some(**a)))
            .filter(|a| a.fits(&self.kty, self.crv.as_deref()))
            .filter_map(|a| {
                let kid = self.kid.as_deref().map(Into::into);
                Some(Key { kid, algorithm: *a, check: self.check(*a)? })
            })
            .collect()
    }

    fn check(&self, algorithm: Algorithm) -> Option<Check> {
        let bytes = |field: &Option<String>| URL_SAFE_NO_PAD.decode(field.as_deref()?).ok();
        let public = |key: ParsedPublicKey| Check::Public(Box::new(key));
        if let Some(parameters) = algorithm.rsa() {
            let strip = |b: Vec<u8>| b.into_iter().skip_while(|b| *b == 0).collect::<Vec<u8>>();
            let (n, e) = (strip(bytes(&self.n)?), strip(bytes(&self.e)?));
            // RFC 7518 section 3.3: 2048 bits or more.
            return (n.len() >= 256)
                .then(|| PublicKeyComponents { n, e }.to_parsed_public_key(parameters).ok())
                .flatten()
                .map(public);
        }
        if let Some((curve, len)) = algorithm.curve() {
            let (x, y) = (bytes(&self.x)?, bytes(&self.y)?);
            if x.len() != len || y.len() != len {
                return None;
            }
            return ParsedPublicKey::new(curve, [&[4u8][..], &x, &y].concat()).ok().map(public);
        }
        if let Some((hash, least)) = algorithm.hmac() {
            let secret = bytes(&self.k)?;
            return (secret.len() >= least).then(|| Check::Secret(Box::new(hmac::Key::new(hash, &secret))));
        }
        ParsedPublicKey::new(&signature::ED25519, bytes(&self.x)?).ok().map(public)
    }
}
