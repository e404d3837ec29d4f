//! Keys of `loadBalancer` that policies share.

use super::pool::Rules;
use crate::contract::section::{ConfigError, Node};
use crate::contract::units::{Duration, Percent};
use crate::contract::{Build, now};
use crate::mesh::service_of;

/// Default of `panicThreshold`.
pub const PANIC: f64 = 0.5;

/// The section, or its defaults.
pub fn read<T: serde::de::DeserializeOwned + Default>(section: Option<&Node>) -> Result<T, ConfigError> {
    section.map_or_else(|| Ok(T::default()), Node::read)
}

/// What every policy needs, from its section.
pub fn rules(slow_start: Duration, panic: Option<Percent>, build: &Build<'_>) -> Rules {
    let labels = [("service", service_of(&build.scope))];
    Rules {
        slow_start: slow_start.0,
        panic: panic.map_or(PANIC, |p| p.0),
        panics: Some(build.metrics.counter(
            "onehop_balancer_panic_total",
            "Picks of an endpoint that is not available, because too few are.",
            &labels,
        )),
        salt: now().0,
    }
}
