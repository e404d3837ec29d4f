//! `outlierDetection`: an endpoint that fails again and again is left alone for a while, then probed by one request.

mod config;
mod core;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use self::config::{Section, Settings};
use self::core::{Act, Interval};
use crate::contract::mesh::{Endpoint, Gate, TryOutcome};
use crate::contract::metrics::{Counter, Gauge, Registry};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Moment, Role};
use crate::mesh::chance::Dice;
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
    let detector = Arc::new(Detector::new(settings, &build.metrics, crate::mesh::service_of(&build.scope)));
    if detector.counts {
        build.background(watch(Arc::downgrade(&detector), settings.interval));
    }
    Ok(Some(detector))
}

/// Looks at the shares of each interval, for as long as the detector is in use.
async fn watch(detector: Weak<Detector>, interval: Duration) {
    let mut dice = Dice::fresh();
    loop {
        // Not in step with other proxies, or the same interval would look bad to all of them.
        tokio::time::sleep(dice.jitter(interval, 0.1)).await;
        let Some(detector) = detector.upgrade() else { return };
        detector.sweep(crate::contract::now());
    }
}

struct Detector {
    settings: Settings,
    /// Shares are looked at: then every try is counted.
    counts: bool,
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
    fn new(settings: Settings, m: &Registry, service: &str) -> Self {
        let labels = [("service", service)];
        Self {
            counts: settings.failure_share.is_some() || settings.success_rate.is_some(),
            settings,
            members: Mutex::new(Arc::new([])),
            ejected: m.gauge("onehop_outlier_ejected", "Endpoints that are ejected or half-open now.", &labels),
            ejections: m.counter("onehop_outlier_ejections_total", "Ejections.", &labels),
            spared: m.counter("onehop_outlier_spared_total", "Ejections that would have left too few.", &labels),
            restored: m.counter("onehop_outlier_restored_total", "Endpoints whose probe brought them back.", &labels),
            service: service.to_owned(),
        }
    }
    /// Half-open ones count as out: until its probe passes an endpoint carries nothing.
    fn out(members: &[Arc<Endpoint>]) -> usize {
        members.iter().filter(|e| e.state.ejected_until.load(Relaxed) != 0).count()
    }
    fn show(&self, members: &[Arc<Endpoint>]) {
        self.ejected.set(i64::try_from(Self::out(members)).unwrap_or(i64::MAX));
    }
    /// Ejects those whose interval was bad, by itself or compared with the others.
    fn sweep(&self, now: Moment) {
        let members = self.members.lock().clone();
        let intervals: Vec<Interval> = members.iter().map(|e| Interval::take(&e.state)).collect();
        for at in core::outliers(&self.settings, &intervals) {
            // One that is out already is judged by its probe alone.
            if members[at].state.ejected_until.load(Relaxed) == 0 {
                self.eject(&members[at], now);
            }
        }
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
        let verdict = verdict(outcome);
        if self.counts {
            core::tally(&self.settings, &endpoint.state, verdict);
        }
        match core::observe(&self.settings, &endpoint.state, verdict, picked, now) {
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
