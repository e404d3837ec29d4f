//! `policy: round-robin`: in turn, heavier endpoints more often and evenly spread.

mod core;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::core::RoundRobin;
use super::plain::{self, Plain};
use crate::contract::mesh::Balance;
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Role};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "round-robin",
    summary: "Picks endpoints in turn, smoothly by weight",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Plain>(),
    role: Role::Balance(build),
};

fn build(section: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Balance>, ConfigError> {
    plain::build(section, build, || RoundRobin)
}
