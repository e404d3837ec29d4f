//! One try at the host that the request names, where no route knows it.

use onehop_filters::contract::{Fault, Reason, now};

use super::attempt::{self, Got};
use super::exchange::{Exchange, Try};
use super::ledger;
use super::request::Wants;
use crate::runtime::wheel;
use crate::upstream::Reply;
use crate::upstream::passthrough::Passthrough;

/// Calls it.
///
/// # Errors
/// The host cannot or may not be reached, or what it did wrong.
pub async fn forward(ex: &mut Exchange, wants: &Wants<'_>, way: &Passthrough) -> Result<Got, Fault> {
    let late = |_| Fault::new(Reason::Deadline).by("timeouts");
    let started = now();
    let until = ex.cx.deadline;
    let found = wheel::timeout(until, way.endpoint(&ex.cx.authority, &ex.cx.conn)).await;
    let endpoint = found.map_err(late).flatten()?;
    ex.tally.attempts = 1;
    ex.tally.endpoint = Some(endpoint.clone());
    let span = if ex.cx.trace.sampled { super::seed() | 1 } else { ex.cx.trace.span };
    let sent = attempt::send(ex, wants, way.upstream(), &endpoint, until, span).await.map_err(late).flatten();
    let ended = now();
    let result = sent.as_ref().map(|reply| reply.status).map_err(|fault| fault.reason);
    ledger::note_try(ex, Try { span, started, ended, endpoint, result });
    ex.tally.upstream = ended.since(started);
    ex.tally.head = ended;
    let Reply { status, headers, body, upgraded, connect, .. } = sent?;
    ex.tally.connect = connect;
    Ok(Got { status, headers, body, upgraded, made: false })
}
