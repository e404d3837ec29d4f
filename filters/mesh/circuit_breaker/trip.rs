//! The breaker proper: closed, open, half-open with exactly one probe. Pure but for its atomics; nothing is locked.

use std::sync::atomic::Ordering::Release;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::time::Duration;

use crate::contract::Moment;
use crate::contract::fault::Reason;
use crate::contract::mesh::TryOutcome;
use crate::contract::worker;
use crate::mesh::chance::Dice;
use crate::mesh::verdict::{Verdict, verdict};

/// Clocks of pick and verdict are read a moment apart.
const SLACK: Duration = Duration::from_millis(1);
/// How much longer than configured it may stay open, so that many proxies do not probe in step.
const JITTER: f64 = 0.1;
/// Parts of the window.
const SLOTS: usize = 10;

/// When it opens and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Share of failures that opens it.
    pub failures: Option<f64>,
    /// Share of slow tries that opens it, and from when on a try is slow.
    pub slow: Option<(f64, Duration)>,
    /// Tries without which nothing is judged.
    pub min_requests: u64,
    pub window: Duration,
    pub open_for: Duration,
}

/// What is done with tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Closed,
    /// Refuses everything; after its time the next one to ask is the probe.
    Open,
    /// The probe was let in, but no endpoint was picked for it yet.
    Claimed,
    /// The probe is under way.
    Probing,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Closed, Self::Open, Self::Claimed, Self::Probing];
}

/// Why it opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Failures,
    Slow,
    /// The probe failed, or was slow.
    Probe,
}

/// What a try led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    None,
    Opened(Cause),
    Closed,
}

/// The breaker of one service, whatever routes lead there. Outlives configs.
pub struct Trip {
    phase: AtomicU8,
    /// Open until then ([`Moment`]).
    until: AtomicU64,
    /// When the probe's endpoint was picked ([`Moment`]).
    probed: AtomicU64,
    /// An operator holds it closed.
    held: AtomicBool,
    /// When it closed the last time ([`Moment`]): what was counted up to the slot of then is over.
    since: AtomicU64,
    /// How often it opened; also what its jitter is drawn from.
    times: AtomicU64,
    seed: u64,
    /// One cache line and more per worker: counting never contends.
    shards: Box<[Shard]>,
}

/// Per slot: its number in the upper half, a count in the lower.
#[repr(align(128))]
#[derive(Default)]
struct Shard {
    all: [AtomicU64; SLOTS],
    failed: [AtomicU64; SLOTS],
    slow: [AtomicU64; SLOTS],
}

impl Trip {
    /// Closed, and nothing counted.
    pub fn new(seed: u64) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Closed as u8),
            until: AtomicU64::new(0),
            probed: AtomicU64::new(0),
            held: AtomicBool::new(false),
            since: AtomicU64::new(0),
            times: AtomicU64::new(0),
            seed,
            shards: (0..worker::shards()).map(|_| Shard::default()).collect(),
        }
    }
    /// What it does.
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Acquire)) % Phase::ALL.len()]
    }
    /// Time until a probe may go.
    pub fn left(&self, now: Moment) -> Duration {
        Moment(self.until.load(Relaxed)).since(now)
    }
    /// How often it opened.
    pub fn times(&self) -> u64 {
        self.times.load(Relaxed)
    }
    fn turn(&self, from: Phase, to: Phase) -> bool {
        self.phase.compare_exchange(from as u8, to as u8, AcqRel, Relaxed).is_ok()
    }
    /// Whether a try would be refused now. Claims nothing.
    pub fn refuses(&self, now: Moment) -> bool {
        match self.phase() {
            Phase::Closed => false,
            Phase::Open => now.0 < self.until.load(Relaxed),
            Phase::Claimed | Phase::Probing => true,
        }
    }
    /// Lets a try in, or does not. Of any number of threads that find it half-open one gets in.
    pub fn enter(&self, now: Moment) -> bool {
        match self.phase() {
            Phase::Closed => true,
            Phase::Open => now.0 >= self.until.load(Relaxed) && self.turn(Phase::Open, Phase::Claimed),
            Phase::Claimed | Phase::Probing => false,
        }
    }
    /// An endpoint was picked for the one that was let in last.
    pub fn picked(&self, now: Moment) {
        if self.phase() == Phase::Claimed {
            self.probed.store(now.0, Relaxed);
            self.turn(Phase::Claimed, Phase::Probing);
        }
    }
    /// One that was let in found no endpoint. While a probe is out nobody else is let in: it was the probe, and the next
    /// one may go.
    pub fn unpicked(&self) {
        let _ = self.turn(Phase::Claimed, Phase::Open) || self.turn(Phase::Probing, Phase::Open);
    }
    /// An operator holds it closed, or no longer. Either way it begins anew.
    pub fn hold(&self, held: bool, now: Moment) {
        if self.held.swap(held, Relaxed) != held {
            self.since.store(now.0, Relaxed);
            self.phase.store(Phase::Closed as u8, Release);
        }
    }
    /// Takes in what came of a try.
    pub fn observe(&self, s: &Settings, outcome: &TryOutcome<'_>, now: Moment) -> Turn {
        match self.phase() {
            Phase::Closed if self.held.load(Relaxed) => Turn::None,
            Phase::Closed => self.count(s, outcome, now),
            // What was under way before it opened decides nothing.
            Phase::Open | Phase::Claimed => Turn::None,
            Phase::Probing => self.settle(s, outcome, now),
        }
    }
    fn count(&self, s: &Settings, outcome: &TryOutcome<'_>, now: Moment) -> Turn {
        let verdict = verdict(outcome);
        let slow = is_slow(s, outcome);
        if verdict == Verdict::Nothing && !slow {
            return Turn::None;
        }
        let slot = slot(s, now);
        let shard = &self.shards[worker::shard()];
        add(&shard.all, slot);
        let failed = matches!(verdict, Verdict::Error { .. } | Verdict::Unreachable);
        if failed {
            add(&shard.failed, slot);
        }
        if slow {
            add(&shard.slow, slot);
        }
        // Only these can make a share larger.
        if !failed && !slow {
            return Turn::None;
        }
        let since = match Moment(self.since.load(Relaxed)) {
            Moment::ZERO => 0,
            since => self::slot(s, since),
        };
        let all = self.sum(|shard| &shard.all, slot, since);
        if all < s.min_requests {
            return Turn::None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a share of a count")]
        let reached = |count: u64, share: f64| count as f64 >= all as f64 * share;
        let cause = if failed && s.failures.is_some_and(|share| reached(self.sum(|s| &s.failed, slot, since), share)) {
            Cause::Failures
        } else if slow && s.slow.is_some_and(|(share, _)| reached(self.sum(|s| &s.slow, slot, since), share)) {
            Cause::Slow
        } else {
            return Turn::None;
        };
        self.open(s, Phase::Closed, cause, now)
    }
    fn open(&self, s: &Settings, from: Phase, cause: Cause, now: Moment) -> Turn {
        let times = self.times.load(Relaxed);
        let jitter = JITTER * Dice::new(self.seed.wrapping_add(times)).fraction();
        // Before the turn: who sees it open sees until when. Of two threads that open it the times differ by nothing.
        self.until.store((now + s.open_for.mul_f64(1.0 + jitter)).0, Relaxed);
        if !self.turn(from, Phase::Open) {
            return Turn::None;
        }
        self.times.fetch_add(1, Relaxed);
        Turn::Opened(cause)
    }
    fn settle(&self, s: &Settings, outcome: &TryOutcome<'_>, now: Moment) -> Turn {
        if now - outcome.latency + SLACK < Moment(self.probed.load(Relaxed)) {
            return Turn::None;
        }
        match verdict(outcome) {
            _ if is_slow(s, outcome) => self.open(s, Phase::Probing, Cause::Probe, now),
            Verdict::Error { .. } | Verdict::Unreachable => self.open(s, Phase::Probing, Cause::Probe, now),
            Verdict::Good => {
                self.since.store(now.0, Relaxed);
                if self.turn(Phase::Probing, Phase::Closed) { Turn::Closed } else { Turn::None }
            }
            // No verdict: the next one may probe, at once.
            Verdict::Nothing => {
                self.turn(Phase::Probing, Phase::Open);
                Turn::None
            }
        }
    }
    fn sum(&self, counts: impl Fn(&Shard) -> &[AtomicU64; SLOTS], slot: u64, since: u64) -> u64 {
        let alive = |of: u64| of + SLOTS as u64 > slot && of <= slot && of > since;
        let cells = self.shards.iter().flat_map(counts);
        cells.map(|c| c.load(Relaxed)).filter(|word| alive(word >> 32)).map(|word| word & u64::from(u32::MAX)).sum()
    }
}

/// Slow tries are slow whatever came of them, a passed deadline of the caller's among them; one that left or was refused
/// says nothing.
fn is_slow(s: &Settings, outcome: &TryOutcome<'_>) -> bool {
    let counts = match &outcome.result {
        Ok(_) => true,
        Err((reason, _)) => *reason == Reason::Deadline || verdict(outcome) != Verdict::Nothing,
    };
    counts && s.slow.is_some_and(|(_, limit)| outcome.latency >= limit)
}

/// Number of a part of the window, from [`SLOTS`] on, so that an unused slot (0) is never of this window.
fn slot(s: &Settings, now: Moment) -> u64 {
    let length = (s.window.as_nanos() / SLOTS as u128).max(1);
    u64::try_from(u128::from(now.0) / length).unwrap_or(u64::MAX) % (1 << 31) + SLOTS as u64
}

fn add(cells: &[AtomicU64; SLOTS], slot: u64) {
    #[expect(clippy::cast_possible_truncation, reason = "below SLOTS")]
    let cell = &cells[(slot % SLOTS as u64) as usize];
    let word = cell.load(Relaxed);
    if word >> 32 == slot {
        cell.fetch_add(1, Relaxed);
    } else {
        // A new slot in an old cell. Only threads without a worker share a shard; losing this race loses one count.
        let _ = cell.compare_exchange(word, slot << 32 | 1, Relaxed, Relaxed);
    }
}
