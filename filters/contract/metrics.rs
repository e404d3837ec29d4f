//! Metrics as filters see them: named once when a config is compiled, counted through a handle without a lock.
//!
//! Every cell is sharded per worker and summed at scrape. Families live in a process-wide [`Registry`] outside any
//! snapshot, so a counter never restarts. The encoder is in `observe`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::worker;

/// A cache line of its own, so that workers do not share one.
#[repr(align(128))]
#[derive(Default)]
struct Padded<T>(T);

fn cells<T: Default>() -> Box<[Padded<T>]> {
    (0..worker::shards()).map(|_| Padded::default()).collect()
}

/// Monotonic count.
#[derive(Clone)]
pub struct Counter(Arc<[Padded<AtomicU64>]>);

impl Counter {
    fn new() -> Self {
        Self(cells().into())
    }
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0[worker::shard()].0.fetch_add(n, Relaxed);
    }
    /// Sum over the shards.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.iter().map(|c| c.0.load(Relaxed)).sum()
    }
}

/// A value that rises and falls; set from one thread or added to from any.
#[derive(Clone)]
pub struct Gauge(Arc<[Padded<AtomicI64>]>);

impl Gauge {
    fn new() -> Self {
        Self(cells().into())
    }
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0[worker::shard()].0.fetch_add(n, Relaxed);
    }
    /// Adds one until what is returned is dropped, however that comes about.
    #[must_use]
    pub fn one_more(&self) -> OneMore<'_> {
        self.add(1);
        OneMore(self)
    }
    /// Sets the value. Only for gauges that nobody adds to.
    pub fn set(&self, n: i64) {
        self.0[0].0.store(n, Relaxed);
    }
    /// Sum over the shards.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.0.iter().map(|c| c.0.load(Relaxed)).sum()
    }
}

/// See [`Gauge::one_more`].
pub struct OneMore<'a>(&'a Gauge);

impl Drop for OneMore<'_> {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

/// Upper bounds in seconds of the duration buckets: the OpenTelemetry HTTP semantic conventions' advice.
pub const BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Upper bounds in seconds for what the proxy itself takes: microseconds, where [`BOUNDS`] would see one bucket.
pub const FINE_BOUNDS: [f64; 14] =
    [0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0];

#[derive(Default)]
struct Buckets {
    counts: [AtomicU64; 15],
    sum_ns: AtomicU64,
}

/// Durations in buckets.
#[derive(Clone)]
pub struct Histogram {
    shards: Arc<[Padded<Buckets>]>,
    bounds: &'static [f64; 14],
    bounds_ns: [u64; 14],
}

impl Histogram {
    fn new(bounds: &'static [f64; 14]) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and below 2^34")]
        Self { shards: cells().into(), bounds, bounds_ns: bounds.map(|s| (s * 1e9).round() as u64) }
    }
    /// Upper bounds of the buckets in seconds, without the last, which is infinity.
    #[must_use]
    pub const fn bounds(&self) -> &'static [f64; 14] {
        self.bounds
    }
    /// Records one duration.
    pub fn observe(&self, d: std::time::Duration) {
        let ns = u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let shard = &self.shards[worker::shard()].0;
        let i = self.bounds_ns.iter().position(|b| ns <= *b).unwrap_or(self.bounds_ns.len());
        shard.counts[i].fetch_add(1, Relaxed);
        shard.sum_ns.fetch_add(ns, Relaxed);
    }
    /// Counts per bucket (not cumulative; the last one is over every bound) and the sum in seconds.
    #[must_use]
    pub fn value(&self) -> ([u64; 15], f64) {
        let mut out = [0; 15];
        let mut sum = 0u64;
        for s in &*self.shards {
            for (o, c) in out.iter_mut().zip(&s.0.counts) {
                *o += c.load(Relaxed);
            }
            sum = sum.wrapping_add(s.0.sum_ns.load(Relaxed));
        }
        #[expect(clippy::cast_precision_loss, reason = "a sum of durations for people")]
        (out, sum as f64 / 1e9)
    }
}

/// One time series.
#[derive(Clone)]
pub enum Series {
    /// See [`Counter`].
    Counter(Counter),
    /// See [`Gauge`].
    Gauge(Gauge),
    /// See [`Histogram`].
    Histogram(Histogram),
}

/// Label values of a series, in the family's label order.
pub type Labels = Vec<(&'static str, String)>;

/// All series of one name.
pub struct Family {
    /// Help line.
    pub help: &'static str,
    /// Series by label values.
    pub series: BTreeMap<Labels, Series>,
}

/// Series one family may hold; beyond it every further label set shares one series whose values are `overflow`.
pub const MAX_SERIES: usize = 10_000;

/// Every metric of the process.
#[derive(Default)]
pub struct Registry {
    /// Contended only by config compilation and scrapes, both on the control thread; never by a request.
    families: Mutex<BTreeMap<&'static str, Family>>,
}

impl Registry {
    fn series(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        make: fn() -> Series,
    ) -> Series {
        let mut families = self.families.lock();
        let family = families.entry(name).or_insert_with(|| Family { help, series: BTreeMap::new() });
        let mut key: Labels = labels.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        if family.series.len() >= MAX_SERIES && !family.series.contains_key(&key) {
            for (_, v) in &mut key {
                "overflow".clone_into(v);
            }
        }
        family.series.entry(key).or_insert_with(make).clone()
    }
    /// The counter of this name and labels, made at first use. `name` ends in `_total`.
    ///
    /// # Panics
    /// If the name is in use for another type: a mistake in the code, found by its first test.
    #[must_use]
    pub fn counter(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        match self.series(name, help, labels, || Series::Counter(Counter::new())) {
            Series::Counter(c) => c,
            _ => panic!("{name} is not a counter"),
        }
    }
    /// The gauge of this name and labels.
    ///
    /// # Panics
    /// See [`Registry::counter`].
    #[must_use]
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        match self.series(name, help, labels, || Series::Gauge(Gauge::new())) {
            Series::Gauge(g) => g,
            _ => panic!("{name} is not a gauge"),
        }
    }
    /// The duration histogram of this name and labels. `name` ends in `_seconds`.
    ///
    /// # Panics
    /// See [`Registry::counter`].
    #[must_use]
    pub fn histogram(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        match self.series(name, help, labels, || Series::Histogram(Histogram::new(&BOUNDS))) {
            Series::Histogram(h) => h,
            _ => panic!("{name} is not a histogram"),
        }
    }
    /// Like [`Registry::histogram`], with [`FINE_BOUNDS`]. A family has either bounds, never both.
    ///
    /// # Panics
    /// See [`Registry::counter`].
    #[must_use]
    pub fn fine_histogram(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        match self.series(name, help, labels, || Series::Histogram(Histogram::new(&FINE_BOUNDS))) {
            Series::Histogram(h) => h,
            _ => panic!("{name} is not a histogram"),
        }
    }
    /// Visits every family in name order, for the exposition.
    pub fn visit(&self, mut f: impl FnMut(&'static str, &Family)) {
        for (name, family) in &*self.families.lock() {
            f(name, family);
        }
    }
}
