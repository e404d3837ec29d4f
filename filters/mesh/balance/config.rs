//! Keys of `loadBalancer` that policies share.

use super::pool::{Alarm, Rules};
use super::zones::Zones;
use crate::contract::section::{ConfigError, Node, Spot};
use crate::contract::units::{Duration, Percent};
use crate::contract::{Build, now};
use crate::mesh::service_of;

/// Default of `panicThreshold`.
pub const PANIC: f64 = 0.5;

/// Default of `overprovisioning`.
pub const OVERPROVISIONING: f64 = 1.4;

/// Keys of a section that every policy has.
#[derive(Default)]
pub struct Keys<'a> {
    /// `slowStart`.
    pub slow_start: Duration,
    /// `panicThreshold`.
    pub panic: Option<Percent>,
    /// `overprovisioning`.
    pub overprovisioning: Option<&'a Spot<f64>>,
}

/// The section, or its defaults.
pub fn read<T: serde::de::DeserializeOwned + Default>(section: Option<&Node>) -> Result<T, ConfigError> {
    section.map_or_else(|| Ok(T::default()), Node::read)
}

/// What every policy needs, from its section. Zones are added by those that look at them.
///
/// # Errors
/// A key is out of range.
pub fn rules(keys: &Keys<'_>, build: &Build<'_>) -> Result<Rules, ConfigError> {
    let room = match keys.overprovisioning {
        Some(room) if !(1.0..=10.0).contains(&room.value) => {
            return Err(ConfigError::at(room.span, "`overprovisioning` is from 1 to 10")
                .help("1 spills over with the first endpoint that is down; the default is 1.4"));
        }
        room => room.map_or(OVERPROVISIONING, |room| room.value),
    };
    let service = service_of(&build.scope);
    let labels = [("service", service)];
    Ok(Rules {
        slow_start: keys.slow_start.0,
        panic: keys.panic.map_or(PANIC, |p| p.0),
        room,
        zones: None,
        alarm: Some(Alarm {
            service: service.into(),
            picks: build.metrics.counter(
                "onehop_balancer_panic_total",
                "Picks of an endpoint that is not available, because too few are.",
                &labels,
            ),
            levels: build.metrics.gauge(
                "onehop_balancer_panic",
                "Priorities of which too few endpoints are available, so that all are used.",
                &labels,
            ),
        }),
        salt: now().0,
    })
}

/// The same for policies that prefer the own zone.
///
/// # Errors
/// A key is out of range, or could not act.
pub fn zoned(keys: &Keys<'_>, zones: Option<&Spot<Zones>>, build: &Build<'_>) -> Result<Rules, ConfigError> {
    Ok(Rules { zones: Zones::rules(zones, build)?, ..rules(keys, build)? })
}
