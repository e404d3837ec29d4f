//! `discover: { dns: "name:port" }`: every address of a name is an endpoint.

mod config;
#[cfg(test)]
pub mod server;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::endpoint::merge;
use super::resolve::{Resolver, Settings};
use crate::contract::mesh::{Address, Discover, Found, Report};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Role};
use crate::mesh::chance::Dice;

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "dns",
    summary: "Endpoints are the A and AAAA records of a name",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<config::Section>(),
    role: Role::Discover(build),
};

fn build(section: &Node, _: &mut Build<'_>) -> Result<Arc<dyn Discover>, ConfigError> {
    let (name, port, settings) = config::read(section)?;
    Ok(Arc::new(Dns { name, port, settings }))
}

#[derive(Clone)]
struct Dns {
    name: Arc<str>,
    port: u16,
    settings: Settings,
}

impl Discover for Dns {
    fn initial(&self) -> Vec<Found> {
        // An address in the place of a name needs no question.
        self.name.parse().map_or_else(|_| Vec::new(), |ip| found([ip], self.port))
    }
    fn watch(&self, report: Report) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        self.initial().is_empty().then(|| Box::pin(follow(self.clone(), report)) as Pin<Box<_>>)
    }
    fn describe(&self) -> String {
        format!("dns {}:{}", self.name, self.port)
    }
}

fn found(list: impl IntoIterator<Item = std::net::IpAddr>, port: u16) -> Vec<Found> {
    merge(list.into_iter().map(|ip| Found::at(Address::Tcp((ip, port).into()))))
}

async fn follow(dns: Dns, report: Report) {
    let mut dice = Dice::fresh();
    let resolver = loop {
        match Resolver::new(dns.settings.clone()) {
            Ok(resolver) => break resolver,
            Err(why) => report.failed(why),
        }
        tokio::time::sleep(dns.settings.pause(dns.settings.min_ttl, &mut dice)).await;
    };
    loop {
        let ttl = match resolver.addresses(&dns.name, dns.port).await {
            Ok(answer) => {
                report.found(found(answer.list, dns.port));
                answer.ttl
            }
            Err(why) => {
                report.failed(why);
                dns.settings.min_ttl
            }
        };
        tokio::time::sleep(dns.settings.pause(ttl, &mut dice)).await;
    }
}
