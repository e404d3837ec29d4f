use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;
use crate::contract::units::Secret;

/// Where the key is found; exactly one place. Nothing written: the header `x-api-key`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Name of a header field.
    pub header: Option<Spot<String>>,
    /// Name of a query parameter.
    pub query: Option<Spot<String>>,
    /// Name of a cookie.
    pub cookie: Option<Spot<String>>,
}

/// A key of a consumer: a secret, or one with a date.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "the schema only; what stands there is read by its form")]
pub enum Key {
    /// `sha256:HEX` of the key, or the key as a secret.
    Plain(Secret),
    /// A key that ends by itself.
    Dated(Dated),
}

/// A key that ends by itself.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dated {
    /// `sha256:HEX` of the key, or the key as a secret.
    pub key: Spot<Secret>,
    /// From when on it is refused, such as `2027-01-31T00:00:00Z` (RFC 3339).
    pub expires: Option<Spot<String>>,
}
