//! Weights by what endpoints report, and gRPC's static stride schedule over them (gRFC A58).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::config::Settings;
use super::report::Report;
use crate::contract::Moment;
use crate::contract::mesh::{Endpoint, EndpointState, Pick};
use crate::contract::worker;
use crate::mesh::balance::pool::{PROBES, Policy, Tier};
use crate::mesh::chance::{Dice, mix};

/// The policy.
pub struct Utilization(pub Settings);

/// Weights of the heaviest endpoint in a schedule.
const FULL: u32 = u16::MAX as u32;
/// No endpoint counts more than this times the mean, and none less than [`LEAST`] of it: bounds the steps of a pick, and
/// keeps those that look bad from being forgotten.
const MOST: f64 = 10.0;
const LEAST: f64 = 0.01;

/// Takes a report: what the endpoint could carry at full use, were its failures use as well.
pub fn learn(settings: &Settings, state: &EndpointState, report: &Report, now: Moment) {
    let utilization = report.utilization();
    if report.rps <= 0.0 || utilization <= 0.0 {
        return;
    }
    let weight = report.rps / (utilization + report.eps / report.rps * settings.error_penalty);
    if !weight.is_finite() || weight <= 0.0 {
        return;
    }
    let since = state.reporting_since.load(Relaxed);
    let silent = now.since(Moment(state.reported_at.load(Relaxed))) >= settings.expiration;
    if since == 0 || silent {
        state.reporting_since.store(now.0.max(1), Relaxed);
    }
    state.capacity.store(weight.to_bits(), Relaxed);
    state.reported_at.store(now.0.max(1), Relaxed);
}

/// What an endpoint's reports are worth now; `None`: none that count.
pub fn weight(settings: &Settings, state: &EndpointState, now: Moment) -> Option<f64> {
    let (since, last) = (Moment(state.reporting_since.load(Relaxed)), Moment(state.reported_at.load(Relaxed)));
    let counts = since != Moment::ZERO
        && now.since(last) < settings.expiration
        && now.since(since) >= settings.blackout
        // A report after a long silence: another worker is about to begin the blackout.
        && last >= since;
    counts.then(|| f64::from_bits(state.capacity.load(Relaxed))).filter(|w| *w > 0.0)
}

/// Weights of a tier, and where each worker stands in the schedule.
pub struct Schedule {
    weights: Box<[AtomicU32]>,
    /// When they are computed next ([`Moment`]).
    due: AtomicU64,
    cursors: Box<[Cursor]>,
}

#[repr(align(128))]
struct Cursor(AtomicU64);

impl Schedule {
    fn new(endpoints: usize) -> Self {
        let mut dice = Dice::fresh();
        let cursors = (0..worker::shards()).map(|_| Cursor(AtomicU64::new(dice.roll() >> 32))).collect();
        let weights = (0..endpoints).map(|_| AtomicU32::new(FULL)).collect();
        Self { weights, due: AtomicU64::new(0), cursors }
    }

    /// Computes the weights if that is due: the one worker that notices first does it, in place.
    fn renew(&self, settings: &Settings, tier: &Tier, now: Moment) {
        let due = self.due.load(Relaxed);
        let next = (now + settings.update).0;
        if now.0 < due || self.due.compare_exchange(due, next, Relaxed, Relaxed).is_err() {
            return;
        }
        let reported = || tier.endpoints.iter().filter_map(|e| weight(settings, &e.state, now));
        let (count, sum) = reported().fold((0u32, 0.0), |(n, sum), weight| (n + 1, sum + weight));
        // One alone cannot be compared with anybody: the configured weights count.
        if count < 2 {
            let heaviest = tier.endpoints.iter().map(|e| e.weight.load(Relaxed)).max().unwrap_or(1).max(1);
            for (e, place) in tier.endpoints.iter().zip(&self.weights) {
                place.store(scaled(f64::from(e.weight.load(Relaxed)) / f64::from(heaviest)), Relaxed);
            }
            return;
        }
        let mean = sum / f64::from(count);
        let bounded = |w: f64| w.clamp(LEAST * mean, MOST * mean);
        let heaviest = reported().map(bounded).fold(mean, f64::max);
        for (e, place) in tier.endpoints.iter().zip(&self.weights) {
            let weight = weight(settings, &e.state, now).map_or(mean, bounded);
            place.store(scaled(weight / heaviest), Relaxed);
        }
    }

    /// The next endpoint of this worker's schedule. In each round an endpoint of half the heaviest weight is passed over
    /// every other time, and so on: as evenly spread as a schedule computed beforehand, without computing one.
    fn next(&self) -> usize {
        let n = self.weights.len() as u64;
        let cursor = &self.cursors[worker::shard()].0;
        // The heaviest is never passed over, so a round is the most it takes.
        for _ in 0..=n {
            let turn = cursor.fetch_add(1, Relaxed);
            let (round, at) = (turn / n, usize::try_from(turn % n).unwrap_or(0));
            let weight = u64::from(self.weights[at].load(Relaxed));
            // Endpoints of one weight do not all have their turns in the same rounds.
            let offset = mix(at as u64) % u64::from(FULL);
            let part = (weight * round + offset) % u64::from(FULL);
            if part + weight >= u64::from(FULL) {
                return at;
            }
        }
        usize::try_from(cursor.load(Relaxed) % n).unwrap_or(0)
    }
}

/// A share of the heaviest weight in the schedule's units.
fn scaled(share: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to FULL")]
    let units = (share * f64::from(FULL)).round() as u32;
    units.clamp(1, FULL)
}

impl Policy for Utilization {
    type Table = Schedule;

    fn prepare(&self, tier: &Tier) -> Schedule {
        Schedule::new(tier.endpoints.len())
    }

    fn choose(
        &self,
        table: &Schedule,
        tier: &Tier,
        cx: &Pick<'_>,
        dice: &mut Dice,
        fit: &dyn Fn(&Endpoint) -> bool,
    ) -> Option<usize> {
        table.renew(&self.0, tier, cx.now);
        (0..2 * PROBES).map(|_| table.next()).find(|i| {
            let e = &tier.endpoints[*i];
            fit(e) && tier.ramped(e, cx.now, dice)
        })
    }
}
