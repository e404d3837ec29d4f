//! A prepared set of endpoints: tiers, draws by weight, panic, and the walk that every policy shares.
//!
//! Cost of a pick does not grow with the set: a policy looks at a bounded number of endpoints, and only if all of those
//! are unfit the tier is scanned once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::contract::Moment;
use crate::contract::mesh::{Endpoint, Pick, Picker};
use crate::contract::metrics::Counter;
use crate::mesh::chance::Dice;

/// Endpoints a policy looks at before it leaves the search to the scan.
pub const PROBES: usize = 8;

/// Up to this size facts about a whole tier are counted afresh for each pick; larger ones remember them for [`FRESH`].
const SMALL: usize = 64;

/// How long a large tier's facts are good.
const FRESH: Duration = Duration::from_millis(20);

/// Share of its weight a newcomer starts with.
const RAMP_FROM: f64 = 0.1;

/// What applies under every policy.
#[derive(Clone)]
pub struct Rules {
    /// See [`Tier::ramped`].
    pub slow_start: Duration,
    /// Least share of available endpoints, below which all are used. 0 = never.
    pub panic: f64,
    /// Picks made in panic.
    pub panics: Option<Counter>,
    /// Makes random starts differ between instances.
    pub salt: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { slow_start: Duration::ZERO, panic: super::config::PANIC, panics: None, salt: 0 }
    }
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
pub struct Tier {
    /// Those with a weight.
    pub endpoints: Box<[Arc<Endpoint>]>,
    /// Rules of the pool.
    pub rules: Rules,
    draws: Option<Alias>,
    /// Time (ms) and outlook of the last count, see [`Tier::outlook`].
    counted: AtomicU64,
    /// Time (ms) of the last sum of tries in flight, and the sum.
    summed: (AtomicU64, AtomicU64),
}

/// How much of a tier is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outlook {
    Fine,
    /// Below the panic threshold, but something is.
    Thin,
    /// Nothing is.
    Dead,
}

impl Tier {
    fn new(endpoints: Vec<Arc<Endpoint>>, rules: Rules) -> Self {
        let weights: Vec<u32> = endpoints.iter().map(|e| e.weight.load(Relaxed)).collect();
        Self {
            draws: Alias::new(&weights),
            endpoints: endpoints.into(),
            rules,
            counted: AtomicU64::new(0),
            summed: (AtomicU64::new(0), AtomicU64::new(0)),
        }
    }
    /// A random endpoint, by weight.
    pub fn draw(&self, dice: &mut Dice) -> usize {
        match &self.draws {
            Some(alias) => alias.draw(dice),
            None => dice.below(self.endpoints.len()),
        }
    }
    /// Whether all weights are equal.
    pub const fn even(&self) -> bool {
        self.draws.is_none()
    }
    /// Whether a newcomer takes this request: at first one in ten of its share, all of it after `slowStart`.
    pub fn ramped(&self, e: &Endpoint, now: Moment, dice: &mut Dice) -> bool {
        if self.rules.slow_start.is_zero() {
            return true;
        }
        let joined = e.state.joined.load(Relaxed);
        if joined == 0 {
            return true;
        }
        let age = now.since(Moment(joined)).as_secs_f64() / self.rules.slow_start.as_secs_f64();
        age >= 1.0 || dice.fraction() < age.max(RAMP_FROM)
    }
    /// The first fit endpoint from a random one on.
    fn scan(&self, dice: &mut Dice, fit: &dyn Fn(&Endpoint) -> bool) -> Option<usize> {
        let n = self.endpoints.len();
        let start = dice.below(n);
        (start..n).chain(0..start).find(|i| fit(&self.endpoints[*i]))
    }
    fn outlook(&self, now: Moment) -> Outlook {
        let ms = now.0 / 1_000_000;
        if self.endpoints.len() > SMALL {
            let word = self.counted.load(Relaxed);
            let fresh = u64::try_from(FRESH.as_millis()).unwrap_or(u64::MAX);
            if word != 0 && ms.saturating_sub(word >> 2) < fresh {
                return [Outlook::Fine, Outlook::Thin, Outlook::Dead][usize::from((word & 3) as u8) % 3];
            }
        }
        let (mut offered, mut available) = (0usize, 0usize);
        for e in &self.endpoints {
            offered += usize::from(e.offered());
            available += usize::from(e.available(now));
        }
        #[expect(clippy::cast_precision_loss, reason = "sets are small numbers")]
        let outlook = match available {
            0 => Outlook::Dead,
            n if (n as f64) < self.rules.panic * offered as f64 => Outlook::Thin,
            _ => Outlook::Fine,
        };
        self.counted.store((ms << 2 | outlook as u64).max(4), Relaxed);
        outlook
    }
    /// Tries in flight on one endpoint on average, over the whole tier.
    pub fn mean_inflight(&self, now: Moment) -> f64 {
        let ms = now.0 / 1_000_000 + 1;
        let sum = if self.endpoints.len() > SMALL && self.summed.0.load(Relaxed) == ms {
            self.summed.1.load(Relaxed)
        } else {
            let sum = self.endpoints.iter().map(|e| u64::from(e.state.inflight.load(Relaxed))).sum();
            self.summed.1.store(sum, Relaxed);
            self.summed.0.store(ms, Relaxed);
            sum
        };
        #[expect(clippy::cast_precision_loss, reason = "a mean of small numbers")]
        (sum as f64 / self.endpoints.len() as f64)
    }
}

/// Walker's alias method, as Vose builds it: a draw by weight in two steps, whatever the number of endpoints.
struct Alias(Box<[(u32, u32)]>);

impl Alias {
    /// `None` if all weights are equal: then a plain draw does.
    fn new(weights: &[u32]) -> Option<Self> {
        let first = *weights.first()?;
        if weights.iter().all(|w| *w == first) {
            return None;
        }
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        #[expect(clippy::cast_precision_loss, reason = "sets are small numbers")]
        let mut share: Vec<f64> = weights.iter().map(|w| f64::from(*w) * weights.len() as f64 / total).collect();
        let mut slots: Vec<(u32, u32)> = (0..).take(weights.len()).map(|i| (u32::MAX, i)).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..weights.len()).partition(|i| share[*i] < 1.0);
        while let (Some(s), Some(l)) = (small.pop(), large.last().copied()) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share below one of 2^32")]
            let cut = (share[s] * f64::from(u32::MAX)) as u32;
            slots[s] = (cut, u32::try_from(l).expect("fewer than 2^32 endpoints"));
            share[l] -= 1.0 - share[s];
            if share[l] < 1.0 {
                large.pop();
                small.push(l);
            }
        }
        Some(Self(slots.into()))
    }
    fn draw(&self, dice: &mut Dice) -> usize {
        let i = dice.below(self.0.len());
        let (cut, other) = self.0[i];
        #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
        let coin = dice.roll() as u32;
        if coin <= cut { i } else { other as usize }
    }
}

/// A set under a policy.
pub struct Pool<P: Policy> {
    policy: P,
    /// By priority, most wanted first.
    tiers: Box<[(Tier, P::Table)]>,
    rules: Rules,
}

impl<P: Policy> Pool<P> {
    /// Prepares a set. Endpoints of weight 0 are left out: drained.
    pub fn new(policy: P, endpoints: &[Arc<Endpoint>], rules: Rules) -> Self {
        let mut by_priority = std::collections::BTreeMap::<u32, Vec<Arc<Endpoint>>>::new();
        for e in endpoints.iter().filter(|e| e.weight.load(Relaxed) != 0) {
            by_priority.entry(e.priority).or_default().push(e.clone());
        }
        let tiers = by_priority
            .into_values()
            .map(|list| {
                let tier = Tier::new(list, rules.clone());
                let table = policy.prepare(&tier);
                (tier, table)
            })
            .collect();
        Self { policy, tiers, rules }
    }

    /// The first tier that has something fit gives it. A tier whose available part is too thin counts all as fit.
    fn walk(&self, cx: &Pick<'_>, dice: &mut Dice, fresh_only: bool) -> Option<&Arc<Endpoint>> {
        self.tiers.iter().find_map(|(tier, table)| {
            let fit = |e: &Endpoint| {
                if fresh_only && cx.tried.contains(&e.id) {
                    return false;
                }
                // Only an endpoint that is down raises the question whether too many are.
                e.available(cx.now) || (self.rules.panic > 0.0 && e.offered() && tier.outlook(cx.now) == Outlook::Thin)
            };
            let i = self.policy.choose(table, tier, cx, dice, &fit).or_else(|| tier.scan(dice, &fit))?;
            Some(&tier.endpoints[i])
        })
    }

    /// Nothing is available in any tier: rather a doubtful endpoint than none, unless panic is off.
    fn desperate(&self, cx: &Pick<'_>, dice: &mut Dice) -> Option<&Arc<Endpoint>> {
        if self.rules.panic <= 0.0 {
            return None;
        }
        [true, false].into_iter().find_map(|fresh_only| {
            let fit = |e: &Endpoint| e.offered() && !(fresh_only && cx.tried.contains(&e.id));
            self.tiers.iter().find_map(|(tier, table)| {
                let i = self.policy.choose(table, tier, cx, dice, &fit).or_else(|| tier.scan(dice, &fit))?;
                Some(&tier.endpoints[i])
            })
        })
    }
}

impl<P: Policy> Picker for Pool<P> {
    fn pick(&self, cx: &Pick<'_>) -> Option<Arc<Endpoint>> {
        if let [(tier, _)] = &*self.tiers
            && let [only] = &*tier.endpoints
            && only.available(cx.now)
        {
            return Some(only.clone());
        }
        let mut dice = Dice::new(cx.seed);
        let picked = (!cx.tried.is_empty())
            .then(|| self.walk(cx, &mut dice, true))
            .flatten()
            .or_else(|| self.walk(cx, &mut dice, false))
            .or_else(|| self.desperate(cx, &mut dice))?;
        if !picked.available(cx.now)
            && let Some(panics) = &self.rules.panics
        {
            panics.inc();
        }
        Some(picked.clone())
    }
}

/// Power of two choices: of two different endpoints, drawn by weight, the cheaper; the first if they cost the same, which
/// keeps the weights exact at rest.
pub fn two_choices(
    tier: &Tier,
    now: Moment,
    dice: &mut Dice,
    fit: &dyn Fn(&Endpoint) -> bool,
    cheaper: impl Fn(&Endpoint, &Endpoint) -> bool,
) -> Option<usize> {
    let n = tier.endpoints.len();
    let draw = |dice: &mut Dice, other: Option<usize>| {
        (0..PROBES).find_map(|turn| {
            let mut i = tier.draw(dice);
            if Some(i) == other {
                if n < 2 {
                    return None;
                }
                // Without replacement. Heavy weights would draw the same one again and again: half-way, draw evenly.
                if tier.even() || turn >= PROBES / 2 {
                    i = (i + 1 + dice.below(n - 1)) % n;
                } else {
                    return None;
                }
            }
            let e = &tier.endpoints[i];
            (fit(e) && tier.ramped(e, now, dice)).then_some(i)
        })
    };
    let first = draw(dice, None)?;
    let Some(second) = draw(dice, Some(first)) else { return Some(first) };
    Some(if cheaper(&tier.endpoints[second], &tier.endpoints[first]) { second } else { first })
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
