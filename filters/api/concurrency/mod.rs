//! `concurrency`: how many requests of a caller may be in flight at once. A request's place is free again when the last
//! byte of its answer is sent, when the caller leaves, when time is up, or when anything fails: it lives in the notes of
//! the request, and goes with them.

mod core;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use self::core::{Permit, Slots};
use super::caller::{self, By};
use crate::contract::filter::{Filter, Step};
use crate::contract::metrics::Counter;
use crate::contract::section::Value;
use crate::contract::trail::Outcome;
use crate::contract::{
    Build, ConfigError, Directory, Entry, Fault, Node, Phase, Reason, RequestCx, Role, RouteView, Spot,
};

const NAME: &str = "concurrency";
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Requests of a caller that may be in flight at once",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Form>(),
    role: Role::Api { phase: Phase::Quota, implied, build },
};

/// A plan's limit acts wherever consumers are told apart.
fn implied(route: &RouteView<'_>, directory: &Directory) -> bool {
    route.keys.contains(&"auth") && directory.plans.values().any(|p| p.sections.contains_key(NAME))
}

/// One limit, or a list of them that hold together.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum Form {
    One(Limit),
    Many(Vec<Limit>),
}

/// How many requests of a caller may be in flight at once.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Limit {
    /// Whose requests are counted together: `ip`, `consumer`, `user.sub`, `workload.id`, `route.name`, `header:NAME`, or
    /// any CEL expression that gives text. In a plan: always the consumer.
    by: Option<Spot<String>>,
    /// Requests in flight.
    limit: Spot<u64>,
    /// Counts and tells, never refuses.
    #[serde(default)]
    shadow: bool,
    /// What becomes of a request without the thing it is counted by: refused with 403 (`deny`), or counted by its
    /// address (`ip`). Default: `deny`.
    #[serde(default)]
    missing: Missing,
    /// Name in metrics and messages. Default: what stands in `by`.
    name: Option<Spot<String>>,
}

/// See [`Limit::missing`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Missing {
    /// 403.
    #[default]
    Deny,
    /// Counted by address.
    Ip,
}

struct Concurrency {
    own: Vec<Window>,
    /// Of plans, by plan name.
    plans: BTreeMap<Arc<str>, Vec<Window>>,
}

struct Window {
    by: By,
    limit: u32,
    slots: Arc<Slots>,
    shadow: bool,
    missing: Missing,
    name: Box<str>,
    rejected: Counter,
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let own = node.map(|n| windows(n, None, build)).transpose()?.unwrap_or_default();
    let route = std::mem::take(&mut build.scope);
    let mut plans = BTreeMap::new();
    for plan in build.directory.plans.values() {
        let Some(section) = plan.sections.get(NAME) else { continue };
        // One count per consumer, whatever route it calls.
        build.scope = format!("plans.{}", plan.name);
        plans.insert(plan.name.clone(), windows(section, Some((&plan.name, &route)), build)?);
    }
    build.scope = route;
    Ok(Arc::new(Concurrency { own, plans }))
}

fn windows(node: &Node, plan: Option<(&str, &str)>, build: &mut Build<'_>) -> Result<Vec<Window>, ConfigError> {
    let limits: Vec<Spot<Limit>> = match node.value {
        Value::Seq(_) => node.read()?,
        _ => vec![node.read()?],
    };
    let mut windows: Vec<Window> = Vec::with_capacity(limits.len());
    for Spot { span, value: limit } in limits {
        let most = u32::try_from(limit.limit.value).ok().filter(|n| (1..=1_000_000).contains(n));
        let most =
            most.ok_or_else(|| ConfigError::at(limit.limit.span, "a limit is 1 to 1000000 requests in flight"))?;
        let (by, label) = match (plan, &limit.by) {
            (Some(_), Some(by)) if by.value != "consumer" => {
                return Err(
                    ConfigError::at(by.span, "a plan's limit is always counted by consumer").help("leave `by` out")
                );
            }
            (Some((plan, _)), _) => (By::Consumer, plan),
            (None, Some(by)) => (By::read(by)?, by.value.as_str()),
            (None, None) => {
                return Err(
                    ConfigError::at(span, "`by` is missing").help("say whose requests are counted, such as `by: ip`")
                );
            }
        };
        let name = limit.name.as_ref().map_or(label, |n| n.value.as_str());
        if windows.iter().any(|w| &*w.name == name) {
            return Err(ConfigError::at(span, format!("two limits are called `{name}`"))
                .help("give them different names with `name`"));
        }
        // Not the number: a changed limit finds what is in flight again.
        let slots = build.keep(&format!("{NAME}/{name}"), label, Slots::default);
        let route = plan.map_or(build.scope.as_str(), |(_, route)| route);
        let route = route.strip_prefix("routes.").unwrap_or(route);
        let help = "Requests refused because too many of the caller were in flight, or that shadow mode let pass";
        let labels = [("route", route), ("policy", name)];
        let rejected = build.metrics.counter("onehop_concurrency_rejected_total", help, &labels);
        let (shadow, missing) = (limit.shadow, limit.missing);
        windows.push(Window { by, limit: most, slots, shadow, missing, name: name.into(), rejected });
    }
    Ok(windows)
}

/// The places that a request holds.
struct Places(#[expect(dead_code, reason = "held until it is dropped")] SmallVec<[Permit; 2]>);

impl Concurrency {
    /// Takes a place at each window, or none.
    fn enter(&self, rq: &mut RequestCx) -> Result<SmallVec<[Permit; 2]>, Fault> {
        let plan = rq.consumer.as_ref().and_then(|c| self.plans.get(&c.plan.as_ref()?.name));
        let mut places = SmallVec::new();
        for window in self.own.iter().chain(plan.into_iter().flatten()) {
            let anonymous = || (window.missing == Missing::Ip).then(|| caller::anonymous(rq));
            let Some(key) = window.by.key(rq).or_else(anonymous) else {
                if window.shadow {
                    continue;
                }
                let detail = format!("the limit `{}` has nothing to count this request by", window.name);
                return Err(Fault::new(Reason::Forbidden).detail(detail));
            };
            if rq.dry_run {
                if window.slots.taken(key) >= window.limit && !window.shadow {
                    return Err(window.refusal());
                }
                continue;
            }
            match Slots::enter(&window.slots, key, window.limit) {
                Some(permit) => places.push(permit),
                None => {
                    window.rejected.inc();
                    if !window.shadow {
                        return Err(window.refusal());
                    }
                    rq.trail.note(NAME, Outcome::Pass, "shadow", 0, Duration::ZERO);
                }
            }
        }
        Ok(places)
    }
}

impl Window {
    fn refusal(&self) -> Fault {
        let detail = format!("{} requests of `{}` are in flight", self.limit, self.name);
        let fault = Fault::new(Reason::OverQuota).detail(detail).header(RETRY_AFTER, HeaderValue::from_static("1"));
        // draft-ietf-httpapi-ratelimit-headers-10 section 4.1.2 has a unit for it.
        let policy = format!("\"{}\";q={};qu=\"concurrent-requests\"", self.name, self.limit);
        match HeaderValue::try_from(policy) {
            Ok(policy) if !self.name.contains(['"', '\\']) => fault.header(POLICY, policy),
            _ => fault,
        }
    }
}

impl Filter for Concurrency {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        match self.enter(rq) {
            Ok(places) if places.is_empty() => Step::NEXT,
            Ok(places) => {
                rq.scratch.put(Places(places));
                Step::NEXT
            }
            Err(fault) => Step::fail(fault.by(NAME)),
        }
    }
}
