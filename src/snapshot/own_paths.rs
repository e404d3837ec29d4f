//! Routes that nobody wrote: the paths an identity answers by itself, such as the end of a login. They exist on every
//! listener and host where a route asks that identity, whatever the route's own matches say, as exact paths; a route of
//! the configuration with the same exact path comes before them.

use std::sync::Arc;

use onehop_filters::contract::{
    AuthStep, AuthVerdict, Authenticator, Directory, Fault, Filter, Reason, RequestCx, RouteInfo, Step, Verdict,
};

use super::compile::{Compiler, unrouted};
use super::{Link, Route};
use crate::config::plan::{Match, PathMatch, Plan};
use crate::observe::metrics::RouteMetrics;
use crate::route::RouteSpec;

/// Name under which the filter shows in trails and faults.
const NAME: &str = "identity";

/// Paths of one identity on the hosts of one route.
#[derive(Debug, PartialEq, Eq)]
pub struct OwnPaths {
    listeners: Option<Vec<String>>,
    /// What the table needs.
    pub spec: RouteSpec,
    /// Position of the identity's route in the snapshot.
    pub route: u32,
}

impl OwnPaths {
    /// Whether they exist on a listener.
    pub fn is_on(&self, listener: &str) -> bool {
        self.listeners.as_ref().is_none_or(|names| names.iter().any(|name| name == listener))
    }
}

/// Adds a route for each identity that has paths and is asked somewhere.
pub fn add(
    compiler: &mut Compiler<'_, '_>,
    plan: &Plan,
    directory: &Directory,
    routes: &mut Vec<Route>,
) -> Vec<OwnPaths> {
    let mut own: Vec<OwnPaths> = Vec::new();
    for (name, identity) in directory.identities.iter().filter(|(_, i)| !i.paths().is_empty()) {
        let is_asked = |route: &Route| route.identities.iter().any(|i| Arc::ptr_eq(i, identity));
        let asking: Vec<usize> = (0..plan.routes.len()).filter(|i| is_asked(&routes[*i])).collect();
        let (Ok(position), false) = (u32::try_from(routes.len()), asking.is_empty()) else { continue };
        let exact = |path: &str| Match { path: Some(PathMatch::Exact(path.to_owned())), ..Match::default() };
        for route in asking.into_iter().map(|i| &plan.routes[i]) {
            let spec = RouteSpec {
                hosts: route.hosts.clone(),
                matches: identity.paths().iter().map(|path| exact(path)).collect(),
            };
            let paths = OwnPaths { listeners: route.listeners.clone(), spec, route: position };
            if !own.contains(&paths) {
                own.push(paths);
            }
        }
        let name: Arc<str> = format!("identities.{name}").into();
        let filter = Arc::new(Answers(identity.clone()));
        routes.push(Route {
            info: Arc::new(RouteInfo { name: name.clone(), upgrades: Vec::new(), to: Vec::new() }),
            chain: Box::new([Link { name: NAME, filter, response: false }]),
            request_timeout: Some(std::time::Duration::from_secs(15)),
            metrics: RouteMetrics::new(compiler.metrics, &name),
            ..unrouted(compiler.metrics)
        });
    }
    own
}

/// Lets an identity answer.
struct Answers(Arc<dyn Authenticator>);

impl Filter for Answers {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        if rq.dry_run {
            return Step::reply(http::Response::default());
        }
        match self.0.authenticate(rq) {
            AuthStep::Done(verdict) => Step::Done(concluded(verdict)),
            AuthStep::Wait(later) => Step::Wait(Box::pin(async { concluded(later.await) })),
        }
    }
}

fn concluded(verdict: AuthVerdict) -> Verdict {
    let fault = match verdict {
        AuthVerdict::Reply(reply) => return Verdict::Reply(reply),
        AuthVerdict::Refused(error) => Fault::new(Reason::LoginFailed).detail(error.description),
        AuthVerdict::Unavailable(why) => Fault::new(Reason::IdentityUnavailable).detail(why),
        AuthVerdict::Accepted | AuthVerdict::Absent => Fault::new(Reason::NoRoute),
    };
    Verdict::Fail(Box::new(fault.by(NAME)))
}
