//! `policy: peak-ewma`, the default: of two random endpoints the one whose recent latency times load is lower.

mod config;
mod core;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::config::{Section, Settings};
use self::core::PeakEwma;
use super::config::{Keys, read, zoned};
use super::pool::{Pool, Rules};
use crate::contract::mesh::{Balance, Endpoint, Picker, TryOutcome};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Moment, Role};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "peak-ewma",
    summary: "Picks the faster and less busy of two random endpoints",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Section>(),
    role: Role::Balance(build),
};

fn build(section: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Balance>, ConfigError> {
    let s: Section = read(section)?;
    let keys =
        Keys { slow_start: s.slow_start, panic: s.panic_threshold, overprovisioning: s.overprovisioning.as_ref() };
    Ok(Arc::new(Policy { settings: s.settings(), rules: zoned(&keys, s.zones.as_ref(), build)? }))
}

struct Policy {
    settings: Settings,
    rules: Rules,
}

impl Balance for Policy {
    fn index(&self, endpoints: Arc<[Arc<Endpoint>]>) -> Box<dyn Picker> {
        Box::new(Pool::new(PeakEwma(self.settings), &endpoints, self.rules.clone()))
    }
    fn observe(&self, endpoint: &Endpoint, outcome: &TryOutcome<'_>, now: Moment) {
        core::observe(&self.settings, endpoint, outcome, now);
    }
    fn ended(&self, endpoint: &Endpoint, grpc: u32, now: Moment) {
        core::ended(&self.settings, endpoint, grpc, now);
    }
}
