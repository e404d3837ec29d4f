//! Keys of `loadBalancer` under `peak-ewma`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::section::Spot;
use crate::contract::units;
use crate::contract::units::Percent;
use crate::mesh::balance::zones::Zones;

/// The section.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Section {
    /// Name of the policy.
    pub policy: Option<String>,
    /// How fast old latencies are forgotten. Default `10s`.
    #[schemars(extend("default" = "10s"))]
    pub decay: Option<units::Duration>,
    /// Latency that is assumed of an endpoint nothing is known about. Default `30ms`.
    #[schemars(extend("default" = "30ms"))]
    pub default_rtt: Option<units::Duration>,
    /// How long a 429, a 5xx or a failure makes an endpoint unattractive, unless its `Retry-After` is longer (up to 12
    /// times this). `0s` turns it off. Default `5s`.
    #[schemars(extend("default" = "5s"))]
    pub penalty: Option<units::Duration>,
    /// How long a newcomer's share grows from 10 % to its full weight; `0s`, the default, is at once.
    pub slow_start: units::Duration,
    /// Below this share of available endpoints all are used, ejected ones included; `0%` turns it off. Default `50%`.
    #[schemars(extend("default" = "50%"))]
    pub panic_threshold: Option<Percent>,
    /// A priority or zone keeps all of its load until fewer than one in this many of its endpoints are available. Default 1.4.
    #[schemars(extend("default" = 1.4))]
    pub overprovisioning: Option<Spot<f64>>,
    /// Preference for the zone that this process runs in (`runtime.zone`).
    pub zones: Option<Spot<Zones>>,
}

/// What the section means.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Nanoseconds, above zero.
    pub decay: f64,
    /// Nanoseconds.
    pub default_rtt: f64,
    /// See [`Section::penalty`].
    pub penalty: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { decay: 10e9, default_rtt: 30e6, penalty: Duration::from_secs(5) }
    }
}

impl Section {
    /// With defaults in place.
    pub fn settings(&self) -> Settings {
        let default = Settings::default();
        let ns = |d: Option<units::Duration>, default: f64| d.map_or(default, |d| d.0.as_secs_f64() * 1e9);
        Settings {
            decay: ns(self.decay, default.decay).max(1.0),
            default_rtt: ns(self.default_rtt, default.default_rtt),
            penalty: self.penalty.map_or(default.penalty, |d| d.0),
        }
    }
}
