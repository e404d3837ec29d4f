use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;
use crate::contract::units::Duration;

/// One limit. A list of them holds together: a request passes all or is charged to none.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limit {
    /// Whose requests are counted together: `ip`, `consumer`, `user.sub`, `workload.id`, `route.name`, `header:NAME`, or
    /// any CEL expression that gives text. In a plan: always the consumer.
    pub by: Option<Spot<String>>,
    /// Requests.
    pub limit: Spot<u64>,
    /// In this time; from 1ms to 366d.
    pub per: Spot<Duration>,
    /// How many may come at once. Default: `limit`.
    pub burst: Option<Spot<u64>>,
    /// Who shares the count. Only `local` (this process) for now. Default `local`.
    #[schemars(extend("default" = "local"))]
    #[serde(default)]
    pub scope: Option<Spot<Scope>>,
    /// Name in headers and metrics. Default: `by`-`per`, such as `user.sub-1m`.
    pub name: Option<Spot<String>>,
    /// Keys remembered at a time. Default 100000.
    #[schemars(extend("default" = 100000))]
    pub max_keys: Option<Spot<u64>>,
}

/// Who shares a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// The workers of this process, exactly.
    Local,
    /// Every process.
    Shared,
}

/// Default of `maxKeys`.
pub const MAX_KEYS: u64 = 100_000;
