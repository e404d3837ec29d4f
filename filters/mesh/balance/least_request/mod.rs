//! `policy: least-request`: of two random endpoints the one with fewer tries in flight.

mod core;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::core::LeastRequest;
use super::plain::{self, Plain};
use crate::contract::mesh::Balance;
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Role};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "least-request",
    summary: "Picks the less busy of two random endpoints",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Plain>(),
    role: Role::Balance(build),
};

fn build(section: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Balance>, ConfigError> {
    plain::build(section, build, || LeastRequest)
}
