//! Keys of `discover.eureka`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::section::{ConfigError, Node, Spot};
use crate::contract::units::{Duration, Secret};

/// The section.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Section {
    /// Name of the application, in any case.
    pub app: Spot<String>,
    /// Servers, with their path, asked one after the other, such as `[http://eureka:8761/eureka]`.
    pub servers: Vec<Spot<String>>,
    /// CA certificates of the servers, PEM. Default: the system's.
    pub ca: Option<PathBuf>,
    /// For servers that ask for it (RFC 7617).
    pub username: Option<String>,
    /// See `username`.
    pub password: Option<Secret>,
    /// Takes the instances' secure ports instead of the plain ones. Default false.
    #[serde(default)]
    pub secure: bool,
    /// Time between questions. Default `30s`, as Eureka's own clients.
    pub interval: Option<Spot<Duration>>,
}

/// Reads the section.
pub fn read(node: &Node) -> Result<Section, ConfigError> {
    let section: Section = node.read()?;
    if section.app.value.is_empty() {
        return Err(ConfigError::at(section.app.span, "an application has a name"));
    }
    if let Some(interval) = section.interval.as_ref().filter(|i| i.value.0 < std::time::Duration::from_secs(1)) {
        return Err(ConfigError::at(interval.span, "`interval` is at least 1s"));
    }
    if section.username.is_some() != section.password.is_some() {
        return Err(ConfigError::at(node.span, "`username` and `password` come together"));
    }
    Ok(section)
}
