//! A client that proves itself by a key instead of a secret: `private_key_jwt` (RFC 7523, OpenID Connect Core 1.0 section 9).

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, RsaEncoding, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;

use crate::api::jose::keys::Algorithm;
use crate::api::jose::unix;
use crate::contract::seal::random;

/// What the form says it is.
pub const KIND: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// For how long an assertion is good: the way to the issuer, and its clock.
const LIFE: u64 = 60;

/// The key of a client.
pub struct Signer {
    key: Key,
    algorithm: Algorithm,
    /// Its name at the issuer.
    id: Option<String>,
    /// Whom assertions are for.
    audience: String,
}

enum Key {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>, &'static dyn RsaEncoding),
}

impl Signer {
    /// Reads a key (PKCS #8, PEM) for an algorithm.
    ///
    /// # Errors
    /// A sentence that shows nothing of it.
    pub fn read(pem: &str, algorithm: Algorithm, id: Option<String>, audience: String) -> Result<Self, &'static str> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| "this is not a private key (PKCS #8, PEM: `-----BEGIN PRIVATE KEY-----`)")?;
        let der = key.secret_pkcs8_der();
        let ecdsa = |kind| EcdsaKeyPair::from_pkcs8(kind, der).map(Key::Ecdsa).ok();
        let rsa = |encoding| Some(Key::Rsa(Box::new(RsaKeyPair::from_pkcs8(der).ok()?), encoding));
        let key = match algorithm {
            Algorithm::ES256 => ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::ES384 => ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::ES512 => ecdsa(&signature::ECDSA_P521_SHA512_FIXED_SIGNING),
            Algorithm::EdDSA => Ed25519KeyPair::from_pkcs8(der).map(Key::Ed25519).ok(),
            Algorithm::RS256 => rsa(&signature::RSA_PKCS1_SHA256),
            Algorithm::RS384 => rsa(&signature::RSA_PKCS1_SHA384),
            Algorithm::RS512 => rsa(&signature::RSA_PKCS1_SHA512),
            Algorithm::PS256 => rsa(&signature::RSA_PSS_SHA256),
            Algorithm::PS384 => rsa(&signature::RSA_PSS_SHA384),
            Algorithm::PS512 => rsa(&signature::RSA_PSS_SHA512),
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                return Err("a private key signs nothing with HS");
            }
        };
        Ok(Self { key: key.ok_or("the key is not one for this algorithm")?, algorithm, id, audience })
    }

    /// What proves that a client is asking now, once.
    pub fn assertion(&self, client: &str) -> Option<String> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds since 1970")]
        let now = unix() as u64;
        // RFC 7523 section 3; `jti` makes each good for one use.
        let claims = json!({
            "iss": client, "sub": client, "aud": self.audience, "iat": now, "exp": now + LIFE,
            "jti": URL_SAFE_NO_PAD.encode(random::<16>()),
        });
        let mut header = json!({ "typ": "JWT", "alg": format!("{:?}", self.algorithm) });
        if let Some(id) = &self.id {
            header["kid"] = id.as_str().into();
        }
        let part = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = match &self.key {
            Key::Ecdsa(key) => key.sign(&SystemRandom::new(), signed.as_bytes()).ok()?.as_ref().to_vec(),
            Key::Ed25519(key) => key.sign(signed.as_bytes()).as_ref().to_vec(),
            Key::Rsa(key, encoding) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(*encoding, &SystemRandom::new(), signed.as_bytes(), &mut signature).ok()?;
                signature
            }
        };
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
