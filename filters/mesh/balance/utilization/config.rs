//! Keys of `loadBalancer` under `utilization`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::section::{ConfigError, Spot};
use crate::contract::units;
use crate::contract::units::Percent;
use crate::mesh::balance::zones::Zones;

/// The section. Names and defaults are those of gRPC's weighted round robin (gRFC A58).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Section {
    /// Name of the policy.
    pub policy: Option<String>,
    /// How long an endpoint must have reported before its reports count. Default `10s`.
    #[schemars(extend("default" = "10s"))]
    pub blackout_period: Option<units::Duration>,
    /// How long a report counts; after a longer silence the blackout begins anew. Default `3m`.
    #[schemars(extend("default" = "3m"))]
    pub weight_expiration_period: Option<Spot<units::Duration>>,
    /// How often weights are computed. Default `1s`, at least `100ms`.
    #[schemars(extend("default" = "1s"))]
    pub weight_update_period: Option<Spot<units::Duration>>,
    /// How much failed requests count: their share times this adds to the utilisation. Default 1.
    #[schemars(extend("default" = 1.0))]
    pub error_utilization_penalty: Option<Spot<f64>>,
    /// Figures of the application that count as its utilisation where it states none, the highest of them:
    /// `named_metrics.NAME`, `utilization.NAME`, `mem_utilization`.
    pub metric_names: Vec<Spot<String>>,
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
#[derive(Clone, Debug)]
pub struct Settings {
    pub blackout: Duration,
    pub expiration: Duration,
    pub update: Duration,
    pub error_penalty: f64,
    pub names: std::sync::Arc<[Box<str>]>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            blackout: Duration::from_secs(10),
            expiration: Duration::from_secs(180),
            update: Duration::from_secs(1),
            error_penalty: 1.0,
            names: [].into(),
        }
    }
}

/// Shortest `weightUpdatePeriod`, as in gRFC A58.
const OFTEN: Duration = Duration::from_millis(100);

impl Section {
    /// With defaults in place.
    ///
    /// # Errors
    /// A key is out of range.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let default = Settings::default();
        let blackout = self.blackout_period.map_or(default.blackout, |d| d.0);
        let expiration = match &self.weight_expiration_period {
            Some(d) if d.value.0 <= blackout => {
                return Err(ConfigError::at(d.span, "reports would be old before they count")
                    .help("make it longer than `blackoutPeriod`"));
            }
            d => d.as_ref().map_or(default.expiration, |d| d.value.0),
        };
        let update = match &self.weight_update_period {
            Some(d) if d.value.0 < OFTEN => {
                return Err(ConfigError::at(d.span, "weights are computed every `100ms` at most").help("write `1s`"));
            }
            d => d.as_ref().map_or(default.update, |d| d.value.0),
        };
        let error_penalty = match &self.error_utilization_penalty {
            Some(p) if !(0.0..=1000.0).contains(&p.value) => {
                return Err(ConfigError::at(p.span, "the penalty is from 0 to 1000").help("0 turns it off"));
            }
            p => p.as_ref().map_or(default.error_penalty, |p| p.value),
        };
        let known = |name: &Spot<String>| {
            let has = |map: &str| name.strip_prefix(map).is_some_and(|key| !key.is_empty());
            if has("named_metrics.") || has("utilization.") || has("request_cost.") || **name == "mem_utilization" {
                Ok(name.as_str().into())
            } else {
                Err(ConfigError::at(name.span, format!("no report has a figure `{}`", name.value))
                    .help("write `named_metrics.NAME`, `utilization.NAME` or `mem_utilization`"))
            }
        };
        let names = self.metric_names.iter().map(known).collect::<Result<Vec<_>, _>>()?;
        Ok(Settings { blackout, expiration, update, error_penalty, names: names.into() })
    }
}
