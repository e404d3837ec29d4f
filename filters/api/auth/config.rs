use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

use crate::contract::section::{Value, parked};
use crate::contract::{Node, Spot};

/// Who may use the route.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Names under `identities`; any one of them is enough, tried in this order. `{ all: [a, b] }` in place of a name
    /// needs every one of those.
    pub require: Option<Ways>,
    /// Lets requests without any credential pass; a bad credential is still refused. Default false.
    #[serde(default)]
    pub optional: bool,
    /// CEL conditions, one of which must hold. An empty list allows nobody.
    pub allow: Option<Many>,
    /// CEL conditions, none of which may hold. What cannot be decided counts as holding.
    pub deny: Option<Many>,
    /// SPIFFE ids (or DNS names) of the mutual TLS peer, exact or ending in `/*`.
    pub workloads: Option<Vec<Spot<String>>>,
    /// Names of consumers, one of which must call.
    pub consumers: Option<Many>,
    /// Names of plans; the consumer's must be one of them.
    pub plans: Option<Many>,
    /// Scopes the user or the consumer must have, all of them.
    #[serde(default)]
    pub scopes: Vec<Spot<String>>,
    /// Dry run of the rules: what `workloads`, `consumers`, `plans`, `scopes`, `deny` or `allow` would refuse passes, is
    /// counted and logged. `require` acts all the same. Default false.
    #[serde(default)]
    pub audit: bool,
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
        list.map(Self).map_err(parked)
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

/// Any of these is enough; all names of one are needed.
#[derive(Debug)]
pub struct Ways(pub Vec<Vec<Spot<String>>>);

/// Every one of these.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct All {
    all: Spot<Vec<Spot<String>>>,
}

impl<'de> Deserialize<'de> for Ways {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let node = Node::deserialize(d)?;
        let one = |node: &Node| match &node.value {
            Value::Map(_) => node.read().map(|All { all }| all.value),
            _ => node.read().map(|name| vec![name]),
        };
        match &node.value {
            Value::Seq(list) => list.iter().map(one).collect(),
            _ => one(&node).map(|way| vec![way]),
        }
        .map(Self)
        .map_err(parked)
    }
}

impl JsonSchema for Ways {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Ways".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let all = json_schema!({ "type": "object", "required": ["all"], "additionalProperties": false,
            "properties": { "all": { "type": "array", "items": { "type": "string" }, "minItems": 1 } } });
        json_schema!({ "anyOf": [
            { "type": "string" },
            all,
            { "type": "array", "items": { "anyOf": [{ "type": "string" }, all] } },
        ] })
    }
}
