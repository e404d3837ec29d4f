use schemars::JsonSchema;
use serde::Deserialize;

/// The client certificate of the connection, verified by the listener, names a consumer
/// (`consumers.NAME.certificates`).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {}
