//! What Nacos says of a service; pure. Its first and third interface wrap the same instances differently.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::contract::mesh::Found;
use crate::mesh::discover::endpoint::merge;
use crate::mesh::discover::registry::address;

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    /// `/v1/ns/instance/list`.
    First { hosts: Vec<Instance> },
    /// `/v3/client/ns/instance/list`.
    Third { data: Option<Vec<Instance>> },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Instance {
    ip: String,
    port: u16,
    #[serde(default = "one")]
    weight: f64,
    #[serde(default = "yes")]
    healthy: bool,
    #[serde(default = "yes")]
    enabled: bool,
    #[serde(default)]
    cluster_name: String,
    metadata: Option<BTreeMap<String, Value>>,
}

const fn one() -> f64 {
    1.0
}

const fn yes() -> bool {
    true
}

/// The instances that may be called. Weights are fractions there (1.0 by default) and whole numbers here: a hundredfold.
pub fn parse(text: &[u8]) -> Result<Vec<Found>, String> {
    let answer: Answer = serde_json::from_slice(text).map_err(|e| format!("answer: {e}"))?;
    let instances = match answer {
        Answer::First { hosts } => hosts,
        Answer::Third { data } => data.ok_or("the answer has no data")?,
    };
    let callable = instances.into_iter().filter(|i| i.enabled && i.healthy);
    Ok(merge(callable.filter_map(|instance| {
        let address = address(&instance.ip, instance.port)?;
        let metadata = instance.metadata.unwrap_or_default();
        let zone = metadata.get("zone").and_then(Value::as_str).unwrap_or_default().into();
        let labels = metadata.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)));
        let labels = labels.chain([("cluster", instance.cluster_name.as_str())]).collect();
        Some(Found { weight: hundredfold(instance.weight), zone, labels, ..Found::at(address) })
    })))
}

/// 0 drains there as it does here; a little is not nothing.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what fits")]
fn hundredfold(weight: f64) -> u32 {
    if weight <= 0.0 { 0 } else { (weight * 100.0).round().clamp(1.0, 1e6) as u32 }
}
