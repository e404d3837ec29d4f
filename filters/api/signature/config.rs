use std::path::PathBuf;
use std::time::Duration as Time;

use schemars::JsonSchema;
use serde::Deserialize;

use super::keys::Algorithm;
use crate::contract::Spot;
use crate::contract::units::{Duration, Secret, Size};

/// Requests signed by a consumer's key (RFC 9421), bodies through `Content-Digest` (RFC 9530).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// What a signature must cover: fields, and derived components such as `@method`. `@query` and `content-digest` count
    /// only where the request has a query or a body; `@target-uri` covers `@authority`, `@path` and `@query`. Default
    /// `@method`, `@authority`, `@path`, `@query`, `content-digest`.
    pub required: Option<Spot<Vec<Spot<String>>>>,
    /// How old a signature may be by its `created`, at most 1h. Default 5m.
    pub max_age: Option<Spot<Duration>>,
    /// How far clocks may differ, at most 5m. Default 30s.
    pub skew: Option<Spot<Duration>>,
    /// Only signatures with this `tag` are looked at. Default: any.
    pub tag: Option<Spot<String>>,
    /// Whether a signature needs a `nonce`. One that is there is good once, in any case. Default false.
    #[serde(default)]
    pub nonce_required: bool,
    /// How many nonces are remembered until their signatures are too old. Default 100000.
    pub nonces: Option<Spot<u32>>,
    /// The largest body that is read to compare it with its digest. Default 1MiB.
    pub body_limit: Option<Spot<Size>>,
}

/// A consumer's key.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Key {
    /// What signatures name as `keyid`; unique among all consumers.
    pub id: Spot<String>,
    /// The one algorithm that the key is good for.
    pub algorithm: Spot<Algorithm>,
    /// For `hmac-sha256`: at least 32 bytes of text, or `base64:...`.
    pub secret: Option<Spot<Secret>>,
    /// For the others: the public key as PEM text (`BEGIN PUBLIC KEY`).
    pub public_key: Option<Spot<String>>,
    /// The same in a file.
    pub public_key_file: Option<Spot<PathBuf>>,
}

/// Default of `maxAge`.
pub const MAX_AGE: Time = Time::from_secs(300);
/// Longest `maxAge`.
pub const OLDEST: Time = Time::from_secs(3600);
/// Default of `skew`.
pub const SKEW: Time = Time::from_secs(30);
/// Longest `skew`.
pub const MAX_SKEW: Time = Time::from_secs(300);
/// Default of `nonces`.
pub const NONCES: u32 = 100_000;
/// Default of `bodyLimit`.
pub const BODY: u64 = 1 << 20;
/// Largest `bodyLimit`: bodies are held in memory.
pub const MAX_BODY: u64 = 64 << 20;
