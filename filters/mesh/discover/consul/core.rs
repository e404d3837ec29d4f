//! What Consul says of a service's instances; pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::contract::mesh::Found;
use crate::mesh::discover::endpoint::merge;
use crate::mesh::discover::registry::address;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Instance {
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Vec<Check>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    address: String,
    #[serde(default)]
    datacenter: String,
    meta: Option<BTreeMap<String, String>>,
    locality: Option<Locality>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(default)]
    address: String,
    port: i64,
    tags: Option<Vec<String>>,
    meta: Option<BTreeMap<String, String>>,
    weights: Option<Weights>,
    locality: Option<Locality>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
    warning: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Locality {
    #[serde(default)]
    zone: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    status: String,
}

/// The instances that may be called: those with a critical check never are, whatever was asked for.
pub fn parse(text: &[u8]) -> Result<Vec<Found>, String> {
    let instances: Vec<Instance> = serde_json::from_slice(text).map_err(|e| format!("answer: {e}"))?;
    let mut found = Vec::with_capacity(instances.len());
    for instance in instances {
        if instance.checks.iter().any(|check| check.status == "critical" || check.status == "maintenance") {
            continue;
        }
        let warning = instance.checks.iter().any(|check| check.status == "warning");
        let Service { address: own, port, tags, meta, weights, locality } = instance.service;
        // An instance without an address of its own is at its node's.
        let host = if own.is_empty() { &instance.node.address } else { &own };
        let Some(address) = u16::try_from(port).ok().and_then(|port| address(host, port)) else { continue };
        let meta = meta.unwrap_or_default();
        let node = instance.node.meta.unwrap_or_default();
        let zone = [locality, instance.node.locality]
            .into_iter()
            .flatten()
            .map(|locality| locality.zone)
            .chain(meta.get("zone").cloned())
            .chain(node.get("zone").cloned())
            .find(|zone| !zone.is_empty());
        let weight = weights.map_or(1, |w| if warning { w.warning } else { w.passing });
        let tags = tags.unwrap_or_default();
        let labels = tags
            .into_iter()
            .map(|tag| (format!("tag.{tag}"), String::new()))
            .chain([("datacenter".to_owned(), instance.node.datacenter)])
            .chain(meta);
        let labels = labels.collect();
        found.push(Found { weight, zone: zone.unwrap_or_default().into(), labels, ..Found::at(address) });
    }
    Ok(merge(found))
}
