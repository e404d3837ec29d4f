//! A prepared set of endpoints: priorities, zones, panic, and the walk that every policy shares.
//!
//! Cost of a pick does not grow with the set: a policy looks at a bounded number of endpoints, and only if all of those
//! are unfit the tier is scanned once. A set of one priority without zones is not divided, and pays nothing for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use super::division::{Cell, Division};
use super::tier::{Census, Outlook};
pub use super::tier::{PROBES, Tier, two_choices};
use super::zones::ZoneRules;
use crate::contract::Moment;
use crate::contract::mesh::{Endpoint, Pick, Picker};
use crate::contract::metrics::{Counter, Gauge};
use crate::mesh::chance::{Dice, mix};

/// What applies under every policy.
#[derive(Clone)]
pub struct Rules {
    /// See [`Tier::ramped`].
    pub slow_start: Duration,
    /// Least share of available endpoints, below which all are used. 0 = never.
    pub panic: f64,
    /// How many times the endpoints that its load needs a priority or zone is taken to have.
    pub room: f64,
    /// Preference for the own zone; `None`: zones are not looked at.
    pub zones: Option<ZoneRules>,
    /// Who is told of panic.
    pub alarm: Option<Alarm>,
    /// Makes random starts differ between instances.
    pub salt: u64,
}

impl Default for Rules {
    fn default() -> Self {
        let (panic, room) = (super::config::PANIC, super::config::OVERPROVISIONING);
        Self { slow_start: Duration::ZERO, panic, room, zones: None, alarm: None, salt: 0 }
    }
}

/// Tells people that too few endpoints are available.
#[derive(Clone)]
pub struct Alarm {
    /// Name of the service.
    pub service: Arc<str>,
    /// Picks made in panic.
    pub picks: Counter,
    /// Priorities that are in panic now.
    pub levels: Gauge,
}

/// How a policy chooses within one tier.
pub trait Policy: Send + Sync + 'static {
    /// Prepares for a tier.
    fn prepare(&self, tier: &Tier) -> Self::Table;
    /// What it prepares.
    type Table: Send + Sync;
    /// Index of the endpoint, looking at a bounded number of them; `None` leaves it to the scan.
    fn choose(
        &self,
        table: &Self::Table,
        tier: &Tier,
        cx: &Pick<'_>,
        dice: &mut Dice,
        fit: &dyn Fn(&Endpoint) -> bool,
    ) -> Option<usize>;
}

/// Endpoints of one priority.
pub struct Level<T> {
    /// All of them.
    pub whole: (Tier, T),
    /// The same by zone, where zones are looked at.
    pub zones: Box<[(Tier, T)]>,
    /// Which of them is the own one.
    pub own: usize,
    /// Whether too few are available, so that all are used.
    panicking: AtomicBool,
}

/// A set under a policy.
pub struct Pool<P: Policy> {
    policy: P,
    /// By priority, most wanted first.
    levels: Box<[Level<P::Table>]>,
    /// Which part gets how much; `None`: there is one part.
    division: Option<Division>,
    rules: Rules,
}

impl<P: Policy> Pool<P> {
    /// Prepares a set. Endpoints of weight 0 are left out: drained.
    pub fn new(policy: P, endpoints: &[Arc<Endpoint>], rules: Rules) -> Self {
        let mut by_priority = std::collections::BTreeMap::<u32, Vec<Arc<Endpoint>>>::new();
        for e in endpoints.iter().filter(|e| e.weight.load(Relaxed) != 0) {
            by_priority.entry(e.priority).or_default().push(e.clone());
        }
        let tier = |list: Vec<Arc<Endpoint>>| {
            let tier = Tier::new(list, rules.clone());
            let table = policy.prepare(&tier);
            (tier, table)
        };
        let levels: Box<[Level<P::Table>]> = by_priority
            .into_values()
            .map(|list| {
                let (zones, own) = rules.zones.as_ref().map_or_else(Default::default, |rules| rules.part(&list));
                let zones = zones.into_iter().map(tier).collect();
                Level { whole: tier(list), zones, own, panicking: AtomicBool::new(false) }
            })
            .collect();
        let divided = levels.len() > 1 || levels.iter().any(|level| !level.zones.is_empty());
        let division = divided.then(|| Division::new(&levels));
        Self { policy, levels, division, rules }
    }

    /// The part that this request is for, among those that have something available.
    fn drawn(&self, cx: &Pick<'_>, dice: &mut Dice) -> Option<Cell> {
        let division = self.division.as_ref()?;
        if division.is_old(cx.now) {
            division.renew(&self.levels, &self.rules, cx.now, |level, panics, census| {
                self.alarm(level, panics, census);
            });
        }
        // The same key, the same priority: else a key would have two homes while one of them spills.
        division.draw(cx.hash.map_or_else(|| dice.roll(), mix))
    }

    /// Whether all of a level's endpoints are to be used. Only an endpoint that is down raises the question.
    fn panics(&self, level: &Level<P::Table>, now: Moment) -> bool {
        if self.division.is_some() || self.rules.panic <= 0.0 {
            return level.panicking.load(Relaxed);
        }
        let thin = match level.whole.0.outlook(now) {
            Outlook::Thin => true,
            Outlook::Fine => false,
            Outlook::Dead => return level.panicking.load(Relaxed),
        };
        if thin != level.panicking.load(Relaxed) {
            self.alarm(level, thin, &level.whole.0.count(now));
        }
        thin
    }

    /// Notes whether a level is in panic, and says so when that changes.
    fn alarm(&self, level: &Level<P::Table>, panics: bool, census: &Census) {
        if level.panicking.swap(panics, Relaxed) == panics {
            return;
        }
        let Some(alarm) = &self.rules.alarm else { return };
        alarm.levels.add(if panics { 1 } else { -1 });
        let (service, Census { offered, available, .. }) = (&*alarm.service, census);
        let priority = level.whole.0.endpoints[0].priority;
        if panics {
            tracing::warn!(
                service,
                priority,
                available,
                offered,
                "too few endpoints are available: panic, all are used"
            );
        } else {
            tracing::info!(service, priority, available, offered, "enough endpoints are available again");
        }
    }

    fn choose(
        &self,
        (tier, table): &(Tier, P::Table),
        cx: &Pick<'_>,
        dice: &mut Dice,
        fit: &dyn Fn(&Endpoint) -> bool,
    ) -> Option<Arc<Endpoint>> {
        let i = self.policy.choose(table, tier, cx, dice, fit).or_else(|| tier.scan(dice, fit))?;
        Some(tier.endpoints[i].clone())
    }

    /// The part that was drawn gives an endpoint if it has something fit, else the first level that has.
    fn walk(&self, cx: &Pick<'_>, dice: &mut Dice, drawn: Option<Cell>, fresh_only: bool) -> Option<Arc<Endpoint>> {
        let mut within = |level: &Level<P::Table>, part: &(Tier, P::Table)| {
            let fit = |e: &Endpoint| {
                !(fresh_only && cx.tried.contains(&e.id))
                    && (e.available(cx.now) || (e.offered() && self.panics(level, cx.now)))
            };
            self.choose(part, cx, dice, &fit)
        };
        let first = drawn.and_then(|cell| {
            let level = &self.levels[cell.level];
            let part = cell.zone.map_or(&level.whole, |zone| &level.zones[zone]);
            within(level, part)
        });
        first.or_else(|| self.levels.iter().find_map(|level| within(level, &level.whole)))
    }

    /// Nothing is available in any level: rather a doubtful endpoint than none, unless panic is off.
    fn desperate(&self, cx: &Pick<'_>, dice: &mut Dice) -> Option<Arc<Endpoint>> {
        if self.rules.panic <= 0.0 {
            return None;
        }
        [true, false].into_iter().find_map(|fresh_only| {
            let fit = |e: &Endpoint| e.offered() && !(fresh_only && cx.tried.contains(&e.id));
            self.levels.iter().find_map(|level| {
                let picked = self.choose(&level.whole, cx, dice, &fit)?;
                self.alarm(level, true, &level.whole.0.count(cx.now));
                Some(picked)
            })
        })
    }

    /// Looks whether what was in panic is well again: nothing else would, once nothing is down any more.
    fn calm_down(&self, now: Moment) {
        for level in self.levels.iter().filter(|level| level.panicking.load(Relaxed)) {
            if level.whole.0.outlook(now) == Outlook::Fine {
                self.alarm(level, false, &level.whole.0.count(now));
            }
        }
    }
}

impl<P: Policy> Picker for Pool<P> {
    fn pick(&self, cx: &Pick<'_>) -> Option<Arc<Endpoint>> {
        if self.levels.iter().any(|level| level.panicking.load(Relaxed)) {
            self.calm_down(cx.now);
        }
        if let [Level { whole: (tier, _), .. }] = &*self.levels
            && let [only] = &*tier.endpoints
            && only.available(cx.now)
        {
            return Some(only.clone());
        }
        let mut dice = Dice::new(cx.seed);
        let drawn = self.drawn(cx, &mut dice);
        let picked = (!cx.tried.is_empty())
            .then(|| self.walk(cx, &mut dice, drawn, true))
            .flatten()
            .or_else(|| self.walk(cx, &mut dice, drawn, false))
            .or_else(|| self.desperate(cx, &mut dice))?;
        if let Some(alarm) = &self.rules.alarm
            && !picked.available(cx.now)
        {
            alarm.picks.inc();
        }
        Some(picked)
    }
}

impl<P: Policy> Drop for Pool<P> {
    fn drop(&mut self) {
        if let Some(alarm) = &self.rules.alarm {
            let panicking = self.levels.iter().filter(|level| level.panicking.load(Relaxed)).count();
            alarm.levels.add(-i64::try_from(panicking).unwrap_or_default());
        }
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
