//! A token issuer for the demo: one fresh P-256 key per run.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Outcome;

/// Signs tokens that the demo's `shop` identity accepts.
pub struct Issuer {
    key: EcdsaKeyPair,
}

impl Issuer {
    /// A new key.
    pub fn new() -> Outcome<Self> {
        Ok(Self { key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)? })
    }

    /// Its public half as a JWK set (RFC 7517).
    pub fn jwks(&self) -> String {
        // SEC 1 section 2.3.3: 0x04, then x and y of 32 bytes each.
        let point = self.key.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        serde_json::json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "demo", "alg": "ES256", "use": "sig", "x": x, "y": y }] })
            .to_string()
    }

    /// A token that dies in `ttl` seconds (or died then, if negative).
    pub fn token(&self, subject: &str, scope: &str, ttl: i64) -> Outcome<String> {
        let now = i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs())?;
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let head = part(serde_json::json!({ "alg": "ES256", "typ": "JWT", "kid": "demo" }));
        let claims = part(serde_json::json!({
            "iss": "https://id.demo.example/", "aud": "shop-api", "sub": subject, "scope": scope, "iat": now, "exp": now + ttl,
        }));
        let message = format!("{head}.{claims}");
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes())?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }
}
