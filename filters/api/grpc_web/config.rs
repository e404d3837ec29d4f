use schemars::JsonSchema;
use serde::Deserialize;

/// Lets browsers call a gRPC service: gRPC-Web on the caller's side, gRPC on the service's.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {}
