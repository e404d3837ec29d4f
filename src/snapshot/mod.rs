//! A configuration, compiled: immutable, published as one pointer, read by every request from its first filter to its
//! last byte.

pub mod cell;
pub mod cluster;
pub mod compile;
pub mod estate;
pub mod group;
pub mod incoming;
pub mod overload;
pub mod own_paths;
pub mod service;
pub mod split;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use onehop_filters::contract::{Authenticator, Directory, Filter, RouteInfo};

use crate::config::plan;
use crate::observe::access_log::AccessLog;
use crate::observe::metrics::{EngineMetrics, RouteMetrics, ServiceMetrics, TcpMetrics};
use crate::observe::spans::Tracer;
use crate::route::Table;
use crate::upstream::Upstream;
use crate::upstream::passthrough::Passthrough;
use incoming::Incoming;
use overload::Overload;
use service::Service;
use split::Split;

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
    /// By position: splits hold positions. First the services in the order of their names, then their subsets.
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
    /// What is given up first when there is too much to do.
    pub overload: Option<Overload>,
    /// `lifecycle` as configured.
    pub lifecycle: plan::Lifecycle,
    /// Names that filters refer to.
    pub directory: Directory,
    /// Calls under way, where some route takes anything over from them.
    pub incoming: Option<Arc<Incoming>>,
    /// Whether some route takes over who the user is.
    pub carries_identity: bool,
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
    /// Whether a route of it takes anything over from an incoming call.
    pub carries: bool,
}

impl Listener {
    /// Whether requests on it are calls that an application makes on behalf of others, not such others themselves.
    #[must_use]
    pub fn is_outbound(&self) -> bool {
        self.plan.capture == Some(plan::Capture::Outbound) || (self.plan.mesh && self.carries)
    }
}

/// A route, ready to run.
pub struct Route {
    /// What filters know of it.
    pub info: Arc<RouteInfo>,
    /// API filters, outermost first.
    pub chain: Box<[Link]>,
    /// How many links stand before the point where the caller is known and nothing has been charged.
    pub known: u16,
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
    /// See [`crate::config::plan::Route::carry_identity`].
    pub carry_identity: bool,
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
    /// Those of its connections, if TCP listeners pass any to it.
    pub tcp: Option<TcpMetrics>,
}

/// See [`plan::Fallback`].
#[derive(Clone)]
pub enum Fallback {
    /// Answers in its place.
    Respond(Arc<plan::Canned>),
    /// Calls another service, by position.
    Target(usize),
}

impl Target {
    /// The same service and the same way to it, with a part of its endpoints.
    #[must_use]
    pub fn subset(&self, subset: &group::Subset) -> Self {
        Self {
            service: self.service.subset(subset),
            upstream: self.upstream.clone(),
            fallback: self.fallback.clone(),
            metrics: self.metrics.clone(),
            tcp: self.tcp.clone(),
        }
    }
}

impl Route {
    /// Whom its filters ask who the user is, in the order they ask.
    pub fn identities(&self) -> impl Iterator<Item = &Arc<dyn Authenticator>> {
        self.chain.iter().flat_map(|link| link.filter.asks().identities)
    }
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
        self.services().map(|target| &*target.upstream).chain(strangers)
    }

    /// Targets that are whole services.
    fn services(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter(|target| target.service.subset.is_none())
    }

    /// The service of this name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.targets.iter().map(|target| &target.service).find(|service| &*service.name == name)
    }

    /// Every service's endpoints, for `/endpoints`.
    #[must_use]
    pub fn endpoints(&self) -> serde_json::Value {
        let all: BTreeMap<&str, serde_json::Value> =
            self.services().map(|t| (&*t.service.name, t.service.view())).collect();
        serde_json::json!({ "generation": self.generation, "services": all })
    }
}
