//! How many tries a service carries without getting slower: a gradient on latency, pure.
//!
//! The limit follows the ratio of the latency without load to the latency now (Envoy's gradient controller, Netflix's
//! Gradient2), plus some headroom, in which a queue of the service's own shows. What the latency without load is must be
//! measured now and then, by letting fewer in. Envoy lets three in for that; here the limit is halved, and again for as
//! long as halving makes answers faster, so that a service is never nearly shut to find out how fast it is.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use crate::contract::Moment;
use crate::mesh::chance::Dice;

/// Samples that make a window, for latencies scatter, and that make a measurement, which counts for a minute.
const WINDOW: u32 = 50;
const MEASUREMENT: u32 = 100;
/// A service that answers seldom is judged after this time, by what there is if it is this much.
const PATIENCE: Duration = Duration::from_secs(1);
const LEAST: u32 = 20;
/// One limit shows in answers a latency later, so a window lasts at least two of those, but not longer than this.
const LONGEST_WINDOW: Duration = Duration::from_secs(2);
/// How far a limit moves towards what one window says, unless it is free to grow.
const SMOOTHING: f64 = 0.3;
/// One window at most halves.
const STEEPEST: f64 = 0.5;
/// Halving the limit that makes answers faster than this is not over: the service had a queue.
const FELL: f64 = 0.8;
/// Less than this is noise, however fast a service is.
const SLACK: f64 = 1e6;
/// How fast the latency without load follows what one window shows of it...
const EASE: f64 = 0.1;
/// ...under load only where answers are faster than that by more than chance.
const FASTER: f64 = 0.75;

/// What the limit obeys.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub min: f64,
    pub max: f64,
    pub initial: f64,
    /// Which latency of a window counts.
    pub quantile: f64,
    pub window: Duration,
    /// Share by which answers may be slower before it counts as load.
    pub buffer: f64,
    /// Between two measurements of the latency without load.
    pub interval: Duration,
    pub jitter: f64,
}

/// The limit of one service. Outlives configs.
pub struct Limiter {
    latencies: Latencies,
    seen: AtomicU32,
    /// Most places that were taken at once in this window; somebody who found none counts as one more than any.
    peak: AtomicU32,
    /// When the window began, zero before the first, and when it may end ([`Moment`]).
    began: AtomicU64,
    due: AtomicU64,
    /// Fewer are let in since it began: what was let in before says nothing of the latency now.
    measures: AtomicBool,
    /// Taken by whoever ends a window, and tried only: nobody waits for it on the request path.
    state: Mutex<State>,
}

struct State {
    limit: f64,
    /// Latency without load in nanoseconds; zero before the first window.
    unloaded: f64,
    phase: Phase,
    /// When it is measured next.
    measure_at: Moment,
    /// The limit after the last measurement: at half of it, what was measured is in doubt.
    measured: f64,
    dice: Dice,
}

/// What is being done.
#[derive(Clone, Copy)]
enum Phase {
    /// The limit follows the gradient.
    Follow,
    /// Fewer are let in, to see the latency without load.
    Measure {
        /// The limit before, how much of it was used, and the latency it had.
        back: f64,
        used: f64,
        loaded: f64,
        /// The limit now, and the latency before it was halved the last time.
        at: f64,
        before: f64,
    },
}

/// What a window led to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Places from now on.
    pub limit: u32,
    /// Latency without load.
    pub unloaded: Duration,
    /// The window's latency.
    pub latency: Duration,
    /// Fewer are let in for a moment than could be.
    pub measures: bool,
}

impl Limiter {
    /// Knows nothing yet.
    pub fn new(settings: &Settings, seed: u64) -> Self {
        let state = State {
            limit: settings.initial,
            unloaded: 0.0,
            phase: Phase::Follow,
            measure_at: Moment::ZERO,
            measured: settings.initial,
            dice: Dice::new(seed),
        };
        Self {
            latencies: Latencies::new(),
            seen: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            began: AtomicU64::new(0),
            due: AtomicU64::new(0),
            measures: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }
    /// So many places are taken now.
    pub fn taken(&self, taken: u32) {
        // Read before write: the common case leaves the cache line shared.
        if taken > self.peak.load(Relaxed) {
            self.peak.fetch_max(taken, Relaxed);
        }
    }
    /// Somebody found all of them taken.
    pub fn full(&self) {
        self.taken(u32::MAX);
    }
    /// Takes a latency in; now and then something follows from it.
    pub fn sample(&self, settings: &Settings, latency: Duration, now: Moment) -> Option<Change> {
        let began = Moment(self.began.load(Relaxed));
        let measures = self.measures.load(Relaxed);
        if began == Moment::ZERO {
            self.begin(settings.window, true, now);
        } else if measures && now - latency < began {
            return None;
        }
        self.latencies.add(latency);
        let seen = self.seen.fetch_add(1, Relaxed) + 1;
        let enough = if measures { MEASUREMENT } else { WINDOW };
        let due = now.0 >= self.due.load(Relaxed) && (seen >= enough || seen >= LEAST && now >= began + PATIENCE);
        if !due {
            return None;
        }
        let mut state = self.state.try_lock()?;
        // Another thread may have ended the window just now.
        if self.began.load(Relaxed) != began.0 {
            return None;
        }
        let latency = self.latencies.drain(settings.quantile);
        self.seen.store(0, Relaxed);
        state.window(settings, latency, self.peak.swap(0, Relaxed).into(), now);
        let measures = matches!(state.phase, Phase::Measure { .. });
        // What began and ended within a short window is mostly short.
        let latencies = if measures { 5.0 } else { 2.0 };
        let least = if measures { settings.window * 2 } else { settings.window };
        self.begin(nanos(latency * latencies).min(LONGEST_WINDOW).max(least), measures, now);
        Some(Change {
            limit: state.places(settings),
            unloaded: nanos(state.unloaded),
            latency: nanos(latency),
            measures,
        })
    }
    fn begin(&self, length: Duration, measures: bool, now: Moment) {
        self.due.store((now + length).0, Relaxed);
        self.measures.store(measures, Relaxed);
        self.began.store(now.0.max(1), Relaxed);
    }
    /// Places as the settings of a new config allow them.
    pub fn adopt(&self, settings: &Settings) -> u32 {
        let mut state = self.state.lock();
        state.limit = state.limit.clamp(settings.min, settings.max);
        state.places(settings)
    }
    /// Latency without load; zero while it is not known.
    pub fn unloaded(&self) -> Duration {
        nanos(self.state.lock().unloaded)
    }
}

impl State {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between `min` and `max`")]
    fn places(&self, s: &Settings) -> u32 {
        let limit = match self.phase {
            Phase::Follow => self.limit,
            Phase::Measure { at, .. } => at,
        };
        limit.clamp(s.min, s.max).round() as u32
    }
    fn window(&mut self, s: &Settings, latency: f64, peak: f64, now: Moment) {
        let used = peak.min(self.limit);
        match self.phase {
            Phase::Measure { back, used, loaded, at, before } => {
                if latency < before * FELL && at > s.min {
                    let at = (at / 2.0).max(s.min);
                    self.phase = Phase::Measure { back, used, loaded, at, before: latency };
                } else {
                    // Halving changed nothing, so both are. The larger of them if in doubt: chance has made us go on
                    // when it made one small.
                    self.unloaded = f64::midpoint(latency, before.clamp(latency, latency / FELL));
                    // Little's law: with a queue, latency is in proportion to what is let in.
                    let tolerated = self.tolerated(s);
                    let fair = if loaded > tolerated { used * tolerated / loaded } else { back };
                    self.measured(s, fair, now);
                }
            }
            // Nothing waits where half of the places are free: what is seen is the latency without load.
            Phase::Follow if used * 2.0 < self.limit => {
                let known = if self.unloaded == 0.0 { latency } else { self.unloaded };
                self.unloaded = known + (latency - known) * EASE;
                self.measured(s, self.limit, now);
            }
            // Nor can fewer be let in than the least; else a service that became slower would stay there.
            Phase::Follow if self.limit <= s.min => {
                self.unloaded = latency;
                self.measured(s, self.limit + self.limit.sqrt(), now);
            }
            // The first window began with an empty service.
            Phase::Follow if self.unloaded == 0.0 => self.unloaded = latency,
            Phase::Follow => {
                if now >= self.measure_at || self.limit <= self.measured / 2.0 {
                    let at = (used / 2.0).max(s.min);
                    self.phase = Phase::Measure { back: self.limit, used, loaded: latency, at, before: latency };
                } else {
                    self.follow(s, latency);
                }
            }
        }
    }
    /// The end of a measurement.
    fn measured(&mut self, s: &Settings, limit: f64, now: Moment) {
        self.phase = Phase::Follow;
        self.limit = limit.clamp(s.min, s.max);
        self.measured = self.limit;
        self.measure_at = now + s.interval.mul_f64(1.0 + s.jitter * self.dice.fraction());
    }
    fn tolerated(&self, s: &Settings) -> f64 {
        (self.unloaded * (1.0 + s.buffer)).max(self.unloaded + SLACK)
    }
    fn follow(&mut self, s: &Settings, latency: f64) {
        if latency < self.unloaded * FASTER {
            self.unloaded += (latency - self.unloaded) * EASE;
        }
        let gradient = (self.tolerated(s) / latency).clamp(STEEPEST, 1.0);
        // Gradient2's headroom is the whole square root, which trebles the latency of a small service.
        let (headroom, step) = if gradient < 1.0 { (0.25, SMOOTHING) } else { (0.5, 1.0) };
        let goal = self.limit.mul_add(gradient, self.limit.sqrt() * headroom);
        self.limit = (self.limit + (goal - self.limit) * step).clamp(s.min, s.max);
    }
}

fn nanos(ns: f64) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a latency, never negative")]
    Duration::from_nanos(ns as u64)
}

/// Steps per doubling: a bucket is 2 % wide.
const STEPS: usize = 32;
/// Doublings from [`FINEST`]: up to 137 s.
const DOUBLINGS: usize = 24;
/// Nanoseconds of the first bucket.
const FINEST: u64 = 8192;

/// Latencies of one window: counts in buckets, which any thread adds to.
struct Latencies(Box<[AtomicU32]>);

impl Latencies {
    fn new() -> Self {
        Self((0..STEPS * DOUBLINGS).map(|_| AtomicU32::new(0)).collect())
    }
    /// Between the powers of two buckets lie evenly, as in a histogram of high dynamic range.
    fn bucket(latency: Duration) -> usize {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(FINEST);
        let doubling = (ns / FINEST).ilog2();
        let step = ((u128::from(ns) * STEPS as u128) >> (doubling + FINEST.ilog2())) as usize - STEPS;
        (doubling as usize * STEPS + step).min(STEPS * DOUBLINGS - 1)
    }
    /// Middle of a bucket in nanoseconds.
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    fn middle(bucket: usize) -> f64 {
        let (doubling, step) = (bucket / STEPS, bucket % STEPS);
        (FINEST << doubling) as f64 * (1.0 + (step as f64 + 0.5) / STEPS as f64)
    }
    fn add(&self, latency: Duration) {
        self.0[Self::bucket(latency)].fetch_add(1, Relaxed);
    }
    /// The latency that this share of the samples is below; forgets them all.
    fn drain(&self, quantile: f64) -> f64 {
        let counts: Vec<(usize, u32)> =
            self.0.iter().enumerate().map(|(i, n)| (i, n.swap(0, Relaxed))).filter(|(_, n)| *n > 0).collect();
        let total: u64 = counts.iter().map(|(_, n)| u64::from(*n)).sum();
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let mut rank = (total as f64 * quantile) as u64;
        for (bucket, n) in &counts {
            let n = u64::from(*n);
            if rank < n {
                return Self::middle(*bucket);
            }
            rank -= n;
        }
        counts.last().map_or(0.0, |(bucket, _)| Self::middle(*bucket))
    }
}

#[cfg(test)]
mod buckets {
    use super::*;

    #[test]
    fn every_latency_is_kept_within_two_percent() {
        let mut ns = 10_000.0;
        while ns < 1e11 {
            let kept = Latencies::middle(Latencies::bucket(nanos(ns)));
            assert!((kept / ns - 1.0).abs() < 0.02, "{ns} became {kept}");
            ns *= 1.003;
        }
        assert_eq!(Latencies::bucket(Duration::ZERO), 0);
        assert_eq!(Latencies::bucket(Duration::MAX), STEPS * DOUBLINGS - 1);
    }
    #[test]
    fn quantiles() {
        let all = Latencies::new();
        (1..=100).for_each(|ms| all.add(Duration::from_millis(ms)));
        let half = all.drain(0.5);
        assert!((half / 51e6 - 1.0).abs() < 0.02, "{half}");
        assert!(all.drain(0.5) == 0.0, "forgotten");
    }
}
