//! What policies that hash a key share: an index that is the policy over a [`Pool`], and the key of a request.

use std::sync::Arc;

use super::hash::{Hashing, read};
use super::pool::{Policy, Pool};
use crate::contract::mesh::{Balance, Endpoint, Picker};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, RequestCx};

/// Builds the policy that `new` makes of the load factor, one for each set of endpoints.
pub fn build<P: Policy>(
    section: Option<&Node>,
    build: &mut Build<'_>,
    new: fn(f64) -> P,
) -> Result<Arc<dyn Balance>, ConfigError> {
    Ok(Arc::new(Balancer { new, hashing: read(section, build)? }))
}

struct Balancer<P> {
    new: fn(f64) -> P,
    hashing: Hashing,
}

impl<P: Policy> Balance for Balancer<P> {
    fn index(&self, endpoints: Arc<[Arc<Endpoint>]>) -> Box<dyn Picker> {
        Box::new(Pool::new((self.new)(self.hashing.load_factor), &endpoints, self.hashing.rules.clone()))
    }
    fn hash(&self, rq: &RequestCx) -> Option<u64> {
        self.hashing.key.hash(rq)
    }
}
