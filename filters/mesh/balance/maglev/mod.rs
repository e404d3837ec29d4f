//! `policy: maglev`: the same key goes to the same endpoint, over a table: one look-up a pick.

mod core;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::core::Maglev;
use super::hash::Section;
use super::hashed;
use crate::contract::mesh::Balance;
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Role};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "maglev",
    summary: "Sends the same key to the same endpoint, over a Maglev table",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Section>(),
    role: Role::Balance(build),
};

fn build(section: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Balance>, ConfigError> {
    hashed::build(section, build, |load_factor| Maglev { load_factor })
}
