//! Failures that a filter plans for single tries, carried out: see `contract/inject.rs`.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use onehop_filters::contract::inject::{Abort, MARK, Tries};
use onehop_filters::contract::mesh::{Again, Judge, Retry, TryOutcome};
use onehop_filters::contract::trail::Outcome;
use onehop_filters::contract::{Fault, Moment, Proof, Reason, now};

use super::exchange::Exchange;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What the retry policy is told besides what was injected.
#[derive(Clone, Copy)]
pub struct Facts {
    /// When the try began.
    pub begun: Moment,
    /// Limit of one try.
    pub until: Moment,
    /// Whether the method is idempotent.
    pub idempotent: bool,
    /// Whether the body can be sent again; it has not been touched yet.
    pub replayable: bool,
    /// Whether no other try may follow, whatever the policy says (an upgrade).
    pub last: bool,
}

/// What came of asking.
pub enum Intercepted {
    /// The try goes out.
    Pass,
    /// It failed, and another one follows after this pause.
    Again(Duration),
    /// It failed for good.
    Failed(Fault),
}

/// Asks the filter's injector about the try that is about to begin.
pub async fn intercept(ex: &mut Exchange, retry: &dyn Retry, facts: Facts) -> Intercepted {
    let attempt = ex.tally.attempts + 1;
    let Some(injection) = ex.cx.scratch.find_mut::<Tries>().and_then(|tries| tries.0.inject(attempt)) else {
        return Intercepted::Pass;
    };
    let mark = if injection.abort.is_some() { "abort" } else { "delay" };
    ex.cx.reply_headers.push((MARK, HeaderValue::from_static(mark)));
    if let Some(delay) = injection.delay {
        ex.cx.trail.note("fault", Outcome::Pass, "delayed", u64::from(attempt), delay);
        // A try that is late fails as one that an endpoint let wait.
        let left = facts.until.since(now());
        tokio::time::sleep(delay.min(left)).await;
        if delay > left {
            let reason = if facts.until == ex.cx.deadline { Reason::Deadline } else { Reason::TryTimeout };
            let result = Err((reason, Proof::MayHaveRun));
            return judge(ex, retry, facts, attempt, &TryOutcome { result, grpc: None, latency: left }, reason.into());
        }
    }
    let Some(abort) = injection.abort else { return Intercepted::Pass };
    ex.cx.trail.note("fault", Outcome::Fail, "aborted", u64::from(attempt), Duration::ZERO);
    let mut headers = HeaderMap::new();
    let (result, grpc, fault) = match abort {
        Abort::Status(status) => (Ok((status, &headers)), None, Fault::new(Reason::Injected).answer(status)),
        Abort::Grpc(code) => {
            headers.insert(GRPC_STATUS, HeaderValue::from(code));
            let fault = Fault::new(Reason::Injected).grpc_status(code);
            (Ok((StatusCode::OK, &headers)), Some(u32::from(code)), fault)
        }
        Abort::ConnectFailure => {
            (Err((Reason::ConnectFailed, Proof::NeverRan)), None, Fault::never_ran(Reason::ConnectFailed))
        }
        Abort::Reset => (Err((Reason::Reset, Proof::MayHaveRun)), None, Fault::new(Reason::Reset)),
    };
    let latency = now().since(facts.begun);
    judge(ex, retry, facts, attempt, &TryOutcome { result, grpc, latency }, fault)
}

fn judge(
    ex: &mut Exchange,
    retry: &dyn Retry,
    facts: Facts,
    attempt: u32,
    outcome: &TryOutcome<'_>,
    fault: Fault,
) -> Intercepted {
    ex.tally.attempts = attempt;
    let why = fault.reason.code();
    let failed = Intercepted::Failed(fault.by("fault").detail("injected"));
    if facts.last || retry.attempts() == 0 {
        return failed;
    }
    let judge = Judge {
        now: now(),
        deadline: ex.cx.deadline,
        tries: attempt,
        idempotent: facts.idempotent,
        replayable: facts.replayable,
        outcome,
        seed: super::seed(),
    };
    match retry.judge(&judge) {
        Again::After(pause) => {
            ex.cx.trail.note("retry", Outcome::Retry, "", u64::from(attempt), pause);
            ex.tally.retries.push(why);
            Intercepted::Again(pause)
        }
        Again::No(why) => {
            ex.tally.retries.push(why);
            failed
        }
    }
}
