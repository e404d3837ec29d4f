//! `circuitBreaker`: caps on what runs at once against a service, with a short, bounded queue before it; and, with `trip`,
//! a breaker that leaves a failing service alone for a while.

mod config;
#[cfg(test)]
mod tests;
mod trip;

use std::sync::Arc;
use std::time::Duration;

use self::config::Section;
use self::trip::{Cause, Phase, Settings, Trip, Turn};
use crate::contract::clock::recent;
use crate::contract::fault::{Fault, Reason};
use crate::contract::mesh::{Admit, Endpoint, Gate, Switch, TryOutcome};
use crate::contract::metrics::{Counter, Gauge, Registry};
use crate::contract::principal::Priority;
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Moment, Role};
use crate::mesh::chance::Dice;
use crate::mesh::places::{Asked, Called, Places};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "circuitBreaker",
    summary: "Caps what runs at once against a service, and leaves a failing one alone",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Section>(),
    role: Role::Gate(build),
};

/// Default of `maxPending`.
const PENDING: u32 = 1024;
/// Default of `pendingTimeout`.
const PENDING_TIMEOUT: Duration = Duration::from_secs(1);

fn build(section: Option<&Node>, build: &mut Build<'_>) -> Result<Option<Arc<dyn Gate>>, ConfigError> {
    let Some(node) = section else { return Ok(None) };
    let s: Section = node.read()?;
    let breaker =
        Breaker { caps: Caps::build(&s, build), breaker: s.trip.map(|t| Tripping::build(&t, build)).transpose()? };
    // Without a cap nobody waits, and nothing has to be counted.
    let acts = breaker.caps.is_some() || breaker.breaker.is_some();
    Ok(acts.then(|| Arc::new(breaker) as Arc<dyn Gate>))
}

struct Breaker {
    caps: Option<Caps>,
    breaker: Option<Tripping>,
}

struct Caps {
    cap: u32,
    max_pending: u32,
    timeout: Duration,
    places: Arc<Places>,
    active: Gauge,
    pending: Gauge,
    near: Counter,
    full: Counter,
    overflow: Counter,
    late: Counter,
}

struct Tripping {
    settings: Settings,
    trip: Arc<Trip>,
    service: String,
    /// 0 closed, 1 half-open, 2 open.
    state: Gauge,
    /// By [`Cause`].
    trips: [Counter; 3],
    refused: Counter,
}

fn refused(metrics: &Registry, service: &str, reason: Reason) -> Counter {
    let labels = [("service", service), ("reason", reason.code())];
    metrics.counter("onehop_breaker_refused_total", "Tries the circuit breaker refused.", &labels)
}

impl Caps {
    fn build(s: &Section, build: &mut Build<'_>) -> Option<Self> {
        let cap = s.max_requests.into_iter().chain(s.max_connections).min()?;
        let (cap, max_pending) = (cap.get(), s.max_pending.unwrap_or(PENDING));
        let places = build.keep("circuitBreaker.places", "", || Places::new(cap, max_pending, None));
        let service = crate::mesh::service_of(&build.scope);
        let labels = [("service", service)];
        let m = &build.metrics;
        let caps = Self {
            cap,
            max_pending,
            timeout: s.pending_timeout.map_or(PENDING_TIMEOUT, |d| d.0),
            places: places.clone(),
            active: m.gauge("onehop_breaker_active", "Tries that hold a place.", &labels),
            pending: m.gauge("onehop_breaker_pending", "Tries that wait for a place.", &labels),
            near: m.counter("onehop_breaker_near_limit_total", "Times that use rose to 80 % of the cap.", &labels),
            full: refused(m, service, Reason::BreakerOpen),
            overflow: refused(m, service, Reason::PendingOverflow),
            late: refused(m, service, Reason::PendingTimeout),
        };
        let limit = m.gauge("onehop_breaker_limit", "Places the circuit breaker gives at once.", &labels);
        build.at_publish(move || {
            places.resize(cap, max_pending, recent());
            limit.set(cap.into());
        });
        Some(caps)
    }
    fn admit(&self, now: Moment, priority: Priority) -> Result<Option<Waits<'_>>, Fault> {
        match self.places.ask(priority, now) {
            Asked::Yes(taken) => {
                self.active.add(1);
                // Counted on the way up only; 64 bits, for the product of a large cap.
                if u64::from(taken) == (u64::from(self.cap) * 4).div_ceil(5) {
                    self.near.inc();
                }
                Ok(None)
            }
            Asked::Full if self.max_pending == 0 => {
                self.full.inc();
                Err(refusal(Reason::BreakerOpen))
            }
            Asked::Full => {
                self.overflow.inc();
                Err(refusal(Reason::PendingOverflow))
            }
            Asked::Wait(ticket) => Ok(Some(Box::pin(async move {
                let _waiting = self.pending.one_more();
                match tokio::time::timeout(self.timeout, ticket.called()).await {
                    Ok(Called::Place) => {
                        self.active.add(1);
                        Ok(())
                    }
                    Ok(Called::Displaced | Called::Late) => {
                        self.overflow.inc();
                        Err(refusal(Reason::PendingOverflow))
                    }
                    Err(_) => {
                        self.late.inc();
                        Err(refusal(Reason::PendingTimeout))
                    }
                }
            }))),
        }
    }
    fn release(&self) {
        self.active.add(-1);
        self.places.release(recent());
    }
}

type Waits<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + 'a>>;

impl Tripping {
    fn build(section: &config::Trip, build: &mut Build<'_>) -> Result<Self, ConfigError> {
        let settings = section.settings()?;
        let trip = build.keep("circuitBreaker.trip", "", || Trip::new(Dice::fresh().roll()));
        let service = crate::mesh::service_of(&build.scope).to_owned();
        let m = &build.metrics;
        let trips = ["failures", "slow", "probe"].map(|cause| {
            let labels = [("service", service.as_str()), ("cause", cause)];
            m.counter("onehop_breaker_trips_total", "Times the circuit breaker opened.", &labels)
        });
        let help = "Whether the circuit breaker is closed (0), half-open (1) or open (2).";
        let state = m.gauge("onehop_breaker_state", help, &[("service", &service)]);
        let refused = refused(m, &service, Reason::BreakerOpen);
        Ok(Self { settings, trip, service, state, trips, refused })
    }
    fn refuse(&self, now: Moment) -> Fault {
        self.refused.inc();
        let seconds = self.trip.left(now).as_secs() + 1;
        refusal(Reason::BreakerOpen).header(http::header::RETRY_AFTER, seconds.into())
    }
    fn enter(&self, now: Moment) -> Result<(), Fault> {
        if !self.trip.enter(now) {
            return Err(self.refuse(now));
        }
        if self.trip.phase() == Phase::Claimed {
            self.state.set(1);
        }
        Ok(())
    }
    fn observe(&self, outcome: &TryOutcome<'_>, now: Moment) {
        match self.trip.observe(&self.settings, outcome, now) {
            Turn::None => {}
            Turn::Opened(cause) => {
                self.state.set(2);
                self.trips[cause as usize].inc();
                let why = match cause {
                    Cause::Failures => "too many tries fail",
                    Cause::Slow => "too many tries are slow",
                    Cause::Probe => "the probe failed",
                };
                let seconds = self.trip.left(now).as_secs_f64();
                tracing::warn!(service = self.service, why, seconds, "the circuit breaker opens");
            }
            Turn::Closed => {
                self.state.set(0);
                tracing::info!(service = self.service, "the circuit breaker closes");
            }
        }
    }
}

fn refusal(reason: Reason) -> Fault {
    Fault::never_ran(reason).by("circuitBreaker")
}

impl Gate for Breaker {
    fn admit(&self, now: Moment, priority: Priority) -> Admit<'_> {
        // Before the queue, so that nobody waits for a service that is left alone, and behind it again.
        if let Some(breaker) = &self.breaker
            && breaker.trip.refuses(now)
        {
            return Admit::No(breaker.refuse(now));
        }
        let Some(caps) = &self.caps else { return self.enter(now) };
        match caps.admit(now, priority) {
            Err(fault) => Admit::No(fault),
            Ok(None) => self.enter(now),
            Ok(Some(waits)) if self.breaker.is_none() => Admit::Wait(waits),
            Ok(Some(waits)) => Admit::Wait(Box::pin(async move {
                waits.await?;
                match self.enter(recent()) {
                    Admit::No(fault) => Err(fault),
                    Admit::Yes | Admit::Wait(_) => Ok(()),
                }
            })),
        }
    }
    fn picked(&self, _: &Endpoint, now: Moment) -> bool {
        if let Some(breaker) = &self.breaker {
            breaker.trip.picked(now);
        }
        true
    }
    fn observe(&self, _: &Endpoint, outcome: &TryOutcome<'_>, now: Moment) {
        if let Some(breaker) = &self.breaker {
            breaker.observe(outcome, now);
        }
    }
    fn release(&self, endpoint: Option<&Endpoint>) {
        if let Some(breaker) = self.breaker.as_ref().filter(|_| endpoint.is_none()) {
            breaker.trip.unpicked();
        }
        if let Some(caps) = &self.caps {
            caps.release();
        }
    }
    fn switch(&self, to: Switch) {
        if let Some(breaker) = &self.breaker {
            breaker.trip.hold(to == Switch::Closed, crate::contract::now());
            if breaker.trip.phase() == Phase::Closed {
                breaker.state.set(0);
            }
        }
    }
    fn view(&self, now: Moment) -> Option<(&'static str, serde_json::Value)> {
        let trip = &self.breaker.as_ref()?.trip;
        let left = u64::try_from(trip.left(now).as_millis()).unwrap_or(u64::MAX);
        let view = match trip.phase() {
            Phase::Closed => serde_json::json!({ "state": "closed", "trips": trip.times() }),
            Phase::Open if left > 0 => serde_json::json!({ "state": "open", "left_ms": left, "trips": trip.times() }),
            _ => serde_json::json!({ "state": "half-open", "trips": trip.times() }),
        };
        Some(("breaker", view))
    }
}

impl Breaker {
    /// Lets a try that has its place, if it needs one, past the breaker.
    fn enter(&self, now: Moment) -> Admit<'_> {
        match self.breaker.as_ref().map_or(Ok(()), |breaker| breaker.enter(now)) {
            Ok(()) => Admit::Yes,
            Err(fault) => {
                if let Some(caps) = &self.caps {
                    caps.release();
                }
                Admit::No(fault)
            }
        }
    }
}
