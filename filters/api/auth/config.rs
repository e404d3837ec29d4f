use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::contract::section::Value;
use crate::contract::{Node, Spot};

/// Who may use the route.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Names under `identities`; any one of them is enough, tried in this order.
    pub require: Option<Many>,
    /// Lets requests without any credential pass; a bad credential is still refused. Default false.
    #[serde(default)]
    pub optional: bool,
    /// CEL conditions, one of which must hold. An empty list allows nobody.
    pub allow: Option<Many>,
    /// CEL conditions, none of which may hold. What cannot be decided counts as holding.
    pub deny: Option<Many>,
    /// SPIFFE ids (or DNS names) of the mutual TLS peer, exact or ending in `/*`.
    pub workloads: Option<Vec<Spot<String>>>,
    /// Scopes the user or the consumer must have, all of them.
    #[serde(default)]
    pub scopes: Vec<Spot<String>>,
}

/// One or a list.
#[derive(Debug)]
pub struct Many(pub Vec<Spot<String>>);

impl<'de> Deserialize<'de> for Many {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let node = Node::deserialize(d)?;
        let list = match &node.value {
            Value::Seq(_) => node.read(),
            _ => node.read().map(|one| vec![one]),
        };
        list.map(Self).map_err(D::Error::custom)
    }
}

impl JsonSchema for Many {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Many".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}
