//! Filters that do next to nothing, to weigh the chain itself.

use std::sync::Arc;

use http::HeaderName;
use onehop_filters::contract::filter::{Filter, Step};
use onehop_filters::contract::{Build, ConfigError, Entry, Node, Phase, RequestCx, Role};

static WATCHED: HeaderName = HeaderName::from_static("x-watched");

/// Looks for a field that no request has.
struct Idle;

impl Filter for Idle {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        match rq.headers.get(&WATCHED) {
            Some(_) => Step::reply(http::Response::default()),
            None => Step::NEXT,
        }
    }
}

fn build(_: Option<&Node>, _: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    Ok(Arc::new(Idle))
}

/// Names of the idle filters, in the order they run.
pub const NAMES: [&str; 12] = [
    "idle01", "idle02", "idle03", "idle04", "idle05", "idle06", "idle07", "idle08", "idle09", "idle10", "idle11",
    "idle12",
];

/// The built-in filters and twelve idle ones.
pub fn entries() -> &'static [Entry] {
    let idle = NAMES.map(|name| Entry {
        name,
        summary: "Looks for a field that no request has",
        readme: "",
        example: "",
        schema: |g| g.subschema_for::<bool>(),
        role: Role::Api { phase: Phase::Validate, implied: |_, _| false, build },
    });
    Box::leak([onehop_filters::BUILTIN, &idle].concat().into_boxed_slice())
}

/// `idle01: true, idle02: true, ...`: what switches the first `n` on.
pub fn keys(n: usize) -> String {
    NAMES[..n].iter().map(|name| format!("{name}: true, ")).collect()
}
