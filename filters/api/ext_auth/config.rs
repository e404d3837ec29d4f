use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::Spot;
use crate::contract::units::{Duration, Size};

/// Asks a service whether the request may go on.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// By gRPC: `envoy.service.auth.v3.Authorization/Check`. This or `http`.
    pub grpc: Option<Spot<Grpc>>,
    /// By HTTP: 2xx lets the request go on, any other answer goes to the client.
    pub http: Option<Spot<Http>>,
    /// How long an answer may take, tries included. Default 200ms.
    pub timeout: Option<Spot<Duration>>,
    /// Lets requests pass while nobody answers. Default false.
    #[serde(default)]
    pub fail_open: bool,
    /// Status while nobody answers: 403 or 503 (default).
    pub status_on_error: Option<Spot<u16>>,
    /// Sends the request's body along.
    pub body: Option<Body>,
    /// Which fields go where.
    #[serde(default)]
    pub headers: Headers,
    /// Remembers answers.
    pub cache: Option<Spot<Cache>>,
    /// What is told besides, as templates: `context_extensions` by gRPC, fields of these names by HTTP.
    #[serde(default)]
    pub context: BTreeMap<String, Spot<String>>,
}

/// Whom to ask by gRPC.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grpc {
    /// Service, of `protocol: grpc`.
    pub service: Spot<String>,
}

/// Whom to ask by HTTP, and how; `path` or `prefix`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Http {
    /// Service.
    pub service: Spot<String>,
    /// Asks this path with GET (POST with a body); the request is described by `x-forwarded-method`, `-proto`, `-host`,
    /// `-uri` and `-for`, as Traefik's forwardAuth does.
    pub path: Option<Spot<String>>,
    /// Asks with the request's own method, host and path, the latter behind this prefix, as Envoy does.
    pub prefix: Option<Spot<String>>,
}

/// The body, as far as it is sent along.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Body {
    /// Bytes at most, up to 1MiB.
    pub limit: Spot<Size>,
    /// Sends the beginning of a longer body, marked `x-envoy-auth-partial-body: true`; otherwise that is 413. Default
    /// false.
    #[serde(default)]
    pub allow_partial: bool,
    /// By gRPC, sends bytes (`raw_body`) even where they are text. Default false.
    #[serde(default)]
    pub raw: bool,
}

/// Names of fields; `x-acme-*` means all that begin so.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Headers {
    /// Of the request, what whoever is asked sees. `*` = all. Default: all by gRPC, `authorization` and `cookie` by HTTP.
    pub to_auth: Option<Vec<Spot<String>>>,
    /// Of the answer, what the upstream sees; the caller's own fields of these names never get through. By gRPC the
    /// default is whatever the answer says, by HTTP nothing.
    #[serde(default)]
    pub to_upstream: Vec<Spot<String>>,
    /// Of an answer that lets the request go on, what the client sees. By gRPC the default is whatever the answer says,
    /// by HTTP nothing. An answer that refuses goes to the client whole.
    #[serde(default)]
    pub to_client: Vec<Spot<String>>,
}

/// A memory of answers.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cache {
    /// CEL that gives text: requests with the same text get the same answer. Without text nothing is remembered.
    pub by: Spot<String>,
    /// How long.
    pub ttl: Duration,
    /// Answers at most. Default 10000.
    pub max_entries: Option<Spot<usize>>,
}

/// See [`Config::timeout`].
pub const TIMEOUT: std::time::Duration = std::time::Duration::from_millis(200);
/// See [`Cache::max_entries`].
pub const MAX_ENTRIES: usize = 10_000;
/// Largest [`Body::limit`].
pub const MAX_BODY: u64 = 1 << 20;
