use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;
use crate::contract::units::{Duration, Percent};

/// Breaks requests on purpose, for a while.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Lets requests wait.
    pub delay: Option<Spot<Delay>>,
    /// Fails requests.
    pub abort: Option<Spot<Abort>>,
    /// `request` (default): once per request, before any try. `attempt`: single tries, so that a retry can be seen.
    #[serde(default)]
    pub scope: Scope,
    /// Which tries, from 1, in scope `attempt`. Default `[1]`: the first fails, the next passes.
    pub tries: Option<Spot<Vec<u32>>>,
    /// CEL: only requests for which this is true.
    pub when: Option<Spot<String>>,
    /// Only requests of trusted callers that carry `x-onehop-fault`, `x-onehop-fault-delay`, `x-onehop-fault-abort` or
    /// `x-onehop-fault-tries`; a value there goes before the configured one. Default false.
    #[serde(default)]
    pub by_header: bool,
    /// Requests that are delayed at the same time at most; others pass. Default 100.
    pub max_active: Option<Spot<u32>>,
    /// When the experiment ends by itself, RFC 3339: `2026-12-01T00:00:00Z`. This or `for`.
    pub expires: Option<Spot<String>>,
    /// How long the experiment lasts, from when it is first in force; a reload does not begin it again.
    #[serde(rename = "for")]
    pub lasts: Option<Spot<Duration>>,
}

/// `fixed` or `range`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    /// Share of requests. Default 100%.
    #[serde(default = "all")]
    pub percent: Percent,
    /// Always so long.
    pub fixed: Option<Duration>,
    /// Evenly between the two.
    pub range: Option<[Duration; 2]>,
}

/// One of `status`, `grpcStatus`, `failure`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Abort {
    /// Share of requests. Default 100%.
    #[serde(default = "all")]
    pub percent: Percent,
    /// Status of the answer, 400 to 599.
    pub status: Option<Spot<u16>>,
    /// `grpc-status` of the answer, 1 to 16.
    pub grpc_status: Option<Spot<u16>>,
    /// As if the endpoint could not be reached, or broke off.
    pub failure: Option<Failure>,
}

/// How an endpoint seems to fail.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// No connection: the request provably never ran.
    Connect,
    /// The connection breaks after the request was sent.
    Reset,
}

/// Where faults are injected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// Once per request.
    #[default]
    Request,
    /// Per try.
    Attempt,
}

const fn all() -> Percent {
    Percent(1.0)
}

/// Delayed at the same time at most.
pub const MAX_ACTIVE: u32 = 100;
