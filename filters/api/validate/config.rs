use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::units::Size;
use crate::contract::{Node, Spot};

/// Checks requests, and answers if asked to, against JSON Schema or OpenAPI.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// JSON bodies.
    pub body: Option<Body>,
    /// A JSON Schema of the object that the query's parameters make: a file, or written here.
    #[schemars(with = "serde_json::Value")]
    pub query: Option<Node>,
    /// A JSON Schema of the object that the header fields make, names in lower case: a file, or written here.
    #[schemars(with = "serde_json::Value")]
    pub headers: Option<Node>,
    /// An OpenAPI description, 3.0 or 3.1, as YAML or JSON. Read anew when it changes.
    pub openapi: Option<Spot<PathBuf>>,
    /// What stands before the paths of the description. Default: the path of its first server.
    pub base_path: Option<Spot<String>>,
    /// Largest body that is checked. Default `1MiB`.
    #[schemars(extend("default" = "1MiB"))]
    pub limit: Option<Spot<Size>>,
    /// Deepest nesting of a body, up to 128. Default 64.
    #[schemars(extend("default" = 64))]
    pub max_depth: Option<Spot<usize>>,
    /// Nothing is refused; what would be is counted and logged. Default false.
    #[serde(default)]
    pub shadow: bool,
    /// Whether answers are checked against the description. Default `skip`.
    #[schemars(extend("default" = "skip"))]
    pub response: Option<Spot<Response>>,
}

/// Checks of JSON bodies.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Body {
    /// A JSON Schema, 2020-12 unless it says otherwise: a file, or written here.
    #[schemars(with = "serde_json::Value")]
    pub schema: Node,
    /// A request has to have a body. Default false.
    #[serde(default)]
    pub required: bool,
}

/// What becomes of an answer that does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// Answers are not looked at.
    Skip,
    /// It is counted and logged.
    Shadow,
    /// 502.
    Enforce,
}

/// Default of `limit`, in bytes.
pub const LIMIT: u64 = 1 << 20;
/// Most that `limit` may be: a body under check lies in memory.
pub const MAX_LIMIT: u64 = 64 << 20;
/// Default of `maxDepth`.
pub const DEPTH: usize = 64;
/// Most that `maxDepth` may be: the JSON reader goes no deeper.
pub const MAX_DEPTH: usize = 128;
