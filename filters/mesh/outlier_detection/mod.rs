//! `outlierDetection`: an endpoint that fails again and again is left alone for a while, then probed by one request.

mod config;
mod core;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;

use self::config::{Section, Settings};
use self::core::Act;
use crate::contract::mesh::{Endpoint, Gate, TryOutcome};
use crate::contract::metrics::{Counter, Gauge};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Moment, Role};
use crate::mesh::verdict::verdict;

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "outlierDetection",
    summary: "Leaves failing endpoints alone for a while",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Section>(),
    role: Role::Gate(build),
};

fn build(section: Option<&Node>, build: &mut Build<'_>) -> Result<Option<Arc<dyn Gate>>, ConfigError> {
    let s = section.map_or_else(|| Ok(Section::default()), Node::read)?;
    let settings = s.settings()?;
    if s.enabled == Some(false) {
        // Endpoints outlive the config: whoever is out comes back.
        return Ok(Some(Arc::new(Amnesty)));
    }
    let service = crate::mesh::service_of(&build.scope).to_owned();
    let labels = [("service", service.as_str())];
    let m = &build.metrics;
    Ok(Some(Arc::new(Detector {
        settings,
        members: Mutex::new(Arc::new([])),
        ejected: m.gauge("onehop_outlier_ejected", "Endpoints that are ejected or half-open now.", &labels),
        ejections: m.counter("onehop_outlier_ejections_total", "Ejections.", &labels),
        spared: m.counter("onehop_outlier_spared_total", "Ejections that would have left too few.", &labels),
        restored: m.counter("onehop_outlier_restored_total", "Endpoints whose probe brought them back.", &labels),
        service,
    })))
}

struct Detector {
    settings: Settings,
    /// Held while one is ejected, so that two threads cannot eject the last two. Contended by ejections and changes of
    /// the set only.
    members: Mutex<Arc<[Arc<Endpoint>]>>,
    ejected: Gauge,
    ejections: Counter,
    spared: Counter,
    restored: Counter,
    service: String,
}

impl Detector {
    /// Half-open ones count as out: until its probe passes an endpoint carries nothing.
    fn out(members: &[Arc<Endpoint>]) -> usize {
        members.iter().filter(|e| e.state.ejected_until.load(Relaxed) != 0).count()
    }
    fn show(&self, members: &[Arc<Endpoint>]) {
        self.ejected.set(i64::try_from(Self::out(members)).unwrap_or(i64::MAX));
    }
    fn eject(&self, endpoint: &Endpoint, now: Moment) {
        let members = self.members.lock();
        let again = endpoint.state.ejected_until.load(Relaxed) != 0;
        if again && !endpoint.state.probing.load(Relaxed) {
            return; // Another thread's failure was first.
        }
        if !again && !core::may_eject(&self.settings, members.len(), Self::out(&members)) {
            self.spared.inc();
            return;
        }
        let length = core::eject(&self.settings, &endpoint.state, now);
        self.ejections.inc();
        self.show(&members);
        tracing::warn!(
            service = self.service,
            endpoint = %endpoint.address,
            seconds = length.as_secs_f64(),
            times = endpoint.state.ejections.load(Relaxed),
            "endpoint ejected"
        );
    }
}

impl Gate for Detector {
    fn members(&self, endpoints: &[Arc<Endpoint>]) {
        let mut members = self.members.lock();
        *members = endpoints.into();
        // A set that shrank to those that are out: one is always kept, and rather all than a guess which.
        if Self::out(&members) == members.len() {
            members.iter().for_each(|e| core::pardon(&e.state));
        }
        self.show(&members);
    }
    fn picked(&self, endpoint: &Endpoint, now: Moment) -> bool {
        core::claim(&endpoint.state, now)
    }
    fn observe(&self, endpoint: &Endpoint, outcome: &TryOutcome<'_>, now: Moment) {
        let picked = now - outcome.latency;
        match core::observe(&self.settings, &endpoint.state, verdict(outcome), picked, now) {
            Act::None => {}
            Act::Eject => self.eject(endpoint, now),
            Act::Restored => {
                self.restored.inc();
                self.show(&self.members.lock());
                tracing::info!(service = self.service, endpoint = %endpoint.address, "endpoint is back");
            }
        }
    }
}

/// `enabled: false`.
struct Amnesty;

impl Gate for Amnesty {
    fn members(&self, endpoints: &[Arc<Endpoint>]) {
        endpoints.iter().for_each(|e| core::pardon(&e.state));
    }
}
