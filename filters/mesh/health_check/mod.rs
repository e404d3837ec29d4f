//! `healthCheck`: asks every endpoint regularly, from the control thread, and marks those that do not answer well.

mod config;
mod core;
mod grpc;
mod probe;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, hash_map};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;

use self::config::{Section, Settings};
use self::core::{Standing, UNHEALTHY, UNKNOWN};
use crate::contract::entry::{Check, CheckTls, Members};
use crate::contract::mesh::Endpoint;
use crate::contract::metrics::Counter;
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Role};
use crate::mesh::chance::Dice;

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "healthCheck",
    summary: "Probes endpoints and leaves out those that fail",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Section>(),
    role: Role::Check(build),
};

/// How soon a new endpoint gets its first probe.
const NOTICE: Duration = Duration::from_millis(500);
/// Share by which the interval varies.
const JITTER: f64 = 0.2;

fn build(section: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Check>, ConfigError> {
    let settings = Section::settings(section)?;
    let service = crate::mesh::service_of(&build.scope).to_owned();
    let count = |result: &'static str| {
        let labels = [("service", service.as_str()), ("result", result)];
        build.metrics.counter("onehop_health_probes_total", "Health probes.", &labels)
    };
    let (passed, failed) = (count("pass"), count("fail"));
    Ok(Arc::new(Checker(Arc::new(Shared { settings, passed, failed, service }))))
}

struct Checker(Arc<Shared>);

struct Shared {
    settings: Settings,
    passed: Counter,
    failed: Counter,
    service: String,
}

impl Check for Checker {
    fn run(&self, members: Members, tls: Option<CheckTls>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(attend(self.0.clone(), members, tls))
    }
    fn starts_unhealthy(&self) -> bool {
        self.0.settings.wary
    }
}

/// Gives every endpoint a task of its own, so that a slow one delays no other. Dropping this ends them all.
async fn attend(shared: Arc<Shared>, members: Members, tls: Option<CheckTls>) {
    let mut tasks = JoinSet::new();
    let mut known: HashMap<u64, Attended> = HashMap::new();
    while let Some(endpoints) = members() {
        known.retain(|_, a| a.endpoint.upgrade().is_some_and(|e| !e.state.draining.load(Relaxed)));
        for e in &*endpoints {
            if let hash_map::Entry::Vacant(place) = known.entry(e.id) {
                place.insert(Attended { endpoint: Arc::downgrade(e) });
                tasks.spawn(watch(shared.clone(), Arc::downgrade(e), tls.clone()));
            }
        }
        drop(endpoints);
        while tasks.try_join_next().is_some() {}
        tokio::time::sleep(shared.settings.interval.min(NOTICE)).await;
    }
}

/// An endpoint under observation. Once nobody observes it any more, nothing is known of its health.
struct Attended {
    endpoint: Weak<Endpoint>,
}

impl Drop for Attended {
    fn drop(&mut self) {
        if let Some(e) = self.endpoint.upgrade() {
            e.state.health.store(UNKNOWN, Relaxed);
        }
    }
}

async fn watch(shared: Arc<Shared>, endpoint: Weak<Endpoint>, tls: Option<CheckTls>) {
    let s = &shared.settings;
    let mut dice = Dice::fresh();
    let health = endpoint.upgrade().map(|e| e.state.health.load(Relaxed));
    let Some(mut standing) = health.map(|health| Standing::of(health, s.wary)) else { return };
    if standing.shown() != UNHEALTHY {
        // Not all at once after a start; but who gets no request before its first probe does not wait for that.
        tokio::time::sleep(s.interval.min(NOTICE).mul_f64(dice.fraction())).await;
    }
    loop {
        // Not held while asleep: an endpoint that is gone must be able to go.
        let Some(e) = endpoint.upgrade().filter(|e| !e.state.draining.load(Relaxed)) else { return };
        let result = tokio::time::timeout(s.timeout, probe::probe(s, &e.address, tls.as_ref()))
            .await
            .unwrap_or_else(|_| Err("no answer in time".to_owned()));
        if result.is_ok() { &shared.passed } else { &shared.failed }.inc();
        let changed = standing.feed(result.is_ok(), s.healthy, s.unhealthy);
        // Written each time: an older check that ends takes back what it knew.
        e.state.health.store(standing.shown(), Relaxed);
        if changed {
            let service = &shared.service;
            match &result {
                Ok(()) => tracing::info!(service, endpoint = %e.address, "endpoint is healthy"),
                Err(why) => tracing::warn!(service, endpoint = %e.address, why, "endpoint is unhealthy"),
            }
        }
        drop(e);
        tokio::time::sleep(dice.jitter(s.interval, JITTER)).await;
    }
}
