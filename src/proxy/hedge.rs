//! Another try beside one that is slow: the first good answer counts, the others are cancelled.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use onehop_filters::contract::mesh::{Endpoint, Hedge, TryOutcome};
use onehop_filters::contract::principal::Priority;
use onehop_filters::contract::trail::Outcome;
use onehop_filters::contract::{Body, Conn, Moment, Reason, now};
use smallvec::SmallVec;

use super::attempt::{Admission, Flight, Sent, Tried, discard, pick, tell};
use super::exchange::{Exchange, Told, Try};
use super::ledger;
use super::replay::Replay;
use super::request::Wants;
use crate::observe::metrics::Outcome as Counted;
use crate::runtime::wheel;
use crate::snapshot::cell::View;
use crate::upstream::{Head, Upstream};

/// What further tries are made of.
pub struct Race<'a> {
    pub view: &'a Arc<View>,
    pub position: usize,
    pub wants: &'a Wants<'a>,
    /// Whether its method is.
    pub idempotent: bool,
    pub priority: Priority,
    pub hash: Option<u64>,
    /// The request's body, if it has one.
    pub replay: Option<&'a Replay>,
    pub tried: &'a mut Tried,
}

/// A try and the future that makes it.
struct Runner<'a> {
    flight: Flight,
    sending: Pin<Box<dyn Future<Output = Sent> + Send + 'a>>,
}

enum Event {
    /// This runner is through.
    Done(usize, Sent),
    /// Time for another.
    Due,
}

/// Makes a try, and others beside it while no answer comes. Gives the one that counts: the first good one, or the last.
pub async fn race(ex: &mut Exchange, race: Race<'_>, first: Flight) -> (Flight, Sent) {
    let target = &race.view.targets[race.position];
    let (retry, service) = (&*target.service.retry, &target.service);
    let (grpc, deadline) = (race.wants.grpc, ex.cx.deadline);
    let cx = &mut ex.cx;
    let sampled = cx.trace.sampled;
    let body = std::mem::take(&mut cx.body);
    let asked = Asked {
        method: &cx.method,
        target: &cx.target,
        https: cx.https,
        host: cx.upstream_host.as_ref().map_or(cx.authority.as_str().as_bytes(), |host| host.as_bytes()),
        headers: &cx.headers,
        client: &cx.conn,
        wants: race.wants,
        upstream: &target.upstream,
    };
    let fields = &ex.fields;
    let told = |attempt: u32, flight: &Flight| {
        let mut told = Told { own: fields.own[..fields.common].iter().cloned().collect(), common: fields.common };
        tell(&cx.trace, deadline, &mut told, grpc, attempt, flight.until, flight.span);
        told
    };
    let mut attempts = ex.tally.attempts;
    let mut over: SmallVec<[Try; 2]> = SmallVec::new();
    // No hedge for this method: it is one try like any other.
    let hedge = retry.hedge(race.idempotent).unwrap_or(Hedge { after: Duration::MAX, max: 0 });
    let mut timer = wheel::deadline(first.begun + hedge.after);
    let mut left = hedge.max;
    let sending = asked.launch(told(attempts, &first), body, first.endpoint.clone(), first.until, true);
    let mut runners: SmallVec<[Runner<'_>; 2]> = SmallVec::new();
    runners.push(Runner { flight: first, sending });
    let winner = loop {
        let event = poll_fn(|cx| {
            for (at, runner) in runners.iter_mut().enumerate() {
                if let Poll::Ready(sent) = runner.sending.as_mut().poll(cx) {
                    return Poll::Ready(Event::Done(at, sent));
                }
            }
            if left == 0 {
                return Poll::Pending;
            }
            Pin::new(&mut timer).poll(cx).map(|()| Event::Due)
        });
        match event.await {
            Event::Done(at, sent) => {
                let Runner { mut flight, .. } = runners.swap_remove(at);
                let ended = now();
                if runners.is_empty() || matches!(&sent, Ok(sent) if good(&flight.outcome(sent, grpc, ended))) {
                    break (flight, sent);
                }
                // A bad answer, and another may still be good.
                let sent = flight.result(sent, deadline);
                let outcome = flight.outcome(&sent, grpc, ended);
                flight.place.observe(&outcome, ended);
                target.metrics.count(&outcome);
                over.push(flight.noted(&sent, ended));
                discard(sent);
            }
            Event::Due => {
                let at = now();
                timer = wheel::deadline(at + hedge.after);
                // While the body still arrives only one can read it.
                if race.replay.is_some_and(|replay| !replay.complete()) {
                    continue;
                }
                left -= 1;
                // It takes a place that is free, and waits for none.
                let Ok((mut place, at)) = Admission::enter(race.view, race.position, race.priority, at, at).await
                else {
                    continue;
                };
                let Ok(endpoint) = pick(&mut place, service, at, (race.hash, None), race.tried) else { continue };
                if !retry.grants(at) {
                    left = 0;
                    continue;
                }
                attempts += 1;
                race.tried.once.push(endpoint.id);
                let until = retry.per_try_timeout().map_or(deadline, |limit| deadline.min(at + limit));
                let span = if sampled { super::seed() | 1 } else { runners[0].flight.span };
                let flight = Flight { place, endpoint, begun: at, until, span };
                let body = race.replay.map_or(Body::Empty, Replay::body);
                let sending = asked.launch(told(attempts, &flight), body, flight.endpoint.clone(), until, false);
                target.metrics.retry();
                runners.push(Runner { flight, sending });
            }
        }
    };
    // Dropped, they cancel what they sent and give their places back.
    let ended = now();
    for Runner { flight, sending } in runners {
        drop(sending);
        target.metrics.record(Counted::Cancelled, None);
        let Flight { endpoint, begun: started, span, .. } = flight;
        over.push(Try { span, started, ended, endpoint, result: Err(Reason::ClientGone) });
    }
    for tried in over {
        ledger::note_try(ex, tried);
    }
    for n in ex.tally.attempts..attempts {
        ex.cx.trail.note("retry", Outcome::Retry, "hedge", u64::from(n), Duration::ZERO);
        ex.tally.retries.push("hedge");
    }
    ex.tally.attempts = attempts;
    winner
}

/// Whether an answer is worth cancelling the others for: any that is no failure of the endpoint, be it a 404.
fn good(outcome: &TryOutcome<'_>) -> bool {
    // gRPC: cancelled, unknown, deadline-exceeded, resource-exhausted, internal, unavailable, data-loss.
    let grpc = outcome.grpc.is_none_or(|code| !matches!(code, 1 | 2 | 4 | 8 | 13..=15));
    outcome.result.as_ref().is_ok_and(|(status, _)| !status.is_server_error() && status.as_u16() != 429) && grpc
}

/// The request as every try sends it.
#[derive(Clone, Copy)]
struct Asked<'a> {
    method: &'a Method,
    target: &'a PathAndQuery,
    https: bool,
    host: &'a [u8],
    headers: &'a HeaderMap,
    client: &'a Conn,
    wants: &'a Wants<'a>,
    upstream: &'a Upstream,
}

impl<'a> Asked<'a> {
    fn launch(
        self,
        told: Told,
        mut body: Body,
        endpoint: Arc<Endpoint>,
        until: Moment,
        first: bool,
    ) -> Pin<Box<dyn Future<Output = Sent> + Send + 'a>> {
        Box::pin(async move {
            let head = Head {
                method: self.method,
                target: self.target,
                https: self.https,
                host: self.host,
                headers: self.headers,
                extra: &told.own,
                te_trailers: self.wants.te_trailers,
                expect_continue: self.wants.expect_continue,
                upgrade: None,
                grpc: self.wants.grpc,
                client: Some(self.client),
            };
            // Interim answers of one try are enough.
            let informational = self.wants.informational.filter(|_| first);
            let sending = pin!(self.upstream.send(&endpoint, &head, &mut body, informational));
            wheel::timeout(until, sending).await
        })
    }
}
