//! Keys of `circuitBreaker`.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::units::Duration;

/// The section. Caps are per process: n instances admit n times as much.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Section {
    /// Most tries that run at once, streams until their end. Default: no cap.
    #[schemars(range(min = 1))]
    pub max_requests: Option<std::num::NonZeroU32>,
    /// Most connections in use at once. A connection is in use by one try over HTTP/1.1, so this caps tries as
    /// `maxRequests` does and the smaller one counts. Default: no cap.
    #[schemars(range(min = 1))]
    pub max_connections: Option<std::num::NonZeroU32>,
    /// Most tries that wait for a place; 0 refuses at once. Default 1024.
    #[schemars(extend("default" = 1024))]
    pub max_pending: Option<u32>,
    /// How long a try waits for a place. Default `1s`.
    #[schemars(extend("default" = "1s"))]
    pub pending_timeout: Option<Duration>,
}
