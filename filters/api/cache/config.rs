use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;
use crate::contract::units::{Duration, Size};

/// A shared response cache (RFC 9111). `{}` keeps what the service says may be kept.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// CEL expressions whose text becomes part of the key, such as `[user.sub]`. With it, answers to authenticated
    /// requests are kept apart by it; without it, they are kept only if the answer itself allows that (`public`,
    /// `s-maxage`, `must-revalidate`: RFC 9111 section 3.5).
    #[serde(default)]
    pub by: Vec<Spot<String>>,
    /// Also keeps answers marked `private`. Needs `by`. Default false.
    pub private: Option<Spot<bool>>,
    /// How long answers stay fresh that say nothing about it themselves, in whole seconds. Default 0s: they are not kept.
    #[schemars(extend("default" = "0s"))]
    pub default_ttl: Option<Spot<Duration>>,
    /// For how long a stale answer may stand in for a failure (5xx, no endpoint), where the answer itself does not say
    /// (RFC 5861). Default 0s.
    #[serde(default = "zero")]
    pub stale_if_error: Duration,
    /// For how long a stale answer may be given while a new one is fetched behind the caller's back, where the answer
    /// itself does not say (RFC 5861). Default 0s.
    #[serde(default = "zero")]
    pub stale_while_revalidate: Duration,
    /// How long requests for the same missing answer wait for the first of them. Default 5s; 0s = each asks by itself.
    #[serde(default = "five_seconds")]
    pub collapse: Duration,
    /// Ignores `Cache-Control` and `Pragma` of requests, with which any caller can get past the cache. Default false.
    #[serde(default)]
    pub ignore_request_directives: bool,
    /// Largest body that is kept. Default 1MiB.
    #[serde(default = "one_mebibyte")]
    pub max_entry: Size,
    /// Memory of this route's cache; the least useful answers leave first. Default 64MiB.
    pub memory: Option<Spot<Size>>,
    /// CEL condition on who may send `PURGE`, which removes the answers of a path (a trailing `*` removes all below).
    /// Default: nobody.
    pub purge: Option<Spot<String>>,
}

/// Default of `memory`.
pub const MEMORY: Size = Size(64 << 20);

const fn zero() -> Duration {
    Duration(std::time::Duration::ZERO)
}

const fn five_seconds() -> Duration {
    Duration(std::time::Duration::from_secs(5))
}

const fn one_mebibyte() -> Size {
    Size(1 << 20)
}
