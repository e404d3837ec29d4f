//! Keys of `discover.consul`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::section::{ConfigError, Node, Spot};
use crate::contract::units::{Duration, Secret};

/// The section, for the schema: the name of a service, or a map. [`read`] tells them apart by itself, so that an unknown
/// key of the map is named and not only "no variant matched".
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "a schema only")]
pub enum Section {
    /// Name of the service.
    Short(String),
    /// With settings.
    Full(Box<Full>),
}

/// The section in full.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Full {
    /// Name of the service in the catalogue.
    pub service: Spot<String>,
    /// Agents or servers to ask, one after the other. Default `[http://127.0.0.1:8500]`.
    pub servers: Option<Vec<Spot<String>>>,
    /// CA certificates of the servers, PEM. Default: the system's.
    pub ca: Option<PathBuf>,
    /// ACL token.
    pub token: Option<Secret>,
    /// Datacenter. Default: the agent's own.
    pub datacenter: Option<String>,
    /// Only instances with all of these tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Consul filter expression on instances, such as `Service.Meta.version == "2"`.
    pub filter: Option<String>,
    /// Also takes instances with a failing `warning` check, with their warning weight. Default false.
    #[serde(default)]
    pub warning: bool,
    /// How long a question may hang until something changes, up to `10m`. Default `5m`.
    pub wait: Option<Spot<Duration>>,
}

/// Reads the section.
pub fn read(node: &Node) -> Result<Full, ConfigError> {
    let full = if node.entries().is_empty() {
        let service = node.read()?;
        Full {
            service,
            servers: None,
            ca: None,
            token: None,
            datacenter: None,
            tags: Vec::new(),
            filter: None,
            warning: false,
            wait: None,
        }
    } else {
        node.read::<Full>()?
    };
    if full.service.value.is_empty() {
        return Err(ConfigError::at(full.service.span, "a service has a name"));
    }
    let bounds = std::time::Duration::from_secs(1)..=std::time::Duration::from_secs(600);
    if let Some(wait) = full.wait.as_ref().filter(|wait| !bounds.contains(&wait.value.0)) {
        return Err(ConfigError::at(wait.span, "`wait` is 1s to 10m"));
    }
    Ok(full)
}
