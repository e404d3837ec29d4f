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
    /// Share of failed tries over an `interval` from which on an endpoint is ejected. Default: shares are not looked at.
    pub failure_percentage_threshold: Option<Spot<Percent>>,
    /// Endpoints with enough tries that are needed to judge by that share. Default 5.
    #[schemars(extend("default" = 5))]
    pub failure_percentage_minimum_hosts: Option<u32>,
    /// Tries of an interval that are enough. Default 50.
    #[schemars(extend("default" = 50))]
    pub failure_percentage_request_volume: Option<u32>,
    /// How many standard deviations below the mean of all endpoints an endpoint's share of good tries lies when it is
    /// ejected, such as 1.9. Default: endpoints are not compared.
    pub success_rate_stdev_factor: Option<Spot<f64>>,
    /// Endpoints with enough tries that are needed to compare them. Default 5.
    #[schemars(extend("default" = 5))]
    pub success_rate_minimum_hosts: Option<u32>,
    /// Tries of an interval that are enough. Default 100.
    #[schemars(extend("default" = 100))]
    pub success_rate_request_volume: Option<u32>,
    /// How often shares are looked at. An endpoint that is back for this long is forgiven one of its ejections, and so
    /// on. Default `10s`.
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
    pub failure_share: Option<Share>,
    pub success_rate: Option<Share>,
}

/// Judging endpoints by what share of their tries failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// The share, or the factor of the standard deviation.
    pub threshold: f64,
    pub hosts: usize,
    pub volume: u32,
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
        let failure_share = match &self.failure_percentage_threshold {
            Some(p) if p.value.0 == 0.0 => {
                return Err(ConfigError::at(p.span, "a threshold of 0% would eject everybody")
                    .help("write such as `85%`, or leave it out"));
            }
            key => key.as_ref().map(|p| Share {
                threshold: p.value.0,
                hosts: self.failure_percentage_minimum_hosts.unwrap_or(5) as usize,
                volume: self.failure_percentage_request_volume.unwrap_or(50).max(1),
            }),
        };
        let success_rate = match &self.success_rate_stdev_factor {
            Some(f) if f.value <= 0.0 || !f.value.is_finite() => {
                return Err(ConfigError::at(f.span, "the factor is a number above 0")
                    .help("write such as `1.9`, or leave it out"));
            }
            key => key.as_ref().map(|f| Share {
                threshold: f.value,
                hosts: self.success_rate_minimum_hosts.unwrap_or(5) as usize,
                volume: self.success_rate_request_volume.unwrap_or(100).max(1),
            }),
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
            failure_share,
            success_rate,
        })
    }
}
