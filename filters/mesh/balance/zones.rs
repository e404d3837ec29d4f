//! Preference for endpoints in the zone that this process runs in.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Build;
use crate::contract::mesh::Endpoint;
use crate::contract::section::{ConfigError, Spot};
use crate::contract::units::Percent;

/// Endpoints under [`Mode::Balanced`] below which zones do not count: a few endpoints cannot share out evenly.
const FEWEST: u32 = 6;

/// `loadBalancer.zones`. Acts where `runtime.zone` says which zone this process runs in.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Zones {
    /// Whether and how the own zone comes first.
    pub mode: Mode,
    /// Available endpoints of a priority below which zones do not count. Default 6 with `balanced`, 1 with `local`.
    pub min_endpoints: Option<u32>,
    /// Share of all callers of the service that run in this zone, for `balanced`. Default: one by the number of zones.
    pub callers: Option<Spot<Percent>>,
}

/// How the own zone comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// The own zone gets what its share of the available endpoints can bear, the rest goes where there is more.
    #[default]
    Balanced,
    /// The own zone gets everything, as long as enough of it is available.
    Local,
    /// Zones do not count.
    Ignore,
}

/// What the section means here.
#[derive(Clone, Debug)]
pub struct ZoneRules {
    /// The zone this process runs in.
    pub own: Arc<str>,
    /// See [`Zones::mode`].
    pub mode: Mode,
    /// See [`Zones::min_endpoints`].
    pub min_endpoints: u32,
    /// See [`Zones::callers`].
    pub callers: Option<f64>,
}

impl Zones {
    /// `None`: zones do not count.
    ///
    /// # Errors
    /// The section could not act.
    pub fn rules(section: Option<&Spot<Self>>, build: &Build<'_>) -> Result<Option<ZoneRules>, ConfigError> {
        let zones = section.map(|s| s.value.clone()).unwrap_or_default();
        let own = match (&build.directory.zone, section) {
            (Some(own), _) => own.clone(),
            (None, Some(section)) if zones.mode != Mode::Ignore => {
                return Err(ConfigError::at(section.span, "nothing says which zone this process runs in")
                    .help("add `runtime: { zone: NAME }`, such as `zone: ${env.ZONE}`"));
            }
            (None, _) => return Ok(None),
        };
        if let Some(callers) = &zones.callers {
            if zones.mode != Mode::Balanced {
                return Err(ConfigError::at(callers.span, "`callers` counts with `mode: balanced` only")
                    .help("remove `callers`"));
            }
            if callers.value.0 <= 0.0 {
                return Err(ConfigError::at(callers.span, "this process is a caller: the share is not 0")
                    .help("leave it out if callers are spread evenly over the zones"));
            }
        }
        let fewest = if zones.mode == Mode::Balanced { FEWEST } else { 1 };
        let rules = ZoneRules {
            own,
            mode: zones.mode,
            min_endpoints: zones.min_endpoints.unwrap_or(fewest),
            callers: zones.callers.map(|callers| callers.value.0),
        };
        // A zone that is empty is not known, such as where the variable is not set.
        Ok(Some(rules).filter(|rules| rules.mode != Mode::Ignore && !rules.own.is_empty()))
    }
}

impl ZoneRules {
    /// A priority by zone, and which of them is the own one. Empty if there is nothing to prefer.
    pub fn part(&self, endpoints: &[Arc<Endpoint>]) -> (Vec<Vec<Arc<Endpoint>>>, usize) {
        let mut zones = std::collections::BTreeMap::<&str, Vec<Arc<Endpoint>>>::new();
        for e in endpoints {
            zones.entry(&e.zone).or_default().push(e.clone());
        }
        match zones.keys().position(|zone| **zone == *self.own) {
            Some(own) if zones.len() > 1 => (zones.into_values().collect(), own),
            _ => Default::default(),
        }
    }
}
