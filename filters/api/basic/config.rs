use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;
use crate::contract::units::Duration;

/// Names and passwords (RFC 7617). Without `htpasswd`, those that consumers hold (`consumers.NAME.passwords`).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// A file of lines `NAME:HASH`, hashes by bcrypt or argon2; read again when it changes.
    pub htpasswd: Option<Spot<PathBuf>>,
    /// What a browser shows when it asks. Default: the identity's name.
    pub realm: Option<Spot<String>>,
    /// How long a password that was found good is believed without hashing it again, at most 1h; `0s` = not at all.
    /// Default 5m.
    pub cache: Option<Spot<Duration>>,
}

/// Default of `cache`.
pub const CACHE: std::time::Duration = std::time::Duration::from_secs(300);
/// Longest `cache`.
pub const MAX_CACHE: std::time::Duration = std::time::Duration::from_secs(3600);
