use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;
use crate::contract::units::Duration;

/// Which pages of other origins may call the route from a browser.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Origins: exact (`https://shop.example.com`), any subdomain (`https://*.example.com`), or `*`.
    pub allow_origins: Spot<Vec<Spot<String>>>,
    /// Methods, or `*`. Default GET, HEAD, POST.
    #[schemars(extend("default" = ["GET", "HEAD", "POST"]))]
    pub allow_methods: Option<Vec<Spot<String>>>,
    /// Request headers, or `*`. Default none beyond those the Fetch standard always allows.
    #[serde(default)]
    pub allow_headers: Vec<Spot<String>>,
    /// Response headers that scripts may read, or `*`.
    #[serde(default)]
    pub expose_headers: Vec<Spot<String>>,
    /// Cookies and client certificates are sent along. Default false.
    #[serde(default)]
    pub allow_credentials: bool,
    /// How long a browser may remember a preflight. Default 5s, as the Fetch standard has it.
    pub max_age: Option<Duration>,
}
