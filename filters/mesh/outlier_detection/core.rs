//! Ejection and half-open probing on the endpoint's own state; pure but for those atomics.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::time::Duration;

use super::config::Settings;
use crate::contract::Moment;
use crate::contract::mesh::EndpointState;
use crate::mesh::verdict::Verdict;

/// A probe that brings no verdict in this time makes way for another: longer than a request usually may take.
const LEASE: Duration = Duration::from_secs(60);
/// Clocks of pick and verdict are read a moment apart.
const SLACK: Duration = Duration::from_millis(1);

/// What [`observe`] wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    None,
    /// Eject it, if enough others are left.
    Eject,
    /// It came back.
    Restored,
}

/// Feeds the verdict of a try that was picked at `picked`.
pub fn observe(s: &Settings, e: &EndpointState, verdict: Verdict, picked: Moment, now: Moment) -> Act {
    let until = e.ejected_until.load(Acquire);
    if until != 0 {
        return settle(e, verdict, picked, until, now);
    }
    let local = s.consecutive_local;
    match verdict {
        Verdict::Nothing => Act::None,
        Verdict::Good => {
            // Read before write: the common case leaves the cache line shared.
            for count in [&e.failures, &e.gateway_failures, &e.local_failures] {
                if count.load(Relaxed) != 0 {
                    count.store(0, Relaxed);
                }
            }
            Act::None
        }
        Verdict::Unreachable if local.is_some() => tripped(&[(&e.local_failures, local.unwrap_or(0))]),
        Verdict::Unreachable | Verdict::Error { gateway: true } => {
            tripped(&[(&e.failures, s.consecutive_5xx), (&e.gateway_failures, s.consecutive_gateway_errors)])
        }
        Verdict::Error { gateway: false } => {
            e.gateway_failures.store(0, Relaxed);
            tripped(&[(&e.failures, s.consecutive_5xx)])
        }
    }
}

/// Counts a try for the shares of its interval. What tells nothing is not counted; failures to connect neither, where
/// they are counted apart.
pub fn tally(s: &Settings, e: &EndpointState, verdict: Verdict) {
    let failed = match verdict {
        Verdict::Good => 0,
        Verdict::Unreachable if s.consecutive_local.is_some() => return,
        Verdict::Error { .. } | Verdict::Unreachable => 1,
        Verdict::Nothing => return,
    };
    e.judged.fetch_add(1 << 32 | failed, Relaxed);
}

/// What one endpoint did in an interval.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    pub tries: u32,
    pub failed: u32,
}

impl Interval {
    /// Takes it from an endpoint, whose next one begins.
    #[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
    pub fn take(e: &EndpointState) -> Self {
        let word = e.judged.swap(0, Relaxed);
        Self { tries: (word >> 32) as u32, failed: word as u32 }
    }
    fn failures(self) -> f64 {
        f64::from(self.failed) / f64::from(self.tries.max(1))
    }
}

/// Positions of the endpoints that are to go, judged against a share, or against all others.
pub fn outliers(s: &Settings, all: &[Interval]) -> Vec<usize> {
    let enough = |volume: u32| all.iter().enumerate().filter(move |(_, i)| i.tries >= volume);
    let mut out = Vec::new();
    if let Some(share) = s.failure_share
        && enough(share.volume).count() >= share.hosts
    {
        out.extend(enough(share.volume).filter(|(_, i)| i.failures() >= share.threshold).map(|(at, _)| at));
    }
    if let Some(rate) = s.success_rate
        && enough(rate.volume).count() >= rate.hosts
    {
        #[expect(clippy::cast_precision_loss, reason = "sets are small numbers")]
        let n = enough(rate.volume).count() as f64;
        let mean = enough(rate.volume).map(|(_, i)| i.failures()).sum::<f64>() / n;
        let variance = enough(rate.volume).map(|(_, i)| (i.failures() - mean).powi(2)).sum::<f64>() / n;
        let worst = mean + rate.threshold * variance.sqrt();
        out.extend(enough(rate.volume).filter(|(_, i)| i.failures() > worst).map(|(at, _)| at));
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// Counts one more in each; whether one reached its limit.
fn tripped(counts: &[(&std::sync::atomic::AtomicU32, u32)]) -> Act {
    let mut act = Act::None;
    for (count, limit) in counts {
        let n = count.fetch_add(1, Relaxed) + 1;
        if *limit != 0 && n >= *limit {
            act = Act::Eject;
        }
    }
    act
}

/// An ejected endpoint listens to its probe alone: what was under way before it, or was sent in panic, decides nothing.
fn settle(e: &EndpointState, verdict: Verdict, picked: Moment, until: u64, now: Moment) -> Act {
    let claimed = Moment(until) - LEASE;
    if !e.probing.load(Acquire) || now.0 >= until || picked + SLACK < claimed {
        return Act::None;
    }
    match verdict {
        Verdict::Good => {
            if e.ejected_until.compare_exchange(until, 0, AcqRel, Relaxed).is_err() {
                return Act::None;
            }
            e.probing.store(false, Relaxed);
            e.restored_at.store(now.0, Relaxed);
            forget(e);
            Act::Restored
        }
        // No verdict: the next request may probe, at once. It says so itself; to say here that nobody does would be too
        // late for one that has begun meanwhile.
        Verdict::Nothing => {
            let _ = e.ejected_until.compare_exchange(until, now.0.max(1), AcqRel, Relaxed);
            Act::None
        }
        Verdict::Error { .. } | Verdict::Unreachable => Act::Eject,
    }
}

fn forget(e: &EndpointState) {
    for count in [&e.failures, &e.gateway_failures, &e.local_failures] {
        count.store(0, Relaxed);
    }
}

/// Takes the one probe of a half-open endpoint by moving its return on by the lease: of any number of threads one wins.
/// True also for endpoints that are not ejected, and for those picked in panic while ejected.
pub fn claim(e: &EndpointState, now: Moment) -> bool {
    let until = e.ejected_until.load(Acquire);
    if until == 0 || now.0 < until && !e.probing.load(Acquire) {
        return true;
    }
    if now.0 < until {
        return false;
    }
    // Before the claim, or a thread that sees it done would take the endpoint for one that is ejected and picked in panic.
    e.probing.store(true, Relaxed);
    e.ejected_until.compare_exchange(until, (now + LEASE).0, AcqRel, Relaxed).is_ok()
}

/// Ejects: n-th time, n times as long. Callers agree beforehand that it may go.
pub fn eject(s: &Settings, e: &EndpointState, now: Moment) -> Duration {
    let before = e.ejections.load(Relaxed);
    // Forgiven: one for each `interval` it has been back, none while it was away.
    let back = if e.probing.load(Relaxed) { Duration::ZERO } else { now.since(Moment(e.restored_at.load(Relaxed))) };
    let forgiven = u32::try_from(back.as_nanos() / s.interval.as_nanos().max(1)).unwrap_or(u32::MAX);
    let times = before.saturating_sub(forgiven).saturating_add(1);
    let length = s.base.saturating_mul(times).min(s.longest);
    // Beyond the longest ejection counting on would only make forgiving endless.
    if length < s.longest || times <= before {
        e.ejections.store(times, Relaxed);
    }
    e.probing.store(false, Relaxed);
    forget(e);
    e.ejected_until.store((now + length).0.max(1), std::sync::atomic::Ordering::Release);
    length
}

/// Takes an ejection back without a probe.
pub fn pardon(e: &EndpointState) {
    forget(e);
    e.ejected_until.store(0, Relaxed);
    e.probing.store(false, Relaxed);
}

/// Whether one more of `members` may go while `out` are out.
pub fn may_eject(s: &Settings, members: usize, out: usize) -> bool {
    if s.max_percent == 0.0 || out + 1 >= members {
        return false;
    }
    #[expect(clippy::cast_precision_loss, reason = "sets are small numbers")]
    let share = (out + 1) as f64 / members as f64;
    out == 0 || share <= s.max_percent
}
