use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;
use crate::contract::units::Size;

/// Offers a gRPC service as JSON over HTTP, as its `google.api.http` annotations say.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// A descriptor set: `protoc --include_imports --descriptor_set_out=FILE`. Read anew when it changes.
    pub descriptors: Spot<PathBuf>,
    /// Full names of the services that are offered, such as `shop.v1.Orders`.
    pub services: Spot<Vec<Spot<String>>>,
    /// Calls without an annotation are offered as `POST /PACKAGE.SERVICE/METHOD`. Default false.
    #[serde(default)]
    pub auto_mapping: bool,
    /// Largest JSON body of a request and largest message of a response. Default `4MiB`, as gRPC has it.
    pub limit: Option<Spot<Size>>,
    /// What becomes of members and parameters that the message does not have. Default `refuse`.
    pub unknown: Option<Unknown>,
    /// How messages are written.
    #[serde(default)]
    pub json: Json,
}

/// What becomes of what a message does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    /// 400.
    Refuse,
    /// Left out.
    Ignore,
}

/// Options of the proto3 JSON mapping, for answers.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Json {
    /// Fields that have their default value are written. Default false.
    #[serde(default)]
    pub defaults: bool,
    /// Names as in the proto file, not in lowerCamelCase. Default false.
    #[serde(default)]
    pub proto_names: bool,
    /// Enums as numbers. Default false.
    #[serde(default)]
    pub enum_numbers: bool,
}

/// Default of `limit`, in bytes.
pub const LIMIT: u64 = 4 << 20;
/// Most that `limit` may be: messages lie in memory.
pub const MAX_LIMIT: u64 = 64 << 20;
