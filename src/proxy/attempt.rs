//! The mesh loop: admit, pick, send, judge, once per try.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body::Body as _;
use onehop_filters::contract::clock;
use onehop_filters::contract::inject::Tries;
use onehop_filters::contract::mesh::{Admit, Again, Endpoint, Gate, Judge, Pick, TryOutcome};
use onehop_filters::contract::principal::Priority;
use onehop_filters::contract::trail::Outcome;
use onehop_filters::contract::{Body, Fault, Moment, Proof, Reason, Side, Trace, now};
use smallvec::SmallVec;

use super::exchange::{Exchange, Told, Try};
use super::headers::trace;
use super::inject::{self, Intercepted};
use super::replay::Replay;
use super::request::Wants;
use super::{hedge, ledger};
use crate::runtime::wheel;
use crate::snapshot::Fallback;
use crate::snapshot::cell::View;
use crate::snapshot::service::Service;
use crate::upstream::{Head, Io, Reply, Upstream};

/// A place at every gate of a service, and at an endpoint. Released when dropped: at the end of the response body.
pub struct Admission {
    view: Arc<View>,
    target: usize,
    /// Gates passed so far; a refusal at the third releases two.
    passed: usize,
    endpoint: Option<Arc<Endpoint>>,
    /// When the endpoint was picked.
    begun: Moment,
    observed: bool,
}

impl Admission {
    /// Passes the gates in order, waiting in their queues no longer than `until`.
    /// Returns the time as well, which is another one if it had to wait.
    pub(super) async fn enter(
        view: &Arc<View>,
        target: usize,
        priority: Priority,
        now: Moment,
        until: Moment,
    ) -> Result<(Self, Moment), Fault> {
        let mut at = now;
        let mut place = Self { view: view.clone(), target, passed: 0, endpoint: None, begun: now, observed: false };
        for gate in &*view.targets[target].service.gates {
            match gate.admit(at, priority) {
                Admit::Yes => {}
                Admit::No(fault) => return Err(fault),
                Admit::Wait(queue) => {
                    match wheel::timeout(until, queue).await {
                        Ok(admitted) => admitted?,
                        Err(_) => return Err(Fault::new(Reason::Deadline).by("queue")),
                    }
                    at = clock::now();
                }
            }
            place.passed += 1;
        }
        Ok((place, at))
    }

    fn service(&self) -> &Service {
        &self.view.targets[self.target].service
    }

    /// Takes a place at an endpoint; false: a gate wants another one picked.
    fn pick(&mut self, endpoint: Arc<Endpoint>, now: Moment) -> bool {
        if !self.service().gates.iter().all(|g| g.picked(&endpoint, now)) {
            return false;
        }
        endpoint.state.inflight.fetch_add(1, Relaxed);
        endpoint.state.tries.fetch_add(1, Relaxed);
        self.endpoint = Some(endpoint);
        self.begun = now;
        true
    }

    /// The answer, which was passed on, ended with this gRPC status.
    pub fn ended(&self, grpc: u32) {
        if let Some(endpoint) = self.endpoint.as_ref().filter(|_| grpc != 0) {
            self.service().balance.ended(endpoint, grpc, now());
        }
    }

    /// Tells everybody who learns from tries.
    pub(super) fn observe(&mut self, outcome: &TryOutcome<'_>, now: Moment) {
        self.observed = true;
        let Some(endpoint) = &self.endpoint else { return };
        if failed(outcome) {
            endpoint.state.failed.fetch_add(1, Relaxed);
        }
        let service = self.service();
        service.balance.observe(endpoint, outcome, now);
        for gate in &*service.gates {
            gate.observe(endpoint, outcome, now);
        }
    }

    /// The same place, without the configuration it was taken under: for what may outlive many of them.
    pub(super) fn hold(mut self) -> Held {
        let gates = self.service().gates[..self.passed].into();
        self.passed = 0;
        Held { gates, endpoint: self.endpoint.take() }
    }
}

/// See [`Admission::hold`]. Released when dropped.
pub(super) struct Held {
    gates: Box<[Arc<dyn Gate>]>,
    endpoint: Option<Arc<Endpoint>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.state.inflight.fetch_sub(1, Relaxed);
        }
        for gate in self.gates.iter().rev() {
            gate.release(self.endpoint.as_deref());
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if self.endpoint.is_some() && !self.observed {
            // The client left before there was anything to learn; a probe that was claimed is free again.
            let at = now();
            let result = Err((Reason::ClientGone, Proof::MayHaveRun));
            self.observe(&TryOutcome { result, grpc: None, latency: at.since(self.begun) }, at);
        }
        if let Some(endpoint) = &self.endpoint {
            endpoint.state.inflight.fetch_sub(1, Relaxed);
        }
        for gate in self.service().gates[..self.passed].iter().rev() {
            gate.release(self.endpoint.as_deref());
        }
    }
}

/// Less time than this is none: an endpoint is told whole milliseconds.
const LEAST: Duration = Duration::from_millis(1);

/// What a try comes to that is awaited until its limit.
pub(super) type Sent = Result<Result<Reply, Fault>, wheel::Elapsed>;

/// A try under way.
pub(super) struct Flight {
    pub place: Admission,
    pub endpoint: Arc<Endpoint>,
    pub begun: Moment,
    pub until: Moment,
    pub span: u64,
}

impl Flight {
    /// With the fault of one that took too long.
    pub fn result(&self, sent: Sent, deadline: Moment) -> Result<Reply, Fault> {
        sent.unwrap_or_else(|_elapsed| {
            let reason = if self.until == deadline { Reason::Deadline } else { Reason::TryTimeout };
            Err(Fault::new(reason).by("timeouts"))
        })
    }

    /// As those see it who learn from tries.
    pub fn outcome<'a>(&self, sent: &'a Result<Reply, Fault>, grpc: bool, ended: Moment) -> TryOutcome<'a> {
        let latency = ended.since(self.begun);
        match sent {
            Ok(reply) => TryOutcome {
                result: Ok((reply.status, &reply.headers)),
                grpc: if grpc { ledger::grpc_status(&reply.headers) } else { None },
                latency,
            },
            Err(fault) => TryOutcome { result: Err((fault.reason, fault.proof)), grpc: None, latency },
        }
    }

    /// As the trace shows it.
    pub fn noted(&self, sent: &Result<Reply, Fault>, ended: Moment) -> Try {
        let result = sent.as_ref().map(|reply| reply.status).map_err(|fault| fault.reason);
        Try { span: self.span, started: self.begun, ended, endpoint: self.endpoint.clone(), result }
    }
}

/// Endpoints that a request had better not be sent to again.
#[derive(Default)]
pub(super) struct Tried {
    /// Those it was sent to.
    pub once: SmallVec<[u64; 4]>,
    /// Those, and others of the same zones, where another zone is preferred.
    #[expect(clippy::box_collection, reason = "every request moves it, and hardly one has any")]
    zones: Option<Box<Vec<u64>>>,
}

impl Tried {
    /// Endpoints of one zone that are remembered: a pick looks through all of them.
    const MOST: usize = 256;

    fn all(&self) -> &[u64] {
        self.zones.as_ref().map_or(&self.once, |zones| zones)
    }

    /// A try at this endpoint failed; those beside it may be no better.
    fn avoid_zone(&mut self, endpoint: &Endpoint, service: &Service) {
        if endpoint.zone.is_empty() {
            return;
        }
        let zones = self.zones.get_or_insert_default();
        zones.extend_from_slice(&self.once);
        let members = service.cluster.members();
        let near = members.endpoints.iter().filter(|e| e.zone == endpoint.zone).map(|e| e.id);
        zones.extend(near.take(Self::MOST));
    }
}

/// An answer, whoever made it.
pub struct Got {
    /// Status.
    pub status: StatusCode,
    /// Fields without hop-by-hop ones.
    pub headers: HeaderMap,
    /// Body.
    pub body: Body,
    /// The tunnel, if a switch of protocols was agreed.
    pub upgraded: Option<Box<dyn Io>>,
    /// A configured fallback, not an endpoint's answer.
    pub made: bool,
}

/// Calls the service at this position, and its fallback if it fails.
///
/// # Errors
/// The fault of the last try, or of the gate or balancer that allowed none.
pub async fn forward(ex: &mut Exchange, view: &Arc<View>, wants: &Wants<'_>, position: usize) -> Result<Got, Fault> {
    let has_body = !ex.cx.body.is_end_stream();
    let fault = match tries(ex, view, wants, position).await {
        Ok(reply) => return Ok(reply),
        Err(fault) => fault,
    };
    match &view.targets[position].fallback {
        // A body that was sent and not kept is gone, and nobody gets a request without its body.
        Some(Fallback::Target(_)) if has_body && ex.cx.body.is_end_stream() => Err(fault),
        // Only for failures that are not the caller's.
        Some(fallback) if fault.reason.side() != Side::Client => {
            let name = view.targets[position].service.name.clone();
            ex.cx.trail.note("fallback", Outcome::Fallback, fault.reason.code(), 0, Duration::ZERO);
            tracing::debug!(service = &*name, reason = fault.reason.code(), "fallback");
            ex.tally.refused = Some((fault.reason, "fallback"));
            match fallback {
                Fallback::Respond(canned) => Ok(Got {
                    status: canned.status,
                    headers: canned.headers.clone(),
                    body: Body::full(canned.body.clone()),
                    upgraded: None,
                    made: true,
                }),
                // One step only: a fallback's own fallback is not followed, so there can be no loop.
                Fallback::Target(other) => tries(ex, view, wants, *other).await,
            }
        }
        _ => Err(fault),
    }
}

async fn tries(ex: &mut Exchange, view: &Arc<View>, wants: &Wants<'_>, position: usize) -> Result<Got, Fault> {
    let target = &view.targets[position];
    let service = &target.service;
    ex.tally.target = Some(position);
    let retry = &*service.retry;
    let priority = ex.cx.consumer.as_ref().map(|consumer| consumer.priority()).unwrap_or_default();
    let hash = service.balance.hash(&ex.cx);
    let wanted = service.wanted(&mut ex.cx);
    let idempotent = idempotent(&ex.cx.method);
    let has_body = !ex.cx.body.is_end_stream();
    let replay = keep_body(&mut ex.cx.body, retry.attempts(), retry.body_limit());
    // The chain ended just now.
    let started = clock::recent();
    retry.begin(started);
    let mut begun = started;
    let mut tried = Tried::default();
    loop {
        if begun + LEAST > ex.cx.deadline {
            return Err(Fault::new(Reason::Deadline).by("deadline"));
        }
        // From its first byte, whatever becomes of this try: a fallback may still need it.
        if let Some(replay) = &replay {
            ex.cx.body = replay.body();
        }
        if ex.cx.scratch.find::<Tries>().is_some() {
            let until = retry.per_try_timeout().map_or(ex.cx.deadline, |limit| ex.cx.deadline.min(begun + limit));
            let replayable = replay.as_ref().is_none_or(Replay::possible);
            let facts = inject::Facts { begun, until, idempotent, replayable, last: wants.upgrade.is_some() };
            match Box::pin(inject::intercept(ex, retry, facts)).await {
                Intercepted::Pass => begun = now(),
                Intercepted::Again(pause) => {
                    target.metrics.retry();
                    tokio::time::sleep(pause).await;
                    begun = now();
                    continue;
                }
                Intercepted::Failed(fault) => return Err(fault),
            }
        }
        let (mut place, admitted) = Admission::enter(view, position, priority, begun, ex.cx.deadline).await?;
        begun = admitted;
        // It waited for its place until too late.
        if begun + LEAST > ex.cx.deadline {
            return Err(Fault::never_ran(Reason::Deadline).by("deadline"));
        }
        let endpoint = pick(&mut place, service, begun, (hash, wanted), &tried)?;
        ex.tally.attempts += 1;
        let tries = ex.tally.attempts;
        ex.cx.trail.note("loadBalancer", Outcome::Pick, "", u64::from(tries), Duration::ZERO);
        tried.once.push(endpoint.id);

        let until = retry.per_try_timeout().map_or(ex.cx.deadline, |limit| ex.cx.deadline.min(begun + limit));
        let span = if ex.cx.trace.sampled { super::seed() | 1 } else { ex.cx.trace.span };
        let mut flight = Flight { place, endpoint, begun, until, span };
        let sent = if service.hedges && wants.upgrade.is_none() && (replay.is_some() || !has_body) {
            let (replay, tried) = (replay.as_ref(), &mut tried);
            let race = hedge::Race { view, position, wants, idempotent, priority, hash, replay, tried };
            let (won, sent) = Box::pin(hedge::race(ex, race, flight)).await;
            flight = won;
            sent
        } else {
            send(ex, wants, &target.upstream, &flight.endpoint, until, span).await
        };
        let tries = ex.tally.attempts;
        let ended = now();
        let sent = flight.result(sent, ex.cx.deadline);
        let outcome = flight.outcome(&sent, wants.grpc, ended);
        flight.place.observe(&outcome, ended);
        target.metrics.count(&outcome);
        ledger::note_try(ex, flight.noted(&sent, ended));

        let again =
            retry.attempts() != 0 && (retry.judges_successes() || worth_asking(&outcome)) && wants.upgrade.is_none();
        if again {
            let judge = Judge {
                now: ended,
                deadline: ex.cx.deadline,
                tries,
                idempotent,
                // A body that was taken and not kept is gone; one that nobody took is still there.
                replayable: replay.as_ref().map_or(!has_body || !ex.cx.body.is_end_stream(), Replay::possible),
                outcome: &outcome,
                seed: super::seed(),
            };
            match retry.judge(&judge) {
                Again::After(pause) => {
                    target.metrics.retry();
                    ex.cx.trail.note("retry", Outcome::Retry, "", u64::from(tries), pause);
                    ex.tally
                        .retries
                        .push(outcome.result.as_ref().map_or_else(|(reason, _)| reason.code(), |_| "status"));
                    discard(sent);
                    if retry.other_zone() {
                        tried.avoid_zone(&flight.endpoint, service);
                    }
                    ex.tally.endpoint = Some(flight.endpoint);
                    drop(flight.place);
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                    begun = now();
                    continue;
                }
                Again::No(why) => {
                    if why == "body" {
                        let (service, limit) = (&*service.name, retry.body_limit());
                        tracing::info!(service, limit, "no retry: more of the request body was sent than is kept");
                    }
                    ex.tally.retries.push(why);
                }
            }
        }
        let Flight { place, endpoint, .. } = flight;
        if let Some(replay) = &replay {
            let needed = sent.is_err() && matches!(target.fallback, Some(Fallback::Target(_)));
            if needed && replay.possible() {
                ex.cx.body = replay.body();
            } else {
                replay.give_up();
            }
        }
        ex.tally.upstream = ended.since(started);
        ex.tally.head = ended;
        let mut sent = sent;
        if let Ok(reply) = &mut sent {
            service.answered(&mut ex.cx, &endpoint, &mut reply.headers, &mut reply.body);
        }
        ex.tally.endpoint = Some(endpoint);
        let reply = sent?;
        ex.tally.connect += reply.connect;
        ex.admission = Some(place);
        let Reply { status, headers, body, upgraded, .. } = reply;
        return Ok(Got { status, headers, body, upgraded, made: false });
    }
}

/// Wraps the body so that it can be sent again, if another try may follow and there is a body.
fn keep_body(body: &mut Body, retries: u32, limit: usize) -> Option<Replay> {
    (retries != 0 && limit != 0 && !body.is_end_stream()).then(|| Replay::new(std::mem::take(body), limit))
}

/// What counts as a failure of the endpoint: not what its caller did.
fn failed(outcome: &TryOutcome<'_>) -> bool {
    match &outcome.result {
        Ok((status, _)) => status.is_server_error(),
        Err((reason, _)) => *reason != Reason::ClientGone,
    }
}

/// Spares the policy a call for a plain success.
fn worth_asking(outcome: &TryOutcome<'_>) -> bool {
    match &outcome.result {
        Ok((status, _)) => status.as_u16() >= 400 || outcome.grpc.is_some_and(|code| code != 0),
        Err(_) => true,
    }
}

pub(super) fn pick(
    place: &mut Admission,
    service: &Service,
    now: Moment,
    (hash, wanted): (Option<u64>, Option<u64>),
    tried: &Tried,
) -> Result<Arc<Endpoint>, Fault> {
    // A half-open endpoint's only probe may be taken between the pick and the claim: look again, elsewhere.
    let mut refused = None;
    for turn in 0..4 {
        let mut cx = Pick { now, seed: super::seed(), hash, tried: refused.as_deref().unwrap_or(tried.all()) };
        let Some(mut endpoint) = service.pick(&cx, wanted.filter(|_| turn == 0)) else { break };
        // All that was to be avoided is all there is: then at least not the same one again.
        if tried.zones.is_some() && cx.tried.contains(&endpoint.id) {
            cx.tried = &tried.once;
            endpoint = service.pick(&cx, None).unwrap_or(endpoint);
        }
        if place.pick(endpoint.clone(), now) {
            return Ok(endpoint);
        }
        refused.get_or_insert_with(|| tried.all().to_vec()).push(endpoint.id);
    }
    if service.cluster.is_shut() {
        return Err(Fault::never_ran(Reason::BreakerOpen).by("operator"));
    }
    Err(Fault::never_ran(service.lack()).by("loadBalancer"))
}

pub(super) async fn send(
    ex: &mut Exchange,
    wants: &Wants<'_>,
    upstream: &Upstream,
    endpoint: &Arc<Endpoint>,
    until: Moment,
    span: u64,
) -> Result<Result<Reply, Fault>, wheel::Elapsed> {
    let Exchange { cx, tally, fields, .. } = ex;
    tell(&cx.trace, cx.deadline, fields, wants.grpc, tally.attempts, until, span);
    let host = match &cx.upstream_host {
        Some(host) => host.as_bytes(),
        None => cx.authority.as_str().as_bytes(),
    };
    let head = Head {
        method: &cx.method,
        target: &cx.target,
        https: cx.https,
        host,
        headers: &cx.headers,
        extra: &fields.own,
        te_trailers: wants.te_trailers,
        expect_continue: wants.expect_continue,
        upgrade: wants.upgrade,
        grpc: wants.grpc,
        client: Some(&cx.conn),
    };
    // Pinned here: a future that is an argument would be stored twice.
    let sending = pin!(upstream.send(endpoint, &head, &mut cx.body, wants.informational));
    wheel::timeout(until, sending).await
}

/// Adds what is this try's own to the fields that the endpoint is told. They live in the exchange and are overwritten by
/// the next try, so that a try moves and clones none of them.
pub(super) fn tell(
    trace: &Trace,
    deadline: Moment,
    fields: &mut Told,
    grpc: bool,
    attempt: u32,
    until: Moment,
    span: u64,
) {
    fields.own.truncate(fields.common);
    if trace.trace_id != 0 {
        fields.own.push((trace::TRACEPARENT, trace::format_parent(trace, span)));
    }
    if deadline != Moment::MAX {
        fields.own.push(super::deadline::field(grpc, until.since(clock::recent())));
    }
    if attempt > 1 {
        fields.own.push((super::ATTEMPT.clone(), HeaderValue::from(attempt)));
    }
}

/// RFC 9110 section 9.2.2.
const fn idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

/// Reads a refused answer to its end if it is small, so that its connection can be used again.
pub(super) fn discard(sent: Result<Reply, Fault>) {
    const SMALL: u64 = 16 << 10;
    let Ok(reply) = sent else { return };
    if reply.body.is_end_stream() || reply.body.size_hint().exact().is_none_or(|n| n > SMALL) {
        return;
    }
    let mut body = reply.body;
    tokio::spawn(async move {
        let read = async { while let Some(Ok(_)) = http_body_util::BodyExt::frame(&mut body).await {} };
        let _ = wheel::timeout(now() + Duration::from_secs(1), read).await;
    });
}

/// Whether an answer streams without an end in sight: then only idle time bounds it.
pub fn streams(status: StatusCode, headers: &HeaderMap, grpc: bool) -> bool {
    grpc || status == StatusCode::SWITCHING_PROTOCOLS
        || headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"))
}
