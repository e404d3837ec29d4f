//! The keys of an identity as they live on: kept across reloads, refreshed on the control thread, given up only when they
//! could not be confirmed for too long.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use tokio::sync::{Notify, watch};

use super::discovery::Discovery;
use super::keys::{Algorithm, KeySet, MAX_SET};
use crate::contract::client::{Bounds, Remote};
use crate::contract::metrics::{Counter, Gauge, Registry};
use crate::contract::{Moment, now};

/// Least time between fetches that requests ask for: strangers can invent key names at will.
pub const REFETCH_GAP: Duration = Duration::from_secs(10);
/// How long a request waits for a fetch.
pub const PATIENCE: Duration = Duration::from_secs(3);
const ACCEPT: &str = "application/jwk-set+json, application/json";
/// How often a file is looked at.
const POLL: Duration = Duration::from_secs(5);
/// First pause after a failed fetch; doubles up to [`MAX_PAUSE`] or the refresh interval.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Where keys come from.
pub enum Source {
    Remote { remote: Remote, refresh: Duration },
    Discovered { discovery: Box<Discovery>, refresh: Duration },
    File(PathBuf),
    Inline,
}

/// Keys in use, and the way to newer ones.
pub struct Store {
    current: ArcSwap<KeySet>,
    /// Generation of `current`; 0 = no keys yet.
    generation: AtomicU64,
    digest: AtomicU64,
    algorithms: Vec<Algorithm>,
    /// Fetches that have ended, well or not.
    attempts: watch::Sender<u64>,
    /// Wakes the background task; its own so that the task need not hold the store.
    wanted: Arc<Notify>,
    /// When the last attempt began.
    asked: AtomicU64,
    in_flight: AtomicBool,
    /// Whether a fetch can bring anything new.
    living: bool,
    /// See [`Store::stale_after`]; zero = never.
    max_stale: Duration,
    /// [`REFETCH_GAP`]; only tests are in a hurry.
    gap: Duration,
}

/// Counters of a store's background task.
pub struct Counters {
    pub refreshed: Counter,
    pub failed: Counter,
    pub keys_since: Gauge,
}

static GENERATIONS: AtomicU64 = AtomicU64::new(1);

impl Store {
    pub fn new(algorithms: Vec<Algorithm>, living: bool) -> Self {
        Self {
            current: ArcSwap::from_pointee(KeySet::default()),
            generation: AtomicU64::new(0),
            digest: AtomicU64::new(0),
            algorithms,
            attempts: watch::Sender::new(0),
            wanted: Arc::new(Notify::new()),
            asked: AtomicU64::new(0),
            in_flight: AtomicBool::new(false),
            living,
            max_stale: Duration::ZERO,
            gap: REFETCH_GAP,
        }
    }

    /// For how long keys are good that their source does not confirm: whoever keeps a proxy from its issuer must not keep a
    /// withdrawn key alive for ever. Zero = no limit.
    pub fn stale_after(mut self, limit: Duration) -> Self {
        self.max_stale = limit;
        self
    }

    #[cfg(test)]
    pub fn in_a_hurry(mut self) -> Self {
        self.gap = Duration::ZERO;
        self
    }

    /// Takes a key set into use. An unchanged one keeps its generation, and with it every cached verdict.
    pub fn install(&self, text: &[u8]) -> Result<(), String> {
        let digest = u64::from_le_bytes(digest(&SHA256, text).as_ref()[..8].try_into().expect("SHA-256 has 32 bytes"));
        if self.generation() != 0 && self.digest.load(Relaxed) == digest {
            return Ok(());
        }
        let set = KeySet::parse(text, &self.algorithms, GENERATIONS.fetch_add(1, Relaxed))?;
        let generation = set.generation;
        self.current.store(Arc::new(set));
        // After the keys: a verdict is never cached under a generation whose keys were not there yet.
        self.generation.store(generation, Relaxed);
        self.digest.store(digest, Relaxed);
        Ok(())
    }

    /// As if no keys had ever been there.
    fn forget(&self) {
        // First, so that no verdict is cached under, or taken from, keys that go.
        self.generation.store(0, Relaxed);
        self.current.store(Arc::new(KeySet::default()));
    }

    /// What is left of the time that keys last confirmed at `good` are good for; `None` if that is without limit.
    fn left(&self, good: Moment) -> Option<Duration> {
        (!self.max_stale.is_zero() && self.generation() != 0).then(|| self.max_stale.saturating_sub(now().since(good)))
    }

    pub fn keys(&self) -> arc_swap::Guard<Arc<KeySet>> {
        self.current.load()
    }

    /// Generation of the keys in use; 0 = none yet.
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// Whether waiting for a fetch makes sense at `now`.
    pub fn may_refetch(&self, now: Moment) -> bool {
        let asked = self.asked.load(Relaxed);
        self.living && (self.in_flight.load(Relaxed) || asked == 0 || now.since(Moment(asked)) >= self.gap)
    }

    /// Asks for a fetch and waits until one has ended. Any number of requests share one fetch.
    pub async fn refetch(&self) {
        let mut attempts = self.attempts.subscribe();
        self.wanted.notify_one();
        // No news in time is judged by whoever waits.
        let _ = tokio::time::timeout(PATIENCE, attempts.changed()).await;
    }

    fn begin(&self) {
        self.in_flight.store(true, Relaxed);
        // 0 says "never".
        self.asked.store(now().0.max(1), Relaxed);
    }

    fn end(&self) {
        self.in_flight.store(false, Relaxed);
        self.attempts.send_modify(|n| *n += 1);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // So that the background task ends now, not at its next refresh.
        self.wanted.notify_one();
    }
}

/// Keeps a store fresh until it is gone.
pub async fn keep_fresh(store: Weak<Store>, source: Source, name: String, counters: Counters) {
    let Some(wanted) = store.upgrade().map(|s| s.wanted.clone()) else { return };
    let bounds = Bounds { body: MAX_SET, ..Bounds::default() };
    let mut failures = 0u32;
    let mut seen = None;
    let mut good = now();
    loop {
        let left;
        {
            let Some(store) = store.upgrade() else { return };
            store.begin();
            let result = match &source {
                Source::Remote { remote, .. } => {
                    remote.get(ACCEPT, bounds).await.and_then(|text| store.install(&text)).map(|()| true)
                }
                Source::Discovered { discovery, .. } => {
                    discovery.fetch(ACCEPT, bounds).await.and_then(|text| store.install(&text)).map(|()| true)
                }
                Source::File(path) => reread(&store, path, &mut seen).await,
                Source::Inline => Ok(false),
            };
            store.end();
            if result.is_ok() {
                good = now();
            } else if store.left(good).is_some_and(|left| left.is_zero()) {
                store.forget();
                tracing::error!(identity = name, "keys could not be confirmed for `jwks.maxStale` and are given up");
            }
            left = store.left(good);
            failures = counters.note(&name, result, failures);
        }
        let pause = match &source {
            Source::Remote { refresh, .. } | Source::Discovered { refresh, .. } if failures == 0 => *refresh,
            Source::Remote { refresh, .. } | Source::Discovered { refresh, .. } => {
                (FIRST_PAUSE * (1 << (failures - 1).min(6))).min(MAX_PAUSE).min(*refresh)
            }
            _ => POLL,
        };
        let pause = jittered(pause);
        rest(&store, &wanted, left.map_or(pause, |left| pause.min(left))).await;
    }
}

/// Sleeps until the pause is over, a request wants new keys (not too soon after the last time), or the store is gone.
async fn rest(store: &Weak<Store>, wanted: &Notify, pause: Duration) {
    let pause = tokio::time::sleep(pause);
    tokio::pin!(pause);
    loop {
        tokio::select! {
            () = &mut pause => return,
            () = wanted.notified() => match store.upgrade() {
                Some(store) if !store.may_refetch(now()) => {}
                _ => return,
            },
        }
    }
}

/// Reads the file if it has changed.
pub async fn reread(store: &Store, path: &PathBuf, seen: &mut Option<(SystemTime, u64)>) -> Result<bool, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let meta = tokio::fs::metadata(path).await.map_err(failed)?;
    let stamp = Some((meta.modified().map_err(failed)?, meta.len()));
    if stamp == *seen {
        return Ok(false);
    }
    let text = tokio::fs::read(path).await.map_err(failed)?;
    store.install(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    *seen = stamp;
    Ok(true)
}

impl Counters {
    /// For the keys of an identity.
    pub fn new(metrics: &Registry, identity: &str) -> Self {
        let count = |result| {
            let labels = [("identity", identity), ("result", result)];
            metrics.counter("onehop_jwks_refreshes_total", "Fetches of a key set, by result", &labels)
        };
        Self {
            refreshed: count("ok"),
            failed: count("failed"),
            keys_since: metrics.gauge(
                "onehop_jwks_fetched_timestamp_seconds",
                "When the keys in use were last fetched, in Unix seconds",
                &[("identity", identity)],
            ),
        }
    }

    /// Counts and logs an attempt; gives the failures in a row.
    fn note(&self, name: &str, result: Result<bool, String>, failures: u32) -> u32 {
        match result {
            Ok(fetched) => {
                if fetched {
                    self.refreshed.inc();
                    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                    self.keys_since.set(i64::try_from(unix.as_secs()).unwrap_or(i64::MAX));
                }
                0
            }
            Err(error) => {
                self.failed.inc();
                tracing::warn!(
                    identity = name,
                    error,
                    "keys could not be fetched; the last good ones stay in use up to `jwks.maxStale`"
                );
                failures.saturating_add(1)
            }
        }
    }
}

/// Ten percent either way, so that many proxies do not ask at once.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(now().0) % 201;
    pause * (900 + u32::try_from(random).expect("below 201")) / 1000
}
