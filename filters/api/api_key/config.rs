use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;

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
