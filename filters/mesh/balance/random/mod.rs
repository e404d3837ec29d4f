//! `policy: random`: any endpoint, by weight. No state at all.

mod core;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::core::Random;
use super::plain::{self, Plain};
use crate::contract::mesh::Balance;
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Role};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "random",
    summary: "Picks a random endpoint, by weight",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Plain>(),
    role: Role::Balance(build),
};

fn build(section: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Balance>, ConfigError> {
    plain::build(section, build, || Random)
}
