//! Keys of `adaptiveConcurrency`.

use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::core::Settings;
use crate::contract::section::{ConfigError, Spot};
use crate::contract::units::{self, Percent};

/// The section. Limits are per process.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Section {
    /// The limit never falls below this, whatever is measured. Default 4.
    #[schemars(range(min = 1), extend("default" = 4))]
    pub min_concurrency: Option<NonZeroU32>,
    /// Nor rises above this. Default 1000.
    #[schemars(range(min = 1), extend("default" = 1000))]
    pub max_concurrency: Option<Spot<NonZeroU32>>,
    /// Where it starts. Default 20.
    #[schemars(range(min = 1), extend("default" = 20))]
    pub initial_concurrency: Option<NonZeroU32>,
    /// Which latency of a window is looked at: `50%` is the median. Default `50%`.
    #[schemars(extend("default" = "50%"))]
    pub percentile: Option<Spot<Percent>>,
    /// Shortest time between two changes of the limit. Default `100ms`.
    #[schemars(extend("default" = "100ms"))]
    pub window: Option<Spot<units::Duration>>,
    /// What the latency without load is, and how it is found.
    pub min_rtt: MinRtt,
    /// Most tries that wait for a place; 0 refuses at once. Default 256.
    #[schemars(extend("default" = 256))]
    pub max_pending: Option<u32>,
    /// How long a try waits while the queue still empties now and then. Default `250ms`.
    #[schemars(extend("default" = "250ms"))]
    pub pending_timeout: Option<units::Duration>,
    /// How long it waits once the queue does not empty any more. Default: a quarter of the latency without load.
    pub pending_target: Option<Spot<units::Duration>>,
}

/// `adaptiveConcurrency.minRtt`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MinRtt {
    /// How often it is measured anew. Default `60s`.
    #[schemars(extend("default" = "60s"))]
    pub interval: Option<Spot<units::Duration>>,
    /// How much longer that time may randomly be, so that proxies do not measure in step. Default `15%`.
    #[schemars(extend("default" = "15%"))]
    pub jitter: Option<Percent>,
    /// How much slower than that answers may come before it counts as load. Default `25%`.
    #[schemars(extend("default" = "25%"))]
    pub buffer: Option<Percent>,
}

/// Default of `maxPending`.
const PENDING: u32 = 256;

/// What the section means.
#[derive(Clone, Copy, Debug)]
pub struct Meaning {
    pub limits: Settings,
    pub max_pending: u32,
    pub timeout: Duration,
    /// `None`: by the latency without load.
    pub target: Option<Duration>,
}

impl Section {
    /// With defaults in place.
    pub fn meaning(&self) -> Result<Meaning, ConfigError> {
        let positive = |key: &Option<Spot<units::Duration>>, default: u64, name: &str| match key {
            Some(d) if d.value.0.is_zero() => {
                Err(ConfigError::at(d.span, format!("`{name}` is longer than 0s")).help("leave it out for the default"))
            }
            Some(d) => Ok(d.value.0),
            None => Ok(Duration::from_millis(default)),
        };
        let min = self.min_concurrency.map_or(4, NonZeroU32::get);
        let max = match &self.max_concurrency {
            Some(max) if max.value.get() < min => {
                return Err(ConfigError::at(max.span, format!("`maxConcurrency` is below `minConcurrency` ({min})"))
                    .help("raise it, or lower `minConcurrency`"));
            }
            max => max.as_ref().map_or(1000, |m| m.value.get()).max(min),
        };
        let quantile = match &self.percentile {
            Some(p) if p.value.0 <= 0.0 || p.value.0 >= 1.0 => {
                return Err(ConfigError::at(p.span, "`percentile` lies between 0% and 100%")
                    .help("write `50%` for the median, or `90%`"));
            }
            p => p.as_ref().map_or(0.5, |p| p.value.0),
        };
        let target = match &self.pending_target {
            Some(_) => Some(positive(&self.pending_target, 0, "pendingTarget")?),
            None => None,
        };
        Ok(Meaning {
            limits: Settings {
                min: f64::from(min),
                max: f64::from(max),
                initial: f64::from(self.initial_concurrency.map_or(20, NonZeroU32::get).clamp(min, max)),
                quantile,
                window: positive(&self.window, 100, "window")?,
                buffer: self.min_rtt.buffer.map_or(0.25, |p| p.0),
                interval: positive(&self.min_rtt.interval, 60_000, "interval")?,
                jitter: self.min_rtt.jitter.map_or(0.15, |p| p.0),
            },
            max_pending: self.max_pending.unwrap_or(PENDING),
            timeout: self.pending_timeout.map_or(Duration::from_millis(250), |d| d.0),
            target,
        })
    }
}
