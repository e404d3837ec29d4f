//! `quotaUsage`: tells a caller what it has left of every limit that counts it.

use std::sync::{Arc, Weak};

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::seconds;
use super::window::Window;
use crate::contract::filter::{Filter, Step};
use crate::contract::{Body, Build, ConfigError, Directory, Entry, Node, Phase, RequestCx, Role, RouteView, now};

/// Its key.
pub const NAME: &str = "quotaUsage";

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

/// Every limit at work. Lives on across reloads.
#[derive(Default)]
pub struct Register {
    /// By route. Contended by reloads and by callers that ask for their usage.
    all: Mutex<Vec<(String, Vec<Weak<Window>>)>>,
}

impl Register {
    /// The one of the process.
    pub fn of(build: &mut Build<'_>) -> Arc<Self> {
        let scope = std::mem::replace(&mut build.scope, "quota".to_owned());
        let register = build.keep("register", "", Self::default);
        build.scope = scope;
        register
    }

    /// Puts the windows of a route in place of those it had.
    pub fn enter(self: Arc<Self>, windows: Vec<Weak<Window>>, build: &mut Build<'_>) {
        let route = build.scope.clone();
        build.at_publish(move || {
            let mut all = self.all.lock();
            all.retain(|(other, windows)| *other != route && windows.iter().any(|w| w.strong_count() > 0));
            all.push((route, windows));
        });
    }

    fn windows(&self) -> Vec<Arc<Window>> {
        let all = self.all.lock();
        all.iter().flat_map(|(_, windows)| windows).filter_map(Weak::upgrade).collect()
    }

    /// Who a caller is to us, and what it has left of every limit that counts it, but of limits of routes that are not
    /// `shown`.
    pub fn told(&self, rq: &RequestCx, shown: impl Fn(&str) -> bool) -> Map<String, Value> {
        let plan = rq.consumer.as_ref().and_then(|c| c.plan.as_ref()).map(|p| format!("plans.{}", p.name));
        let mut seen = Vec::new();
        let mut limits = Vec::new();
        for window in self.windows() {
            let mine = match window.owner.starts_with("plans.") {
                true => plan.as_deref() == Some(&*window.owner),
                // What a caller only claims to be, it could claim of others.
                false => window.by.is_identity() && shown(&window.owner),
            };
            if !mine || window.shadow || seen.contains(&window.identity()) {
                continue;
            }
            seen.push(window.identity());
            limits.extend(told(&window, rq));
        }
        let mut told = Map::new();
        told.insert("consumer".to_owned(), rq.consumer.as_ref().map(|c| &*c.name).into());
        told.insert("plan".to_owned(), rq.consumer.as_ref().and_then(|c| c.plan.as_ref()).map(|p| &*p.name).into());
        told.insert("user".to_owned(), rq.user.as_ref().map(|u| &*u.subject).into());
        told.insert("limits".to_owned(), limits.into());
        told
    }
}

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

fn told(window: &Window, rq: &RequestCx) -> Option<Value> {
    let charge = window.peek(rq, now())?;
    let mut limit = Map::new();
    let (kind, owner) = window.owner.strip_prefix("plans.").map_or(("route", &*window.owner), |plan| ("plan", plan));
    limit.insert("name".to_owned(), (*window.name).into());
    limit.insert(kind.to_owned(), owner.into());
    limit.insert("limit".to_owned(), window.limit.into());
    limit.insert("per".to_owned(), window.per.map(|per| per.to_string()).into());
    limit.insert("remaining".to_owned(), charge.remaining.into());
    limit.insert("reset".to_owned(), seconds(charge.reset).into());
    Some(Value::Object(limit))
}
