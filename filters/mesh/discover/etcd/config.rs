//! Keys of `discover.etcd`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::section::{ConfigError, Node, Spot};
use crate::contract::units::Secret;

/// The section.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Section {
    /// Keys that begin so are endpoints, such as `/services/stock/`.
    pub prefix: Spot<String>,
    /// Members of the cluster, asked one after the other. Default `[http://127.0.0.1:2379]`.
    pub servers: Option<Vec<Spot<String>>>,
    /// CA certificates of the servers, PEM. Default: the system's.
    pub ca: Option<PathBuf>,
    /// For clusters that ask for it.
    pub username: Option<String>,
    /// See `username`.
    pub password: Option<Secret>,
}

/// Reads the section.
pub fn read(node: &Node) -> Result<Section, ConfigError> {
    let section: Section = node.read()?;
    if section.prefix.value.is_empty() {
        return Err(ConfigError::at(section.prefix.span, "an empty prefix would be every key of the cluster")
            .help("such as `/services/stock/`"));
    }
    if section.username.is_some() != section.password.is_some() {
        return Err(ConfigError::at(node.span, "`username` and `password` come together"));
    }
    Ok(section)
}
