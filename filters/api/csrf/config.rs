use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;

/// Refuses requests that a page of another site made a browser send.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Origins that may, as a browser writes them: `https://shop.example.com`, or `https://*.example.com`.
    #[serde(default)]
    pub allow_origins: Vec<Spot<String>>,
    /// CEL: requests for which this is true are not looked at (webhooks that are signed otherwise).
    pub unless: Option<Spot<String>>,
}
