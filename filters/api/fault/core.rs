//! What to do to a request: pure.

use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};

use crate::contract::Moment;
use crate::contract::chance::fraction;
use crate::contract::inject::{Abort, MARK};
use crate::contract::units;

pub const DELAY: HeaderName = HeaderName::from_static("x-onehop-fault-delay");
pub const ABORT: HeaderName = HeaderName::from_static("x-onehop-fault-abort");
pub const TRIES: HeaderName = HeaderName::from_static("x-onehop-fault-tries");

/// An experiment as configured.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Share, shortest and longest delay.
    pub delay: Option<(f64, Duration, Duration)>,
    /// Share and kind of failure.
    pub abort: Option<(f64, Abort)>,
    /// Which tries, at attempt scope.
    pub tries: Vec<u32>,
}

/// What is done to one request, or to one try of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Draw {
    pub delay: Option<Duration>,
    pub abort: Option<Abort>,
}

impl Plan {
    /// Draws lots. The two shares are independent of each other.
    pub fn draw(&self, mut seed: impl FnMut() -> u64) -> Draw {
        let mut hits = |share: f64| share >= 1.0 || fraction(seed()) < share;
        let delayed = self.delay.filter(|(share, ..)| hits(*share));
        let abort = self.abort.filter(|(share, _)| hits(*share)).map(|(_, abort)| abort);
        let delay = delayed.map(|(_, least, most)| least + (most - least).mul_f64(fraction(seed())));
        Draw { delay, abort }
    }

    /// The experiment that a trusted caller asks for: its own words, else what is configured. `None`: it asks for none.
    ///
    /// # Errors
    /// The field that cannot be read.
    pub fn asked(&self, headers: &HeaderMap) -> Result<Option<Self>, HeaderName> {
        let text = |name: &HeaderName| match headers.get(name).map(|v| v.to_str()) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text.trim())),
            Some(Err(_)) => Err(name.clone()),
        };
        let (delay, abort, tries) = (text(&DELAY)?, text(&ABORT)?, text(&TRIES)?);
        if delay.is_none() && abort.is_none() && tries.is_none() && !headers.contains_key(MARK) {
            return Ok(None);
        }
        let mut plan = self.clone();
        if let Some(delay) = delay {
            let delay = delay.parse::<units::Duration>().map_err(|_| DELAY)?.0;
            plan.delay = Some((1.0, delay, delay));
        }
        if let Some(abort) = abort {
            plan.abort = Some((1.0, kind(abort).ok_or(ABORT)?));
        }
        if let Some(tries) = tries {
            plan.tries = tries.split(',').map(|n| n.trim().parse()).collect::<Result<_, _>>().map_err(|_| TRIES)?;
        }
        Ok(Some(plan))
    }
}

/// `503`, `grpc-14`, `connect`, `reset`.
fn kind(text: &str) -> Option<Abort> {
    match text {
        "connect" => Some(Abort::ConnectFailure),
        "reset" => Some(Abort::Reset),
        _ => match text.strip_prefix("grpc-") {
            Some(code) => grpc(code.parse().ok()?),
            None => status(text.parse().ok()?),
        },
    }
}

/// A status that stands for a failure.
pub fn status(code: u16) -> Option<Abort> {
    if !(400..=599).contains(&code) {
        return None;
    }
    StatusCode::from_u16(code).ok().map(Abort::Status)
}

/// A gRPC status that stands for a failure.
pub const fn grpc(code: u16) -> Option<Abort> {
    if matches!(code, 1..=16) { Some(Abort::Grpc(code)) } else { None }
}

/// When an experiment that lasts from `begun` on, or until the wall clock says so, is over.
pub fn end(now: Moment, wall: Duration, begun: Moment, lasts: Option<Duration>, expires: Option<Duration>) -> Moment {
    let by_length = lasts.map_or(Moment::MAX, |d| begun + d);
    // The wall clock is read once, when the config is compiled: a step of it later moves no experiment's end.
    let by_clock = expires.map_or(Moment::MAX, |at| now + at.saturating_sub(wall));
    by_length.min(by_clock)
}
