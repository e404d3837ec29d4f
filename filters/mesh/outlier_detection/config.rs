//! Keys of `outlierDetection`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::section::{ConfigError, Spot};
use crate::contract::units::{self, Percent};

/// The section. Without it its defaults act.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Section {
    /// False turns it off. Default true.
    #[schemars(extend("default" = true))]
    pub enabled: Option<bool>,
    /// 5xx answers and failed tries in a row that eject an endpoint; 0 = never. Default 5.
    #[schemars(extend("default" = 5))]
    #[serde(rename = "consecutive5xx")]
    pub consecutive_5xx: Option<u32>,
    /// 502, 503, 504 and failed tries in a row that eject an endpoint; 0, the default, = not counted apart.
    pub consecutive_gateway_errors: u32,
    /// Count failures to connect apart from answers. Default false: both count as 5xx.
    pub split_local_origin_errors: bool,
    /// Failures to connect in a row that eject an endpoint, if counted apart. Default 5.
    #[schemars(extend("default" = 5))]
    pub consecutive_local_origin_failures: Option<u32>,
    /// An endpoint that is back for this long is forgiven one of its ejections, and so on. Default `10s`.
    #[schemars(extend("default" = "10s"))]
    pub interval: Option<Spot<units::Duration>>,
    /// Length of the first ejection; the n-th takes n times as long. Default `30s`.
    #[schemars(extend("default" = "30s"))]
    pub base_ejection_time: Option<Spot<units::Duration>>,
    /// Longest ejection. Default `5m`.
    #[schemars(extend("default" = "5m"))]
    pub max_ejection_time: Option<units::Duration>,
    /// Share of the endpoints that may be ejected at once; one is always kept, and one may always go if another is left.
    /// Default `50%`.
    #[schemars(extend("default" = "50%"))]
    pub max_ejection_percent: Option<Percent>,
}

/// What the section means.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub consecutive_5xx: u32,
    pub consecutive_gateway_errors: u32,
    /// `None`: failures to connect count as 5xx.
    pub consecutive_local: Option<u32>,
    pub interval: Duration,
    pub base: Duration,
    pub longest: Duration,
    pub max_percent: f64,
}

impl Section {
    /// With defaults in place.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let above_zero = |key: &Option<Spot<units::Duration>>, default: u64, name: &str| match key {
            Some(d) if d.value.0.is_zero() => Err(ConfigError::at(d.span, format!("`{name}` is longer than 0s"))
                .help("`enabled: false` turns outlier detection off")),
            Some(d) => Ok(d.value.0),
            None => Ok(Duration::from_secs(default)),
        };
        let base = above_zero(&self.base_ejection_time, 30, "baseEjectionTime")?;
        Ok(Settings {
            consecutive_5xx: self.consecutive_5xx.unwrap_or(5),
            consecutive_gateway_errors: self.consecutive_gateway_errors,
            consecutive_local: self
                .split_local_origin_errors
                .then(|| self.consecutive_local_origin_failures.unwrap_or(5)),
            interval: above_zero(&self.interval, 10, "interval")?,
            base,
            longest: self.max_ejection_time.map_or(Duration::from_secs(300), |d| d.0).max(base),
            max_percent: self.max_ejection_percent.map_or(0.5, |p| p.0),
        })
    }
}
