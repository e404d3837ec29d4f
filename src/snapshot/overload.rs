//! What is given up first when there is too much to do: requests of callers with a low priority, then of those with the
//! usual one. Off unless `runtime.maxRequests` or `runtime.maxMemory` is set.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use onehop_filters::contract::metrics::{Counter, Gauge, Registry};
use onehop_filters::contract::principal::Priority;
use onehop_filters::contract::{Build, Optional};

use crate::config::plan::Plan;

/// How often the kernel is asked for the memory in use.
const SAMPLE: Duration = Duration::from_millis(250);

/// See the module.
pub struct Overload {
    max_requests: Option<u32>,
    /// Limit in bytes, and what is in use.
    memory: Option<(u64, Arc<Resident>)>,
    shed: [Counter; 4],
    /// What is left out first, with what of it was.
    brownout: Vec<(Optional, Counter)>,
}

/// Resident memory of the process, sampled.
#[derive(Default)]
pub struct Resident(AtomicU64);

impl Overload {
    /// As the plan says; `None` if it sets no limit.
    pub fn build(plan: &Plan, build: &mut Build<'_>) -> Option<Self> {
        if plan.max_requests.is_none() && plan.max_memory.is_none() {
            return None;
        }
        let memory = plan.max_memory.map(|limit| {
            let mut made = false;
            let resident = build.keep("resident", "", || {
                made = true;
                Resident::default()
            });
            if made {
                let kept = Arc::downgrade(&resident);
                build.background(sample(kept));
            }
            (limit, resident)
        });
        let shed = ["unknown", "low", "normal", "high"].map(|priority| counter(&build.metrics, priority));
        let brownout = plan.brownout.iter().map(|work| (*work, left_out(&build.metrics, *work))).collect();
        Some(Self { max_requests: plan.max_requests, memory, shed, brownout })
    }

    /// Whether optional work is left out. The kinds that are configured share the last fifth before the first caller is
    /// refused: of two, the first goes at 60 % of the limit and the second at 70 %.
    pub fn leaves_out(&self, in_flight: &Gauge, work: Optional) -> bool {
        let Some(at) = self.brownout.iter().position(|(w, _)| *w == work) else { return false };
        let step = 20 * at as u64 / self.brownout.len() as u64;
        let requests = self
            .max_requests
            .is_some_and(|limit| in_flight.value().unsigned_abs() * 100 > u64::from(limit) * (60 + step));
        let memory = self.memory.as_ref().is_some_and(|(limit, used)| used.0.load(Relaxed) > limit / 100 * (65 + step));
        if requests || memory {
            self.brownout[at].1.inc();
        }
        requests || memory
    }

    /// Whether a request is given up, which counts among those in flight. Its priority is known once its caller is.
    pub fn sheds(&self, in_flight: &Gauge, priority: Option<Priority>) -> bool {
        let requests = self.max_requests.is_some_and(|limit| in_flight.value() > room(limit, priority));
        let memory = self.memory.as_ref().is_some_and(|(limit, used)| used.0.load(Relaxed) > budget(*limit, priority));
        if requests || memory {
            self.shed[priority.map_or(0, |p| p as usize + 1)].inc();
        }
        requests || memory
    }
}

fn counter(metrics: &Registry, priority: &str) -> Counter {
    let help = "Requests given up because the process had too much to do, by the priority of the caller's plan.";
    metrics.counter("onehop_shed_requests_total", help, &[("priority", priority)])
}

fn left_out(metrics: &Registry, work: Optional) -> Counter {
    let name = match work {
        Optional::Mirror => "mirror",
        Optional::Tracing => "tracing",
        Optional::Validation => "validation",
    };
    let help = "Requests for which optional work was left out because the process had too much to do.";
    metrics.counter("onehop_brownout_total", help, &[("work", name)])
}

/// Requests in flight beyond which one of this priority is given up. Rounded up: a small limit still serves everybody
/// while there is nothing else to do.
fn room(limit: u32, priority: Option<Priority>) -> i64 {
    let percent = match priority {
        Some(Priority::Low) => 80,
        Some(Priority::Normal) => 90,
        Some(Priority::High) | None => 100,
    };
    (i64::from(limit) * percent + 99) / 100
}

/// The same for bytes. Memory comes back later than a request ends: the steps are closer to the end.
const fn budget(limit: u64, priority: Option<Priority>) -> u64 {
    let percent = match priority {
        Some(Priority::Low) => 85,
        Some(Priority::Normal) => 92,
        Some(Priority::High) | None => 98,
    };
    limit / 100 * percent
}

async fn sample(resident: Weak<Resident>) {
    while let Some(resident) = resident.upgrade() {
        resident.0.store(used().unwrap_or(0), Relaxed);
        drop(resident);
        tokio::time::sleep(SAMPLE).await;
    }
}

/// The second field of `/proc/self/statm` is the resident set in pages (proc(5)).
fn used() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overload(max_requests: Option<u32>, memory: Option<(u64, u64)>) -> (Overload, Gauge, Registry) {
        let metrics = Registry::default();
        let memory = memory.map(|(limit, used)| (limit, Arc::new(Resident(AtomicU64::new(used)))));
        let shed = ["unknown", "low", "normal", "high"].map(|priority| counter(&metrics, priority));
        let brownout = [Optional::Mirror, Optional::Tracing].map(|work| (work, left_out(&metrics, work))).into();
        (Overload { max_requests, memory, shed, brownout }, metrics.gauge("g", "", &[]), metrics)
    }

    const ALL: [Option<Priority>; 4] = [None, Some(Priority::Low), Some(Priority::Normal), Some(Priority::High)];

    #[test]
    fn the_lowest_goes_first() {
        let (overload, in_flight, metrics) = overload(Some(10), None);
        for (n, shed) in [
            (8, [false, false, false, false]),
            (9, [false, true, false, false]),
            (10, [false, true, true, false]),
            (11, [true, true, true, true]),
        ] {
            in_flight.set(n);
            assert_eq!(ALL.map(|p| overload.sheds(&in_flight, p)), shed, "{n} in flight");
        }
        assert_eq!(counter(&metrics, "low").value(), 3);
        assert_eq!(counter(&metrics, "unknown").value(), 1);
    }

    #[test]
    fn one_request_at_a_time_serves_everybody() {
        let (overload, in_flight, _) = overload(Some(1), None);
        in_flight.set(1);
        assert_eq!(ALL.map(|p| overload.sheds(&in_flight, p)), [false; 4]);
    }

    #[test]
    fn optional_work_goes_before_any_caller() {
        let (overload, in_flight, metrics) = overload(Some(100), None);
        for (n, left_out) in [(60, [false, false]), (61, [true, false]), (70, [true, false]), (71, [true, true])] {
            in_flight.set(n);
            let found = [Optional::Mirror, Optional::Tracing].map(|work| overload.leaves_out(&in_flight, work));
            assert_eq!(found, left_out, "{n} in flight");
            assert_eq!(ALL.map(|p| overload.sheds(&in_flight, p)), [false; 4]);
        }
        assert_eq!(left_out(&metrics, Optional::Mirror).value(), 3);
    }

    #[test]
    fn memory_counts_as_well() {
        for (used, shed) in [(850, [false; 4]), (851, [false, true, false, false]), (981, [true; 4])] {
            let (overload, in_flight, _) = overload(None, Some((1000, used)));
            assert_eq!(ALL.map(|p| overload.sheds(&in_flight, p)), shed, "{used} bytes");
        }
        assert!(used().expect("on Linux") > 100_000);
    }
}
