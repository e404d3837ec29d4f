//! Keys of `discover.nacos`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::section::{ConfigError, Node, Spot};
use crate::contract::units::{Duration, Secret};

/// The section.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Section {
    /// Name of the service.
    pub service: Spot<String>,
    /// Servers, asked one after the other, such as `[http://nacos:8848]`. Without a path: `/nacos`.
    pub servers: Vec<Spot<String>>,
    /// CA certificates of the servers, PEM. Default: the system's.
    pub ca: Option<PathBuf>,
    /// Group. Default `DEFAULT_GROUP`.
    #[serde(default = "default_group")]
    pub group: String,
    /// Id of the namespace. Default: the public one.
    pub namespace: Option<String>,
    /// Only instances of these clusters. Default: all.
    #[serde(default)]
    pub clusters: Vec<String>,
    /// For servers that ask for it.
    pub username: Option<String>,
    /// See `username`.
    pub password: Option<Secret>,
    /// Time between questions. Default `10s`, as Nacos' own clients.
    pub interval: Option<Spot<Duration>>,
}

fn default_group() -> String {
    "DEFAULT_GROUP".to_owned()
}

/// Reads the section.
pub fn read(node: &Node) -> Result<Section, ConfigError> {
    let section: Section = node.read()?;
    if section.service.value.is_empty() {
        return Err(ConfigError::at(section.service.span, "a service has a name"));
    }
    if let Some(interval) = section.interval.as_ref().filter(|i| i.value.0 < std::time::Duration::from_secs(1)) {
        return Err(ConfigError::at(interval.span, "`interval` is at least 1s"));
    }
    if section.username.is_some() != section.password.is_some() {
        return Err(ConfigError::at(node.span, "`username` and `password` come together"));
    }
    Ok(section)
}
