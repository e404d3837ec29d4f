use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;

/// Which client addresses may use the route.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Addresses and networks, such as `10.0.0.0/8` or `2001:db8::/32`; the client must be in one of them. An empty list
    /// allows nobody. Default: everybody.
    pub allow: Option<Vec<Spot<String>>>,
    /// Addresses and networks; the client may be in none of them. Wins over `allow`.
    #[serde(default)]
    pub deny: Vec<Spot<String>>,
    /// Dry run: who would be refused passes, and is counted. Default false.
    #[serde(default)]
    pub audit: bool,
}
