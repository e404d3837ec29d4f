//! `endpointOverride`: a trusted caller names the endpoint in a header field.

mod config;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::HeaderName;

use self::config::Section;
use crate::contract::mesh::{Affinity, Endpoint};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, RequestCx, Role};
use config::{Callers, address};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "endpointOverride",
    summary: "Lets trusted callers name the endpoint in a header field",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Section>(),
    role: Role::Affinity(build),
};

fn build(node: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Affinity>, ConfigError> {
    let section: Section = node.read()?;
    let service = crate::mesh::service_of(&build.scope).into();
    Ok(Arc::new(Override { header: section.header()?, callers: section.callers()?, service }))
}

struct Override {
    header: HeaderName,
    callers: Callers,
    service: Box<str>,
}

impl Affinity for Override {
    fn wanted(&self, rq: &mut RequestCx) -> Option<u64> {
        let mut values = rq.headers.get_all(&self.header).iter();
        let first = values.next()?;
        let only = values.next().is_none();
        let wanted = (only && self.callers.trust(rq)).then(|| address(first.as_bytes())).flatten();
        // Taken out whoever sent it: what an endpoint behind a second proxy is told must be that proxy's.
        rq.headers.remove(&self.header);
        // An address that is none of the service's endpoints has an id that none of them has.
        wanted.map(|address| Endpoint::id_of(&self.service, &address))
    }
}
