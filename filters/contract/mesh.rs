//! Mesh roles: attempt scope, once per try. Typed, so that a service without a balancer cannot be built.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderMap;

use super::body::Body;
use super::clock::Moment;
use super::fault::{Fault, Proof, Reason};
use super::principal::Priority;
use super::request::RequestCx;

/// Where an endpoint listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// Unix stream socket, `unix:///path` in the config.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(a) => a.fmt(f),
            Self::Unix(p) => write!(f, "unix://{}", p.display()),
        }
    }
}

/// One instance of a service, with everything learned about it. Survives reloads and discovery updates that keep it.
pub struct Endpoint {
    /// Stable hash of address and service: what "avoid the previous endpoint" and consistent hashing use.
    pub id: u64,
    /// Where it listens.
    pub address: Address,
    /// Zone, empty if unknown.
    pub zone: Arc<str>,
    /// Failover tier: the lowest is used first (SRV priority).
    pub priority: u32,
    /// Balancing weight; 0 = drained. May change in place.
    pub weight: AtomicU32,
    /// See [`Endpoint::labels`].
    labels: ArcSwap<Labels>,
    /// See [`Found::identity`].
    pub identity: Option<Arc<str>>,
    /// What was learned.
    pub state: EndpointState,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

/// Learned facts, all atomics: exact across workers without a lock.
#[repr(align(128))]
#[derive(Default)]
pub struct EndpointState {
    /// Tries in flight, streams until their end.
    pub inflight: AtomicU32,
    /// Peak-EWMA of latency in nanoseconds, as `f64` bits, and when it was last fed.
    pub ewma: AtomicU64,
    /// See `ewma`; a [`Moment`].
    pub ewma_at: AtomicU64,
    /// Penalty end ([`Moment`]): a 429, a fast failure or `Retry-After` makes the endpoint unattractive until then.
    pub penalty_until: AtomicU64,
    /// Failures in a row.
    pub failures: AtomicU32,
    /// Ejected until this [`Moment`]; 0 = not ejected; after it, half-open until a probe passes. Taking the probe moves
    /// it on by the probe's lease, so that a probe that vanishes (its caller left) does not shut the endpoint out for ever.
    pub ejected_until: AtomicU64,
    /// Gateway errors (502, 503, 504 and failures on the way) in a row.
    pub gateway_failures: AtomicU32,
    /// Failures to connect in a row, where they are counted apart.
    pub local_failures: AtomicU32,
    /// Judged tries of the interval under way in the upper half, failed ones in the lower, where they are counted.
    pub judged: AtomicU64,
    /// How often it was ejected, decays.
    pub ejections: AtomicU32,
    /// When it last came back from an ejection ([`Moment`]): `ejections` decays from here on.
    pub restored_at: AtomicU64,
    /// One probe is in flight (half-open).
    pub probing: AtomicBool,
    /// What it can carry by its own reports of load (requests a second), as `f64` bits; 0 = it never said.
    pub capacity: AtomicU64,
    /// When it first reported, since it last did not for long ([`Moment`]).
    pub reporting_since: AtomicU64,
    /// When it last reported ([`Moment`]).
    pub reported_at: AtomicU64,
    /// 0 unknown, 1 healthy, 2 unhealthy by active check.
    pub health: AtomicU8,
    /// When it joined ([`Moment`]); 0 = at start, no slow start.
    pub joined: AtomicU64,
    /// Removed by discovery: no new tries, existing ones finish.
    pub draining: AtomicBool,
    /// Tries ever.
    pub tries: AtomicU64,
    /// Failed tries ever.
    pub failed: AtomicU64,
}

impl Endpoint {
    /// A new endpoint nothing is known about.
    #[must_use]
    pub fn new(id: u64, address: Address, zone: Arc<str>, priority: u32, weight: u32) -> Self {
        let (weight, labels) = (AtomicU32::new(weight), ArcSwap::default());
        Self { id, address, zone, priority, weight, labels, identity: None, state: EndpointState::default() }
    }
    /// Its id within a service: the same in every process.
    #[must_use]
    pub fn id_of(service: &str, address: &Address) -> u64 {
        stable_hash(&[service.as_bytes(), address.to_string().as_bytes()])
    }
    /// What its source says of it. Changes in place; a policy that looks at it does so when it indexes the set.
    #[must_use]
    pub fn labels(&self) -> Labels {
        Labels::clone(&self.labels.load())
    }
    /// Takes what its source says now; true if that is something else.
    pub fn relabel(&self, labels: &Labels) -> bool {
        let changed = **self.labels.load() != *labels;
        if changed {
            self.labels.store(Arc::new(labels.clone()));
        }
        changed
    }
    /// Whether a try may go there now: neither drained, ejected nor found unhealthy. A half-open endpoint is available
    /// until its one probe is taken.
    #[must_use]
    pub fn available(&self, now: Moment) -> bool {
        let s = &self.state;
        if s.draining.load(Relaxed) || s.health.load(Relaxed) == 2 || self.weight.load(Relaxed) == 0 {
            return false;
        }
        match s.ejected_until.load(Relaxed) {
            0 => true,
            until => now.0 >= until,
        }
    }
    /// Whether discovery still offers it for new tries, whatever was learned about it.
    #[must_use]
    pub fn offered(&self) -> bool {
        !self.state.draining.load(Relaxed) && self.weight.load(Relaxed) != 0
    }
}

/// Hash that is the same in every process and version (FNV-1a, mixed as in SplitMix64): sidecars must agree on who owns a
/// key.
#[must_use]
pub fn stable_hash(parts: &[&[u8]]) -> u64 {
    let mut h = 0xCBF2_9CE4_8422_2325_u64;
    for part in parts {
        for byte in *part {
            h = (h ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
        // A part ends here: ("ab", "c") and ("a", "bc") differ.
        h = (h ^ 0xFF).wrapping_mul(0x0100_0000_01B3);
    }
    h = (h ^ (h >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    h ^ (h >> 31)
}

/// One endpoint as a discovery source reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where.
    pub address: Address,
    /// Weight, 1 by default.
    pub weight: u32,
    /// Zone, empty if unknown.
    pub zone: Arc<str>,
    /// Failover tier.
    pub priority: u32,
    /// What else the source says of it.
    pub labels: Labels,
    /// What tells it from another that later has its address, such as a pod's uid. `None`: nothing but the address.
    pub identity: Option<Arc<str>>,
}

impl Found {
    /// An endpoint of which nothing but its address is known.
    #[must_use]
    pub fn at(address: Address) -> Self {
        Self { address, weight: 1, zone: "".into(), priority: 0, labels: Labels::default(), identity: None }
    }
}

/// Names and values that a source attaches to an endpoint (tags, metadata, labels): what subsets are made of. None cost
/// no allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Option<Arc<[Label]>>);

/// A name and its value.
type Label = (Box<str>, Box<str>);

impl Labels {
    /// The value of a name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|all| all.iter()).map(|(name, value)| (&**name, &**value))
    }
}

impl<N: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(N, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let all: BTreeMap<Box<str>, Box<str>> =
            pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        // A list of what is there: a node of a map has room for eleven, and there may be an endpoint for each.
        Self((!all.is_empty()).then(|| all.into_iter().collect()))
    }
}

/// Finds the endpoints of a service. Runs on the control thread.
pub trait Discover: Send + Sync + 'static {
    /// Endpoints known without waiting (static lists, unix sockets, literal addresses).
    fn initial(&self) -> Vec<Found> {
        Vec::new()
    }
    /// Watches for ever, reporting each answer and each failure; `None` if `initial` is all there ever is. The task is
    /// dropped when the service is gone.
    fn watch(&self, report: Report) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let _ = report;
        None
    }
    /// Source and place, for `/endpoints`: `dns orders.shop.svc:8080`.
    fn describe(&self) -> String;
}

/// Where a discovery source reports to.
#[derive(Clone)]
pub struct Report(pub Arc<dyn Fn(Result<Vec<Found>, String>) + Send + Sync>);

impl Report {
    /// A new answer: the whole list.
    pub fn found(&self, list: Vec<Found>) {
        (self.0)(Ok(list));
    }
    /// The source failed; the last list stays and is marked stale.
    pub fn failed(&self, why: impl Into<String>) {
        (self.0)(Err(why.into()));
    }
}

/// A balancing policy.
pub trait Balance: Send + Sync + 'static {
    /// Prepares to pick from this set (tables, rings); called on the control thread whenever the set changes.
    fn index(&self, endpoints: Arc<[Arc<Endpoint>]>) -> Box<dyn Picker>;
    /// The hash of the request this policy wants, if it hashes.
    fn hash(&self, rq: &RequestCx) -> Option<u64> {
        let _ = rq;
        None
    }
    /// Feeds a finished try back (EWMA).
    fn observe(&self, endpoint: &Endpoint, outcome: &TryOutcome<'_>, now: Moment) {
        let _ = (endpoint, outcome, now);
    }
    /// An answer that was passed on ended with this gRPC status, which is not 0.
    fn ended(&self, endpoint: &Endpoint, grpc: u32, now: Moment) {
        let _ = (endpoint, grpc, now);
    }
    /// Whether [`Balance::answered`] does anything; asked once.
    fn takes_answers(&self) -> bool {
        false
    }
    /// An answer on its way to the caller: may take fields out that are meant for balancers, and look at trailers.
    fn answered(&self, endpoint: &Arc<Endpoint>, headers: &mut HeaderMap, body: &mut Body) {
        let _ = (endpoint, headers, body);
    }
}

/// Binds requests to endpoints: a session, an endpoint that a caller names. The balancer decides where it knows none, or
/// where the endpoint is not available.
pub trait Affinity: Send + Sync + 'static {
    /// [`Endpoint::id`] of the endpoint that this request belongs to. Takes what says so out of the request. Asked once.
    fn wanted(&self, rq: &mut RequestCx) -> Option<u64>;
    /// An endpoint answered: may add to [`RequestCx::reply_headers`] what binds the caller to it.
    fn answered(&self, rq: &mut RequestCx, endpoint: &Endpoint) {
        let _ = (rq, endpoint);
    }
}

/// Picks one endpoint of a prepared set. On the request path: no lock, no allocation.
pub trait Picker: Send + Sync {
    /// The endpoint to try, `None` if none is available.
    fn pick(&self, cx: &Pick<'_>) -> Option<Arc<Endpoint>>;
}

/// What a pick may look at.
pub struct Pick<'a> {
    /// Now.
    pub now: Moment,
    /// A fresh random number.
    pub seed: u64,
    /// The request's hash, see [`Balance::hash`].
    pub hash: Option<u64>,
    /// Ids of endpoints this request has tried; avoided while another is available.
    pub tried: &'a [u64],
}

/// What came of a try.
pub struct TryOutcome<'a> {
    /// Response status and fields, or the failure.
    pub result: Result<(http::StatusCode, &'a HeaderMap), (Reason, Proof)>,
    /// gRPC status, if the response head carries one (trailers-only).
    pub grpc: Option<u32>,
    /// From pick to response head or failure.
    pub latency: Duration,
}

/// Admits tries and learns from them: caps, circuit breaker, outlier detection.
pub trait Gate: Send + Sync + 'static {
    /// Asks for a place for one try. Released by [`Gate::release`], exactly once per admission. Where there is a
    /// queue, the higher priority goes first.
    fn admit(&self, now: Moment, priority: Priority) -> Admit<'_> {
        let _ = (now, priority);
        Admit::Yes
    }
    /// The service's endpoints, when they are first known and whenever they change. On the control thread.
    fn members(&self, endpoints: &[Arc<Endpoint>]) {
        let _ = endpoints;
    }
    /// An endpoint was picked for this admission (a half-open endpoint's probe is claimed here). False: pick another.
    fn picked(&self, endpoint: &Endpoint, now: Moment) -> bool {
        let _ = (endpoint, now);
        true
    }
    /// The response head arrived, or the try failed.
    fn observe(&self, endpoint: &Endpoint, outcome: &TryOutcome<'_>, now: Moment) {
        let _ = (endpoint, outcome, now);
    }
    /// The try is over: its body ended, failed or was dropped. Also called when no endpoint was picked.
    fn release(&self, endpoint: Option<&Endpoint>) {
        let _ = endpoint;
    }
    /// An operator opens or closes the service's breaker by hand. Said again to the gates of each new config.
    fn switch(&self, to: Switch) {
        let _ = to;
    }
    /// What `/endpoints` shows of it beside the endpoints, and under which key.
    fn view(&self, now: Moment) -> Option<(&'static str, serde_json::Value)> {
        let _ = now;
        None
    }
}

/// Who decides about a service's breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Switch {
    /// The breaker.
    #[default]
    Auto,
    /// An operator: nothing goes out. The engine sees to it, whatever gates there are.
    Open,
    /// An operator: it never trips.
    Closed,
}

impl Switch {
    /// Each by its word.
    pub const WORDS: [(&'static str, Self); 3] = [("auto", Self::Auto), ("open", Self::Open), ("closed", Self::Closed)];
}

/// An answer to [`Gate::admit`].
#[must_use]
pub enum Admit<'a> {
    /// Go.
    Yes,
    /// Wait for a place; bounded in time by the gate.
    Wait(Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + 'a>>),
    /// No.
    No(Fault),
}

/// Decides on another try.
pub trait Retry: Send + Sync + 'static {
    /// A first try begins: feeds the budget.
    fn begin(&self, now: Moment) {
        let _ = now;
    }
    /// After a failed or answered try: again?
    fn judge(&self, cx: &Judge<'_>) -> Again;
    /// Bytes of request body worth keeping for another try; 0 = never retries a request with a body.
    fn body_limit(&self) -> usize {
        0
    }
    /// Limit of one try.
    fn per_try_timeout(&self) -> Option<Duration> {
        None
    }
    /// Whether answers that look like successes are worth a question too (retriable fields on a 2xx).
    fn judges_successes(&self) -> bool {
        false
    }
    /// When to send another try beside one that is slow, if ever. Asked only if there are retries.
    fn hedge(&self, idempotent: bool) -> Option<Hedge> {
        let _ = idempotent;
        None
    }
    /// Takes a hedge out of the budget, if it is in it.
    fn grants(&self, now: Moment) -> bool {
        let _ = now;
        false
    }
    /// Whether a retry prefers an endpoint of another zone than that of the failed try.
    fn other_zone(&self) -> bool {
        false
    }
    /// Retries after the first try at most; 0 lets the engine skip every preparation.
    fn attempts(&self) -> u32;
}

/// Tries beside a slow one: the first good answer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// After so long without an answer, each.
    pub after: Duration,
    /// At most so many.
    pub max: u32,
}

/// What a retry decision may look at.
pub struct Judge<'a> {
    /// Now.
    pub now: Moment,
    /// The deadline of the whole request.
    pub deadline: Moment,
    /// Tries made, at least 1.
    pub tries: u32,
    /// Whether the method is idempotent (RFC 9110 section 9.2.2).
    pub idempotent: bool,
    /// Whether the body can be sent again (none, or fully kept).
    pub replayable: bool,
    /// What came of the try.
    pub outcome: &'a TryOutcome<'a>,
    /// A fresh random number.
    pub seed: u64,
}

/// A retry decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// After this pause.
    After(Duration),
    /// No: why, as a stable word (`not-retriable`, `attempts`, `budget`, `deadline`, `body`,
    /// `unsafe`, `pushback`: the endpoint asked for a longer pause than the policy grants).
    No(&'static str),
}
