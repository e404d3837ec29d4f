//! `discover: { eds: { service: NAME, servers: [URL] } }`: what an xDS control plane says of a service's endpoints (EDS),
//! over one stream for all services that ask it (ADS).

mod ads;
mod assignment;
mod config;
mod core;
mod proto;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use self::ads::{Ads, Settings};
use crate::contract::client::{Identity, Pem, Target};
use crate::contract::mesh::{Discover, Report};
use crate::contract::section::{ConfigError, Node, Spot};
use crate::contract::{Build, Entry, Role};

const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "eds",
    summary: "Endpoints are what an xDS control plane assigns to a service",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<config::Section>(),
    role: Role::Discover(build),
};

fn build(section: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Discover>, ConfigError> {
    Ok(Arc::new(eds(section, build)?))
}

fn eds(section: &Node, build: &mut Build<'_>) -> Result<Eds, ConfigError> {
    let config = config::read(section)?;
    if config.servers.is_empty() {
        return Err(ConfigError::at(section.span, "no server to ask").help("name at least one URL"));
    }
    let ca = config.ca.as_ref().map(|path| build.path(path));
    let own = config.cert.as_ref().zip(config.key.as_ref());
    let own = own.map(|(cert, key)| (build.path(&cert.value), build.path(&key.value)));
    let identity = Identity {
        ca: ca.as_deref().map(Pem::File),
        own: own.as_ref().map(|(cert, key)| (Pem::File(cert), Pem::File(key))),
        name: None,
    };
    let target = |url: &Spot<String>| {
        Target::new(&url.value, identity, true, b"h2")
            .map_err(|why| ConfigError::at(url.span, why).help("such as `http://127.0.0.1:18000`"))
    };
    let targets = config.servers.iter().map(target).collect::<Result<_, _>>()?;
    if let Some(token) = &config.token {
        token.value.reveal(&build.dir).map_err(|why| ConfigError::at(token.span, why))?;
    }
    let settings = Settings {
        targets,
        mode: config.mode,
        token: config.token.map(|token| (token.value, build.dir.clone())),
        patience: config.initial_fetch_timeout.map_or(INITIAL_FETCH_TIMEOUT, |timeout| timeout.0),
        node: config.node.node(),
    };
    // Services that say the same of the control plane share a stream, and keep it when their own lines change.
    let mut shape = section.to_json();
    if let Some(keys) = shape.as_object_mut() {
        keys.remove("service");
    }
    let shape = shape.to_string();
    let scope = std::mem::replace(&mut build.scope, "xds".to_owned());
    let ads = build.keep(&shape, "", || Ads::new(settings));
    build.scope = scope;
    Ok(Eds { service: config.service.value, ads })
}

struct Eds {
    service: String,
    ads: Arc<Ads>,
}

impl Discover for Eds {
    fn watch(&self, report: Report) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let (ads, service) = (self.ads.clone(), self.service.clone());
        Some(Box::pin(async move {
            let _follower = ads.follow(&service, report);
            std::future::pending().await
        }))
    }
    fn describe(&self) -> String {
        format!("eds {} at {}", self.service, self.ads.describe())
    }
}
