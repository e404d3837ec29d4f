//! `quotaUsage`: tells a caller what it has left of every limit that counts it.

use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::api::left::{Register, USAGE};
use crate::contract::filter::{Filter, Step};
use crate::contract::{Body, Build, ConfigError, Directory, Entry, Node, Phase, RequestCx, Role, RouteView};

/// Its key.
pub const NAME: &str = USAGE;

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Tells a caller what is left of its quotas",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Usage>(),
    role: Role::Api { phase: Phase::Quota, implied: never, build },
};

fn never(_: &RouteView<'_>, _: &Directory) -> bool {
    false
}

/// Answers every request of the route with the caller's own limits, as JSON.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Usage {}

struct Teller(Arc<Register>);

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    if let Some(node) = node {
        node.read::<Usage>()?;
    }
    Ok(Arc::new(Teller(Register::of(build))))
}

impl Filter for Teller {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        let body = Value::Object(self.0.told(rq, |_| true));
        let mut reply = Response::new(Body::full(format!("{body}\n")));
        reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Step::reply(reply)
    }
}
