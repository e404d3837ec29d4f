//! What a limit counts, pure: the generic cell rate algorithm for rolling windows, a counter of the period for calendars.
//!
//! Either is one number in one atomic, changed by one compare-and-swap.
//!
//! A rolling cell is the theoretical arrival time (TAT), when the bucket will be full again. A charge moves it by the
//! emission interval, and is refused if that would carry it further than the burst tolerance beyond now. No windows, so
//! no double burst at their edges; no timer.
//!
//! A calendar cell is the number of its period and what was used in it. A new period needs no reset: its number differs.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::calendar::Period;
use crate::contract::Moment;

/// Largest limit: what the number in a calendar cell can hold.
pub const MAX_LIMIT: u64 = 1_000_000_000_000;

/// Of a cell that counts no longer: its caller was forgotten, or has another cell. No count reaches it.
pub const MOVED: u64 = u64::MAX;
/// Of a cell that stands in no table.
const ALONE: &str = "only cells of tables move";

const USED_BITS: u32 = 40;
const USED: u64 = (1 << USED_BITS) - 1;

/// A rate and a burst, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Time one unit uses up, in 2^-`shift` nanoseconds.
    interval: u64,
    /// Whole nanoseconds where a unit takes long enough for them, a fraction where it does not: bytes.
    shift: u32,
    /// `burst` intervals.
    tolerance: u64,
}

/// What a charge gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Whether the request may pass.
    pub allowed: bool,
    /// Units left at once.
    pub remaining: u64,
    /// Until what was asked for is there, if it was refused; else until one more is there if none is left, else until
    /// all are.
    pub reset: Duration,
}

impl Charge {
    /// Nothing was counted.
    pub const FREE: Self = Self { allowed: true, remaining: u64::MAX, reset: Duration::ZERO };
}

/// A limit at one moment.
#[derive(Clone, Copy, Debug)]
pub enum Meter {
    /// A bucket that fills.
    Rolling(Rate, Moment),
    /// So many units in this period.
    Calendar(Tally),
}

/// A calendar limit in one of its periods.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// Units.
    pub limit: u64,
    /// The period.
    pub period: Period,
    /// What is left of it.
    pub left: Duration,
}

impl Rate {
    /// `limit` units per `per`, `burst` at once; at least one each.
    pub fn new(limit: u64, per: Duration, burst: u64) -> Self {
        let (per, limit) = (per.as_nanos(), u128::from(limit.max(1)));
        let shift = if per / limit >= 1000 { 0 } else { 20 };
        let interval = clamped((per << shift) / limit).max(1);
        let rate = Self { interval, shift, tolerance: 0 };
        Self { tolerance: rate.time(burst.max(1)), ..rate }
    }

    /// Time that `n` units use up, rounded up.
    fn time(self, n: u64) -> u64 {
        let scaled = u128::from(n) * u128::from(self.interval);
        clamped((scaled + (1u128 << self.shift) - 1) >> self.shift)
    }

    /// Whole units that `time` is worth.
    fn units(self, time: u64) -> u64 {
        if self.shift == 0 {
            return time / self.interval;
        }
        clamped((u128::from(time) << self.shift) / u128::from(self.interval))
    }

    fn test(self, tat: u64, n: u64, now: Moment) -> (Charge, u64) {
        let to = tat.max(now.0).saturating_add(self.time(n));
        let limit = now.0.saturating_add(self.tolerance);
        if to > limit && n > 0 {
            let remaining = self.state(tat, now).remaining;
            // After a limit was lowered the debt may be beyond the tolerance: then it takes longer.
            return (Charge { allowed: false, remaining, reset: Duration::from_nanos(to - limit) }, tat);
        }
        (self.state(to, now), to)
    }

    fn state(self, tat: u64, now: Moment) -> Charge {
        let debt = tat.saturating_sub(now.0);
        let remaining = self.units(self.tolerance.saturating_sub(debt));
        let reset =
            if remaining == 0 { debt.saturating_add(self.time(1)).saturating_sub(self.tolerance) } else { debt };
        Charge { allowed: true, remaining, reset: Duration::from_nanos(reset) }
    }

    /// The TAT that keeps the number of units used when the rate becomes `other`: nothing is refilled or taken.
    pub fn retuned(self, tat: u64, other: Self, now: Moment) -> u64 {
        let debt = u128::from(tat.saturating_sub(now.0));
        // Products of a debt of years and an interval of days fit.
        let debt = ((debt * u128::from(other.interval)) << self.shift) / (u128::from(self.interval) << other.shift);
        now.0.saturating_add(clamped(debt)).min(MOVED - 1)
    }

    /// As two numbers, to be compared after a restart.
    pub const fn parts(self) -> (u64, u32) {
        (self.interval, self.shift)
    }

    /// A rate of the same parts as one that was saved.
    pub const fn of_parts((interval, shift): (u64, u32)) -> Self {
        Self { interval: if interval == 0 { 1 } else { interval }, shift: shift % 32, tolerance: 0 }
    }
}

fn clamped(n: u128) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

impl Meter {
    /// Charges a cell that cannot move.
    pub fn charge(self, cell: &AtomicU64, n: u64) -> Charge {
        self.try_charge(cell, n).expect(ALONE)
    }

    /// What a charge of a cell that cannot move would give.
    #[cfg(test)]
    pub fn peek(self, cell: &AtomicU64, n: u64) -> Charge {
        self.try_peek(cell, n).expect(ALONE)
    }

    /// Charges `n` units or none. Exact under concurrency: of any number of racing charges as many pass as the limit
    /// allows. `None`: the cell has moved, here and in what follows.
    pub fn try_charge(self, cell: &AtomicU64, n: u64) -> Option<Charge> {
        let mut value = cell.load(Relaxed);
        loop {
            if value == MOVED {
                return None;
            }
            let (charge, next) = self.test(value, n);
            if !charge.allowed || next == value {
                return Some(charge);
            }
            match cell.compare_exchange_weak(value, next.min(MOVED - 1), Relaxed, Relaxed) {
                Ok(_) => return Some(charge),
                Err(seen) => value = seen,
            }
        }
    }

    /// What a charge would give.
    pub fn try_peek(self, cell: &AtomicU64, n: u64) -> Option<Charge> {
        let value = cell.load(Relaxed);
        (value != MOVED).then(|| self.test(value, n).0)
    }

    /// Charges `n` units whether they are there or not: what a response turned out to cost.
    pub fn force(self, cell: &AtomicU64, n: u64) -> Option<()> {
        self.change(cell, |value| match self {
            Self::Rolling(rate, now) => Some(value.max(now.0).saturating_add(rate.time(n))),
            Self::Calendar(tally) => tally.moved(value, |used| used.saturating_add(n)),
        })
    }

    /// Takes `n` units back. In a calendar only within the period they were charged in.
    pub fn refund(self, cell: &AtomicU64, n: u64) -> Option<()> {
        self.change(cell, |value| match self {
            Self::Rolling(rate, _) => Some(value.saturating_sub(rate.time(n))),
            Self::Calendar(tally) => tally.moved(value, |used| used.saturating_sub(n)),
        })
    }

    fn change(self, cell: &AtomicU64, change: impl Fn(u64) -> Option<u64>) -> Option<()> {
        let change = |value| if value == MOVED { None } else { change(value).map(|next| next.min(MOVED - 1)) };
        match cell.fetch_update(Relaxed, Relaxed, change) {
            Err(MOVED) => None,
            // Another period has begun: there is nothing to change.
            Ok(_) | Err(_) => Some(()),
        }
    }

    /// Whether forgetting a cell changes nothing.
    pub fn is_full(self, value: u64) -> bool {
        match self {
            Self::Rolling(_, now) => value <= now.0,
            Self::Calendar(tally) => tally.used(value) == 0,
        }
    }

    /// Orders cells by how much forgetting them would give away.
    pub fn debt(self, value: u64) -> u64 {
        match self {
            Self::Rolling(_, now) => value.saturating_sub(now.0),
            Self::Calendar(tally) => tally.used(value),
        }
    }

    fn test(self, value: u64, n: u64) -> (Charge, u64) {
        match self {
            Self::Rolling(rate, now) => rate.test(value, n, now),
            Self::Calendar(tally) => tally.test(value, n),
        }
    }
}

impl Tally {
    fn test(self, value: u64, n: u64) -> (Charge, u64) {
        let used = self.used(value);
        let allowed = n == 0 || used.saturating_add(n) <= self.limit;
        let after = if allowed { used + n } else { used };
        let charge = Charge { allowed, remaining: self.limit.saturating_sub(after), reset: self.left };
        if !allowed || n == 0 { (charge, value) } else { (charge, self.packed(value, after)) }
    }

    /// Used in this period, or in a later one: a clock that was set back gives nothing away.
    pub fn used(self, value: u64) -> u64 {
        let number = (value >> USED_BITS) as u32;
        if self.period.is_before(number) || number == self.period.number { value & USED } else { 0 }
    }

    fn packed(self, old: u64, used: u64) -> u64 {
        let number = (old >> USED_BITS) as u32;
        let number = if self.period.is_before(number) { number } else { self.period.number };
        u64::from(number) << USED_BITS | used.min(USED)
    }

    /// Changes what was used in exactly this period; `None` once another has begun.
    fn moved(self, value: u64, change: impl FnOnce(u64) -> u64) -> Option<u64> {
        let number = (value >> USED_BITS) as u32;
        if self.period.is_before(number) {
            return None;
        }
        let used = if number == self.period.number { value & USED } else { 0 };
        Some(u64::from(self.period.number) << USED_BITS | change(used).min(USED))
    }
}
