use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;
use crate::contract::units::{Duration, Size};

/// Requests that may be sent twice and run once (`Idempotency-Key`). `{}` honours the field where a caller sends it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The field. Default `Idempotency-Key`.
    pub header: Option<Spot<String>>,
    /// Refuses requests without it. Default false.
    #[serde(default)]
    pub required: bool,
    /// Methods it counts for. Default `[POST, PATCH]`.
    pub methods: Option<Vec<Spot<String>>>,
    /// CEL expressions that tell callers apart: the same key of two callers is two keys. Default: the user, else the
    /// consumer, else the workload, else the address.
    #[serde(default)]
    pub by: Vec<Spot<String>>,
    /// How long an answer is given again. Default 24h.
    #[serde(default = "day")]
    pub ttl: Duration,
    /// What a repetition gets when nobody knows whether the first request ran: it timed out, or its caller left.
    /// Default `refuse`.
    #[serde(default)]
    pub on_unknown: OnUnknown,
    /// Largest body of a request, and of an answer that is kept. Default 64KiB.
    #[serde(default = "limit")]
    pub body_limit: Size,
    /// Memory for answers of this route; the least recently used leave first. Default 32MiB.
    #[serde(default = "memory")]
    pub memory: Size,
}

/// See [`Config::on_unknown`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnUnknown {
    /// 409: it does not run twice.
    #[default]
    Refuse,
    /// It runs again.
    Repeat,
}

const fn day() -> Duration {
    Duration(std::time::Duration::from_secs(86_400))
}

const fn limit() -> Size {
    Size(64 << 10)
}

const fn memory() -> Size {
    Size(32 << 20)
}
