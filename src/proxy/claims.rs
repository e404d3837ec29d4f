//! Routes that match on claims. The identities of the routes in question are asked before one is chosen, and the route
//! is not chosen again afterwards: what the user was authorised as is what the request was routed by.

use std::sync::Arc;

use onehop_filters::contract::principal::User;
use onehop_filters::contract::{AuthStep, AuthVerdict, Authenticator, Judged};

use super::exchange::Exchange;
use crate::route::Probe;
use crate::snapshot::Listener;

/// A route and how much of the path it covers.
pub type Found = Option<(u32, usize)>;

/// Asks the identities of `undecided`, the routes that would match if claims were right, best first, and chooses. Who
/// nobody vouches for gets the route that matches without claims; where there is none, the first of these, which
/// refuses. What cannot be judged is not decided by another route either.
///
/// The choice, and who the user is as far as it mattered.
pub async fn choose(ex: &mut Exchange, listener: &Listener, undecided: &[(u32, usize)]) -> (Found, Option<Arc<User>>) {
    let view = ex.view.clone();
    let cx = &mut ex.cx;
    // An identity takes its credential out and writes fields: undone if the route chosen does not ask it.
    let (headers, target) = (cx.headers.clone(), cx.target.clone());
    for name in view.directory.identities.values().flat_map(|i| i.claims_headers()) {
        cx.headers.remove(name);
    }
    let mut judged = Judged::default();
    let mut accepted: Vec<Arc<dyn Authenticator>> = Vec::new();
    let mut stuck = None;
    'routes: for route in undecided {
        for identity in &view.routes[route.0 as usize].identities {
            if judged.verdict(identity).is_some() {
                continue;
            }
            let verdict = match identity.authenticate(cx) {
                AuthStep::Done(verdict) => verdict,
                AuthStep::Wait(later) => later.await,
            };
            let (yes, no) = match &verdict {
                AuthVerdict::Accepted => (true, false),
                AuthVerdict::Unavailable(_) | AuthVerdict::Reply(_) => (false, true),
                AuthVerdict::Absent | AuthVerdict::Refused(_) => (false, false),
            };
            judged.note(identity, verdict);
            if yes {
                accepted.push(identity.clone());
                // A key or a certificate has no claims; somebody else may.
                if cx.user.is_some() {
                    break 'routes;
                }
            }
            if no {
                stuck.get_or_insert(*route);
            }
        }
    }
    let user = cx.user.clone();
    let probe = Probe {
        host: cx.authority.host(),
        path: target.path(),
        query: target.query(),
        method: &cx.method,
        headers: &headers,
        claims: user.as_ref().map(|user| &user.claims),
    };
    let looked_up = || listener.table.lookup(&probe).map(|hit| (*hit.value, hit.covered));
    let found = match (&user, stuck) {
        (Some(_), _) => looked_up(),
        (None, Some(route)) => Some(route),
        (None, None) => looked_up().or_else(|| undecided.first().copied()),
    };
    let asks = |by: &Arc<dyn Authenticator>| {
        let route = found.map(|(i, _)| &view.routes[i as usize]);
        route.is_some_and(|route| route.identities.iter().any(|identity| Arc::ptr_eq(identity, by)))
    };
    if !accepted.iter().all(asks) {
        judged.forget_accepted();
        (cx.headers, cx.target) = (headers, target);
        (cx.user, cx.consumer) = (None, None);
    }
    if found.is_some_and(|(i, _)| !view.routes[i as usize].identities.is_empty()) {
        cx.scratch.put(judged);
    }
    (found, user)
}
