//! Peak-EWMA as Finagle and Linkerd do it: a slower answer counts at once, a faster one by and by; load multiplies.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};

use super::config::Settings;
use crate::contract::Moment;
use crate::contract::fault::{Reason, Side};
use crate::contract::mesh::{Endpoint, EndpointState, Pick, TryOutcome};
use crate::mesh::balance::pool::{Policy, Tier, two_choices};
use crate::mesh::chance::Dice;

/// An endpoint under penalty costs this much more...
const PENALTY_FACTOR: f64 = 1e3;
/// ...and never less than a try of this length (ns): however quickly it fails, it looks slow.
const PENALTY_FLOOR: f64 = 5e9;
/// Costs that differ by less than a fifth are alike.
const ALIKE: f64 = 0.8;
/// A `Retry-After` counts up to this many penalties.
const LONGEST_PENALTY: u32 = 12;

/// The policy.
pub struct PeakEwma(pub Settings);

impl Policy for PeakEwma {
    type Table = ();
    fn prepare(&self, _: &Tier) {}
    fn choose(
        &self,
        (): &(),
        tier: &Tier,
        cx: &Pick<'_>,
        dice: &mut Dice,
        fit: &dyn Fn(&Endpoint) -> bool,
    ) -> Option<usize> {
        // With weights, latencies that are much alike count as equal, and then the draw by weight decides: else two
        // endpoints of weights 1 and 3 would share evenly.
        let margin = if tier.even() { 1.0 } else { ALIKE };
        two_choices(tier, cx.now, dice, fit, |a, b| cost(&self.0, a, cx.now) < margin * cost(&self.0, b, cx.now))
    }
}

/// Expected wait of one more try, in nanoseconds, per weight in load.
fn cost(settings: &Settings, e: &Endpoint, now: Moment) -> f64 {
    let s = &e.state;
    let inflight = f64::from(s.inflight.load(Relaxed));
    let ewma = f64::from_bits(s.ewma.load(Relaxed));
    let comeback = Comeback::of(settings, s, now);
    let known = ewma > 0.0 && comeback != Comeback::Unseen;
    let rtt = if inflight == 0.0 && (!known || comeback == Comeback::Warming) {
        // One try at a time finds out. With that in flight it costs the default or what it was, so no crowd follows.
        0.0
    } else if known {
        ewma * fade(settings, Moment(s.ewma_at.load(Relaxed)), now)
    } else {
        settings.default_rtt
    };
    let busy = rtt * (1.0 + inflight / f64::from(e.weight.load(Relaxed).max(1)));
    if s.penalty_until.load(Relaxed) > now.0 {
        (busy * PENALTY_FACTOR).max(PENALTY_FLOOR * (1.0 + inflight))
    } else {
        busy
    }
}

/// Where an endpoint stands after a penalty, or after it joined. What was learned before and during an outage, such as a second for every
/// connect that timed out, says nothing of the process that is back, and would fade for a minute.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comeback {
    /// No penalty, one in force, or one that is long over.
    None,
    /// The penalty is over and nothing was heard since.
    Unseen,
    /// It has answered since, or is new; its first answers may be slow, and better ones count at once. Lasts as long as a penalty.
    Warming,
}

impl Comeback {
    fn of(settings: &Settings, s: &EndpointState, now: Moment) -> Self {
        let over = Moment(s.penalty_until.load(Relaxed));
        let joined = Moment(s.joined.load(Relaxed));
        let lately = |then: Moment| then != Moment::ZERO && now < then + settings.penalty;
        if over > now {
            Self::None
        } else if over != Moment::ZERO && s.ewma_at.load(Relaxed) < over.0 {
            Self::Unseen
        } else if lately(over) || lately(joined) {
            Self::Warming
        } else {
            Self::None
        }
    }
}

/// What is left of a figure of then: an endpoint that was slow is tried again some day.
fn fade(settings: &Settings, then: Moment, now: Moment) -> f64 {
    (-(now.since(then).as_secs_f64() * 1e9) / settings.decay).exp()
}

/// Feeds a finished try.
pub fn observe(settings: &Settings, e: &Endpoint, outcome: &TryOutcome<'_>, now: Moment) {
    let pressed = match &outcome.result {
        Ok((status, headers)) => {
            let failed = *status == StatusCode::TOO_MANY_REQUESTS
                || status.is_server_error()
                || outcome.grpc.is_some_and(presses);
            failed.then(|| asked(headers).unwrap_or_default())
        }
        // The caller's failures say nothing about the endpoint, and neither does the caller's short deadline.
        Err((reason, _)) if reason.side() != Side::Upstream || *reason == Reason::Deadline => return,
        Err(_) => Some(Duration::ZERO),
    };
    if let Some(asked) = pressed {
        penalise(settings, &e.state, asked, now);
    }
    feed(settings, &e.state, outcome.latency, pressed.is_some(), now);
}

/// An answer that looked well ended with this gRPC status.
pub fn ended(settings: &Settings, e: &Endpoint, grpc: u32, now: Moment) {
    if presses(grpc) {
        penalise(settings, &e.state, Duration::ZERO, now);
    }
}

/// gRPC: 8 resource-exhausted, 13 internal, 14 unavailable.
const fn presses(grpc: u32) -> bool {
    matches!(grpc, 8 | 13 | 14)
}

fn penalise(settings: &Settings, s: &EndpointState, asked: Duration, now: Moment) {
    if !settings.penalty.is_zero() {
        let asked = asked.min(settings.penalty * LONGEST_PENALTY);
        s.penalty_until.fetch_max((now + settings.penalty.max(asked)).0, Relaxed);
    }
}

/// The pause that an answer asks for: seconds or a date (RFC 9110 section 10.2.3), or gRPC's milliseconds (gRFC A6).
fn asked(headers: &HeaderMap) -> Option<Duration> {
    if let Some(ms) = headers.get("grpc-retry-pushback-ms") {
        return ms.to_str().ok()?.trim().parse().ok().map(Duration::from_millis);
    }
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(value).ok()?.duration_since(SystemTime::now()).ok()
}

/// A peak counts at once, a dip by its age; a failure can make an endpoint look slower, never faster.
fn feed(settings: &Settings, s: &EndpointState, latency: Duration, failed: bool, now: Moment) {
    let rtt = (latency.as_secs_f64() * 1e9).max(1.0);
    let then = Moment(s.ewma_at.load(Relaxed));
    let back = Comeback::of(settings, s, now) != Comeback::None;
    // Two workers may feed at once; each step is whole, only the age of one of them is shared.
    let _ = s.ewma.fetch_update(Relaxed, Relaxed, |bits| {
        let old = f64::from_bits(bits);
        if failed {
            return (rtt > old).then(|| rtt.max(settings.default_rtt).to_bits());
        }
        if back || old <= 0.0 || rtt >= old {
            return Some(rtt.to_bits());
        }
        let keep = fade(settings, then, now);
        Some(old.mul_add(keep, rtt * (1.0 - keep)).to_bits())
    });
    s.ewma_at.fetch_max(now.0, Relaxed);
}
