//! `discover: { srv: "_grpc._tcp.stock.internal" }`: SRV records say host, port, weight and failover tier (RFC 2782).

mod config;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::endpoint::merge;
use super::resolve::{Resolver, Settings, Srv};
use crate::contract::mesh::{Address, Discover, Found, Report};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Role};
use crate::mesh::chance::Dice;

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "srv",
    summary: "Endpoints are the SRV records of a name",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<config::Section>(),
    role: Role::Discover(build),
};

fn build(section: &Node, _: &mut Build<'_>) -> Result<Arc<dyn Discover>, ConfigError> {
    let (name, settings) = config::read(section)?;
    Ok(Arc::new(Records { name, settings }))
}

#[derive(Clone)]
struct Records {
    name: Arc<str>,
    settings: Settings,
}

impl Discover for Records {
    fn watch(&self, report: Report) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        Some(Box::pin(follow(self.clone(), report)))
    }
    fn describe(&self) -> String {
        format!("srv {}", self.name)
    }
}

/// Turns records and the addresses of their targets into endpoints.
fn endpoints(records: &[Srv], addresses: &BTreeMap<String, Vec<IpAddr>>) -> Vec<Found> {
    // All weights 0 means no preference (RFC 2782); among others a 0 still gets a little, so it does not mean drained here.
    merge(records.iter().flat_map(|r| {
        addresses.get(&r.target).into_iter().flatten().map(move |ip| Found {
            weight: u32::from(r.weight.max(1)),
            priority: r.priority.into(),
            ..Found::at(Address::Tcp((*ip, r.port).into()))
        })
    }))
}

async fn follow(srv: Records, report: Report) {
    let mut dice = Dice::fresh();
    let mut resolver = None;
    let mut addresses = BTreeMap::new();
    loop {
        let ttl = match ask(&srv, &mut resolver, &mut addresses).await {
            Ok((list, ttl)) => {
                report.found(list);
                ttl
            }
            Err(why) => {
                report.failed(why);
                srv.settings.min_ttl
            }
        };
        tokio::time::sleep(srv.settings.pause(ttl, &mut dice)).await;
    }
}

/// One round of questions. `known` are the targets' last addresses: a target whose question fails keeps them.
async fn ask(
    srv: &Records,
    resolver: &mut Option<Resolver>,
    known: &mut BTreeMap<String, Vec<IpAddr>>,
) -> Result<(Vec<Found>, Duration), String> {
    let resolver = match resolver {
        Some(resolver) => resolver,
        none => none.insert(Resolver::new(srv.settings.clone())?),
    };
    let answer = resolver.services(&srv.name).await?;
    let mut ttl = answer.ttl;
    let mut failure = None;
    known.retain(|target, _| answer.list.iter().any(|r| r.target == *target));
    let mut targets: Vec<(&String, u16)> = answer.list.iter().map(|r| (&r.target, r.port)).collect();
    targets.sort_unstable();
    // A host that is there with several ports has the same addresses for all of them.
    targets.dedup_by_key(|(target, _)| *target);
    for (target, port) in targets {
        match resolver.addresses(target, port).await {
            Ok(found) => {
                ttl = ttl.min(found.ttl);
                known.insert(target.clone(), found.list);
            }
            Err(why) => failure = Some(why),
        }
    }
    let list = endpoints(&answer.list, known);
    match failure {
        Some(why) if list.is_empty() => Err(why),
        _ => Ok((list, ttl)),
    }
}
