use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;
use crate::contract::units::Size;

/// Decodes request bodies, so that the service and the filters behind read them plain.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// What is taken; anything else is 415. Default `[gzip, deflate, br, zstd]`.
    pub algorithms: Option<Spot<Vec<Spot<Algorithm>>>>,
    /// Most bytes a body may decode to. Default `10MiB`.
    pub limit: Option<Spot<Size>>,
    /// Most bytes decoded per byte received, once a body has come to 1 MiB. Default `100`.
    pub ratio: Option<Spot<u64>>,
}

/// A content coding by its registered name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// RFC 1952.
    Gzip,
    /// RFC 1950 around RFC 1951.
    Deflate,
    /// Brotli, RFC 7932.
    Br,
    /// RFC 8878.
    Zstd,
}

/// Default of `limit`, in bytes.
pub const LIMIT: u64 = 10 << 20;
/// Default of `ratio`.
pub const RATIO: u64 = 100;
