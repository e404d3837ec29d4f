//! Which part of a divided set a request goes to: shares counted now and then, drawn from by every pick.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use smallvec::SmallVec;

use super::pool::{Level, Rules};
use super::spread::{balanced, local_first, over_priorities};
use super::tier::{Census, FRESH, Outlook, SMALL};
use super::zones::Mode;
use crate::contract::Moment;

/// A part of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Position of its level.
    pub level: usize,
    /// Position of its zone; `None`: the whole level.
    pub zone: Option<usize>,
}

/// See the module.
pub struct Division {
    cells: Box<[Cell]>,
    /// Running sums of the shares, in 2^-32. Each is whole by itself; a reader that meets two counts at once draws from
    /// a mixture of both, and looks at what it drew anyway.
    sums: Box<[AtomicU32]>,
    /// When they were counted (ms, and 1).
    counted: AtomicU64,
    /// How long they are good (ms).
    good: u64,
}

/// Parts and levels of most sets.
type Few<T> = SmallVec<[T; 8]>;

impl Division {
    /// For these levels.
    pub fn new<T>(levels: &[Level<T>]) -> Self {
        let cells: Box<[Cell]> = levels
            .iter()
            .enumerate()
            .flat_map(|(at, level)| {
                let zones = (0..level.zones.len()).map(Some);
                std::iter::once(None).chain(zones).map(move |zone| Cell { level: at, zone })
            })
            .collect();
        let sums = cells.iter().map(|_| AtomicU32::new(0)).collect();
        let small = levels.iter().map(|level| level.whole.0.endpoints.len()).sum::<usize>() <= SMALL;
        let good = if small { 1 } else { u64::try_from(FRESH.as_millis()).unwrap_or(u64::MAX) };
        Self { cells, sums, counted: AtomicU64::new(0), good }
    }

    /// Whether the shares are to be counted again.
    pub fn is_old(&self, now: Moment) -> bool {
        (now.0 / 1_000_000 + 1).saturating_sub(self.counted.load(Relaxed)) >= self.good
    }

    /// Counts what is available and shares requests out. `alarm` hears of every level whether it is in panic.
    pub fn renew<T>(
        &self,
        levels: &[Level<T>],
        rules: &Rules,
        now: Moment,
        mut alarm: impl FnMut(&Level<T>, bool, &Census),
    ) {
        self.counted.store(now.0 / 1_000_000 + 1, Relaxed);
        // Parts first: a level with zones is the sum of them, so each endpoint is looked at once.
        let parts: Few<Census> = levels.iter().flat_map(|l| &l.zones).map(|(tier, _)| tier.count(now)).collect();
        let mut rest = &*parts;
        let counts: Few<(Census, &[Census])> = levels
            .iter()
            .map(|level| {
                let (zones, others) = rest.split_at(level.zones.len());
                rest = others;
                let census = if zones.is_empty() { level.whole.0.count(now) } else { zones.iter().copied().sum() };
                (census, zones)
            })
            .collect();
        let capacities: Few<_> = counts.iter().map(|(census, _)| census.capacity).collect();
        let mut shares: Few<f64> = SmallVec::from_elem(0.0, levels.len());
        let health = over_priorities(&capacities, rules.room, &mut shares);
        let mut sums = self.sums.iter();
        let mut sum = 0.0;
        let mut put = |share: f64| {
            sum += share;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; a share of 2^32")]
            let fixed = if sum > 1.0 - 1e-9 { u32::MAX } else { (sum * f64::from(u32::MAX)) as u32 };
            if let Some(place) = sums.next() {
                place.store(fixed, Relaxed);
            }
        };
        for ((level, (census, parts)), share) in levels.iter().zip(&counts).zip(&shares) {
            // Where the levels together can carry everything, one that is thin has passed on what it cannot.
            let thin = health < 1.0 && rules.panic > 0.0 && census.outlook(rules.panic) == Outlook::Thin;
            if health > 0.0 {
                alarm(level, thin, census);
            }
            let mut zones: Few<f64> = SmallVec::from_elem(0.0, level.zones.len());
            if !thin && share_by_zone(level, rules, census, parts, &mut zones) {
                put(0.0);
                zones.iter().for_each(|zone| put(share * zone));
            } else {
                put(*share);
                zones.iter().for_each(|_| put(0.0));
            }
        }
    }

    /// The part for this random number; `None` if no part has anything available.
    pub fn draw(&self, roll: u64) -> Option<Cell> {
        let at = (roll >> 32) as u32;
        let hit = self.sums.iter().position(|sum| {
            let sum = sum.load(Relaxed);
            at < sum || sum == u32::MAX
        });
        hit.map(|i| self.cells[i])
    }
}

/// False: zones do not count now.
fn share_by_zone<T>(level: &Level<T>, rules: &Rules, census: &Census, parts: &[Census], shares: &mut [f64]) -> bool {
    let Some(zones) = rules.zones.as_ref().filter(|_| !parts.is_empty()) else { return false };
    if census.available < zones.min_endpoints {
        return false;
    }
    let capacities: Few<_> = parts.iter().map(|census| census.capacity).collect();
    match zones.mode {
        Mode::Balanced => balanced(&capacities, level.own, zones.callers, shares),
        Mode::Local => local_first(&capacities, level.own, rules.room, shares),
        Mode::Ignore => return false,
    }
    shares.iter().any(|share| *share > 0.0)
}
