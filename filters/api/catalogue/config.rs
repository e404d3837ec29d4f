use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;

/// Answers with a list of the routes that the caller may see, and with their OpenAPI documents.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Heading of the page. Default `APIs`.
    #[serde(default = "title")]
    #[schemars(extend("default" = "APIs"))]
    pub title: String,
    /// Routes of these listeners are listed. Default: of the listener that the catalogue is asked on.
    #[serde(default)]
    pub listeners: Vec<Spot<String>>,
    /// Scheme, host and port that callers reach the routes at; the host is that of a route without `hosts`. Default: what
    /// the catalogue is asked as. Needed with `listeners`.
    pub base_url: Option<Spot<String>>,
}

fn title() -> String {
    "APIs".to_owned()
}

/// What a catalogue says of this route. A route without it is in none.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Describe {
    /// Its name for people. Default: that of the OpenAPI document, else the route's.
    pub title: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// An OpenAPI document, 3.x in one file, as YAML or JSON. Read anew when it changes.
    pub openapi: Option<Spot<PathBuf>>,
    /// What stands before the document's paths in public. Default: the path of its first server, moved as
    /// `transform.path.replacePrefix` says.
    pub base_path: Option<Spot<String>>,
    /// CEL over the caller of the catalogue, such as `'orders' in user.scopes`: who sees the route there. Default
    /// everybody.
    pub allow: Option<Spot<String>>,
}
