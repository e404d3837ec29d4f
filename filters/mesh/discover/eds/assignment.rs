//! An endpoint assignment, read into endpoints; pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::proto::{self, ClusterLoadAssignment, Kind, LbEndpoint, LocalityLbEndpoints, Metadata};
use crate::contract::mesh::{Address, Found, Labels};
use crate::mesh::discover::endpoint::merge;

/// Metadata that balancing looks at, as Envoy's subsets do.
const SUBSETS: &str = "envoy.lb";
/// Values of `envoy.config.core.v3.HealthStatus`.
const UNKNOWN: i32 = 0;
const HEALTHY: i32 = 1;
const DEGRADED: i32 = 5;
/// Weights that are no whole numbers are written as such with about this precision.
const PRECISION: f64 = 100.0;
const MAX_WEIGHT: f64 = 1e6;

/// The endpoints that may be called. An assignment that is wrong in any part is wrong as a whole: half of it would be
/// neither what was nor what is meant.
pub fn read(assignment: &ClusterLoadAssignment) -> Result<Vec<Found>, String> {
    let tiers: BTreeSet<u32> = assignment.endpoints.iter().map(|locality| locality.priority).collect();
    if let Some((gap, _)) = (0..).zip(&tiers).find(|(expected, tier)| expected != *tier) {
        return Err(format!("no locality has priority {gap}, but one has a higher"));
    }
    let tiers = u32::try_from(tiers.len()).unwrap_or(u32::MAX);
    let mut found = Vec::new();
    for priority in 0..tiers {
        let localities: Vec<_> = assignment.endpoints.iter().filter(|l| l.priority == priority).collect();
        // Where no locality has a weight, endpoints share evenly across localities.
        let weighted = localities.iter().any(|l| l.load_balancing_weight.is_some());
        let mut tier = Vec::new();
        for locality in localities {
            share(locality, weighted, tiers, &mut tier)?;
        }
        found.extend(whole(tier));
    }
    Ok(merge(found))
}

/// An endpoint with its share of its tier's load, not yet a whole number.
type Shared = (Found, f64);

/// The endpoints of a locality. What the locality is to get is shared by its usable endpoints by their own weights.
fn share(locality: &LocalityLbEndpoints, weighted: bool, tiers: u32, out: &mut Vec<Shared>) -> Result<(), String> {
    let zone: Arc<str> =
        locality.locality.as_ref().map_or("", |l| if l.zone.is_empty() { &l.region } else { &l.zone }).into();
    let own = |e: &LbEndpoint| e.load_balancing_weight.map_or(1, |w| w.value);
    let usable: Vec<_> = locality.lb_endpoints.iter().filter(|e| usable(e)).collect();
    let total: f64 = usable.iter().map(|e| f64::from(own(e))).sum();
    // A locality without a weight beside others that have one gets nothing.
    let whole = if weighted { f64::from(locality.load_balancing_weight.map_or(0, |w| w.value)) } else { total };
    // Those that are left out must be right, too.
    for endpoint in &locality.lb_endpoints {
        address(endpoint)?;
    }
    for endpoint in usable {
        let labels = endpoint.metadata.as_ref().map(labels).unwrap_or_default();
        // What is degraded is for when nobody else is left.
        let priority = locality.priority + if endpoint.health_status == DEGRADED { tiers } else { 0 };
        let share = if total > 0.0 { whole * f64::from(own(endpoint)) / total } else { 0.0 };
        out.push((Found { zone: zone.clone(), priority, labels, ..Found::at(address(endpoint)?) }, share));
    }
    Ok(())
}

fn usable(endpoint: &LbEndpoint) -> bool {
    matches!(endpoint.health_status, UNKNOWN | HEALTHY | DEGRADED)
}

/// Shares as weights: as they are if they are whole numbers, else scaled so that the least still counts.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the largest weight")]
fn whole(tier: Vec<Shared>) -> impl Iterator<Item = Found> {
    let positive = || tier.iter().map(|(_, share)| *share).filter(|share| *share > 0.0);
    let exact = positive().all(|share| share.fract() == 0.0 && share <= f64::from(u32::MAX));
    let scale = if exact {
        1.0
    } else {
        (PRECISION / positive().fold(f64::MAX, f64::min)).min(MAX_WEIGHT / positive().fold(0.0, f64::max))
    };
    tier.into_iter().map(move |(found, share)| {
        let weight = if share > 0.0 { (share * scale).round().max(1.0) as u32 } else { 0 };
        Found { weight, ..found }
    })
}

fn address(endpoint: &LbEndpoint) -> Result<Address, String> {
    let address = endpoint.endpoint.as_ref().and_then(|e| e.address.as_ref()).ok_or("an endpoint has no address")?;
    match address {
        proto::Address { socket_address: Some(at), .. } => {
            let ip = at.address.parse().map_err(|_| format!("`{}` is not an IP address", at.address))?;
            let port = u16::try_from(at.port_value).ok().filter(|port| *port != 0);
            let port = port.ok_or_else(|| format!("{} is no port of {ip}", at.port_value))?;
            if at.protocol != 0 {
                return Err(format!("{ip}:{port} is not TCP"));
            }
            Ok(Address::Tcp(std::net::SocketAddr::new(ip, port)))
        }
        proto::Address { pipe: Some(pipe), .. } if pipe.path.starts_with('/') => {
            Ok(Address::Unix(PathBuf::from(&pipe.path)))
        }
        proto::Address { pipe: Some(pipe), .. } => Err(format!("`{}` is not the path of a socket", pipe.path)),
        _ => Err("an endpoint's address is neither a socket's nor a pipe's".to_owned()),
    }
}

/// What subsets are made of: text, numbers and booleans, as text.
fn labels(metadata: &Metadata) -> Labels {
    let fields = metadata.filter_metadata.get(SUBSETS).into_iter().flat_map(|fields| &fields.fields);
    let named: BTreeMap<&str, String> = fields
        .filter_map(|(name, value)| {
            let value = match value.kind.as_ref()? {
                Kind::Text(text) => text.clone(),
                Kind::Number(number) => number.to_string(),
                Kind::Bool(is) => is.to_string(),
                Kind::Null(_) | Kind::Struct(_) | Kind::List(_) => return None,
            };
            Some((name.as_str(), value))
        })
        .collect();
    named.into_iter().collect()
}
