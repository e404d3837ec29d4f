//! The living part of a service: its endpoints as discovery last told them, with all that was learned about each.
//!
//! A cluster outlives configs. A request reads it with one load; everything else happens on the control thread.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use onehop_filters::contract::entry::{Check, CheckWay};
use onehop_filters::contract::mesh::{Address, Balance, Discover, Endpoint, Found, Gate, Pick, Report, Switch};
use onehop_filters::contract::metrics::{Counter, Gauge, Registry};
use onehop_filters::contract::{Moment, now};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use super::group::{Group, Groups, Shape};

/// A source that suddenly knows no endpoint is not believed for this long.
pub const GRACE: Duration = Duration::from_secs(30);
/// How often a held answer is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// [`EndpointState::health`](onehop_filters::contract::mesh::EndpointState::health).
const UNKNOWN: u8 = 0;
const UNHEALTHY: u8 = 2;
/// Watchers of removals that are remembered. A new config brings its own; a few of the older ones may still hold
/// connections for requests under way.
const WATCHERS: usize = 4;

/// See the module.
pub struct Cluster {
    name: Arc<str>,
    members: ArcSwap<Members>,
    /// An operator holds the breaker open.
    shut: AtomicBool,
    /// Contended by nobody but the control thread and the admin view; never taken by a request.
    control: Mutex<Control>,
    discovery: Tenure,
    checks: Tenure,
    metrics: Metrics,
}

/// One state of the set.
pub struct Members {
    /// All of them, drained ones included.
    pub endpoints: Arc<[Arc<Endpoint>]>,
    /// Rises by one with each change.
    pub generation: u64,
    groups: Groups,
}

/// Who is told that an endpoint is gone.
type Watcher = Box<dyn Fn(&Endpoint) + Send + Sync>;

struct Control {
    balance: Arc<dyn Balance>,
    shape: Shape,
    /// Whether endpoints that join have to pass a health check first.
    wary: bool,
    gates: Vec<Weak<dyn Gate>>,
    /// What an operator says of the service's breaker.
    switch: Switch,
    watchers: Vec<Watcher>,
    source: String,
    /// When the source last answered.
    updated: Option<Moment>,
    stale: Option<String>,
    /// Since when an empty answer is held.
    held: Option<Moment>,
    /// Failed questions so far, and the last of them.
    errors: u64,
    last_error: Option<(String, Moment)>,
}

struct Metrics {
    endpoints: Gauge,
    held: Gauge,
    stale: Gauge,
    answered: Gauge,
    updates: Counter,
    failures: Counter,
}

/// One background task of a cluster at a time: it goes on as long as what it was made from stays the same.
struct Tenure {
    /// Control thread only.
    shape: Mutex<Option<String>>,
    epoch: watch::Sender<u64>,
}

impl Tenure {
    fn new() -> Self {
        Self { shape: Mutex::new(None), epoch: watch::Sender::new(0) }
    }
    /// Ends the current task and lets the caller's begin, unless the current one has the same shape. What it returns
    /// changes, or closes with the cluster, when the caller's task is to end.
    fn begin(&self, shape: &str) -> Option<watch::Receiver<u64>> {
        let mut current = self.shape.lock();
        if current.as_deref() == Some(shape) {
            return None;
        }
        *current = Some(shape.to_owned());
        self.epoch.send_modify(|n| *n += 1);
        Some(self.epoch.subscribe())
    }
}

impl Cluster {
    /// A service nothing is known about yet.
    #[must_use]
    pub fn new(name: Arc<str>, balance: Arc<dyn Balance>, metrics: &Registry) -> Self {
        let labels = [("service", &*name)];
        let metrics = Metrics {
            endpoints: metrics.gauge("onehop_service_endpoints", "Endpoints discovery knows.", &labels),
            held: metrics.gauge("onehop_discovery_held", "1 while an empty answer of discovery is held.", &labels),
            stale: metrics.gauge("onehop_discovery_stale", "1 while the set may be out of date.", &labels),
            answered: metrics.gauge(
                "onehop_discovery_answer_timestamp_seconds",
                "When discovery last answered, as Unix time.",
                &labels,
            ),
            updates: metrics.counter("onehop_discovery_updates_total", "Answers that changed the set.", &labels),
            failures: metrics.counter("onehop_discovery_failures_total", "Failed questions to discovery.", &labels),
        };
        let endpoints: Arc<[Arc<Endpoint>]> = Arc::new([]);
        let shape = Shape::default();
        let groups = Groups::new(&*balance, &endpoints, &shape);
        Self {
            name,
            members: ArcSwap::from_pointee(Members { endpoints, generation: 0, groups }),
            shut: AtomicBool::new(false),
            control: Mutex::new(Control {
                balance,
                shape,
                wary: false,
                gates: Vec::new(),
                switch: Switch::Auto,
                watchers: Vec::new(),
                source: String::new(),
                updated: None,
                stale: None,
                held: None,
                errors: 0,
                last_error: None,
            }),
            discovery: Tenure::new(),
            checks: Tenure::new(),
            metrics,
        }
    }

    /// Picks an endpoint of all or of a subset, the `wanted` one if it can be had: one load, no lock, no shared count but
    /// the endpoint's own.
    #[must_use]
    pub fn pick(&self, subset: Option<u64>, cx: &Pick<'_>, wanted: Option<u64>) -> Option<Arc<Endpoint>> {
        self.members.load().groups.find(subset)?.pick(cx, wanted)
    }

    /// How many endpoints there are, or a subset of them has.
    #[must_use]
    pub fn size(&self, subset: Option<u64>) -> usize {
        self.members.load().groups.find(subset).map_or(0, Group::size)
    }

    /// What an operator says of the breaker.
    #[must_use]
    pub fn switched(&self) -> Switch {
        self.control.lock().switch
    }

    /// Whether an operator holds it open.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.shut.load(Relaxed)
    }

    /// An operator opens or closes the breaker. Open is a set from which nothing is picked, so that a service whose
    /// breaker nobody touches pays for no question. Lasts until it is changed, whatever is loaded meanwhile.
    pub fn switch(&self, to: Switch) {
        let mut control = self.control.lock();
        tracing::warn!(service = &*self.name, from = ?control.switch, ?to, "an operator switches the circuit breaker");
        control.switch = to;
        self.shut.store(to == Switch::Open, Relaxed);
        control.gates.iter().filter_map(Weak::upgrade).for_each(|gate| gate.switch(to));
        let endpoints = self.members.load().endpoints.clone();
        self.install(&control, endpoints);
    }

    /// The current set.
    #[must_use]
    pub fn members(&self) -> Arc<Members> {
        self.members.load_full()
    }

    /// Tells `watcher` of every endpoint that discovery takes away.
    pub fn on_removed(&self, watcher: impl Fn(&Endpoint) + Send + Sync + 'static) {
        let mut control = self.control.lock();
        if control.watchers.len() == WATCHERS {
            drop(control.watchers.remove(0));
        }
        control.watchers.push(Box::new(watcher));
    }

    /// A new policy and new subsets for the same endpoints.
    pub fn rebalance(&self, balance: Arc<dyn Balance>, shape: Shape) {
        let mut control = self.control.lock();
        control.balance = balance;
        control.shape = shape;
        let endpoints = self.members.load().endpoints.clone();
        self.install(&control, endpoints);
    }

    /// The gates of a published config: they learn the set now and at each change. Those of older configs stay for as
    /// long as requests use them.
    pub fn attach(&self, gates: &[Arc<dyn Gate>]) {
        let mut control = self.control.lock();
        let endpoints = self.members.load().endpoints.clone();
        control.gates.retain(|g| g.strong_count() > 0);
        for gate in gates {
            gate.members(&endpoints);
            gate.switch(control.switch);
            control.gates.push(Arc::downgrade(gate));
        }
    }

    fn install(&self, control: &Control, endpoints: Arc<[Arc<Endpoint>]>) {
        let generation = self.members.load().generation + 1;
        let none: Arc<[Arc<Endpoint>]>;
        let offered = match control.switch {
            Switch::Open => {
                none = Arc::new([]);
                &none
            }
            Switch::Auto | Switch::Closed => &endpoints,
        };
        let groups = Groups::new(&*control.balance, offered, &control.shape);
        self.members.store(Arc::new(Members { endpoints, generation, groups }));
    }

    /// Takes an answer of discovery. Endpoints that stay keep everything; removed ones finish what they carry. An answer
    /// without any endpoint is held for [`GRACE`] first: rather a stale set than none.
    pub fn update(&self, found: &[Found], now: Moment) {
        let mut control = self.control.lock();
        let old = self.members.load_full();
        if found.is_empty() && !old.endpoints.is_empty() {
            if control.held.is_none() {
                self.metrics.held.set(1);
                tracing::warn!(service = &*self.name, source = control.source, "discovery reports no endpoints: held");
            }
            let since = *control.held.get_or_insert(now);
            if now.since(since) < GRACE {
                control.stale = Some("the source reports no endpoints".to_owned());
                self.metrics.stale.set(1);
                return;
            }
        }
        control.updated = Some(now);
        control.stale = None;
        self.metrics.stale.set(0);
        let unix = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        self.metrics.answered.set(i64::try_from(unix).unwrap_or(i64::MAX));
        self.let_go(&mut control);
        let Some((endpoints, removed)) = self.merge(&old.endpoints, found, control.wary, now) else { return };
        self.install(&control, endpoints.clone());
        for gone in &removed {
            gone.state.draining.store(true, Relaxed);
            control.watchers.iter().for_each(|tell| tell(gone));
        }
        control.gates.retain(|gate| gate.upgrade().map(|g| g.members(&endpoints)).is_some());
        self.metrics.endpoints.set(i64::try_from(endpoints.len()).unwrap_or(i64::MAX));
        self.metrics.updates.inc();
        tracing::info!(
            service = &*self.name,
            endpoints = endpoints.len(),
            removed = removed.len(),
            "endpoints changed"
        );
    }

    /// No empty answer is held any longer.
    fn let_go(&self, control: &mut Control) {
        if control.held.take().is_some() {
            self.metrics.held.set(0);
        }
    }

    /// The next set and those that left; `None` if nothing changed.
    fn merge(
        &self,
        old: &[Arc<Endpoint>],
        found: &[Found],
        wary: bool,
        now: Moment,
    ) -> Option<(Arc<[Arc<Endpoint>]>, Vec<Arc<Endpoint>>)> {
        let mut known: HashMap<&Address, &Arc<Endpoint>> = old.iter().map(|e| (&e.address, e)).collect();
        let mut changed = false;
        let mut next = Vec::with_capacity(found.len());
        let mut seen = std::collections::HashSet::with_capacity(found.len());
        for f in found {
            if !seen.insert(&f.address) {
                continue;
            }
            match known.get(&f.address) {
                // Zone and tier are part of what an endpoint is: with others it is another one. So is one that has the
                // address of another that is gone.
                Some(e) if e.priority == f.priority && e.zone == f.zone && e.identity == f.identity => {
                    changed |= e.weight.swap(f.weight, Relaxed) != f.weight;
                    changed |= e.relabel(&f.labels);
                    next.push(Arc::clone(e));
                    known.remove(&f.address);
                }
                _ => {
                    changed = true;
                    next.push(self.newcomer(f, !old.is_empty(), wary, now));
                }
            }
        }
        let removed: Vec<Arc<Endpoint>> = known.into_values().cloned().collect();
        (changed || !removed.is_empty()).then(|| (next.into(), removed))
    }

    fn newcomer(&self, f: &Found, established: bool, wary: bool, now: Moment) -> Arc<Endpoint> {
        let id = Endpoint::id_of(&self.name, &f.address);
        let mut endpoint = Endpoint::new(id, f.address.clone(), f.zone.clone(), f.priority, f.weight);
        endpoint.identity.clone_from(&f.identity);
        endpoint.relabel(&f.labels);
        if established {
            // Slow start is for those who join others, never for a whole set at start.
            endpoint.state.joined.store(now.0.max(1), Relaxed);
        }
        if wary {
            endpoint.state.health.store(UNHEALTHY, Relaxed);
        }
        Arc::new(endpoint)
    }

    /// The source failed: the last set stays, marked stale. An empty answer that is held loses its witness: it must come
    /// again to be believed.
    pub fn failed(&self, why: String, now: Moment) {
        let mut control = self.control.lock();
        self.let_go(&mut control);
        if control.stale.as_ref() != Some(&why) {
            tracing::warn!(service = &*self.name, source = control.source, why, "discovery failed");
        }
        control.stale = Some(why.clone());
        control.errors += 1;
        control.last_error = Some((why, now));
        self.metrics.stale.set(1);
        self.metrics.failures.inc();
    }

    /// Lets go of an empty answer's predecessor once the grace is over.
    fn expire(&self, now: Moment) {
        let held = self.control.lock().held;
        if held.is_some_and(|since| now.since(since) >= GRACE) {
            self.update(&[], now);
        }
    }

    /// Takes this source from now on, unless it is the one being followed: then its task goes on. Returns the task.
    pub fn follow(
        self: &Arc<Self>,
        discover: &Arc<dyn Discover>,
        shape: &str,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let replaced = self.discovery.begin(shape)?;
        {
            let mut control = self.control.lock();
            control.source = discover.describe();
            control.stale = None;
            self.metrics.stale.set(0);
            // What the last source said is none of this one's business.
            self.let_go(&mut control);
        }
        let initial = discover.initial();
        if !initial.is_empty() {
            self.update(&initial, now());
        }
        Some(follow(Arc::downgrade(self), discover.clone(), replaced))
    }

    /// Takes these checks from now on, unless they are the ones that run. `None` ends them. Returns the task.
    pub fn check(
        self: &Arc<Self>,
        check: Option<(Arc<dyn Check>, CheckWay)>,
        shape: &str,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut replaced = self.checks.begin(shape)?;
        self.control.lock().wary = check.as_ref().is_some_and(|(check, _)| check.starts_unhealthy());
        let Some((check, way)) = check else {
            // Nobody looks any more, also not at who was about to be looked at for the first time.
            self.members.load().endpoints.iter().for_each(|e| e.state.health.store(UNKNOWN, Relaxed));
            return None;
        };
        let cluster = Arc::downgrade(self);
        let members = Arc::new(move || cluster.upgrade().map(|c| c.members.load().endpoints.clone()));
        Some(async move {
            tokio::select! {
                biased;
                _ = replaced.changed() => {}
                () = check.run(members, way) => {}
            }
        })
    }

    /// For the admin endpoint.
    #[must_use]
    pub fn view(&self, now: Moment) -> ClusterView {
        let members = self.members.load_full();
        let control = self.control.lock();
        ClusterView {
            source: control.source.clone(),
            age_ms: control.updated.map(|at| millis(now.since(at))),
            stale: control.stale.clone(),
            errors: control.errors,
            last_error: control
                .last_error
                .as_ref()
                .map(|(why, at)| ErrorView { why: why.clone(), age_ms: millis(now.since(*at)) }),
            generation: members.generation,
            subsets: members.groups.sizes().map(|(name, size)| (name.to_owned(), size)).collect(),
            endpoints: members.endpoints.iter().map(|e| EndpointView::of(e, now)).collect(),
        }
    }
}

async fn follow(cluster: Weak<Cluster>, discover: Arc<dyn Discover>, mut replaced: watch::Receiver<u64>) {
    let reported = cluster.clone();
    let report = Report(Arc::new(move |answer| {
        let Some(cluster) = reported.upgrade() else { return };
        match answer {
            Ok(found) => cluster.update(&found, now()),
            Err(why) => cluster.failed(why, now()),
        }
    }));
    let Some(watch) = discover.watch(report) else { return };
    let expire = async {
        while let Some(cluster) = cluster.upgrade() {
            cluster.expire(now());
            drop(cluster);
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        biased;
        _ = replaced.changed() => {}
        () = expire => {}
        () = async { watch.await; std::future::pending().await } => {}
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// A service as `/endpoints` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterView {
    /// Kind and place of discovery.
    pub source: String,
    /// Time since its last answer; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Why the set may be out of date.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
    /// Failed questions to it so far.
    pub errors: u64,
    /// The last of them, also when it answered since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<ErrorView>,
    /// Changes so far.
    pub generation: u64,
    /// How many endpoints each subset has.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub subsets: BTreeMap<String, usize>,
    /// All of them.
    pub endpoints: Vec<EndpointView>,
}

/// A failed question to discovery.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorView {
    /// What was wrong.
    pub why: String,
    /// How long ago.
    pub age_ms: u64,
}

/// An endpoint as `/endpoints` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointView {
    pub address: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zone: String,
    pub priority: u32,
    pub weight: u32,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether a try may go there now.
    pub available: bool,
    /// By active checks: `unknown`, `healthy`, `unhealthy`.
    pub health: &'static str,
    /// Time left; 0 once it waits for its probe. Absent if it is not ejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected_for_ms: Option<u64>,
    /// How often in a row, see `outlierDetection`.
    pub ejections: u32,
    pub inflight: u32,
    /// Absent until its first answer under `peak-ewma`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ewma_ms: Option<f64>,
    /// Requests a second that it could carry, by its own reports of load. Absent until the first under `utilization`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<f64>,
    pub tries: u64,
    pub failed: u64,
}

impl EndpointView {
    fn of(e: &Endpoint, now: Moment) -> Self {
        let s = &e.state;
        let until = s.ejected_until.load(Relaxed);
        let (ewma, capacity) = (f64::from_bits(s.ewma.load(Relaxed)), f64::from_bits(s.capacity.load(Relaxed)));
        Self {
            address: e.address.to_string(),
            zone: e.zone.to_string(),
            priority: e.priority,
            weight: e.weight.load(Relaxed),
            labels: e.labels().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            available: e.available(now),
            health: match s.health.load(Relaxed) {
                1 => "healthy",
                2 => "unhealthy",
                _ => "unknown",
            },
            ejected_for_ms: (until != 0).then(|| millis(Moment(until).since(now))),
            ejections: s.ejections.load(Relaxed),
            inflight: s.inflight.load(Relaxed),
            ewma_ms: (ewma > 0.0).then(|| (ewma / 1e4).round() / 1e2),
            capacity: (capacity > 0.0).then(|| (capacity * 1e2).round() / 1e2),
            tries: s.tries.load(Relaxed),
            failed: s.failed.load(Relaxed),
        }
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
