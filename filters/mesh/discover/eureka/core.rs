//! What Eureka says of an application; pure.
//!
//! Its JSON is made from XML: a list of one may be the thing itself, and numbers may be text.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::contract::mesh::Found;
use crate::mesh::discover::endpoint::merge;
use crate::mesh::discover::registry::address;

#[derive(Deserialize)]
struct Answer {
    application: Application,
}

#[derive(Deserialize)]
struct Application {
    #[serde(default)]
    instance: Many<Instance>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Many<T> {
    List(Vec<T>),
    One(Box<T>),
}

impl<T> Default for Many<T> {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Instance {
    #[serde(default)]
    host_name: String,
    #[serde(default)]
    ip_addr: String,
    status: String,
    /// What an operator set by hand; wins.
    #[serde(default, alias = "overriddenstatus")]
    overridden_status: String,
    port: Option<Port>,
    secure_port: Option<Port>,
    metadata: Option<BTreeMap<String, Value>>,
    data_center_info: Option<DataCenter>,
}

#[derive(Deserialize)]
struct Port {
    #[serde(rename = "$")]
    number: Value,
    #[serde(rename = "@enabled")]
    enabled: Value,
}

impl Port {
    fn usable(&self) -> Option<u16> {
        let on = self.enabled.as_bool().unwrap_or_else(|| self.enabled.as_str() == Some("true"));
        let number = self.number.as_u64().or_else(|| self.number.as_str()?.parse().ok())?;
        u16::try_from(number).ok().filter(|port| on && *port != 0)
    }
}

#[derive(Deserialize)]
struct DataCenter {
    metadata: Option<BTreeMap<String, Value>>,
}

/// The instances that are up.
pub fn parse(text: &[u8], secure: bool) -> Result<Vec<Found>, String> {
    let answer: Answer = serde_json::from_slice(text).map_err(|e| format!("answer: {e}"))?;
    let instances = match answer.application.instance {
        Many::List(list) => list,
        Many::One(one) => vec![*one],
    };
    let mut found = Vec::with_capacity(instances.len());
    for instance in instances {
        let overridden = !matches!(instance.overridden_status.as_str(), "" | "UNKNOWN" | "UP");
        if instance.status != "UP" || overridden {
            continue;
        }
        let port = if secure { &instance.secure_port } else { &instance.port };
        let Some(port) = port.as_ref().and_then(Port::usable) else { continue };
        let host = if instance.ip_addr.is_empty() { &instance.host_name } else { &instance.ip_addr };
        let Some(address) = address(host, port) else { continue };
        let metadata = instance.metadata.unwrap_or_default();
        let of_host = instance.data_center_info.and_then(|info| info.metadata).unwrap_or_default();
        // Spring Cloud writes the zone into the instance's metadata, Amazon's hosts have it in theirs.
        let zone = metadata.get("zone").or_else(|| of_host.get("availability-zone")).and_then(Value::as_str);
        let zone = zone.unwrap_or_default().into();
        let weight = metadata.get("weight").and_then(Value::as_str).and_then(|w| w.parse().ok()).unwrap_or(1);
        let labels = metadata.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)));
        let labels = labels.filter(|(name, _)| !name.starts_with('@')).collect();
        found.push(Found { weight, zone, labels, ..Found::at(address) });
    }
    Ok(merge(found))
}
