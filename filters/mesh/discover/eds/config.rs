//! Keys of `discover.eds`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::core::Mode;
use super::proto;
use crate::contract::section::{ConfigError, Node, Spot};
use crate::contract::units::{Duration, Secret};

/// The section.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Section {
    /// Name of the service's endpoint assignment (`cluster_name`) at the control plane.
    pub service: Spot<String>,
    /// Control planes, asked one after the other until one answers, such as `[http://127.0.0.1:18000]`.
    pub servers: Vec<Spot<String>>,
    /// Variant of the protocol: `delta`, the default, or `sotw` (state of the world) for control planes that do not speak
    /// the former.
    #[serde(default)]
    pub mode: Mode,
    /// Who asks.
    #[serde(default)]
    pub node: Identity,
    /// CA certificates of the servers, PEM. Default: the system's.
    pub ca: Option<PathBuf>,
    /// Certificate chain to show to the servers, PEM. Needs `key`.
    pub cert: Option<Spot<PathBuf>>,
    /// Key of `cert`, PEM.
    pub key: Option<Spot<PathBuf>>,
    /// Sent as `authorization: Bearer ...`; a file is read anew for each stream.
    pub token: Option<Spot<Secret>>,
    /// How long the first word of the service may take before that is told as a failure; `0s` waits for ever. Default
    /// `15s`.
    pub initial_fetch_timeout: Option<Duration>,
}

/// What the control plane knows this process by.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// Id; default `onehop`. Control planes that tell processes apart want it to differ: `${env.HOSTNAME}`.
    #[serde(default = "onehop")]
    pub id: String,
    /// Group of processes that are alike; default `onehop`.
    #[serde(default = "onehop")]
    pub cluster: String,
    /// Where this process runs.
    #[serde(default)]
    pub locality: Locality,
    /// What else the control plane wants to know; any JSON.
    #[serde(default)]
    pub metadata: BTreeMap<String, Value>,
}

impl Default for Identity {
    fn default() -> Self {
        Self { id: onehop(), cluster: onehop(), locality: Locality::default(), metadata: BTreeMap::new() }
    }
}

fn onehop() -> String {
    "onehop".to_owned()
}

/// A place, from the large to the small.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Part of the zone.
    pub sub_zone: String,
}

/// Reads the section.
pub fn read(node: &Node) -> Result<Section, ConfigError> {
    let section: Section = node.read()?;
    if section.service.value.is_empty() {
        return Err(ConfigError::at(section.service.span, "a service has a name"));
    }
    match (&section.cert, &section.key) {
        (Some(one), None) | (None, Some(one)) => {
            Err(ConfigError::at(one.span, "`cert` and `key` come together").help("name both files, or neither"))
        }
        _ => Ok(section),
    }
}

impl Identity {
    /// As the protocol has it.
    pub fn node(self) -> proto::Node {
        let Self { id, cluster, locality, metadata } = self;
        let Locality { region, zone, sub_zone } = locality.clone();
        proto::Node {
            id,
            cluster,
            metadata: (!metadata.is_empty()).then(|| fields(metadata)),
            locality: (locality != Locality::default()).then_some(proto::Locality { region, zone, sub_zone }),
            user_agent_name: onehop(),
            user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            // We take resources with a lifetime in either variant, and never send more than an endpoint's share because
            // others are unhealthy.
            client_features: ["xds.config.resource-in-sotw", "envoy.lb.does_not_support_overprovisioning"]
                .map(str::to_owned)
                .into(),
        }
    }
}

fn fields(map: impl IntoIterator<Item = (String, Value)>) -> proto::Struct {
    proto::Struct { fields: map.into_iter().map(|(name, value)| (name, plain(value))).collect() }
}

fn plain(value: Value) -> proto::Value {
    use proto::Kind;
    let kind = match value {
        Value::Null => Kind::Null(0),
        Value::Bool(is) => Kind::Bool(is),
        Value::Number(number) => Kind::Number(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::Text(text),
        Value::Array(items) => Kind::List(proto::List { values: items.into_iter().map(plain).collect() }),
        Value::Object(map) => Kind::Struct(fields(map)),
    };
    proto::Value { kind: Some(kind) }
}
