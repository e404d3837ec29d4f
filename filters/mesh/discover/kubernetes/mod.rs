//! `discover: { kubernetes: NAMESPACE/SERVICE:PORT }`: the endpoints of a Service, told by watching its EndpointSlices.

mod access;
mod config;
mod slices;
#[cfg(test)]
mod tests;
mod watch;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use self::access::Access;
use self::config::Port;
use super::resolve::Family;
use crate::contract::mesh::{Discover, Report};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Role};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "kubernetes",
    summary: "Endpoints are those of a Service in Kubernetes",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<config::Section>(),
    role: Role::Discover(build),
};

fn build(section: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Discover>, ConfigError> {
    let config = config::read(section)?;
    let kubeconfig = match config.kubeconfig {
        None => None,
        Some(file) => {
            let path = build.path(&file.value);
            Access::of_kubeconfig(&path, config.context.as_deref()).map_err(|why| ConfigError::at(file.span, why))?;
            Some(path)
        }
    };
    Ok(Arc::new(Kubernetes(Arc::new(Wanted {
        service: config.service.value,
        namespace: config.namespace.map(|namespace| namespace.value),
        port: config.port.map(|port| port.value),
        family: config.family,
        kubeconfig,
        context: config.context,
    }))))
}

struct Kubernetes(Arc<Wanted>);

/// What is asked for, and where.
struct Wanted {
    service: String,
    namespace: Option<String>,
    port: Option<Port>,
    family: Family,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
}

impl Wanted {
    /// Looked up anew after each failure: whatever was wrong may have been replaced since.
    fn access(&self) -> Result<Access, String> {
        match &self.kubeconfig {
            Some(file) => Access::of_kubeconfig(file, self.context.as_deref()),
            None => Access::around(),
        }
    }
}

impl Discover for Kubernetes {
    fn watch(&self, report: Report) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        Some(Box::pin(watch::follow(self.0.clone(), report)))
    }
    fn describe(&self) -> String {
        let Wanted { service, namespace, port, .. } = &*self.0;
        let namespace = namespace.as_ref().map(|name| format!("{name}/")).unwrap_or_default();
        let port = match port {
            None => String::new(),
            Some(Port::Number(number)) => format!(":{number}"),
            Some(Port::Name(name)) => format!(":{name}"),
        };
        format!("kubernetes {namespace}{service}{port}")
    }
}
