//! Keys of `circuitBreaker`.

use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::trip::Settings;
use crate::contract::section::{ConfigError, Spot};
use crate::contract::units::{self, Percent};

/// The section. Caps are per process: n instances admit n times as much.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Section {
    /// Most tries that run at once, streams until their end. Default: no cap.
    #[schemars(range(min = 1))]
    pub max_requests: Option<NonZeroU32>,
    /// Most connections in use at once. A connection is in use by one try over HTTP/1.1, so this caps tries as
    /// `maxRequests` does and the smaller one counts. Default: no cap.
    #[schemars(range(min = 1))]
    pub max_connections: Option<NonZeroU32>,
    /// Most tries that wait for a place; 0 refuses at once. Default 1024.
    #[schemars(extend("default" = 1024))]
    pub max_pending: Option<u32>,
    /// How long a try waits for a place. Default `1s`.
    #[schemars(extend("default" = "1s"))]
    pub pending_timeout: Option<units::Duration>,
    /// When the service as a whole is left alone for a while. Default: never.
    pub trip: Option<Trip>,
}

/// `circuitBreaker.trip`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Trip {
    /// Share of tries that fail from which on the breaker opens. Default `50%`, unless `slowerThan` stands alone.
    pub failure_ratio: Option<Spot<Percent>>,
    /// Share of tries that are slow from which on the breaker opens: `1%` looks at the 99th percentile. Default `50%`,
    /// the median, where `slowerThan` is set.
    pub slow_ratio: Option<Spot<Percent>>,
    /// From which latency on a try is slow. Default: none is.
    pub slower_than: Option<Spot<units::Duration>>,
    /// Tries in the window without which nothing is judged. Default 20.
    #[schemars(range(min = 1), extend("default" = 20))]
    pub min_requests: Option<NonZeroU32>,
    /// Over how long tries are counted. Default `10s`.
    #[schemars(extend("default" = "10s"))]
    pub window: Option<Spot<units::Duration>>,
    /// How long it stays open before one request probes the service (and up to a tenth longer, at random). Default `15s`.
    #[schemars(extend("default" = "15s"))]
    pub open_for: Option<Spot<units::Duration>>,
}

impl Trip {
    /// With defaults in place.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let ratio = |key: &Option<Spot<Percent>>, name: &str| match key {
            Some(p) if p.value.0 == 0.0 => Err(ConfigError::at(p.span, format!("`{name}: 0%` would never be closed"))
                .help("write such as `50%`, or leave it out")),
            key => Ok(key.as_ref().map(|p| p.value.0)),
        };
        let positive = |key: &Option<Spot<units::Duration>>, default: u64, name: &str| match key {
            Some(d) if d.value.0.is_zero() => {
                Err(ConfigError::at(d.span, format!("`{name}` is longer than 0s")).help("leave it out for the default"))
            }
            Some(d) => Ok(d.value.0),
            None => Ok(Duration::from_secs(default)),
        };
        let failures = ratio(&self.failure_ratio, "failureRatio")?;
        let slow = match (&self.slower_than, ratio(&self.slow_ratio, "slowRatio")?) {
            (Some(_), share) => Some((share.unwrap_or(0.5), positive(&self.slower_than, 0, "slowerThan")?)),
            (None, None) => None,
            (None, Some(_)) => {
                let at = self.slow_ratio.as_ref().map(|p| p.span).unwrap_or_default();
                return Err(ConfigError::at(at, "`slowRatio` without `slowerThan`")
                    .help("say what is slow, such as `slowerThan: 800ms`"));
            }
        };
        Ok(Settings {
            failures: failures.or_else(|| slow.is_none().then_some(0.5)),
            slow,
            min_requests: self.min_requests.map_or(20, NonZeroU32::get).into(),
            window: positive(&self.window, 10, "window")?,
            open_for: positive(&self.open_for, 15, "openFor")?,
        })
    }
}
