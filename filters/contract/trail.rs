//! The decision trail: what each filter and each try decided, carried by the request in a small record of bounded size.
//!
//! Recording is one store per decision, in place for ordinary requests; costs (nanoseconds) are measured only while
//! `timed` is on.

use std::time::Duration;

use smallvec::SmallVec;

/// How many decisions a request remembers at most; later ones are counted, not kept.
pub const MAX_DECISIONS: usize = 24;

/// What was decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// The filter let the request pass.
    #[default]
    Pass,
    /// The filter answered by itself.
    Reply,
    /// The filter refused.
    Refuse,
    /// An endpoint was picked.
    Pick,
    /// A try ended well.
    Answer,
    /// A try failed.
    Fail,
    /// Another try follows.
    Retry,
    /// A fallback took over.
    Fallback,
}

/// One entry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decision {
    /// Filter or role.
    pub by: &'static str,
    /// What it decided.
    pub outcome: Outcome,
    /// Why, as a stable word (a reason code, a balancer's word), or empty.
    pub why: &'static str,
    /// A number that goes with it: try number, status, remaining quota.
    pub value: u64,
    /// Time it took, zero unless the trail is timed.
    pub nanos: u32,
}

/// Decisions of an ordinary request, kept in place; a request with many retries moves them to the heap.
const INLINE: usize = 8;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    entries: SmallVec<[Decision; INLINE]>,
    dropped: u16,
    /// Whether costs are measured (a sampled or debugged request).
    pub timed: bool,
}

impl Trail {
    /// Records a decision.
    pub fn push(&mut self, decision: Decision) {
        if self.entries.len() < MAX_DECISIONS {
            self.entries.push(decision);
        } else {
            self.dropped = self.dropped.saturating_add(1);
        }
    }
    /// Records a decision in short.
    pub fn note(&mut self, by: &'static str, outcome: Outcome, why: &'static str, value: u64, took: Duration) {
        let nanos = u32::try_from(took.as_nanos()).unwrap_or(u32::MAX);
        self.push(Decision { by, outcome, why, value, nanos });
    }
    /// What was kept, oldest first.
    #[must_use]
    pub fn decisions(&self) -> &[Decision] {
        &self.entries
    }
    /// How many did not fit.
    #[must_use]
    pub const fn dropped(&self) -> u16 {
        self.dropped
    }
}
