//! `consumers.NAME.signatureKeys`: keys, each pinned to its algorithm (RFC 9421 section 3.3).

use std::collections::BTreeMap;
use std::path::Path;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use schemars::JsonSchema;
use serde::Deserialize;

use super::config;
use crate::contract::{ConfigError, Held, Spot};

/// Shortest shared secret, in bytes.
const MIN_SECRET: usize = 32;

/// The IANA registry "HTTP Signature Algorithms".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Algorithm {
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
    #[serde(rename = "ed25519")]
    Ed25519,
    #[serde(rename = "ecdsa-p256-sha256")]
    EcdsaP256Sha256,
    #[serde(rename = "ecdsa-p384-sha384")]
    EcdsaP384Sha384,
    #[serde(rename = "rsa-pss-sha512")]
    RsaPssSha512,
    #[serde(rename = "rsa-v1_5-sha256")]
    RsaV15Sha256,
}

impl Algorithm {
    /// As the `alg` parameter says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::Ed25519 => "ed25519",
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            Self::EcdsaP384Sha384 => "ecdsa-p384-sha384",
            Self::RsaPssSha512 => "rsa-pss-sha512",
            Self::RsaV15Sha256 => "rsa-v1_5-sha256",
        }
    }

    fn verifier(self) -> Option<&'static dyn VerificationAlgorithm> {
        Some(match self {
            Self::HmacSha256 => return None,
            Self::Ed25519 => &signature::ED25519,
            Self::EcdsaP256Sha256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::EcdsaP384Sha384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::RsaPssSha512 => &signature::RSA_PSS_2048_8192_SHA512,
            Self::RsaV15Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        })
    }
}

/// A key and whose it is.
pub struct Key {
    pub algorithm: Algorithm,
    pub owner: String,
    check: Check,
}

enum Check {
    Public(Box<ParsedPublicKey>),
    Secret(Box<hmac::Key>),
}

impl Key {
    #[cfg(test)]
    pub fn public(algorithm: Algorithm, key: ParsedPublicKey) -> Self {
        Self { algorithm, owner: String::new(), check: Check::Public(Box::new(key)) }
    }

    /// Whether the signature is this key's.
    pub fn verify(&self, base: &[u8], signature: &[u8]) -> bool {
        match &self.check {
            Check::Public(key) => key.verify_sig(base, signature).is_ok(),
            // Constant time.
            Check::Secret(key) => hmac::verify(key, base, signature).is_ok(),
        }
    }
}

/// The keys of all consumers, by id. Every mistake is found.
pub fn read(held: &[Held], dir: &Path) -> (BTreeMap<String, Key>, Vec<ConfigError>) {
    let mut all: BTreeMap<String, Key> = BTreeMap::new();
    let mut errors = Vec::new();
    for Held { owner, section } in held {
        let keys: Vec<config::Key> = section.read().unwrap_or_else(|e| {
            errors.push(e);
            Vec::new()
        });
        for key in keys {
            let id = key.id.clone();
            match check(&key, dir) {
                Err(e) => errors.push(e),
                Ok(check) => {
                    let key = Key { algorithm: key.algorithm.value, owner: owner.clone(), check };
                    if let Some(first) = all.insert(id.value.clone(), key) {
                        let message = format!("`{}` is a key of consumer `{}` already", id.value, first.owner);
                        errors.push(ConfigError::at(id.span, message).help("choose another `id`"));
                    }
                }
            }
        }
    }
    (all, errors)
}

fn check(key: &config::Key, dir: &Path) -> Result<Check, ConfigError> {
    let algorithm = key.algorithm.value;
    let wrong = |message: &str, help: &str| Err(ConfigError::at(key.id.span, message).help(help));
    let Some(verifier) = algorithm.verifier() else {
        return match (&key.secret, &key.public_key, &key.public_key_file) {
            (Some(secret), None, None) => shared(secret, dir),
            _ => wrong("`hmac-sha256` needs `secret` and no public key", "write `secret: { file: PATH }`"),
        };
    };
    let (pem, at) = match (&key.secret, &key.public_key, &key.public_key_file) {
        (None, Some(pem), None) => (pem.value.clone(), pem.span),
        (None, None, Some(file)) => {
            let path = dir.join(&file.value);
            let read = std::fs::read_to_string(&path);
            let failed = |e| ConfigError::at(file.span, format!("{}: {e}", path.display())).help("name a PEM file");
            (read.map_err(failed)?, file.span)
        }
        _ => {
            let message = format!("`{}` needs `publicKey` or `publicKeyFile`, and no secret", algorithm.name());
            return wrong(&message, "write `publicKeyFile: PATH`");
        }
    };
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
        ConfigError::at(at, "this is no public key in PEM").help("it begins with `-----BEGIN PUBLIC KEY-----`")
    })?;
    let parsed = ParsedPublicKey::new(verifier, der.as_ref()).map_err(|_| {
        ConfigError::at(at, format!("this is no public key for `{}`", algorithm.name()))
            .help("the key's kind and size fit its `algorithm`; RSA keys have 2048 bits or more")
    })?;
    Ok(Check::Public(Box::new(parsed)))
}

fn shared(secret: &Spot<crate::contract::units::Secret>, dir: &Path) -> Result<Check, ConfigError> {
    let wrong = |message: &str, help: &str| ConfigError::at(secret.span, message).help(help);
    let text = secret.value.reveal(dir).map_err(|e| wrong(&e, "make the secret readable for this process"))?;
    let bytes = match text.strip_prefix("base64:") {
        None => text.into_bytes(),
        Some(encoded) => STANDARD
            .decode(encoded.trim())
            .map_err(|_| wrong("the secret is not base64", "write `base64:` and standard base64 with padding"))?,
    };
    if bytes.len() < MIN_SECRET {
        return Err(wrong("the secret is too short", "at least 32 bytes, such as from `openssl rand -base64 32`"));
    }
    Ok(Check::Secret(Box::new(hmac::Key::new(hmac::HMAC_SHA256, &bytes))))
}
