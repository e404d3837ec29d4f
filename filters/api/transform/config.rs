use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{Node, Spot};

/// Rewrites of a request and its response. Within each: set, then add, then remove.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The path that goes upstream.
    pub path: Option<Spot<Path>>,
    /// The `Host` that goes upstream.
    pub host: Option<Spot<String>>,
    /// Query parameters.
    #[serde(default)]
    pub query: Edits,
    /// Request headers.
    #[serde(default)]
    pub request: Edits,
    /// Response headers.
    #[serde(default)]
    pub response: Edits,
}

/// Exactly one of `replacePrefix`, `replaceFull`, or `regex` with `substitution`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Path {
    /// What the prefix that the route matched becomes.
    pub replace_prefix: Option<Spot<String>>,
    /// The whole new path; a template.
    pub replace_full: Option<Spot<String>>,
    /// What to look for in the path; linear time, not anchored. The first match is replaced.
    pub regex: Option<Spot<String>>,
    /// What a match becomes; `$1` or `${name}` stand for its groups.
    pub substitution: Option<Spot<String>>,
}

/// Edits of a list of names and values; values are templates, and one that has no value removes the name (`set`) or does
/// nothing (`add`).
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Edits {
    /// Replaces what is there.
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub set: Option<Node>,
    /// Adds to what is there.
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub add: Option<Node>,
    /// Removes.
    #[serde(default)]
    pub remove: Vec<Spot<String>>,
}
