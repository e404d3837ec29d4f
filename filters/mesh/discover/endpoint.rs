//! How an endpoint is written: `10.0.0.1:80`, `[::1]:80`, `unix:///run/app.sock`, `name:80`, or a map around one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::mesh::{Address, Found, Labels};

/// One item of a list of endpoints.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "an address such as `10.0.0.1:80`, or `{address, weight, zone, priority}`")]
pub enum Item {
    /// An address.
    Plain(String),
    /// More than that.
    Full(Full),
}

/// An endpoint in full.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Full {
    /// `host:port` or `unix:///path`.
    pub address: String,
    /// Share of the load; 0 drains. Default 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// Zone it runs in.
    #[serde(default)]
    pub zone: String,
    /// Failover tier; 0, the default, is used first.
    #[serde(default)]
    pub priority: u32,
    /// Names and values that subsets are made of, such as `{ version: v2 }`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl Full {
    /// An address and the defaults.
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: address.into(), weight: 1, zone: String::new(), priority: 0, labels: BTreeMap::new() }
    }
}

const fn one() -> u32 {
    1
}

/// Where an endpoint is, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Known.
    At(Address),
    /// A name to ask for.
    Named(Arc<str>, u16),
}

/// An endpoint that was read.
#[derive(Clone, Debug)]
pub struct Written {
    /// Where.
    pub place: Place,
    /// See [`Full`].
    pub weight: u32,
    /// See [`Full`].
    pub zone: Arc<str>,
    /// See [`Full`].
    pub priority: u32,
    /// See [`Full`].
    pub labels: Labels,
}

impl Item {
    /// Reads the address in it.
    pub fn parse(self) -> Result<Written, String> {
        let full = match self {
            Self::Plain(address) => Full::at(address),
            Self::Full(full) => full,
        };
        Ok(Written {
            place: place(&full.address)?,
            weight: full.weight,
            zone: full.zone.into(),
            priority: full.priority,
            labels: full.labels.into_iter().collect(),
        })
    }
}

impl Written {
    /// The endpoint at an address of its name, or at its own.
    pub fn at(&self, address: Address) -> Found {
        Found {
            weight: self.weight,
            zone: self.zone.clone(),
            priority: self.priority,
            labels: self.labels.clone(),
            ..Found::at(address)
        }
    }
    /// The endpoint, if its address is known without asking.
    pub fn known(&self) -> Option<Found> {
        match &self.place {
            Place::At(address) => Some(self.at(address.clone())),
            Place::Named(..) => None,
        }
    }
}

/// Reads an address.
pub fn place(text: &str) -> Result<Place, String> {
    let text = text.trim();
    if let Some(path) = text.strip_prefix("unix://") {
        if !path.starts_with('/') {
            return Err(format!("`{text}`: a socket path is absolute, as in `unix:///run/app.sock`"));
        }
        return Ok(Place::At(Address::Unix(PathBuf::from(path))));
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        if socket.port() == 0 {
            return Err(format!("`{text}`: nothing listens on port 0"));
        }
        return Ok(Place::At(Address::Tcp(socket)));
    }
    let (name, port) = name_and_port(text)?;
    Ok(Place::Named(name, port))
}

/// Reads `name:port`.
pub fn name_and_port(text: &str) -> Result<(Arc<str>, u16), String> {
    let wrong = || format!("`{text}` is not an address: write `host:port`, `ip:port` or `unix:///path`");
    let (name, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|p| *p != 0).ok_or_else(wrong)?;
    Ok((host_name(name).ok_or_else(wrong)?, port))
}

/// A host name (RFC 1123 section 2.1, underscores allowed as SRV names and many clusters have them), lower-case.
pub fn host_name(name: &str) -> Option<Arc<str>> {
    let labels = name.strip_suffix('.').unwrap_or(name);
    let label =
        |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (labels.len() <= 253 && labels.split('.').all(label)).then(|| name.to_ascii_lowercase().into())
}

/// One endpoint per address: the largest weight and the best priority of its duplicates, unless one of them drains.
pub fn merge(found: impl IntoIterator<Item = Found>) -> Vec<Found> {
    let mut out: Vec<Found> = Vec::new();
    let mut index = BTreeMap::new();
    for f in found {
        match index.get(&f.address) {
            None => {
                index.insert(f.address.clone(), out.len());
                out.push(f);
            }
            Some(at) => {
                let first: &mut Found = &mut out[*at];
                first.weight = if first.weight == 0 || f.weight == 0 { 0 } else { first.weight.max(f.weight) };
                first.priority = first.priority.min(f.priority);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(address: &str, weight: u32) -> Found {
        match place(address) {
            Ok(Place::At(address)) => Found { weight, ..Found::at(address) },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn addresses() {
        assert!(matches!(place("10.0.0.1:80"), Ok(Place::At(Address::Tcp(_)))));
        assert!(matches!(place("[::1]:80"), Ok(Place::At(Address::Tcp(_)))));
        assert!(matches!(place("unix:///run/a.sock"), Ok(Place::At(Address::Unix(_)))));
        assert_eq!(place("Orders.Shop.svc:8080"), Ok(Place::Named("orders.shop.svc".into(), 8080)));
        for bad in
            ["10.0.0.1", "10.0.0.1:0", "unix://run/a", "a b:80", ":80", "http://a:80", "a..b:80", "a:99999", "::1:80x"]
        {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
    #[test]
    fn duplicates_become_one() {
        let merged = merge([found("10.0.0.1:80", 1), found("10.0.0.2:80", 3), found("10.0.0.1:80", 2)]);
        assert_eq!(merged.iter().map(|f| f.weight).collect::<Vec<_>>(), [2, 3]);
        let drained = merge([found("10.0.0.1:80", 5), found("10.0.0.1:80", 0)]);
        assert_eq!(drained[0].weight, 0, "draining one of two names of an endpoint drains it");
    }
}
