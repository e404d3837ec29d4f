//! `adaptiveConcurrency`: as many tries at once as the service carries without getting slower, found out by its latency.

mod config;
mod core;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use self::config::{Meaning, Section};
use self::core::{Change, Limiter};
use crate::contract::clock::recent;
use crate::contract::fault::{Fault, Reason};
use crate::contract::mesh::{Admit, Endpoint, Gate, TryOutcome};
use crate::contract::metrics::{Counter, Gauge};
use crate::contract::principal::Priority;
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Moment, Role};
use crate::mesh::chance::Dice;
use crate::mesh::places::{Asked, Called, Pace, Places};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "adaptiveConcurrency",
    summary: "Lets in what a service carries, found out by its latency",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Section>(),
    role: Role::Gate(build),
};

/// A queue in which somebody waited all this time does not get shorter any more.
const PATIENCE: Duration = Duration::from_millis(100);
/// Shortest wait that is worth a place in the queue.
const SHORTEST: Duration = Duration::from_millis(1);

fn build(section: Option<&Node>, build: &mut Build<'_>) -> Result<Option<Arc<dyn Gate>>, ConfigError> {
    let Some(node) = section else { return Ok(None) };
    let meaning = node.read::<Section>()?.meaning()?;
    let limiter = build.keep("adaptiveConcurrency.limit", "", || Limiter::new(&meaning.limits, Dice::fresh().roll()));
    let places = build.keep("adaptiveConcurrency.places", "", || {
        Places::new(limiter.adopt(&meaning.limits), meaning.max_pending, Some(pace(&meaning, Duration::ZERO)))
    });
    let labels = [("service", crate::mesh::service_of(&build.scope))];
    let m = &build.metrics;
    let refused = |reason: Reason| {
        let labels = [labels[0], ("reason", reason.code())];
        m.counter("onehop_concurrency_refused_total", "Tries for which a service had no room.", &labels)
    };
    let gate = Adaptive {
        meaning,
        limiter,
        places,
        active: m.gauge("onehop_concurrency_active", "Tries that hold a place.", &labels),
        pending: m.gauge("onehop_concurrency_pending", "Tries that wait for a place.", &labels),
        limit: m.gauge("onehop_concurrency_limit", "Tries that a service is found to carry at once.", &labels),
        unloaded: m.gauge("onehop_concurrency_min_rtt_microseconds", "Latency without load.", &labels),
        latency: m.gauge("onehop_concurrency_rtt_microseconds", "Latency of the last window.", &labels),
        overflow: refused(Reason::PendingOverflow),
        late: refused(Reason::PendingTimeout),
    };
    let (places, limiter, limit) = (gate.places.clone(), gate.limiter.clone(), gate.limit.clone());
    build.at_publish(move || {
        let cap = limiter.adopt(&meaning.limits);
        places.set_pace(pace(&meaning, limiter.unloaded()));
        places.resize(cap, meaning.max_pending, recent());
        limit.set(cap.into());
    });
    Ok(Some(Arc::new(gate)))
}

fn pace(meaning: &Meaning, unloaded: Duration) -> Pace {
    let target = meaning.target.unwrap_or_else(|| if unloaded.is_zero() { meaning.timeout } else { unloaded / 4 });
    Pace { patience: PATIENCE, target: target.max(SHORTEST) }
}

impl Change {
    fn pace(&self, meaning: &Meaning) -> Pace {
        // Those who wait because something is measured have not come too many.
        let target = if self.measures { meaning.timeout } else { Duration::ZERO };
        let pace = pace(meaning, self.unloaded);
        Pace { target: pace.target.max(target), ..pace }
    }
}

struct Adaptive {
    meaning: Meaning,
    limiter: Arc<Limiter>,
    places: Arc<Places>,
    active: Gauge,
    pending: Gauge,
    limit: Gauge,
    unloaded: Gauge,
    latency: Gauge,
    overflow: Counter,
    late: Counter,
}

impl Adaptive {
    fn refuse(&self, reason: Reason) -> Fault {
        if reason == Reason::PendingTimeout { &self.late } else { &self.overflow }.inc();
        Fault::never_ran(reason).by("adaptiveConcurrency")
    }
    fn adjust(&self, change: Change, now: Moment) {
        let micros = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        self.places.set_pace(change.pace(&self.meaning));
        if change.limit != self.places.cap() {
            self.places.resize(change.limit, self.meaning.max_pending, now);
        }
        self.limit.set(change.limit.into());
        self.unloaded.set(micros(change.unloaded));
        self.latency.set(micros(change.latency));
    }
}

impl Gate for Adaptive {
    fn admit(&self, now: Moment, priority: Priority) -> Admit<'_> {
        match self.places.ask(priority, now) {
            Asked::Yes(taken) => {
                self.limiter.taken(taken);
                self.active.add(1);
                Admit::Yes
            }
            Asked::Full => {
                self.limiter.full();
                Admit::No(self.refuse(Reason::PendingOverflow))
            }
            Asked::Wait(ticket) => {
                self.limiter.full();
                let patience = ticket.patience.unwrap_or(self.meaning.timeout);
                Admit::Wait(Box::pin(async move {
                    let _waiting = self.pending.one_more();
                    match tokio::time::timeout(patience, ticket.called()).await {
                        Ok(Called::Place) => {
                            self.active.add(1);
                            Ok(())
                        }
                        Ok(Called::Displaced) => Err(self.refuse(Reason::PendingOverflow)),
                        Ok(Called::Late) => Err(self.refuse(Reason::PendingTimeout)),
                        Err(_) => {
                            self.places.gave_up(recent());
                            Err(self.refuse(Reason::PendingTimeout))
                        }
                    }
                }))
            }
        }
    }
    fn observe(&self, _: &Endpoint, outcome: &TryOutcome<'_>, now: Moment) {
        if tells(outcome)
            && let Some(change) = self.limiter.sample(&self.meaning.limits, outcome.latency, now)
        {
            self.adjust(change, now);
        }
    }
    fn release(&self, _: Option<&Endpoint>) {
        self.active.add(-1);
        self.places.release(recent());
    }
    fn view(&self, _: Moment) -> Option<(&'static str, serde_json::Value)> {
        let (active, pending) = self.places.counts();
        let view = serde_json::json!({
            "limit": self.places.cap(),
            "active": active,
            "pending": pending,
            "min_rtt_ms": self.limiter.unloaded().as_secs_f64() * 1e3,
        });
        Some(("concurrency", view))
    }
}

/// Whether the length of a try says how busy the service is. An error may be quick because nothing was done, and a caller
/// that left says nothing; a try that ran out of time took at least as long as it did.
fn tells(outcome: &TryOutcome<'_>) -> bool {
    match &outcome.result {
        Ok((status, _)) => {
            !status.is_server_error() && status.as_u16() != 429 && outcome.grpc.is_none_or(|code| code == 0)
        }
        Err((reason, _)) => matches!(reason, Reason::TryTimeout | Reason::Deadline),
    }
}
