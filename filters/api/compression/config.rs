use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;
use crate::contract::units::Size;

/// Encodes answers for callers that take them so.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// What may be used, the favourite first: it decides between codings that the caller likes equally. Default
    /// `[zstd, br, gzip]`.
    pub algorithms: Option<Spot<Vec<Spot<Algorithm>>>>,
    /// Answers known to be shorter are left alone. Default `1KiB`.
    pub min_length: Option<Size>,
    /// Media types, such as `application/json`, `text/*` or `+json`. Default: text, JSON, XML, JavaScript, SVG, WebAssembly
    /// and what is alike.
    pub types: Option<Spot<Vec<Spot<String>>>>,
    /// Effort, from 1 (least) to 9. Default: 3 for zstd, 4 for br, 5 for gzip.
    pub level: Option<Spot<u8>>,
}

/// A content coding by its registered name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// RFC 8878.
    Zstd,
    /// Brotli, RFC 7932.
    Br,
    /// RFC 1952.
    Gzip,
}

/// Default of `minLength`, in bytes.
pub const MIN_LENGTH: u64 = 1024;

/// Default of `types`.
pub const TYPES: &[&str] = &[
    "text/*",
    "+json",
    "+xml",
    "application/json",
    "application/javascript",
    "application/ecmascript",
    "application/xml",
    "application/x-ndjson",
    "application/graphql-response",
    "application/wasm",
    "application/yaml",
    "font/otf",
    "font/ttf",
    "image/bmp",
    "image/x-icon",
    "image/vnd.microsoft.icon",
];
