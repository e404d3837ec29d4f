use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;
use crate::contract::units::Duration;

/// Answers in place of the route while it is being worked on.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// false = the route serves as usual. Default true.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Status, 400 to 599. Default 503.
    pub status: Option<Spot<u16>>,
    /// When to come back: `Retry-After`. Default none.
    pub retry_after: Option<Duration>,
    /// Text of the answer in place of the problem.
    pub body: Option<String>,
    /// Type of `body`. Default `text/plain; charset=utf-8`.
    pub content_type: Option<Spot<String>>,
    /// CEL: requests for which this is true are served. It is asked before anybody is authenticated.
    pub allow: Option<Spot<String>>,
    /// Addresses and networks whose requests are served, after `trustedProxies`.
    #[serde(default)]
    pub allow_ips: Vec<Spot<String>>,
}

const fn yes() -> bool {
    true
}
