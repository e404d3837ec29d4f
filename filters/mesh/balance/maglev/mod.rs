//! `policy: maglev`: the same key goes to the same endpoint, over a table: one look-up a pick.

mod core;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::core::Maglev;
use super::hash::{Hashing, Section, read};
use super::pool::Pool;
use crate::contract::mesh::{Balance, Endpoint, Picker};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, RequestCx, Role};

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
    Ok(Arc::new(Policy(read(section, build)?)))
}

struct Policy(Hashing);

impl Balance for Policy {
    fn index(&self, endpoints: Arc<[Arc<Endpoint>]>) -> Box<dyn Picker> {
        Box::new(Pool::new(Maglev { load_factor: self.0.load_factor }, &endpoints, self.0.rules.clone()))
    }
    fn hash(&self, rq: &RequestCx) -> Option<u64> {
        self.0.key.hash(rq)
    }
}
