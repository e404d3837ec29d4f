//! A filter of somebody else's: `apiVersion` lets a route serve named versions of an API and refuses the others.
//!
//! It stands level with the built-in ones: same contract, its own key on a route, its own JSON Schema, README, metrics,
//! and errors that point into the config file. Nothing of the engine is named here.

#![forbid(unsafe_code)]

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use onehop_filters::contract::filter::{Filter, Step};
use onehop_filters::contract::metrics::Counter;
use onehop_filters::contract::{Build, ConfigError, Entry, Fault, Node, Phase, Reason, RequestCx, Role, Spot};
use serde::Deserialize;

/// What a program adds to the list of filters.
pub const ENTRY: Entry = Entry {
    name: "apiVersion",
    summary: "Serves named versions of an API, refuses the others",
    readme: include_str!("../README.md"),
    example: include_str!("../onehop.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    // The message is judged after its sender: strangers learn nothing about versions.
    role: Role::Api { phase: Phase::Validate, implied: |_, _| false, build },
};

/// The key's section.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    /// Field that names the version.
    #[serde(default = "default_header")]
    header: Spot<String>,
    /// Versions that are served.
    supported: Vec<Spot<String>>,
    /// What a request without the field gets; absent: the last of `supported`.
    default: Option<Spot<String>>,
}

fn default_header() -> Spot<String> {
    Spot { span: onehop_filters::contract::Span::default(), value: "x-api-version".to_owned() }
}

struct ApiVersion {
    header: HeaderName,
    supported: Vec<(HeaderValue, Counter)>,
    /// Position in `supported`.
    default: usize,
    /// Told to callers who ask for another.
    list: String,
    refused: Counter,
}

/// Everything that can be wrong is found here, when the config is read; a request finds names and values parsed.
fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let node = node.expect("apiVersion is never implied");
    let config: Config = node.read()?;
    let header = HeaderName::try_from(config.header.value.as_str())
        .map_err(|_| ConfigError::at(config.header.span, "this is not the name of a header field"))?;
    let default = match &config.default {
        None => config.supported.len().checked_sub(1),
        Some(wanted) => config.supported.iter().position(|v| v.value == wanted.value),
    };
    let default = default.ok_or_else(|| {
        let at = config.default.as_ref().map_or(node.span, |d| d.span);
        ConfigError::at(at, "the default is not among the supported versions").help("name it under `supported`")
    })?;
    let route = build.scope.strip_prefix("routes.").unwrap_or(&build.scope).to_owned();
    // Labels come from the config, never from requests: their number is bounded.
    let counter = |version: &str| {
        let labels = [("route", route.as_str()), ("version", version)];
        build.metrics.counter("api_version_requests_total", "Requests by version of the API.", &labels)
    };
    let mut supported = Vec::new();
    for version in &config.supported {
        let value = HeaderValue::try_from(version.value.as_str())
            .map_err(|_| ConfigError::at(version.span, "this cannot be the value of a header field"))?;
        supported.push((value, counter(&version.value)));
    }
    let list = config.supported.iter().map(|v| v.value.as_str()).collect::<Vec<_>>().join(", ");
    Ok(Arc::new(ApiVersion { header, supported, default, list, refused: counter("other") }))
}

impl Filter for ApiVersion {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        let position = match rq.headers.get(&self.header) {
            None => Some(self.default),
            Some(asked) => self.supported.iter().position(|(version, _)| version == asked),
        };
        let Some(position) = position else {
            if !rq.dry_run {
                self.refused.inc();
            }
            let detail = format!("This version is not served. Served are: {}.", self.list);
            return Step::fail(Fault::new(Reason::BadHeader).detail(detail));
        };
        let (version, counter) = &self.supported[position];
        // `onehop explain` asks as well, and must change nothing.
        if !rq.dry_run {
            counter.inc();
        }
        rq.headers.insert(self.header.clone(), version.clone());
        rq.reply_headers.push((self.header.clone(), version.clone()));
        Step::NEXT
    }
}
