//! EndpointSlices and what they say of a Service together; pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::config::Port;
use crate::contract::mesh::{Address, Found};
use crate::mesh::discover::endpoint::merge;
use crate::mesh::discover::resolve::Family;

/// `discovery.k8s.io/v1`, the parts of it that are read.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    pub metadata: Metadata,
    #[serde(default)]
    address_type: String,
    #[serde(default, deserialize_with = "nullable")]
    endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<SlicePort>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: String,
    pub resource_version: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    conditions: Conditions,
    target_ref: Option<Target>,
    node_name: Option<String>,
    zone: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
struct Target {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    uid: String,
}

#[derive(Clone, Debug, Deserialize)]
struct SlicePort {
    name: Option<String>,
    port: Option<u16>,
    protocol: Option<String>,
}

/// Go writes an empty list or map as `null`.
fn nullable<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// The slices of a Service, by name.
#[derive(Debug, Default)]
pub struct Slices(BTreeMap<String, EndpointSlice>);

/// How well an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Ready,
    /// It still answers, but is about to leave.
    Leaving,
}

impl Conditions {
    /// What is not said counts as ready, and `serving` as `ready` (the API's own words).
    fn state(self) -> Option<State> {
        let ready = self.ready.unwrap_or(true);
        match (ready, self.serving.unwrap_or(ready), self.terminating.unwrap_or(false)) {
            (true, ..) => Some(State::Ready),
            (false, true, true) => Some(State::Leaving),
            _ => None,
        }
    }
}

impl Slices {
    /// A slice is there, or is another than it was.
    pub fn put(&mut self, slice: EndpointSlice) {
        self.0.insert(slice.metadata.name.clone(), slice);
    }

    /// A slice is gone.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// The endpoints of all slices: those that are ready; if there is none, those that leave but still answer. Of an
    /// endpoint that has addresses of both families, those that are preferred.
    pub fn endpoints(&self, port: Option<&Port>, family: Family) -> Result<Vec<Found>, String> {
        let mut known = false;
        // By pod, else by address: then by family.
        let mut targets: BTreeMap<&str, Vec<(State, Found)>> = BTreeMap::new();
        for slice in self.0.values() {
            if !matches!(&*slice.address_type, "IPv4" | "IPv6") {
                continue;
            }
            let Some(number) = slice.port(port)? else { continue };
            known = true;
            for endpoint in &slice.endpoints {
                let Some(state) = endpoint.conditions.state() else { continue };
                // All addresses of an endpoint lead to the same, and the API asks for the first to be used.
                let Some(first) = endpoint.addresses.first() else { continue };
                let Ok(ip) = first.parse::<IpAddr>() else { continue };
                let pod = endpoint.target_ref.as_ref().filter(|target| !target.uid.is_empty());
                let target = pod.map_or(&**first, |pod| &*pod.uid);
                targets.entry(target).or_default().push((state, endpoint.found(ip, number)));
            }
        }
        if !known && port.is_some() && self.0.values().any(|slice| !slice.endpoints.is_empty()) {
            return Err(format!("no endpoint has the port {}", port.map(Port::to_string).unwrap_or_default()));
        }
        let all = targets.into_values().flat_map(|target| preferred(target, family));
        let all: Vec<_> = all.collect();
        let best = all.iter().map(|(state, _)| *state).min();
        let best = all.into_iter().filter(|(state, _)| Some(*state) == best).map(|(_, found)| found);
        Ok(merge(best))
    }
}

/// The addresses of a target that are used.
fn preferred(target: Vec<(State, Found)>, family: Family) -> Vec<(State, Found)> {
    let v4 = |found: &Found| matches!(&found.address, Address::Tcp(at) if at.is_ipv4());
    let auto_v4 = target.iter().any(|(_, found)| v4(found));
    let wanted = |found: &Found| match family {
        Family::All => true,
        Family::V4 => v4(found),
        Family::V6 => !v4(found),
        Family::Auto => v4(found) == auto_v4,
    };
    target.into_iter().filter(|(_, found)| wanted(found)).collect()
}

impl EndpointSlice {
    /// The number behind the port that is asked for; `None`: this slice has it not.
    fn port(&self, wanted: Option<&Port>) -> Result<Option<u16>, String> {
        // gRPC and HTTP run over TCP, which is the default.
        let mut tcp = self.ports.iter().filter(|port| port.protocol.as_deref().is_none_or(|p| p == "TCP"));
        let found = match wanted {
            Some(Port::Name(name)) => tcp.find(|port| port.name.as_deref().unwrap_or_default() == name),
            Some(Port::Number(number)) => tcp.find(|port| port.port == Some(*number)),
            None => {
                let first = tcp.next();
                if tcp.next().is_some() {
                    return Err("the Service has several ports: name one".to_owned());
                }
                first
            }
        };
        Ok(found.and_then(|port| port.port).filter(|port| *port != 0))
    }
}

impl Endpoint {
    fn found(&self, ip: IpAddr, port: u16) -> Found {
        let pod = self.target_ref.as_ref();
        let named = pod.filter(|target| target.kind == "Pod").map(|pod| ("pod", pod.name.clone()));
        let labels = named.into_iter().chain(self.node_name.clone().map(|node| ("node", node)));
        Found {
            zone: self.zone.as_deref().unwrap_or_default().into(),
            labels: labels.collect(),
            identity: pod.filter(|pod| !pod.uid.is_empty()).map(|pod| pod.uid.as_str().into()),
            ..Found::at(Address::Tcp((ip, port).into()))
        }
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => write!(f, "`{name}`"),
        }
    }
}
