//! A count that processes share: each leases units ahead, so that a request is decided here and now. See [`slice`].

#[cfg(feature = "redis")]
mod link;
mod slice;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use foldhash::fast::FixedState;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use super::calendar::{Calendar, Period};
use super::cells::Tracks;
use super::config::Limit;
use super::core::{Charge, Meter, Rate, Tally};
use crate::api::caller::{Id, Key};
use crate::contract::metrics::{Counter, Gauge, Histogram, Registry};
use crate::contract::state::{OnFailure, Settings};
use crate::contract::{Build, ConfigError, Moment, now};
use slice::{Grant, Said, Slice};

const SHARDS: usize = 64;
/// A slice that nobody used for so long gives its lease back.
const IDLE: Duration = Duration::from_secs(2);
/// One that nobody used for so long is forgotten.
const GONE: Duration = Duration::from_secs(600);
/// Largest lease by default.
const LEASE: u64 = 1000;

/// What is counted.
pub struct Terms {
    /// Units.
    pub limit: u64,
    /// Length of a rolling window.
    pub per: Duration,
    /// Units at once in a rolling window.
    pub burst: u64,
    /// The calendar, if it is one.
    pub calendar: Option<Arc<Calendar>>,
}

/// What a shared count says.
pub enum Take {
    /// So it is.
    Decided(Charge),
    /// Redis is away and nothing may be admitted without it.
    Unknown,
    /// Redis must be asked.
    Ask,
}

/// One shared limit. Lives on across reloads.
pub struct Shared {
    /// What its keys in Redis begin with.
    name: String,
    link: Arc<Link>,
    rule: ArcSwap<Rule>,
    /// As [`super::cells::Cells`]: contended for a look-up and a few additions.
    shards: Box<[Mutex<Shard>]>,
    per_shard: usize,
    tracks: Tracks,
    bounds: [Gauge; 2],
}

type Shard = HashMap<Key, Slice, FixedState>;

/// What a reload may change.
struct Rule {
    terms: Terms,
    lease: u64,
    /// A node's share of a rolling window, for this many nodes.
    share: (u64, Rate),
}

/// The way to Redis. Lives on across reloads.
pub struct Link {
    settings: Arc<Settings>,
    up: AtomicBool,
    /// Processes that were seen at Redis.
    seen: AtomicU64,
    asks: mpsc::UnboundedSender<Ask>,
    /// Taken by the task that works on them.
    asked: Mutex<Option<mpsc::UnboundedReceiver<Ask>>>,
    /// Somebody waited in vain.
    suspect: Notify,
    /// Contended by reloads and sweeps only.
    all: Mutex<Vec<std::sync::Weak<Shared>>>,
    told: Told,
}

/// Handles of the link.
struct Told {
    up: Gauge,
    nodes: Gauge,
    leases: Counter,
    units: Counter,
    waits: Counter,
    errors: Counter,
    fallbacks: Counter,
    took: Histogram,
}

/// A question to Redis.
struct Ask {
    shared: Arc<Shared>,
    key: Key,
    id: Id,
    period: Option<Period>,
    terms: slice::Terms,
    /// Told when the answer has been taken in; dropped if there is none.
    done: Option<oneshot::Sender<()>>,
}

/// Builds a shared limit. `(name, route, shape)`: see [`Build::keep`].
///
/// # Errors
/// There is no Redis to share it in.
pub fn build(
    limit: &Limit,
    terms: Terms,
    (name, route, shape): (&str, &str, &str),
    max_keys: usize,
    tracks: Tracks,
    build: &mut Build<'_>,
) -> Result<Arc<Shared>, ConfigError> {
    let scope = limit.scope.as_ref().map_or(build.span, |s| s.span);
    let settings = build.directory.state.clone();
    if settings.redis.is_none() {
        return Err(ConfigError::at(scope, "`scope: shared` needs `state.redis`")
            .help("add `state: { redis: \"redis://127.0.0.1:6379\" }`"));
    }
    if !cfg!(feature = "redis") {
        return Err(ConfigError::at(scope, "this build has no Redis").help("use `scope: local`"));
    }
    let lease = limit.lease.as_ref().map_or((terms.limit / 100).clamp(1, LEASE), |l| l.value);
    if let Some(at) = limit.lease.as_ref().filter(|_| lease == 0 || lease > terms.limit) {
        return Err(ConfigError::at(at.span, "a lease is 1 to the limit")
            .help("more is exchanged less often, and more may be admitted too many: nodes x lease"));
    }
    let link = Link::of(build);
    let rule = Rule::new(terms, lease, link.nodes());
    let full = format!("{}:quota:{{{}/{name}", settings.prefix, build.scope).replace(['}', ' '], "_");
    let labels = |when| [("route", route), ("policy", name), ("while", when)];
    let bound = |when| {
        let help = "Units that may be admitted beyond the limit of a shared quota";
        build.metrics.gauge("onehop_quota_over_admission", help, &labels(when))
    };
    let bounds = [bound("connected"), bound("away")];
    let (connected, away) = rule.bounds(link.nodes());
    let nodes = link.nodes();
    let known = if settings.nodes.is_some() { "state.nodes" } else { "none seen yet, set `state.nodes`" };
    build.directory.remarks.lock().push(format!(
        "quota `{name}` of {}: at most {connected} beyond {} (nodes x lease = {nodes} x {lease}; nodes: {known}); {}",
        build.scope,
        rule.terms.limit,
        match settings.on_failure {
            OnFailure::Local => format!(
                "while Redis is away at most {away} more ((nodes - 1) x share, share = limit / nodes = {})",
                rule.share_of(nodes)
            ),
            OnFailure::Deny => "while Redis is away none more".to_owned(),
        }
    ));
    let shape = format!("{shape} {:p}", Arc::as_ptr(&link));
    let (l, starting) = (link.clone(), Rule::new(rule.terms.copy(), lease, nodes));
    let shared = build.keep(&format!("quota/{name}"), &shape, move || Shared {
        name: full,
        link: l,
        rule: ArcSwap::from_pointee(starting),
        shards: (0..if max_keys < 64 * SHARDS { 1 } else { SHARDS }).map(|_| Mutex::default()).collect(),
        per_shard: max_keys.div_ceil(if max_keys < 64 * SHARDS { 1 } else { SHARDS }).max(1),
        tracks,
        bounds,
    });
    let kept = shared.clone();
    build.at_publish(move || {
        kept.rule.store(Arc::new(rule));
        kept.tell_bounds();
        let mut all = kept.link.all.lock();
        all.retain(|other| other.strong_count() > 0 && other.as_ptr() != Arc::as_ptr(&kept));
        all.push(Arc::downgrade(&kept));
    });
    #[cfg(feature = "redis")]
    build.background(link::run(link));
    Ok(shared)
}

impl Terms {
    fn copy(&self) -> Self {
        Self { calendar: self.calendar.clone(), ..*self }
    }
}

impl Rule {
    fn new(terms: Terms, lease: u64, nodes: u64) -> Self {
        let mut rule = Self { share: (0, Rate::new(1, terms.per, 1)), terms, lease };
        rule.share = (nodes, rule.rate(nodes));
        rule
    }

    /// What a node may admit alone.
    fn share_of(&self, nodes: u64) -> u64 {
        (self.terms.limit / nodes).max(1)
    }

    fn rate(&self, nodes: u64) -> Rate {
        Rate::new(self.share_of(nodes), self.terms.per, (self.terms.burst / nodes).max(1))
    }

    /// Units beyond the limit: with Redis, and how many more without.
    fn bounds(&self, nodes: u64) -> (u64, u64) {
        (nodes * self.lease, (nodes - 1) * self.share_of(nodes))
    }

    fn period(&self) -> Option<Period> {
        self.terms.calendar.as_ref().map(|calendar| calendar.period(jiff::Timestamp::now().as_second()))
    }

    fn share(&self, period: Option<Period>, nodes: u64, now: Moment) -> Meter {
        match period {
            Some(period) => {
                let left = u64::try_from(period.end.saturating_sub(jiff::Timestamp::now().as_second())).unwrap_or(0);
                Meter::Calendar(Tally { limit: self.share_of(nodes), period, left: Duration::from_secs(left) })
            }
            None if self.share.0 == nodes => Meter::Rolling(self.share.1, now),
            None => Meter::Rolling(self.rate(nodes), now),
        }
    }
}

impl Shared {
    /// Spends `n` units if that can be decided here.
    pub fn take(self: &Arc<Self>, key: Key, id: impl FnOnce() -> Id, n: u64, now: Moment) -> Take {
        let rule = self.rule.load();
        let period = rule.period();
        let share = rule.share(period, self.link.nodes(), now);
        let mut shard = self.shard(key).lock();
        let slice = self.slice(&mut shard, key, id, period, now);
        match slice.take(n, rule.lease, share, now) {
            Said::Granted(charge, refill) => {
                if refill && self.link.up() {
                    let terms = slice.ask(0, rule.lease, now);
                    let id = slice.id;
                    drop(shard);
                    self.link.send(Ask { shared: self.clone(), key, id, period, terms, done: None });
                }
                Take::Decided(charge)
            }
            Said::Empty(charge) => Take::Decided(charge),
            Said::Ask if self.link.up() => Take::Ask,
            Said::Ask => self.alone(slice, n, share, now),
        }
    }

    /// Asks Redis and waits for it, not for long. `None`: nobody knows, and nothing may be admitted.
    pub async fn wait(self: &Arc<Self>, key: Key, id: Id, n: u64) -> Option<Charge> {
        let until = now() + self.link.settings.timeout;
        self.link.told.waits.inc();
        loop {
            let (done, answered) = oneshot::channel();
            {
                let at = now();
                let rule = self.rule.load();
                let period = rule.period();
                let mut shard = self.shard(key).lock();
                let slice = self.slice(&mut shard, key, || id, period, at);
                let terms = slice.ask(n, rule.lease, at);
                drop(shard);
                self.link.send(Ask { shared: self.clone(), key, id, period, terms, done: Some(done) });
            }
            let answered = tokio::time::timeout(until.since(now()), answered).await;
            if answered.is_err() {
                self.link.doubt();
            }
            let at = now();
            let rule = self.rule.load();
            let period = rule.period();
            let share = rule.share(period, self.link.nodes(), at);
            let mut shard = self.shard(key).lock();
            let slice = self.slice(&mut shard, key, || id, period, at);
            match slice.take(n, rule.lease, share, at) {
                Said::Granted(charge, _) | Said::Empty(charge) => return Some(charge),
                // Another request was faster with what came.
                Said::Ask if matches!(answered, Ok(Ok(()))) && at < until => {}
                Said::Ask => {
                    return match self.alone(slice, n, share, at) {
                        Take::Decided(charge) => Some(charge),
                        Take::Unknown | Take::Ask => None,
                    };
                }
            }
        }
    }

    /// Without Redis.
    fn alone(&self, slice: &mut Slice, n: u64, share: Meter, now: Moment) -> Take {
        self.link.told.fallbacks.inc();
        match self.link.settings.on_failure {
            OnFailure::Local => Take::Decided(slice.fall_back(n, share, now)),
            OnFailure::Deny => Take::Unknown,
        }
    }

    /// What a charge would give.
    pub fn peek(&self, key: Key, n: u64, now: Moment) -> Charge {
        let rule = self.rule.load();
        let period = rule.period();
        let mut shard = self.shard(key).lock();
        match shard.get_mut(&key) {
            Some(slice) => {
                slice.turn(period);
                slice.peek(n, now)
            }
            None => Charge { allowed: true, remaining: rule.terms.limit, reset: Duration::ZERO },
        }
    }

    /// Units that a request did not need after all.
    pub fn give_back(&self, key: Key, n: u64) {
        self.amend(key, |slice, share| slice.give_back(n, share));
    }

    /// Units that an answer cost beyond what was charged.
    pub fn spend(&self, key: Key, n: u64) {
        self.amend(key, |slice, share| slice.spend(n, share));
    }

    fn amend(&self, key: Key, act: impl FnOnce(&mut Slice, Meter)) {
        let rule = self.rule.load();
        let share = rule.share(rule.period(), self.link.nodes(), now());
        if let Some(slice) = self.shard(key).lock().get_mut(&key) {
            act(slice, share);
        }
    }

    fn shard(&self, key: Key) -> &Mutex<Shard> {
        &self.shards[key.spread() % self.shards.len()]
    }

    fn slice<'a>(
        &self,
        shard: &'a mut Shard,
        key: Key,
        id: impl FnOnce() -> Id,
        period: Option<Period>,
        now: Moment,
    ) -> &'a mut Slice {
        if !shard.contains_key(&key) {
            if shard.len() >= self.per_shard {
                self.make_room(shard);
            }
            self.tracks.keys.add(1);
        }
        let slice = shard.entry(key).or_insert_with(|| Slice::new(id(), period, now));
        slice.turn(period);
        slice
    }

    /// Forgets an idle one of a few, else the one that was used longest ago: what it had leased is charged and lost.
    fn make_room(&self, shard: &mut Shard) {
        let sampled =
            shard.iter().take(16).min_by_key(|(_, s)| (!s.is_idle(), s.used())).map(|(k, s)| (*k, s.is_idle()));
        if let Some((key, idle)) = sampled {
            shard.remove(&key);
            self.tracks.keys.add(-1);
            if !idle {
                self.tracks.evicted.inc();
            }
        }
    }

    /// Takes an answer in, or the lack of one.
    #[cfg_attr(not(feature = "redis"), expect(dead_code))]
    fn answered(&self, ask: Ask, grant: Option<Grant>) {
        if let Some(slice) = self.shard(ask.key).lock().get_mut(&ask.key)
            && slice.period == ask.period
        {
            match grant {
                Some(grant) => slice.answer(ask.terms, grant, now()),
                None => slice.unanswered(ask.terms),
            }
        }
        if let (Some(done), Some(_)) = (ask.done, grant) {
            let _ = done.send(());
        }
    }

    /// Gives back what nobody uses, tells what was spent alone, forgets what is long gone. `remind`: Redis was away.
    #[cfg_attr(not(feature = "redis"), expect(dead_code))]
    fn sweep(self: &Arc<Self>, remind: bool) -> Vec<Ask> {
        let (rule, now) = (self.rule.load(), now());
        let period = rule.period();
        let mut asks = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.len();
            shard.retain(|_, s| !s.is_idle() || now.since(s.used()) < GONE);
            self.tracks.keys.add(-i64::try_from(before - shard.len()).unwrap_or(0));
            for (key, slice) in shard.iter_mut() {
                slice.turn(period);
                let idle = now.since(slice.used()) > IDLE;
                let terms = if remind { slice.remind() } else { slice.settle(idle) };
                let (id, key) = (slice.id, *key);
                asks.extend(terms.map(|terms| Ask { shared: self.clone(), key, id, period, terms, done: None }));
            }
        }
        asks
    }

    /// The name of a caller's key in Redis. What stands in braces decides about the node of a cluster.
    #[cfg_attr(not(feature = "redis"), expect(dead_code))]
    fn key_of(&self, id: Id, period: Option<Period>) -> String {
        use std::fmt::Write;
        let mut key = format!("{}/", self.name);
        // Writing to a string cannot fail.
        for byte in id {
            let _ = write!(key, "{byte:02x}");
        }
        key.push('}');
        if let Some(period) = period {
            let _ = write!(key, ":{}", period.start);
        }
        key
    }

    /// Kind, limit and step, as the script takes them.
    #[cfg_attr(not(feature = "redis"), expect(dead_code))]
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn numbers(&self, period: Option<Period>) -> (&'static str, f64, f64) {
        let rule = self.rule.load();
        let Terms { limit, per, burst, .. } = &rule.terms;
        match period {
            Some(period) => {
                // A day longer than its period: clocks differ.
                let left = period.end.saturating_sub(jiff::Timestamp::now().as_second()).max(0) + 86_400;
                ("c", *limit as f64, (left as f64) * 1000.0)
            }
            None => {
                let step = per.as_secs_f64() * 1e6 / *limit as f64;
                ("r", step * *burst as f64, step)
            }
        }
    }

    fn tell_bounds(&self) {
        let (connected, away) = self.rule.load().bounds(self.link.nodes());
        let away = if self.link.settings.on_failure == OnFailure::Local { away } else { 0 };
        for (gauge, bound) in self.bounds.iter().zip([connected, away]) {
            gauge.set(i64::try_from(bound).unwrap_or(i64::MAX));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let known: usize = self.shards.iter().map(|s| s.lock().len()).sum();
        self.tracks.keys.add(-i64::try_from(known).unwrap_or(0));
    }
}

impl Link {
    /// The way to the Redis of `state`.
    fn of(build: &mut Build<'_>) -> Arc<Self> {
        let settings = build.directory.state.clone();
        let scope = std::mem::replace(&mut build.scope, "state".to_owned());
        // A digest: what tells two apart holds secrets.
        let secret = settings.redis.as_ref().and_then(|r| r.password.as_ref()).map_or("", |p| p.0.as_str());
        let text = format!("{settings:?} {secret}");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        let metrics = build.metrics.clone();
        let link = build.keep("redis", &format!("{digest:?}"), || Self::new(settings, &metrics));
        build.scope = scope;
        link
    }

    fn new(settings: Arc<Settings>, metrics: &Registry) -> Self {
        let (asks, asked) = mpsc::unbounded_channel();
        Self {
            settings,
            up: AtomicBool::new(false),
            seen: AtomicU64::new(1),
            asks,
            asked: Mutex::new(Some(asked)),
            suspect: Notify::new(),
            all: Mutex::default(),
            told: Told {
                up: metrics.gauge("onehop_quota_redis_up", "Whether Redis answers", &[]),
                nodes: metrics.gauge("onehop_quota_redis_nodes", "Processes that share quotas", &[]),
                leases: metrics.counter("onehop_quota_leases_total", "Answers of Redis to quotas", &[]),
                units: metrics.counter("onehop_quota_leased_units_total", "Units leased from Redis", &[]),
                waits: metrics.counter("onehop_quota_waits_total", "Requests that had to wait for Redis", &[]),
                errors: metrics.counter("onehop_quota_redis_errors_total", "Questions that Redis did not answer", &[]),
                fallbacks: metrics.counter("onehop_quota_fallbacks_total", "Requests decided without Redis", &[]),
                took: metrics.fine_histogram("onehop_quota_redis_seconds", "Time that Redis took", &[]),
            },
        }
    }

    fn up(&self) -> bool {
        self.up.load(Relaxed)
    }

    fn nodes(&self) -> u64 {
        self.settings.nodes.unwrap_or_else(|| self.seen.load(Relaxed).max(1))
    }

    fn send(&self, ask: Ask) {
        // The receiver lives as long as the control thread; after that nobody waits for long.
        let _ = self.asks.send(ask);
    }

    /// Somebody waited in vain: nobody else shall, until Redis has proved that it answers.
    fn doubt(&self) {
        self.up.store(false, Relaxed);
        self.told.up.set(0);
        self.suspect.notify_one();
    }
}
