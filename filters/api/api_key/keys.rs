//! `consumers.NAME.apiKeys`: who holds which key.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};

use super::config::Dated;
use crate::contract::section::Value;
use crate::contract::units::Secret;
use crate::contract::{ConfigError, Held, Node, Spot};

/// A key by its SHA-256.
pub type Digest = [u8; 32];

/// Whose a key is, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    pub owner: String,
    pub expires: Option<SystemTime>,
}

/// The keys of all consumers. Every mistake is found.
pub fn read(held: &[Held], dir: &Path) -> (BTreeMap<Digest, Owned>, Vec<ConfigError>) {
    let mut keys: BTreeMap<Digest, Owned> = BTreeMap::new();
    let mut errors = Vec::new();
    for Held { owner, section } in held {
        let items: Vec<Node> = match section.read() {
            Ok(items) => items,
            Err(e) => {
                errors.push(e);
                continue;
            }
        };
        for item in items {
            let (digest, expires) = match key(&item, dir) {
                Ok(key) => key,
                Err(e) => {
                    errors.push(e);
                    continue;
                }
            };
            match keys.get(&digest).map(|first| first.owner.as_str()) {
                Some(first) if first == owner => {
                    let message = format!("an API key of consumer `{owner}` stands twice");
                    errors.push(ConfigError::at(item.span, message).help("remove one of the two"));
                }
                Some(first) => {
                    let message = format!("consumers `{first}` and `{owner}` share an API key");
                    errors.push(ConfigError::at(item.span, message).help("a key has one owner: make a new one"));
                }
                None => drop(keys.insert(digest, Owned { owner: owner.clone(), expires })),
            }
        }
    }
    (keys, errors)
}

fn key(item: &Node, dir: &Path) -> Result<(Digest, Option<SystemTime>), ConfigError> {
    let dated = matches!(&item.value, Value::Map(_)) && item.get("file").is_none() && item.get("env").is_none();
    if !dated {
        let secret: Secret = item.read()?;
        return Ok((hash(&Spot { span: item.span, value: secret }, dir)?, None));
    }
    let Dated { key, expires } = item.read()?;
    let expires = expires.map(|at| {
        let parsed = at.value.parse::<jiff::Timestamp>().map(SystemTime::from);
        parsed.map_err(|_| {
            ConfigError::at(at.span, format!("`{}` is not a time", at.value)).help("write `2027-01-31T00:00:00Z`")
        })
    });
    Ok((hash(&key, dir)?, expires.transpose()?))
}

/// SHA-256 of a key: given as such, or taken of the secret.
fn hash(key: &Spot<Secret>, dir: &Path) -> Result<Digest, ConfigError> {
    let wrong = |message: &str, help: &str| ConfigError::at(key.span, message).help(help);
    let text = key.value.reveal(dir).map_err(|e| wrong(&e, "make the secret readable for this process"))?;
    let Some(hex) = text.strip_prefix("sha256:") else {
        if text.is_empty() {
            return Err(wrong("an API key is empty", "write a key of at least 16 characters"));
        }
        return Ok(digest_of(text.as_bytes()));
    };
    let byte = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok());
    let bytes: Option<Vec<u8>> = if hex.bytes().all(|b| b.is_ascii_hexdigit()) && hex.len() == 64 {
        hex.as_bytes().chunks(2).map(byte).collect()
    } else {
        None
    };
    bytes.and_then(|b| b.try_into().ok()).ok_or_else(|| {
        let help = "64 hex digits follow `sha256:`; make them with `printf %s KEY | sha256sum`";
        wrong("this is not a SHA-256 digest", help)
    })
}

/// SHA-256.
pub fn digest_of(key: &[u8]) -> Digest {
    digest(&SHA256, key).as_ref().try_into().expect("SHA-256 has 32 bytes")
}
