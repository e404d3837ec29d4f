//! Keys of `endpointOverride`.

use std::net::SocketAddr;

use http::HeaderName;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::RequestCx;
use crate::contract::mesh::Address;
use crate::contract::section::{ConfigError, Spot};

/// The section.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Section {
    /// Name of the header field.
    pub header: Spot<String>,
    /// Networks of callers that may, besides peers in the listener's `trustedProxies`.
    #[serde(default)]
    pub networks: Vec<Spot<String>>,
    /// Workloads that may, by their certificate: names, with `*` at the end for all that begin so.
    #[serde(default)]
    pub workloads: Vec<Spot<String>>,
}

/// Who may.
#[derive(Debug, Default)]
pub struct Callers {
    networks: Box<[IpNet]>,
    workloads: Box<[Box<str>]>,
}

impl Section {
    pub fn header(&self) -> Result<HeaderName, ConfigError> {
        HeaderName::try_from(self.header.as_str()).map_err(|_| {
            ConfigError::at(self.header.span, format!("`{}` is not the name of a header field", self.header.value))
                .help("letters, digits and `-`, such as `x-endpoint`")
        })
    }

    pub fn callers(&self) -> Result<Callers, ConfigError> {
        let network = |text: &Spot<String>| {
            let alone = || text.parse::<std::net::IpAddr>().map(IpNet::from);
            text.parse::<IpNet>().or_else(|_| alone()).map_err(|_| {
                ConfigError::at(text.span, format!("`{}` is not a network", text.value)).help("write `10.0.0.0/8`")
            })
        };
        let workload = |text: &Spot<String>| {
            let begin = text.strip_suffix('*').unwrap_or(text);
            if begin.is_empty() || begin.contains('*') {
                return Err(ConfigError::at(text.span, "a workload has a name, with `*` at its end at most")
                    .help("write `spiffe://corp/ns/shop/*`"));
            }
            Ok(text.as_str().into())
        };
        Ok(Callers {
            networks: self.networks.iter().map(network).collect::<Result<_, _>>()?,
            workloads: self.workloads.iter().map(workload).collect::<Result<_, _>>()?,
        })
    }
}

impl Callers {
    /// Whether this caller may. What a proxy says of the client before it does not count.
    pub fn trust(&self, rq: &RequestCx) -> bool {
        let fits = |name: &str| {
            self.workloads.iter().any(|known| match known.strip_suffix('*') {
                Some(begin) => name.starts_with(begin),
                None => *name == **known,
            })
        };
        rq.conn.trusted
            || self.networks.iter().any(|net| net.contains(&rq.conn.peer.ip().to_canonical()))
            || rq.workload.as_ref().is_some_and(|workload| fits(&workload.id))
    }
}

/// `10.0.0.1:80`, `[::1]:80` or `unix:///path`.
pub fn address(text: &[u8]) -> Option<Address> {
    let text = std::str::from_utf8(text).ok()?.trim();
    match text.strip_prefix("unix://") {
        Some(path) => Some(Address::Unix(path.into())),
        None => text.parse::<SocketAddr>().ok().map(Address::Tcp),
    }
}
