//! What callers are told of their limits, whichever filter keeps them and whichever tells.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::contract::{Build, RequestCx};

/// Key of the filter that tells nothing else.
pub const USAGE: &str = "quotaUsage";
/// Key of the list of routes.
pub const CATALOGUE: &str = "catalogue";
/// Keys of routes that tell a caller what it has left: asking is free.
pub const TELLERS: [&str; 2] = [USAGE, CATALOGUE];

/// A limit that somebody keeps.
pub trait Limit: Send + Sync {
    /// The route it belongs to, or `plans.` and the name of the plan.
    fn owner(&self) -> &str;
    /// Whether a caller may be told of it: it acts, and counts by who the caller is, not by what it says.
    fn is_told(&self) -> bool;
    /// What says that two limits count the same.
    fn identity(&self) -> *const ();
    /// What this caller has left, if it is counted at all.
    fn left(&self, rq: &RequestCx) -> Option<Map<String, Value>>;
}

/// Every limit at work. Lives on across reloads.
#[derive(Default)]
pub struct Register {
    /// By route. Contended by reloads and by callers that ask for their usage.
    all: Mutex<Vec<(String, Vec<Weak<dyn Limit>>)>>,
}

impl Register {
    /// The one of the process.
    pub fn of(build: &mut Build<'_>) -> Arc<Self> {
        let scope = std::mem::replace(&mut build.scope, "quota".to_owned());
        let register = build.keep("register", "", Self::default);
        build.scope = scope;
        register
    }

    /// Puts the limits of a route in place of those it had.
    pub fn enter(self: Arc<Self>, limits: Vec<Weak<dyn Limit>>, build: &mut Build<'_>) {
        let route = build.scope.clone();
        build.at_publish(move || {
            let mut all = self.all.lock();
            all.retain(|(other, limits)| *other != route && limits.iter().any(|limit| limit.strong_count() > 0));
            all.push((route, limits));
        });
    }

    fn limits(&self) -> Vec<Arc<dyn Limit>> {
        let all = self.all.lock();
        all.iter().flat_map(|(_, limits)| limits).filter_map(Weak::upgrade).collect()
    }

    /// Who a caller is to us, and what it has left of every limit that counts it, but of limits of routes that are not
    /// `shown`.
    pub fn told(&self, rq: &RequestCx, shown: impl Fn(&str) -> bool) -> Map<String, Value> {
        let plan = rq.consumer.as_ref().and_then(|consumer| consumer.plan.as_ref());
        let mut seen = Vec::new();
        let mut limits = Vec::new();
        for limit in self.limits() {
            let mine = match limit.owner().strip_prefix("plans.") {
                Some(owner) => plan.is_some_and(|plan| *plan.name == *owner),
                None => shown(limit.owner()),
            };
            if !mine || !limit.is_told() || seen.contains(&limit.identity()) {
                continue;
            }
            seen.push(limit.identity());
            limits.extend(limit.left(rq).map(Value::Object));
        }
        let mut told = Map::new();
        told.insert("consumer".to_owned(), rq.consumer.as_ref().map(|consumer| &*consumer.name).into());
        told.insert("plan".to_owned(), plan.map(|plan| &*plan.name).into());
        told.insert("user".to_owned(), rq.user.as_ref().map(|user| &*user.subject).into());
        told.insert("limits".to_owned(), limits.into());
        told
    }
}
