//! `retry`: another try where it is safe, worth it, in time, and within the service's budget.

mod budget;
mod config;
mod core;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use self::budget::Budget;
use self::config::{Section, Settings};
use self::core::word;
use crate::contract::mesh::{Again, Hedge, Judge, Retry};
use crate::contract::metrics::{Counter, Registry};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Moment, Role};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "retry",
    summary: "Tries again: safely, in time, within a budget",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Section>(),
    role: Role::Retry(build),
};

fn build(section: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Retry>, ConfigError> {
    let settings = match section {
        Some(node) => node.read::<Section>()?,
        None => Section::default(),
    }
    .settings()?;
    let counts = Counts::new(&build.metrics, crate::mesh::service_of(&build.scope));
    // The budget counts tries, whatever the limits are: a changed section goes on with the same counts.
    let budget = build.keep("retry.budget", "", Budget::new);
    Ok(Arc::new(Policy { settings, budget, counts }))
}

struct Policy {
    settings: Settings,
    budget: Arc<Budget>,
    counts: Counts,
}

impl Retry for Policy {
    fn begin(&self, now: Moment) {
        self.budget.begin(now, self.settings.budget.window);
    }
    fn judge(&self, cx: &Judge<'_>) -> Again {
        let again = core::judge(&self.settings, &self.budget, cx, jiff::Timestamp::now);
        self.counts.count(again);
        again
    }
    fn body_limit(&self) -> usize {
        self.settings.body_limit
    }
    fn per_try_timeout(&self) -> Option<Duration> {
        self.settings.per_try_timeout
    }
    fn judges_successes(&self) -> bool {
        !self.settings.retriable_headers.is_empty()
    }
    fn hedge(&self, idempotent: bool) -> Option<Hedge> {
        self.settings.hedge.filter(|_| idempotent || self.settings.retry_non_idempotent)
    }
    fn grants(&self, now: Moment) -> bool {
        let granted = self.budget.take(now, &self.settings.budget);
        self.counts.count_word(if granted { HEDGED } else { word::BUDGET });
        granted
    }
    fn other_zone(&self) -> bool {
        self.settings.other_zone
    }
    fn attempts(&self) -> u32 {
        self.settings.attempts
    }
}

/// One counter per outcome, resolved once.
struct Counts([(&'static str, Counter); 8]);

const RETRIED: &str = "retried";
const HEDGED: &str = "hedged";

impl Counts {
    fn new(metrics: &Registry, service: &str) -> Self {
        let gave_up = [word::UNSAFE, word::ATTEMPTS, word::BODY, word::PUSHBACK, word::DEADLINE, word::BUDGET];
        let [a, b, c, d, e, f] = gave_up;
        let words = [RETRIED, HEDGED, a, b, c, d, e, f];
        Self(words.map(|w| {
            let labels = [("service", service), ("outcome", w)];
            (w, metrics.counter("onehop_retries_total", "Retry decisions after tries that were worth one.", &labels))
        }))
    }
    fn count(&self, again: Again) {
        let outcome = match again {
            Again::After(_) => RETRIED,
            // The normal end of a request, and no decision.
            Again::No(word::NOT_RETRIABLE) => return,
            Again::No(why) => why,
        };
        self.count_word(outcome);
    }
    fn count_word(&self, outcome: &str) {
        if let Some((_, counter)) = self.0.iter().find(|(w, _)| *w == outcome) {
            counter.inc();
        }
    }
}
