use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;
use crate::contract::units::{Duration, Percent, Size};

/// One mirror, or a list of them.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "shape for the schema; `build` reads the node")]
pub enum Config {
    One(Mirror),
    Several(Vec<Mirror>),
}

/// Sends a copy of requests to another service and ignores its answers.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mirror {
    /// Service that gets the copies.
    pub to: Spot<String>,
    /// Share of requests. Default 100%.
    #[serde(default = "all")]
    pub percent: Percent,
    /// Longest body that is copied; requests with a longer one are not mirrored. Default 64KiB.
    pub body_limit: Option<Spot<Size>>,
    /// How long a copy may take. Default 5s.
    pub timeout: Option<Spot<Duration>>,
    /// Copies under way at the same time at most; beyond it requests are not mirrored. Default 100.
    pub max_concurrent: Option<Spot<u32>>,
    /// Appended to the copy's host, such as `-shadow`. Default nothing.
    pub host_suffix: Option<Spot<String>>,
}

const fn all() -> Percent {
    Percent(1.0)
}

/// See [`Mirror::body_limit`].
pub const BODY_LIMIT: u64 = 64 << 10;
/// Largest [`Mirror::body_limit`].
pub const MAX_BODY: u64 = 16 << 20;
/// See [`Mirror::timeout`].
pub const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// See [`Mirror::max_concurrent`].
pub const MAX_CONCURRENT: u32 = 100;
