//! A configuration, compiled: immutable, published as one pointer, read by every request from its first filter to its
//! last byte.

pub mod cell;
pub mod cluster;
pub mod compile;
pub mod estate;
pub mod service;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use onehop_filters::contract::{Directory, Filter, RouteInfo};

use crate::config::plan;
use crate::observe::access_log::AccessLog;
use crate::observe::metrics::{EngineMetrics, RouteMetrics, ServiceMetrics};
use crate::observe::spans::Tracer;
use crate::route::Table;
use crate::upstream::Upstream;
use crate::upstream::passthrough::Passthrough;
use service::Service;

/// See the module.
pub struct Snapshot {
    /// Rises by one with each published config.
    pub generation: u64,
    /// Hash of the config's text.
    pub hash: u64,
    /// By position; a connection knows its listener by name.
    pub listeners: Vec<Listener>,
    /// By position: tables hold positions.
    pub routes: Vec<Route>,
    /// By position: splits hold positions.
    pub targets: Vec<Target>,
    /// What stands in for a route where none matched.
    pub unrouted: Route,
    /// Where request lines go.
    pub access_log: Option<Arc<AccessLog>>,
    /// Where spans go.
    pub tracer: Option<Arc<Tracer>>,
    /// What is counted once per process.
    pub engine: EngineMetrics,
    /// `telemetry` as configured.
    pub telemetry: plan::Telemetry,
    /// `lifecycle` as configured.
    pub lifecycle: plan::Lifecycle,
    /// Names that filters refer to.
    pub directory: Directory,
}

/// A listener as requests see it.
pub struct Listener {
    /// As configured.
    pub plan: Arc<plan::Listener>,
    /// Its routes, as positions in [`Snapshot::routes`].
    pub table: Table<u32>,
    /// The route of requests to hosts that the table does not know, if they are passed through.
    pub stranger: Option<u32>,
    /// Whether a route of it takes a deadline over from any caller.
    pub inherits: bool,
}

/// A route, ready to run.
pub struct Route {
    /// What filters know of it.
    pub info: Arc<RouteInfo>,
    /// API filters, outermost first.
    pub chain: Box<[Link]>,
    /// Whether any link acts on responses.
    pub answers: bool,
    /// Whether the chain answers cross-origin preflights.
    pub preflights: bool,
    /// Limit of everything; `None` = no limit.
    pub request_timeout: Option<Duration>,
    /// Limit of standing still; `None` = no limit.
    pub idle_timeout: Option<Duration>,
    /// Overrides the listener's body limit.
    pub body_limit: Option<u64>,
    /// Whether a caller's deadline is taken over from any peer. It can only shorten what the route allows.
    pub inherit_deadline: bool,
    /// What it does in the end.
    pub action: Action,
    /// Its handles.
    pub metrics: RouteMetrics,
}

/// One filter in a chain.
pub struct Link {
    /// Its name, for the trail.
    pub name: &'static str,
    /// The filter.
    pub filter: Arc<dyn Filter>,
    /// Whether it is called on the way out.
    pub response: bool,
}

/// What a route does in the end.
pub enum Action {
    /// Calls a service.
    Forward(Split),
    /// Sends the caller elsewhere.
    Redirect(Box<plan::Redirect>),
    /// Answers by itself.
    Respond(Arc<plan::Canned>),
    /// Calls the host that the request names.
    Pass(Arc<Passthrough>),
    /// Refuses: no route matched.
    Nothing,
}

/// Weighted choice of a target.
pub struct Split {
    /// Running sums of the weights, with positions in [`Snapshot::targets`].
    targets: Box<[(u32, usize)]>,
    total: u32,
}

impl Split {
    /// From targets and weights.
    #[must_use]
    pub fn new(targets: &[(usize, u32)]) -> Self {
        let mut total = 0u32;
        let targets = targets
            .iter()
            .map(|(i, weight)| {
                total = total.saturating_add(*weight);
                (total, *i)
            })
            .collect();
        Self { targets, total }
    }

    /// Chooses by a random number; `None` if every weight is 0 (Gateway API: 500).
    #[must_use]
    pub fn choose(&self, seed: u64) -> Option<usize> {
        match &*self.targets {
            _ if self.total == 0 => None,
            [(_, only)] => Some(*only),
            many => {
                // Multiply-shift instead of a division; the bias is below 2^-32.
                let at = u32::try_from(((seed >> 32) * u64::from(self.total)) >> 32).unwrap_or(u32::MAX);
                many.iter().find(|(sum, _)| at < *sum).map(|(_, i)| *i)
            }
        }
    }

    /// Positions of the targets.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.targets.iter().map(|(_, i)| *i)
    }
}

/// A service and the way to it.
pub struct Target {
    /// Roles and living endpoints.
    pub service: Service,
    /// Connections.
    pub upstream: Arc<Upstream>,
    /// What to do when it fails.
    pub fallback: Option<Fallback>,
    /// Its handles.
    pub metrics: ServiceMetrics,
}

/// See [`plan::Fallback`].
pub enum Fallback {
    /// Answers in its place.
    Respond(Arc<plan::Canned>),
    /// Calls another service, by position.
    Target(usize),
}

impl Snapshot {
    /// The listener of this name.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<&Listener> {
        self.listeners.iter().find(|l| &*l.plan.name == name)
    }

    /// Every way out.
    pub fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        let strangers = self.routes.iter().filter_map(|route| match &route.action {
            Action::Pass(way) => Some(way.upstream()),
            _ => None,
        });
        self.targets.iter().map(|target| &*target.upstream).chain(strangers)
    }

    /// Every service's endpoints, for `/endpoints`.
    #[must_use]
    pub fn endpoints(&self) -> serde_json::Value {
        let all: BTreeMap<&str, serde_json::Value> =
            self.targets.iter().map(|t| (&*t.service.name, t.service.view())).collect();
        serde_json::json!({ "generation": self.generation, "services": all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_follows_the_weights() {
        let split = Split::new(&[(7, 90), (8, 0), (9, 10)]);
        let mut seen = [0u32; 10];
        let mut seed = 0u64;
        for _ in 0..100_000 {
            seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (seed ^ (seed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            seen[split.choose(mixed ^ (mixed >> 32)).expect("weights are not all zero")] += 1;
        }
        assert!((88_500..91_500).contains(&seen[7]), "{seen:?}");
        assert_eq!(seen[8], 0);
    }

    #[test]
    fn all_zero_chooses_nobody() {
        assert_eq!(Split::new(&[(0, 0), (1, 0)]).choose(42), None);
    }
}
