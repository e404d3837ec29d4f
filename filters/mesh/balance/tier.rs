//! Endpoints among which a policy chooses: draws by weight, slow start, how many are available, and the last resort of
//! looking at all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::pool::Rules;
use super::spread::Capacity;
use crate::contract::Moment;
use crate::contract::mesh::Endpoint;
use crate::mesh::chance::Dice;

/// Endpoints a policy looks at before it leaves the search to the scan.
pub const PROBES: usize = 8;

/// Up to this size facts about a whole tier are counted afresh for each pick; larger ones remember them for [`FRESH`].
pub const SMALL: usize = 64;

/// How long a large tier's facts are good.
pub const FRESH: Duration = Duration::from_millis(20);

/// Share of its weight a newcomer starts with.
const RAMP_FROM: f64 = 0.1;

/// Endpoints among which a policy chooses: a priority, or the part of one that is in a zone.
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
pub enum Outlook {
    Fine,
    /// Below the panic threshold, but something is.
    Thin,
    /// Nothing is.
    Dead,
}

/// Endpoints of a tier at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Census {
    /// How many discovery offers.
    pub offered: u32,
    /// How many of them are available.
    pub available: u32,
    /// Their weights.
    pub capacity: Capacity,
}

impl std::iter::Sum for Census {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            offered: sum.offered + part.offered,
            available: sum.available + part.available,
            capacity: Capacity {
                offered: sum.capacity.offered + part.capacity.offered,
                available: sum.capacity.available + part.capacity.available,
            },
        })
    }
}

impl Census {
    /// Whether that is enough. `panic`: the least share of available endpoints.
    pub fn outlook(&self, panic: f64) -> Outlook {
        match self.available {
            0 => Outlook::Dead,
            n if f64::from(n) < panic * f64::from(self.offered) => Outlook::Thin,
            _ => Outlook::Fine,
        }
    }
}

impl Tier {
    /// Prepares a set that is not empty.
    pub fn new(endpoints: Vec<Arc<Endpoint>>, rules: Rules) -> Self {
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
    pub fn scan(&self, dice: &mut Dice, fit: &dyn Fn(&Endpoint) -> bool) -> Option<usize> {
        let n = self.endpoints.len();
        let start = dice.below(n);
        (start..n).chain(0..start).find(|i| fit(&self.endpoints[*i]))
    }
    /// How it looks now; in a large tier, how it looked lately.
    pub fn outlook(&self, now: Moment) -> Outlook {
        let ms = now.0 / 1_000_000;
        if self.endpoints.len() > SMALL {
            let word = self.counted.load(Relaxed);
            let fresh = u64::try_from(FRESH.as_millis()).unwrap_or(u64::MAX);
            if word != 0 && ms.saturating_sub(word >> 2) < fresh {
                return [Outlook::Fine, Outlook::Thin, Outlook::Dead][usize::from((word & 3) as u8) % 3];
            }
        }
        let outlook = self.count(now).outlook(self.rules.panic);
        self.counted.store((ms << 2 | outlook as u64).max(4), Relaxed);
        outlook
    }
    /// Looks at every endpoint.
    pub fn count(&self, now: Moment) -> Census {
        let mut census = Census::default();
        for e in &self.endpoints {
            if e.offered() {
                let weight = f64::from(e.weight.load(Relaxed));
                census.offered += 1;
                census.capacity.offered += weight;
                if e.available(now) {
                    census.available += 1;
                    census.capacity.available += weight;
                }
            }
        }
        census
    }
    /// Tries in flight on one endpoint on average, over the whole tier.
    pub fn mean_inflight(&self, now: Moment) -> f64 {
        let ms = now.0 / 1_000_000 + 1;
        let fresh = u64::try_from(FRESH.as_millis()).unwrap_or(u64::MAX);
        let summed = self.summed.0.load(Relaxed);
        let sum = if self.endpoints.len() > SMALL && summed != 0 && ms.saturating_sub(summed) < fresh {
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
