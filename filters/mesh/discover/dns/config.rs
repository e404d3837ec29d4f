//! Keys of `discover.dns`.

use std::net::SocketAddr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::section::{ConfigError, Node, Spot};
use crate::contract::units;
use crate::mesh::discover::endpoint::{host_name, name_and_port};
use crate::mesh::discover::resolve::{Family, Settings};

/// The section, for the schema: `name:port`, or a map. [`read`] tells them apart by itself, so that an unknown key of the
/// map is named and not only "no variant matched".
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "a schema only")]
pub enum Section {
    /// `name:port`.
    Short(String),
    /// With settings.
    Full(Full),
}

/// The section in full.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Full {
    /// Name to ask for.
    pub name: Spot<String>,
    /// Port of every endpoint.
    pub port: std::num::NonZeroU16,
    /// Shortest time between questions, at least `1s`. Default `5s`.
    #[schemars(extend("default" = "5s"))]
    pub min_ttl: Option<Spot<units::Duration>>,
    /// Longest time between questions. Default `5m`.
    #[schemars(extend("default" = "5m"))]
    pub max_ttl: Option<Spot<units::Duration>>,
    /// `ip:port` of a DNS server instead of the system's.
    pub resolver: Option<SocketAddr>,
    /// Which addresses to use. Default `auto`: of a name that has both families the one that
    /// connects first, IPv6 with a head start.
    #[serde(default)]
    pub family: Family,
}

/// Reads the section: name, port, how to ask.
pub fn read(node: &Node) -> Result<(Arc<str>, u16, Settings), ConfigError> {
    if node.entries().is_empty() {
        let text: String = node.read()?;
        let (name, port) = name_and_port(&text).map_err(|why| ConfigError::at(node.span, why))?;
        return Ok((name, port, Settings::default()));
    }
    let full: Full = node.read()?;
    let name = host_name(&full.name.value)
        .ok_or_else(|| ConfigError::at(full.name.span, format!("`{}` is not a host name", full.name.value)))?;
    let settings = Settings {
        resolver: full.resolver,
        family: full.family,
        ..Settings::lifetimes(full.min_ttl.as_ref(), full.max_ttl.as_ref())?
    };
    Ok((name, full.port.get(), settings))
}
