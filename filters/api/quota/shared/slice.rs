//! A caller's part of a shared count on this node, pure: units leased ahead, spent without asking anybody.
//!
//! Redis charges a lease when it gives it. So the nodes together never hold more than the limit; what can go over is
//! only that units leased before a moment are spent after it: at most nodes x lease. While Redis is away a node spends
//! the rest of its lease, then its share of the limit, counting all it ever admitted against that share, and tells Redis
//! of it later.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::api::caller::Id;
use crate::api::quota::calendar::Period;
use crate::api::quota::core::{Charge, Meter};
use crate::contract::Moment;

/// A lease that is asked for again sooner than this is too small.
const HOT: Duration = Duration::from_secs(1);
/// One that lasted longer than this is too large.
const COLD: Duration = Duration::from_secs(5);
/// An exhausted count is asked about no more often than this: others may give back what they do not need.
const RECHECK: Duration = Duration::from_secs(1);

/// See the module.
pub struct Slice {
    /// Whose.
    pub id: Id,
    /// The period it is of, in a calendar.
    pub period: Option<Period>,
    /// Units leased and not spent.
    left: u64,
    /// Units to lease next.
    size: u64,
    /// Whether a refill is on its way.
    asking: bool,
    /// Units spent without a lease that Redis does not know of; below zero, units that it can have back.
    untold: i64,
    /// What Redis had beyond all leases.
    free: u64,
    /// The count at Redis as last seen, for a Redis that forgot.
    seen: f64,
    /// So many units are not there before then.
    empty: Option<(u64, Moment)>,
    /// When a lease was asked for last.
    asked: Option<Moment>,
    used: Moment,
    /// All that this node admitted, against its share.
    own: AtomicU64,
}

/// What a slice says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// Spent; whether a refill should be asked for.
    Granted(Charge, bool),
    /// The limit is reached.
    Empty(Charge),
    /// Redis must be asked.
    Ask,
}

/// What Redis is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// Units without which there is no use.
    pub need: u64,
    /// Units that would be good to have.
    pub want: u64,
    /// Units spent without a lease (below zero: given back).
    pub told: i64,
    /// The count as last seen, for a Redis that forgot it.
    pub seen: f64,
    /// Whether Redis may have forgotten: it was away.
    pub resync: bool,
}

/// What Redis answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grant {
    /// Units leased: at least what was needed, or none.
    pub granted: u64,
    /// Units beyond all leases.
    pub free: u64,
    /// The count.
    pub state: f64,
    /// Until what was needed will be there; zero where that is not known.
    pub wait: Duration,
}

impl Slice {
    pub fn new(id: Id, period: Option<Period>, now: Moment) -> Self {
        Self {
            id,
            period,
            left: 0,
            size: 1,
            asking: false,
            untold: 0,
            free: 0,
            seen: 0.0,
            empty: None,
            asked: None,
            used: now,
            own: AtomicU64::new(0),
        }
    }

    /// Begins a new period if there is one: leases of the old one are void.
    pub fn turn(&mut self, period: Option<Period>) {
        if self.period == period || self.period.zip(period).is_some_and(|(mine, new)| new.is_before(mine.number)) {
            return;
        }
        self.period = period;
        (self.left, self.untold, self.free, self.seen, self.empty) = (0, 0, 0, 0.0, None);
    }

    /// Spends `n` units of the lease. `most`: the largest lease.
    pub fn take(&mut self, n: u64, most: u64, share: Meter, now: Moment) -> Said {
        self.used = now;
        if self.left >= n {
            self.left -= n;
            share.force(&self.own, n);
            let charge = Charge { allowed: true, remaining: self.left + self.free, reset: Duration::ZERO };
            // A lease of one is no lease: every request asks.
            let refill = !self.asking && self.left <= self.size / 2 && self.size.min(most) > 1;
            return Said::Granted(charge, refill);
        }
        match self.empty {
            Some((least, until)) if n >= least && now < until => Said::Empty(self.refusal(until, now)),
            _ => Said::Ask,
        }
    }

    fn refusal(&self, until: Moment, now: Moment) -> Charge {
        Charge { allowed: false, remaining: self.left, reset: until.since(now) }
    }

    /// What to ask for: `need` for a request that waits, 0 to refill.
    pub fn ask(&mut self, need: u64, most: u64, now: Moment) -> Terms {
        match self.asked.replace(now).map(|before| now.since(before)) {
            Some(since) if since < HOT => self.size = (self.size * 2).min(most),
            Some(since) if since > COLD => self.size = 1,
            _ => {}
        }
        if need == 0 {
            self.asking = true;
        }
        // Only one refill is on its way, or two would exceed the largest lease together.
        let want = if self.asking && need > 0 { 0 } else { self.size.min(most).saturating_sub(self.left) };
        self.tell(need, want)
    }

    /// What is to be given back by one that nobody uses, or told.
    pub fn settle(&mut self, give_back: bool) -> Option<Terms> {
        if self.asking || (self.untold == 0 && (self.left == 0 || !give_back)) {
            return None;
        }
        let mut terms = self.tell(0, 0);
        if give_back {
            terms.told = terms.told.saturating_sub_unsigned(self.left);
            (self.left, self.size) = (0, 1);
        }
        self.asking = true;
        Some(terms)
    }

    /// What reminds a Redis that was away.
    pub fn remind(&mut self) -> Option<Terms> {
        (self.seen > 0.0 || self.untold != 0).then(|| {
            self.asking = true;
            Terms { resync: true, ..self.tell(0, 0) }
        })
    }

    fn tell(&mut self, need: u64, want: u64) -> Terms {
        Terms { need, want, told: std::mem::take(&mut self.untold), seen: self.seen, resync: false }
    }

    /// Takes an answer in.
    pub fn answer(&mut self, terms: Terms, grant: Grant, now: Moment) {
        if terms.need == 0 {
            self.asking = false;
        }
        self.left += grant.granted;
        self.free = grant.free;
        // An answer may come late: a view of the past must not hide what was seen since.
        self.seen = self.seen.max(grant.state);
        if grant.granted < terms.need {
            let wait = if grant.wait.is_zero() { RECHECK } else { grant.wait.min(RECHECK) };
            self.empty = Some((terms.need, now + wait));
        } else if terms.need > 0 {
            self.empty = None;
        }
    }

    /// There was no answer, and Redis may have acted all the same. What was spent is told again: better twice than
    /// never. What was given back is not: better never than twice.
    pub fn unanswered(&mut self, terms: Terms) {
        if terms.need == 0 {
            self.asking = false;
        }
        self.untold = self.untold.saturating_add(terms.told.max(0));
    }

    /// Spends `n` units of this node's share of the limit.
    pub fn fall_back(&mut self, n: u64, share: Meter, now: Moment) -> Charge {
        self.used = now;
        let charge = share.charge(&self.own, n);
        if charge.allowed {
            self.untold = self.untold.saturating_add_unsigned(n);
        }
        charge
    }

    /// Units that a request did not need after all. Redis has them back, or the lease would grow beyond its bound.
    pub fn give_back(&mut self, n: u64, share: Meter) {
        share.refund(&self.own, n);
        self.untold = self.untold.saturating_sub_unsigned(n);
    }

    /// Units that an answer cost beyond what was charged.
    pub fn spend(&mut self, n: u64, share: Meter) {
        share.force(&self.own, n);
        let leased = n.min(self.left);
        self.left -= leased;
        self.untold = self.untold.saturating_add_unsigned(n - leased);
    }

    /// What a charge would give.
    pub fn peek(&self, n: u64, now: Moment) -> Charge {
        let remaining = self.left + self.free;
        match self.empty {
            Some((least, until)) if self.left < n && n >= least && now < until => self.refusal(until, now),
            _ => Charge { allowed: true, remaining, reset: Duration::ZERO },
        }
    }

    /// When it was last used.
    pub const fn used(&self) -> Moment {
        self.used
    }

    /// Whether forgetting it loses nothing.
    pub fn is_idle(&self) -> bool {
        self.left == 0 && self.untold == 0 && !self.asking
    }
}
