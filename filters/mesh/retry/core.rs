//! The decision, pure: what is worth another try, whether it is safe, and when.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};

use super::budget::Budget;
use super::config::{Class, Settings};
use crate::contract::fault::{Proof, Reason, Side};
use crate::contract::mesh::{Again, Judge, TryOutcome};
use crate::mesh::chance::Dice;

/// gRPC's way to ask for a pause (gRFC A6).
pub const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Words of [`Again::No`].
pub mod word {
    pub const NOT_RETRIABLE: &str = "not-retriable";
    pub const UNSAFE: &str = "unsafe";
    pub const ATTEMPTS: &str = "attempts";
    pub const BODY: &str = "body";
    pub const PUSHBACK: &str = "pushback";
    pub const DEADLINE: &str = "deadline";
    pub const BUDGET: &str = "budget";
}

/// Judges a try. `wall` is the wall clock, asked only when an endpoint names a date.
pub fn judge(s: &Settings, budget: &Budget, cx: &Judge<'_>, wall: impl FnOnce() -> jiff::Timestamp) -> Again {
    let Some(worth) = worth(s, cx.outcome) else { return Again::No(word::NOT_RETRIABLE) };
    // A 503, a reset or a timeout is no proof that nothing ran (RFC 9110 section 9.2.2).
    if !(cx.idempotent || worth == Worth::Safe || s.retry_non_idempotent) {
        return Again::No(word::UNSAFE);
    }
    if cx.tries > s.attempts {
        return Again::No(word::ATTEMPTS);
    }
    if !cx.replayable {
        return Again::No(word::BODY);
    }
    let mut pause = backoff(s, cx.tries, cx.seed);
    if let Ok((_, headers)) = &cx.outcome.result {
        match asked_pause(headers, wall) {
            Some(asked) if asked > s.max_retry_after => return Again::No(word::PUSHBACK),
            Some(asked) => pause = pause.max(asked),
            None => {}
        }
    }
    // The rest of less than a millisecond is nothing that an endpoint could be told.
    if cx.now + pause + Duration::from_millis(1) > cx.deadline {
        return Again::No(word::DEADLINE);
    }
    // Last, for it is the only question that costs something.
    if !budget.take(cx.now, &s.budget) {
        return Again::No(word::BUDGET);
    }
    Again::After(pause)
}

/// What makes a try worth another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Worth {
    /// It may have run.
    Doubtful,
    /// It provably never ran, or the endpoint's gRPC status is one that the operator named: gRPC calls are all POST, so
    /// the method says nothing and naming the code is the consent.
    Safe,
}

fn worth(s: &Settings, outcome: &TryOutcome<'_>) -> Option<Worth> {
    match &outcome.result {
        Err((reason, proof)) => {
            // Our own and the caller's failures meet the same fate again; a passed deadline leaves no time.
            if reason.side() != Side::Upstream || *reason == Reason::Deadline {
                return None;
            }
            let safe = *proof == Proof::NeverRan;
            let listed = match &s.retry_on {
                None => safe,
                Some(classes) => classes.iter().any(|c| matches_failure(*c, *reason, safe)),
            };
            listed.then_some(if safe { Worth::Safe } else { Worth::Doubtful })
        }
        Ok((status, headers)) => {
            let classes = s.retry_on.as_deref()?;
            if let Some(code) = outcome.grpc
                && classes.contains(&Class::Grpc(code))
            {
                return Some(Worth::Safe);
            }
            classes.iter().any(|c| matches_answer(s, *c, *status, headers)).then_some(Worth::Doubtful)
        }
    }
}

fn matches_failure(class: Class, reason: Reason, never_ran: bool) -> bool {
    let connect = matches!(reason, Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed);
    match class {
        Class::NeverRan => never_ran,
        Class::ConnectFailure => connect,
        Class::RefusedStream => reason == Reason::RefusedStream || (never_ran && reason == Reason::Reset),
        // No complete answer began: closed, reset, garbled or silent. A refused connection was never open.
        Class::Reset => !connect,
        // What we would answer ourselves is a 502 or a 504.
        Class::GatewayError | Class::ServerError => true,
        // gRPC's mapping of a connection that failed or a stream refused is UNAVAILABLE.
        Class::Grpc(14) => connect || reason == Reason::RefusedStream || never_ran,
        Class::Grpc(4) => reason == Reason::TryTimeout,
        Class::Grpc(_) | Class::RetriableHeaders | Class::Retriable4xx | Class::Status(_) => false,
    }
}

fn matches_answer(s: &Settings, class: Class, status: StatusCode, headers: &HeaderMap) -> bool {
    match class {
        Class::Status(code) => status == code,
        Class::ServerError => status.is_server_error(),
        Class::GatewayError => matches!(status.as_u16(), 502..=504),
        Class::Retriable4xx => status == StatusCode::CONFLICT,
        Class::RetriableHeaders => s.retriable_headers.iter().any(|h| headers.contains_key(h)),
        // Names of gRPC codes match gRPC answers only; 503 has its own word.
        Class::Grpc(_) | Class::NeverRan | Class::ConnectFailure | Class::RefusedStream | Class::Reset => false,
    }
}

/// `backoff * 2^n` plus as much again at random: never sooner than `backoff` (Gateway API), never in step, never above the
/// cap. At the cap the lower end gives way, so that late retries keep their spread.
fn backoff(s: &Settings, tries: u32, seed: u64) -> Duration {
    let doubled = s.backoff.saturating_mul(1u32.checked_shl(tries.saturating_sub(1).min(20)).unwrap_or(u32::MAX));
    let low = doubled.min(s.max_backoff / 2).max(s.backoff);
    let spread = low.min(s.max_backoff.saturating_sub(low));
    low + spread.mul_f64(Dice::new(seed).fraction())
}

/// The pause an answer asks for; `Duration::MAX` if it asks for no retry at all.
fn asked_pause(headers: &HeaderMap, wall: impl FnOnce() -> jiff::Timestamp) -> Option<Duration> {
    if let Some(v) = headers.get(PUSHBACK) {
        // gRFC A6: anything but a non-negative number means "do not retry".
        let ms = v.to_str().ok().and_then(|v| v.trim().parse::<u32>().ok());
        return Some(ms.map_or(Duration::MAX, |ms| Duration::from_millis(ms.into())));
    }
    // RFC 9110 section 10.2.3: seconds or a date. What is neither is ignored.
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::try_from(date.duration_since(wall())).unwrap_or_default())
}
