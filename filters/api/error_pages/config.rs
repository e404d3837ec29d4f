use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{Node, Spot};

/// Bodies for failures, in place of the problem.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Page {
    /// Statuses (`404`), classes of them (`5xx`) and reasons (`over-quota`). The first page that fits is used.
    #[schemars(with = "Vec<Which>")]
    pub at: Vec<Node>,
    /// Whose answers: `own` (default) are those that this proxy makes of a failure, `upstream` those of endpoints.
    #[serde(default, rename = "for")]
    pub whose: Whose,
    /// For who prefers HTML: text, or `{ file: PATH }`.
    #[schemars(with = "Option<Text>")]
    pub html: Option<Node>,
    /// For everybody else: text, or `{ file: PATH }`. Without it they get what they would have got.
    #[schemars(with = "Option<Text>")]
    pub json: Option<Node>,
    /// Type of `json`. Default `application/json`.
    pub json_type: Option<Spot<String>>,
}

/// See [`Page::whose`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Whose {
    /// Ours.
    #[default]
    Own,
    /// Endpoints'.
    Upstream,
    /// Both.
    All,
}

/// A status, or a class or reason.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "shape for the schema; `build` reads the node")]
pub enum Which {
    Status(u16),
    Name(String),
}

/// Text, or where it stands.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "shape for the schema; `build` reads the node")]
pub enum Text {
    Here(String),
    There(File),
}

/// A file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    /// Relative to the configuration.
    pub file: Spot<std::path::PathBuf>,
}
