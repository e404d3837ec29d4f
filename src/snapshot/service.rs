//! A service as a snapshot sees it: its policies, built, around the cluster that outlives them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use http::HeaderMap;
use onehop_filters::contract::entry::{Check, CheckWay};
use onehop_filters::contract::mesh::{Affinity, Balance, Discover, Endpoint, Gate, Labels, Pick, Retry, Switch};
use onehop_filters::contract::{Body, Build, ConfigError, Entry, Node, Reason, RequestCx, Role, now};
use parking_lot::Mutex;

use super::cluster::Cluster;
use super::group::{Shape, Subset};
use crate::config::plan;

/// See the module. Immutable.
pub struct Service {
    /// Name in the config.
    pub name: Arc<str>,
    /// Name of the balancing policy.
    pub policy: String,
    /// Endpoints, and what was learned about them.
    pub cluster: Arc<Cluster>,
    /// Balancing policy.
    pub balance: Arc<dyn Balance>,
    /// Passed in this order by every try.
    pub gates: Box<[Arc<dyn Gate>]>,
    /// Decides on another try.
    pub retry: Arc<dyn Retry>,
    /// Whether it may send tries side by side: spares all other services the question.
    pub hedges: bool,
    /// What binds requests to endpoints, the first that knows one decides.
    pub affinities: Arc<[Arc<dyn Affinity>]>,
    /// The part of its endpoints that requests may go to; `None`: all.
    pub subset: Option<Subset>,
    /// Whether somebody acts on answers.
    answers: bool,
}

/// Under which key a breaker shows itself.
const BREAKER: &str = "breaker";

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Service {
    /// Builds every role of a service. Nothing lives before the config is published: then the cluster takes the new
    /// policies over, and discovery and checks begin, or go on where they did not change.
    ///
    /// # Errors
    /// What is wrong with a section, and where.
    pub fn build(
        plan: &plan::Service,
        entries: &[Entry],
        build: &mut Build<'_>,
        way: CheckWay,
    ) -> Result<Self, ConfigError> {
        known(plan, entries)?;
        let discover = discover(plan, entries, build)?;
        let balance = balance(plan, entries, build)?;
        let gates = gates(plan, entries, build)?;
        let retry = retry(plan, entries, build)?;
        let affinities = affinities(plan, entries, build)?;
        let check = check(plan, entries, build)?;
        let cluster = {
            let (name, balance, metrics) = (plan.name.clone(), balance.clone(), build.metrics.clone());
            build.keep("cluster", "", || Cluster::new(name, balance, &metrics))
        };
        let service = Self {
            name: plan.name.clone(),
            policy: plan.balance.0.clone(),
            cluster,
            answers: balance.takes_answers() || !affinities.is_empty(),
            balance,
            gates: gates.into(),
            hedges: retry.attempts() != 0 && (retry.hedge(true).is_some() || retry.hedge(false).is_some()),
            retry,
            affinities: affinities.into(),
            subset: None,
        };
        service.at_publish(plan, build, discover, check.map(|c| (c, way)));
        Ok(service)
    }

    fn at_publish(
        &self,
        plan: &plan::Service,
        build: &mut Build<'_>,
        discover: Arc<dyn Discover>,
        check: Option<(Arc<dyn Check>, CheckWay)>,
    ) {
        // What a task was made from: as long as this stays the same the running one goes on.
        let source = format!("{} {} {}", plan.discover.0, plan.discover.1.to_json(), build.dir.display());
        let checks = check.as_ref().map_or_else(String::new, |(_, way)| {
            let sections: Vec<String> = plan.roles.iter().map(|(k, n)| format!("{k} {}", n.to_json())).collect();
            let tls = way.tls.as_ref().map(|t| (Arc::as_ptr(&t.config), format!("{:?}", t.name)));
            format!("{sections:?} {tls:?} {:?}", way.preface)
        });
        let (cluster, balance, gates) = (self.cluster.clone(), self.balance.clone(), self.gates.clone());
        let shape = Shape { subsets: subsets(plan).collect(), findable: !self.affinities.is_empty() };
        let tasks: [Arc<OnceLock<Mutex<Option<Task>>>>; 2] = Default::default();
        for slot in tasks.clone() {
            build.background(async move {
                let task = slot.get().and_then(|task| task.lock().take());
                if let Some(task) = task {
                    task.await;
                }
            });
        }
        build.at_publish(move || {
            let put = |slot: &OnceLock<Mutex<Option<Task>>>, task: Option<Task>| {
                // Published once, so the slot is empty.
                let _ = slot.set(Mutex::new(task));
            };
            cluster.rebalance(balance, shape);
            // Before the endpoints: those that come now may have to pass first.
            put(&tasks[1], cluster.check(check, &checks).map(|t| Box::pin(t) as Task));
            put(&tasks[0], cluster.follow(&discover, &source).map(|t| Box::pin(t) as Task));
            cluster.attach(&gates);
        });
    }

    /// The same service with a part of its endpoints.
    #[must_use]
    pub fn subset(&self, subset: &Subset) -> Self {
        Self {
            name: self.name.clone(),
            policy: self.policy.clone(),
            cluster: self.cluster.clone(),
            balance: self.balance.clone(),
            gates: self.gates.clone(),
            retry: self.retry.clone(),
            hedges: self.hedges,
            affinities: self.affinities.clone(),
            subset: Some(subset.clone()),
            answers: self.answers,
        }
    }

    /// The endpoint that a request belongs to, if something says so.
    pub fn wanted(&self, rq: &mut RequestCx) -> Option<u64> {
        // Each is asked, for each takes what says so out of the request.
        self.affinities.iter().fold(None, |wanted, affinity| {
            let other = affinity.wanted(rq);
            wanted.or(other)
        })
    }

    /// Picks an endpoint, the `wanted` one if it can be had. On the request path: no lock, no allocation.
    #[must_use]
    pub fn pick(&self, cx: &Pick<'_>, wanted: Option<u64>) -> Option<Arc<Endpoint>> {
        self.cluster.pick(self.subset.as_ref().map(|subset| subset.key), cx, wanted)
    }

    /// Why nothing was picked.
    #[must_use]
    pub fn lack(&self) -> Reason {
        match &self.subset {
            _ if self.is_empty() => Reason::NoEndpoint,
            Some(subset) if self.cluster.size(Some(subset.key)) == 0 => Reason::EmptySubset,
            _ => Reason::NoHealthyEndpoint,
        }
    }

    /// Shows an answer to who acts on answers. Costs nothing where nobody does.
    pub fn answered(&self, rq: &mut RequestCx, endpoint: &Arc<Endpoint>, headers: &mut HeaderMap, body: &mut Body) {
        if self.answers {
            self.balance.answered(endpoint, headers, body);
            self.affinities.iter().for_each(|affinity| affinity.answered(rq, endpoint));
        }
    }

    /// Whether discovery knows no endpoint at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cluster.size(None) == 0
    }

    /// Its breaker, for the admin endpoint: what it does, and what an operator says.
    #[must_use]
    pub fn breaker(&self) -> serde_json::Value {
        let gates = self.gates.iter().filter_map(|g| g.view(now()));
        let mut view = gates.into_iter().find_map(|(key, view)| (key == BREAKER).then_some(view)).unwrap_or_default();
        let switch = self.cluster.switched();
        let word = Switch::WORDS.iter().find(|(_, to)| *to == switch).map_or("auto", |(word, _)| word);
        if view.is_null() || switch == Switch::Open {
            view = serde_json::json!({ "state": if switch == Switch::Open { "open" } else { "closed" } });
        }
        view["switch"] = word.into();
        view
    }

    /// For the admin endpoint.
    #[must_use]
    pub fn view(&self) -> serde_json::Value {
        let mut view = serde_json::to_value(self.cluster.view(now())).unwrap_or_default();
        if let Some(map) = view.as_object_mut() {
            map.insert("policy".to_owned(), self.policy.clone().into());
            if let Some(subset) = &self.subset {
                map.insert("subset".to_owned(), (*subset.name).into());
            }
            map.extend(self.gates.iter().filter_map(|g| g.view(now())).map(|(key, view)| (key.to_owned(), view)));
            map.insert(BREAKER.to_owned(), self.breaker());
        }
        view
    }
}

/// Every key of the service belongs to a role.
fn known(plan: &plan::Service, entries: &[Entry]) -> Result<(), ConfigError> {
    let role = |e: &&Entry| matches!(e.role, Role::Gate(_) | Role::Retry(_) | Role::Affinity(_) | Role::Check(_));
    let names: Vec<&str> = entries.iter().filter(role).map(|e| e.name).collect();
    match plan.roles.iter().find(|(key, _)| !names.contains(&key.as_str())) {
        Some((key, node)) => Err(ConfigError::unknown(node.span, "service key", key, names)),
        None => Ok(()),
    }
}

fn discover(plan: &plan::Service, entries: &[Entry], build: &mut Build<'_>) -> Result<Arc<dyn Discover>, ConfigError> {
    let (kind, section) = &plan.discover;
    let kinds =
        || entries.iter().filter_map(|e| if let Role::Discover(make) = e.role { Some((e.name, make)) } else { None });
    match kinds().find(|(name, _)| name == kind) {
        Some((_, make)) => make(section, build),
        None => Err(ConfigError::unknown(section.span, "kind of discovery", kind, kinds().map(|(name, _)| name))),
    }
}

fn balance(plan: &plan::Service, entries: &[Entry], build: &mut Build<'_>) -> Result<Arc<dyn Balance>, ConfigError> {
    let (policy, section) = &plan.balance;
    let policies =
        || entries.iter().filter_map(|e| if let Role::Balance(make) = e.role { Some((e.name, make)) } else { None });
    match policies().find(|(name, _)| name == policy) {
        Some((_, make)) => make(section.as_ref(), build),
        None => {
            let place = section.as_ref().map(|s| s.get("policy").unwrap_or(s));
            let span = place.map_or(plan.span, |s| s.span);
            Err(ConfigError::unknown(span, "balancing policy", policy, policies().map(|(name, _)| name)))
        }
    }
}

/// Every gate there is, in the order of the list, so that defaults act.
fn gates(plan: &plan::Service, entries: &[Entry], build: &mut Build<'_>) -> Result<Vec<Arc<dyn Gate>>, ConfigError> {
    let mut gates = Vec::new();
    for entry in entries {
        if let Role::Gate(make) = entry.role {
            gates.extend(make(plan.roles.get(entry.name), build)?);
        }
    }
    Ok(gates)
}

/// The subsets of a service, in the order of their names.
pub fn subsets(plan: &plan::Service) -> impl Iterator<Item = Subset> + '_ {
    let labels = |all: &BTreeMap<String, String>| all.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Labels>();
    plan.subsets.iter().map(move |(name, all)| Subset::new(name.as_str().into(), labels(all)))
}

/// What binds requests to endpoints, in the order of the list.
fn affinities(
    plan: &plan::Service,
    entries: &[Entry],
    build: &mut Build<'_>,
) -> Result<Vec<Arc<dyn Affinity>>, ConfigError> {
    let mut affinities = Vec::new();
    for entry in entries {
        if let Role::Affinity(make) = entry.role
            && let Some(section) = plan.roles.get(entry.name)
        {
            affinities.push(make(section, build)?);
        }
    }
    Ok(affinities)
}

/// The retry policy whose key stands on the service, else the first there is.
fn retry(plan: &plan::Service, entries: &[Entry], build: &mut Build<'_>) -> Result<Arc<dyn Retry>, ConfigError> {
    let policies = || {
        entries
            .iter()
            .filter_map(|e| if let Role::Retry(make) = e.role { Some((plan.roles.get(e.name), make)) } else { None })
    };
    let chosen = policies().find(|(section, _): &(Option<&Node>, _)| section.is_some()).or_else(|| policies().next());
    match chosen {
        Some((section, make)) => make(section, build),
        None => Err(ConfigError::at(plan.span, "this build has no retry policy")),
    }
}

fn check(
    plan: &plan::Service,
    entries: &[Entry],
    build: &mut Build<'_>,
) -> Result<Option<Arc<dyn Check>>, ConfigError> {
    for entry in entries {
        if let Role::Check(make) = entry.role
            && let Some(section) = plan.roles.get(entry.name)
        {
            return make(section, build).map(Some);
        }
    }
    Ok(None)
}
