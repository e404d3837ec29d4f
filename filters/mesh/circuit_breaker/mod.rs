//! `circuitBreaker`: caps on what runs at once against a service, with a short, bounded queue before it.

mod config;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use self::config::Section;
use crate::contract::clock::recent;
use crate::contract::fault::{Fault, Reason};
use crate::contract::mesh::{Admit, Endpoint, Gate};
use crate::contract::metrics::{Counter, Gauge};
use crate::contract::principal::Priority;
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Moment, Role};
use crate::mesh::places::{Asked, Called, Places};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "circuitBreaker",
    summary: "Caps what runs at once against a service",
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
    // Without a cap nobody waits, and nothing has to be counted.
    let Some(cap) = s.max_requests.into_iter().chain(s.max_connections).min() else { return Ok(None) };
    let (cap, max_pending) = (cap.get(), s.max_pending.unwrap_or(PENDING));
    let places = build.keep("circuitBreaker.places", "", || Places::new(cap, max_pending, None));
    let labels = [("service", crate::mesh::service_of(&build.scope))];
    let m = &build.metrics;
    let refused = |reason: &'static str| {
        let labels = [labels[0], ("reason", reason)];
        m.counter("onehop_breaker_refused_total", "Tries the circuit breaker refused.", &labels)
    };
    let breaker = Breaker {
        cap,
        max_pending,
        timeout: s.pending_timeout.map_or(PENDING_TIMEOUT, |d| d.0),
        places: places.clone(),
        active: m.gauge("onehop_breaker_active", "Tries that hold a place.", &labels),
        pending: m.gauge("onehop_breaker_pending", "Tries that wait for a place.", &labels),
        near: m.counter("onehop_breaker_near_limit_total", "Times that use rose to 80 % of the cap.", &labels),
        open: refused(Reason::BreakerOpen.code()),
        overflow: refused(Reason::PendingOverflow.code()),
        late: refused(Reason::PendingTimeout.code()),
    };
    let limit = m.gauge("onehop_breaker_limit", "Places the circuit breaker gives at once.", &labels);
    build.at_publish(move || {
        places.resize(cap, max_pending, recent());
        limit.set(cap.into());
    });
    Ok(Some(Arc::new(breaker)))
}

struct Breaker {
    cap: u32,
    max_pending: u32,
    timeout: Duration,
    places: Arc<Places>,
    active: Gauge,
    pending: Gauge,
    near: Counter,
    open: Counter,
    overflow: Counter,
    late: Counter,
}

fn refusal(reason: Reason) -> Fault {
    Fault::never_ran(reason).by("circuitBreaker")
}

impl Gate for Breaker {
    fn admit(&self, now: Moment, priority: Priority) -> Admit<'_> {
        match self.places.ask(priority, now) {
            Asked::Yes(taken) => {
                self.active.add(1);
                // Counted on the way up only; 64 bits, for the product of a large cap.
                if u64::from(taken) == (u64::from(self.cap) * 4).div_ceil(5) {
                    self.near.inc();
                }
                Admit::Yes
            }
            Asked::Full if self.max_pending == 0 => {
                self.open.inc();
                Admit::No(refusal(Reason::BreakerOpen))
            }
            Asked::Full => {
                self.overflow.inc();
                Admit::No(refusal(Reason::PendingOverflow))
            }
            Asked::Wait(ticket) => Admit::Wait(Box::pin(async move {
                let _waiting = Waiting::new(&self.pending);
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
            })),
        }
    }
    fn release(&self, _: Option<&Endpoint>) {
        self.active.add(-1);
        self.places.release(recent());
    }
}

/// Counts a waiting try for as long as it waits, however it ends.
struct Waiting<'a>(&'a Gauge);

impl<'a> Waiting<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.add(1);
        Self(gauge)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}
