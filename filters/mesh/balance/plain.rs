//! What policies without keys of their own share: their section, and an index that is the policy over a [`Pool`].

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use super::config::{Keys, read, zoned};
use super::pool::{Policy, Pool, Rules};
use super::zones::Zones;
use crate::contract::Build;
use crate::contract::mesh::{Balance, Endpoint, Picker};
use crate::contract::section::{ConfigError, Node, Spot};
use crate::contract::units::{Duration, Percent};

/// `loadBalancer` of a policy without keys of its own.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Plain {
    /// Name of the policy.
    pub policy: Option<String>,
    /// How long a newcomer's share grows from 10 % to its full weight; `0s`, the default, is at once.
    pub slow_start: Duration,
    /// Below this share of available endpoints all are used, ejected ones included; `0%` turns it off. Default `50%`.
    #[schemars(extend("default" = "50%"))]
    pub panic_threshold: Option<Percent>,
    /// A priority or zone keeps all of its load until fewer than one in this many of its endpoints are available. Default 1.4.
    #[schemars(extend("default" = 1.4))]
    pub overprovisioning: Option<Spot<f64>>,
    /// Preference for the zone that this process runs in (`runtime.zone`).
    pub zones: Option<Spot<Zones>>,
}

/// Builds the policy that `new` makes, one for each set of endpoints.
pub fn build<P: Policy>(
    section: Option<&Node>,
    build: &mut Build<'_>,
    new: fn() -> P,
) -> Result<Arc<dyn Balance>, ConfigError> {
    let s: Plain = read(section)?;
    let keys =
        Keys { slow_start: s.slow_start, panic: s.panic_threshold, overprovisioning: s.overprovisioning.as_ref() };
    Ok(Arc::new(Balancer { new, rules: zoned(&keys, s.zones.as_ref(), build)? }))
}

struct Balancer<P> {
    new: fn() -> P,
    rules: Rules,
}

impl<P: Policy> Balance for Balancer<P> {
    fn index(&self, endpoints: Arc<[Arc<Endpoint>]>) -> Box<dyn Picker> {
        Box::new(Pool::new((self.new)(), &endpoints, self.rules.clone()))
    }
}
