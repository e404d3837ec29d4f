//! The API loop: judge the head, match the route, run its chain, act, and walk back out.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};
use http_body::Body as _;
use onehop_filters::contract::metrics::Gauge;
use onehop_filters::contract::principal::User;
use onehop_filters::contract::scratch::Failure;
use onehop_filters::contract::trail::{Outcome, Trail};
use onehop_filters::contract::{
    Body, Conn, Dialect, Fault, Moment, Optional, Origin, Proof, Reason, RequestCx, ResponseCx, Scratch, Services,
    Side, Step, Trace, Verdict, now,
};
use smallvec::SmallVec;

use super::attempt::{self, Got};
use super::exchange::{Exchange, Outgoing, Tally, Told, Unanswered};
use super::head::{Admitted, admit};
use super::headers::forwarded::{Fields, Stamp};
use super::headers::hop::Seen;
use super::headers::{legal, request_id, trace, via};
use super::{carry, claims, deadline, ledger, passthrough, upgrade};
use crate::config::plan::{CalleeEdits, Capture};
use crate::edge::body::{Inbound, Incoming};
use crate::edge::serve::Link;
use crate::edge::switch::Switch;
use crate::edge::tls::Acceptor;
use crate::fault;
use crate::observe::server_timing;
use crate::route::{Candidate, Probe, rewrite};
use crate::runtime::Drain;
use crate::snapshot::cell::{Cell, View};
use crate::snapshot::overload::Overload;
use crate::snapshot::{Action, Listener, Route};
use crate::upstream::passthrough::Passthrough;

/// What `Via` calls us (RFC 9110 section 7.6.3): no two processes share it, or a chain of them would look like a loop.
static PSEUDONYM: LazyLock<String> = LazyLock::new(|| format!("onehop-{:08x}", request_id::draw() >> 32));
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What an attempt needs to know of the client's side.
pub struct Wants<'a> {
    /// The client accepts trailers.
    pub te_trailers: bool,
    /// The client waits for 100 before it sends the body.
    pub expect_continue: bool,
    /// The client asks for this protocol.
    pub upgrade: Option<&'a HeaderValue>,
    /// A gRPC request.
    pub grpc: bool,
    /// Passes 1xx answers on.
    pub informational: Option<&'a (dyn Fn(StatusCode, HeaderMap) + Send + Sync)>,
}

/// Where requests come from: one per connection.
pub struct Caller {
    /// The connection.
    pub conn: Arc<Conn>,
    /// Its forwarding fields.
    pub stamp: Stamp,
    /// The TLS side of its listener: knows which names belong to the certificate that was shown.
    pub tls: Option<Arc<Acceptor>>,
    /// The end of its listener; none when embedded.
    pub drain: Option<Arc<Drain>>,
}

/// A request as the edge, or an embedding program, hands it over.
pub struct Arrived {
    /// Head.
    pub parts: Parts,
    /// Body.
    pub body: Arriving,
    /// The connection's own tools, and the request's stream on it; none when embedded.
    pub link: Option<(Arc<Link>, u32)>,
    /// The way to the raw connection, if the client asked for another protocol.
    pub on_upgrade: Option<Switch>,
}

/// A request body whose limits are not known yet: they depend on the route.
pub enum Arriving {
    /// From a connection.
    Wire(Incoming),
    /// Made by the embedding program.
    Made(Body),
}

/// Takes a request in: everything up to its chain. Not part of the future that serves it, which would carry the head's
/// parts along to the end.
///
/// # Errors
/// The head never became a request; this is its answer.
#[expect(clippy::result_large_err, reason = "the refusal is moved once, and rare")]
pub fn open(cell: &Cell, caller: &Caller, arrived: Arrived) -> Result<Request, Response<Outgoing>> {
    let view = cell.view_for(&caller.conn.listener);
    let started = now();
    let Arrived { mut parts, body, link, on_upgrade } = arrived;
    let Some(listener) = view.listener(&caller.conn.listener) else {
        // The listener left long ago, and this connection has outlived its farewell.
        let raw = ledger::RawHead::of(&parts);
        let fault = Fault::new(Reason::Draining).by("listener");
        return Err(ledger::refuse(&view, &caller.conn, &raw, started, &fault));
    };
    let admitted = match admit(&mut parts, &caller.conn, &listener.plan.limits, listener.plan.paths) {
        Ok(admitted) => admitted,
        Err(fault) => {
            return Err(ledger::refuse(&view, &caller.conn, &ledger::RawHead::of(&parts), started, &fault));
        }
    };
    let length = admitted.content_length;
    let mut rq = begin(&view, listener, caller, admitted, started);
    // Until `ledger::close`.
    view.engine.inflight.add(1);
    if view.overload.as_ref().is_some_and(|o| o.sheds(&view.engine.inflight, None)) {
        rq.doomed = Some(Fault::new(Reason::Shed).by("overload"));
    }
    // Nobody waits for it any more: no filter, and no quota, need hear of it.
    if rq.ex.cx.deadline <= started && rq.doomed.is_none() {
        rq.doomed = Some(Fault::never_ran(Reason::Deadline).by("deadline"));
    }
    rq.link = link;
    rq.on_upgrade = on_upgrade;
    if rq.undecided.is_empty() || rq.doomed.is_some() {
        take_body(&mut rq, listener, body, length);
    } else {
        rq.waits = Some(Box::new((body, length)));
    }
    Ok(rq)
}

/// A request with its exchange.
pub struct Request {
    ex: Unanswered,
    te_trailers: bool,
    expect_continue: bool,
    upgrade: Option<HeaderValue>,
    grpc: bool,
    link: Option<(Arc<Link>, u32)>,
    on_upgrade: Option<Switch>,
    /// Found out before the chain: refuses without running it.
    doomed: Option<Fault>,
    /// The body and its length, while claims have yet to decide the route and with it the body's limits.
    waits: Option<Box<(Arriving, Option<u64>)>>,
    /// Routes that claims nobody knows yet decide about, and how much of the path each covers.
    undecided: Vec<(u32, usize)>,
    /// What the caller's deadline leaves, and whether every route takes it over.
    left: (Option<Duration>, bool),
    /// The handle of the incoming call that this one says it is made for.
    handle: Option<u128>,
}

impl Request {
    /// Chooses the route by the user's claims; gives the user.
    async fn decide(&mut self, listener: &Listener) -> Option<Arc<User>> {
        let undecided = std::mem::take(&mut self.undecided);
        let (found, user) = claims::choose(&mut self.ex, listener, &undecided).await;
        let view = self.ex.view.clone();
        let route = found.map_or(&view.unrouted, |(i, _)| &view.routes[i as usize]);
        let (left, always) = self.left;
        let ex = &mut *self.ex;
        ex.route = found.map(|(i, _)| i);
        ex.cx.route = route.info.clone();
        ex.cx.covered = found.map_or(0, |(_, covered)| covered);
        let tie = carry::tie(&view, listener, route, ex.cx.trace, self.handle);
        let left = left.filter(|_| always || route.inherit_deadline);
        ex.cx.deadline = due(route, ex.cx.started, left).min(tie.deadline);
        if let Some(whose) = tie.whose {
            whose.take_over(&mut ex.cx);
        }
        user
    }
}

/// Settles everything about the request that does not depend on its route, then its route.
fn begin(view: &Arc<View>, listener: &Listener, caller: &Caller, admitted: Admitted, started: Moment) -> Request {
    let Admitted {
        method, version, authority, target, mut headers, te_trailers, expect_continue, upgrade, seen, ..
    } = admitted;
    let plan = &listener.plan;
    let conn = &caller.conn;
    let believed = caller.stamp.believed();
    let near = believed || conn.mesh;
    let grpc = seen.has(Seen::CONTENT_TYPE) && headers.get(header::CONTENT_TYPE).is_some_and(fault::is_grpc);
    let debug = believed && headers.remove(&view.telemetry.debug_header).is_some();
    // Before what only trusted peers may send is taken away: in the mesh, whoever calls passes its deadline on.
    // A stranger's counts only on a route that says so; which one it is comes out below.
    let left = if near || grpc || listener.inherits { deadline::take(&mut headers, grpc) } else { None };
    let mut own = Fields::new();
    // Before it is taken away with all else that strangers may not say: here, the application may.
    let handle = if listener.carries && listener.is_outbound() { carry::handle(&headers) } else { None };
    let client = caller.stamp.apply(&mut headers, &authority, &mut own);
    let request_id = request_id::settle(&headers, near, request_id::draw);
    own.push((super::REQUEST_ID.clone(), request_id.clone()));
    let mut trace = trace_of(view, &headers, seen, near);
    if trace.sampled && view.leaves_out(Optional::Tracing) {
        trace.sampled = false;
    }
    let mut doomed = None;
    if plan.via {
        if via::is_loop(&headers, &PSEUDONYM) {
            doomed = Some(Fault::new(Reason::LoopDetected).by("via"));
        }
        via::add(&mut headers, version, &PSEUDONYM);
    }
    if let Some(tls) = &caller.tls
        && tls.misdirected(conn.tls.as_ref().and_then(|t| t.sni.as_deref()), authority.host())
    {
        doomed = Some(Fault::new(Reason::Misdirected).by("tls"));
    }

    let probe = Probe {
        host: authority.host(),
        path: target.path(),
        query: target.query(),
        method: &method,
        headers: &headers,
        claims: None,
    };
    let preflight = preflight(view, listener, &probe);
    let undecided = match preflight {
        Some(_) => Vec::new(),
        None => listener.table.undecided(&probe).into_iter().map(|hit| (*hit.value, hit.covered)).collect(),
    };
    let found = preflight
        .or_else(|| listener.table.lookup(&probe).map(|hit| (*hit.value, hit.covered)))
        .or_else(|| Some((listener.stranger.filter(|_| !listener.table.knows(probe.host))?, 0)));
    let route = found.map_or(&view.unrouted, |(i, _)| &view.routes[i as usize]);
    let always = near || grpc;
    let kept = (left, always);
    let left = left.filter(|_| always || route.inherit_deadline);
    let tie = carry::tie(view, listener, route, trace, handle);
    let deadline = due(route, started, left).min(tie.deadline);
    let under_way = match &view.incoming {
        Some(incoming) if !listener.is_outbound() => {
            let handle = view.carries_identity.then(request_id::draw_wide);
            own.extend(handle.map(carry::field));
            Some(incoming.enter(trace.trace_id, handle, deadline))
        }
        _ => None,
    };
    let fields = Told { common: own.len(), own };
    let asked = target.clone();
    let mut cx = RequestCx {
        conn: conn.clone(),
        started,
        method,
        version,
        https: client.https,
        authority,
        target,
        headers,
        body: Body::Empty,
        client_ip: client.ip,
        request_id,
        route: route.info.clone(),
        covered: found.map_or(0, |(_, covered)| covered),
        user: None,
        consumer: None,
        workload: conn.tls.as_ref().and_then(|t| t.workload.clone()),
        deadline,
        trace,
        upstream_host: None,
        reply_headers: SmallVec::new(),
        scratch: Scratch::default(),
        services: view.clone(),
        trail: Trail::default(),
        dry_run: false,
    };
    let tally = Tally { debug, under_way, ..Tally::default() };
    if let Some(whose) = tie.whose {
        whose.take_over(&mut cx);
    }
    let route = found.map(|(i, _)| i);
    let mut ex = Unanswered::new(Exchange { cx, asked, view: view.clone(), route, fields, tally, admission: None });
    ex.cx.trail.timed = debug || trace.sampled;
    Request {
        ex,
        te_trailers,
        expect_continue,
        upgrade,
        grpc,
        link: None,
        on_upgrade: None,
        doomed,
        waits: None,
        undecided,
        left: kept,
        handle,
    }
}

/// The route of a cross-origin preflight: the one that will serve the request it asks for, if that answers preflights.
/// `methods: [POST]` does not have to name OPTIONS for it.
fn preflight(view: &View, listener: &Listener, probe: &Probe<'_>) -> Option<(u32, usize)> {
    if *probe.method != Method::OPTIONS || !probe.headers.contains_key(header::ORIGIN) {
        return None;
    }
    let method = probe.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    let method = Method::from_bytes(method.as_bytes()).ok()?;
    let probe = Probe { method: &method, ..*probe };
    // It carries no credential: routes that claims decide about answer for what may follow.
    let undecided = listener.table.undecided(&probe).into_iter();
    let mut hits = undecided.chain(listener.table.lookup(&probe)).map(|hit| (*hit.value, hit.covered));
    hits.find(|(i, _)| view.routes[*i as usize].preflights)
}

/// Continues the caller's trace, or begins one if there is anywhere to report it, or calls to tie to it.
fn trace_of(view: &View, headers: &HeaderMap, seen: Seen, near: bool) -> Trace {
    let tracing = view.telemetry.tracing.as_ref();
    if tracing.is_none() && view.incoming.is_none() && !seen.has(Seen::TRACE) {
        return Trace::default();
    }
    let restart = tracing.is_some_and(|t| t.restart) && !near;
    trace::trace(headers, restart, tracing.map_or(0.0, |t| t.sample), request_id::draw)
}

/// Ties the body to the limits of the listener and the route.
fn take_body(rq: &mut Request, listener: &Listener, body: Arriving, length: Option<u64>) {
    let route = rq.ex.route.map(|i| &rq.ex.view.routes[i as usize]);
    let limit = route.and_then(|r| r.body_limit).or(listener.plan.limits.body);
    if let (Some(limit), Some(length)) = (limit, length)
        && length > limit
        && rq.doomed.is_none()
    {
        rq.doomed = Some(Fault::new(Reason::BodyTooLarge).by("limits"));
    }
    rq.ex.cx.body = match body {
        Arriving::Wire(incoming) if incoming.is_end_stream() => Body::Empty,
        // There already: no need for a clock, nor for anybody to wait.
        Arriving::Wire(Incoming::Whole(bytes)) => {
            let length = bytes.len() as u64;
            if limit.is_some_and(|limit| length > limit) && rq.doomed.is_none() {
                rq.doomed = Some(Fault::new(Reason::BodyTooLarge).by("limits"));
            }
            rq.ex.tally.bytes_in = Some(Arc::new(AtomicU64::new(length)));
            Body::full(bytes)
        }
        Arriving::Wire(incoming) => {
            let counted = Arc::new(AtomicU64::new(0));
            rq.ex.tally.bytes_in = Some(counted.clone());
            let idle = listener.plan.limits.body_idle_timeout;
            Body::stream(Inbound::new(incoming, limit, idle).counted(counted))
        }
        Arriving::Made(body) => body,
    };
}

/// When everything must be over: the route's limit, or the caller's if that is sooner.
fn due(route: &Route, started: Moment, left: Option<Duration>) -> Moment {
    let limit = match (route.request_timeout, left) {
        (Some(a), Some(b)) => a.min(b),
        (Some(a), None) | (None, Some(a)) => a,
        (None, None) => return Moment::MAX,
    };
    started + limit
}

/// Serves a request: once, as its exchange goes to the answer's body. Borrowed, because a future holds what it is given
/// by value twice.
pub async fn serve(rq: &mut Request, caller: &Caller) -> Response<Outgoing> {
    // Held here, so that it can be borrowed beside the exchange, all the way down to the tries.
    let view = rq.ex.view.clone();
    if let Some(waits) = rq.waits.take()
        && let Some(listener) = view.listener(&caller.conn.listener)
    {
        // Boxed: the rare way must not make every request's future larger.
        Box::pin(rq.decide(listener)).await;
        let (body, length) = *waits;
        take_body(rq, listener, body, length);
    }
    let route = rq.ex.route.map_or(&view.unrouted, |i| &view.routes[i as usize]);
    let overload = view.overload.as_ref().map(|overload| (overload, &view.engine.inflight));
    let mut ran = 0;
    let result = match rq.doomed.take() {
        Some(fault) => Err(Box::new(fault)),
        None => match chain(&mut rq.ex.cx, route, overload, &mut ran).await {
            Ok(None) => {
                rq.ex.tally.chain_done = now();
                if view.carries_identity
                    && let Some(call) = &rq.ex.tally.under_way
                {
                    call.made_by(&rq.ex.cx);
                }
                act(rq, &view, route).await.map_err(Box::new)
            }
            Ok(Some(reply)) => Ok(Answer::made(*reply)),
            Err(fault) => Err(fault),
        },
    };
    let (mut rs, tunnel) = match result {
        Ok(answer) => (answer.rs, answer.tunnel),
        Err(fault) => (render(&mut rq.ex, &fault), None),
    };
    if route.answers {
        back(&mut rq.ex, route, ran, &mut rs).await;
    }
    finish(rq, caller, route, rs, tunnel)
}

/// Walks the chain in. `ran` counts the filters whose `on_request` was called.
async fn chain(
    cx: &mut RequestCx,
    route: &Route,
    overload: Option<(&Overload, &Gauge)>,
    ran: &mut usize,
) -> Result<Option<Box<Response<Body>>>, Box<Fault>> {
    for (at, link) in route.chain.iter().enumerate() {
        if at == usize::from(route.known) {
            shed(cx, overload)?;
        }
        *ran += 1;
        let begun = if cx.trail.timed { now() } else { Moment::ZERO };
        let verdict = match link.filter.on_request(cx) {
            Step::Done(verdict) => verdict,
            Step::Wait(later) => later.await,
        };
        let took = if cx.trail.timed { now().since(begun) } else { Duration::ZERO };
        match verdict {
            Verdict::Next => cx.trail.note(link.name, Outcome::Pass, "", 0, took),
            Verdict::Reply(reply) => {
                cx.trail.note(link.name, Outcome::Reply, "", u64::from(reply.status().as_u16()), took);
                return Ok(Some(reply));
            }
            Verdict::Fail(mut fault) => {
                if fault.by.is_empty() {
                    fault.by = link.name;
                }
                cx.trail.note(link.name, Outcome::Refuse, fault.reason.code(), 0, took);
                return Err(fault);
            }
        }
    }
    if usize::from(route.known) == route.chain.len() {
        shed(cx, overload)?;
    }
    Ok(None)
}

/// Gives the request up if the process has too much to do: who calls is known, and nothing was charged yet.
fn shed(cx: &mut RequestCx, overload: Option<(&Overload, &Gauge)>) -> Result<(), Box<Fault>> {
    let Some((overload, in_flight)) = overload else { return Ok(()) };
    let priority = cx.consumer.as_ref().map(|consumer| consumer.priority()).unwrap_or_default();
    if overload.sheds(in_flight, Some(priority)) {
        cx.trail.note("overload", Outcome::Refuse, Reason::Shed.code(), 0, Duration::ZERO);
        return Err(Box::new(Fault::new(Reason::Shed).by("overload")));
    }
    Ok(())
}

/// Walks back out over the filters that ran. A fault here becomes the answer.
async fn back(ex: &mut Exchange, route: &Route, ran: usize, rs: &mut ResponseCx) {
    for link in route.chain[..ran].iter().rev().filter(|l| l.response) {
        let verdict = match link.filter.on_response(&mut ex.cx, rs) {
            Step::Done(verdict) => verdict,
            Step::Wait(later) => later.await,
        };
        match verdict {
            Verdict::Next => {}
            Verdict::Reply(reply) => {
                let (parts, body) = reply.into_parts();
                *rs = ResponseCx { status: parts.status, headers: parts.headers, body, origin: Origin::Filter };
            }
            Verdict::Fail(mut fault) => {
                if fault.by.is_empty() {
                    fault.by = link.name;
                }
                *rs = render(ex, &fault);
            }
        }
    }
}

struct Answer {
    rs: ResponseCx,
    tunnel: Option<upgrade::Tunnel>,
}

impl Answer {
    fn made(reply: Response<Body>) -> Self {
        let (parts, body) = reply.into_parts();
        Self {
            rs: ResponseCx { status: parts.status, headers: parts.headers, body, origin: Origin::Filter },
            tunnel: None,
        }
    }
}

async fn act(rq: &mut Request, view: &Arc<View>, route: &Route) -> Result<Answer, Fault> {
    match &route.action {
        Action::Forward(split) => {
            let target = split
                .choose_for(&mut rq.ex.cx, super::seed())
                .ok_or_else(|| Fault::new(Reason::NoWeight).by("routes"))?;
            match split.edits(target) {
                None => call(rq, view, Callee::Service(target)).await,
                // Boxed: the rare way must not make every request's future larger.
                Some(edits) => Box::pin(edited(rq, view, target, edits)).await,
            }
        }
        Action::Pass(way) => call(rq, view, Callee::Host(way)).await,
        Action::Redirect(redirect) => {
            let cx = &rq.ex.cx;
            let asked =
                rewrite::Asked { https: cx.https, authority: &cx.authority, target: &cx.target, covered: cx.covered };
            let (status, location) =
                rewrite::redirect(asked, redirect).map_err(|_| Fault::new(Reason::BadPath).by("redirect"))?;
            let mut reply = Response::new(Body::Empty);
            *reply.status_mut() = status;
            reply.headers_mut().insert(header::LOCATION, location);
            Ok(Answer::made(reply))
        }
        Action::Respond(canned) => {
            let mut reply = Response::new(Body::full(canned.body.clone()));
            *reply.status_mut() = canned.status;
            *reply.headers_mut() = canned.headers.clone();
            Ok(Answer::made(reply))
        }
        Action::Nothing => Err(no_route(&rq.ex)),
    }
}

/// Calls a service whose requests and answers have header edits of their own (Gateway API: filters of a `backendRef`).
async fn edited(rq: &mut Request, view: &Arc<View>, target: usize, edits: &CalleeEdits) -> Result<Answer, Fault> {
    let cx = &mut rq.ex.cx;
    let values = edits.request.values(cx);
    edits.request.apply(&mut cx.headers, values);
    let mut answer = call(rq, view, Callee::Service(target)).await?;
    // What stands in for the service's answer is not its.
    if answer.rs.origin == Origin::Upstream {
        edits.response.apply(&mut answer.rs.headers, edits.response.values(&rq.ex.cx));
    }
    Ok(answer)
}

/// Nobody serves this path; or, where a sidecar calls out, nobody has this name.
fn no_route(ex: &Exchange) -> Fault {
    let unknown = ex.view.listener(&ex.cx.conn.listener).is_some_and(|listener| {
        listener.plan.mesh
            && listener.plan.capture != Some(Capture::Inbound)
            && !listener.table.knows(ex.cx.authority.host())
    });
    Fault::new(if unknown { Reason::UnknownHost } else { Reason::NoRoute }).by("routes")
}

/// Whom a request goes on to.
enum Callee<'a> {
    /// A position in the snapshot's targets.
    Service(usize),
    /// The host it names.
    Host(&'a Passthrough),
}

async fn call(rq: &mut Request, view: &Arc<View>, callee: Callee<'_>) -> Result<Answer, Fault> {
    let Request { ex, upgrade: wanted, link, on_upgrade, .. } = rq;
    if let Some(protocol) = wanted
        && !ex.cx.route.upgrades.iter().any(|u| u.as_bytes() == protocol.as_bytes())
    {
        return Err(Fault::new(Reason::UpgradeRefused).by("upgrades"));
    }
    let relay = link.clone().map(|(link, stream)| {
        move |status: StatusCode, headers: HeaderMap| {
            link.informational(stream, status, headers);
        }
    });
    // As the filters left it: some speak gRPC, which needs trailers, for a caller that does not.
    let grpc = ex.cx.headers.get(header::CONTENT_TYPE).is_some_and(fault::is_grpc);
    let translated = ex.cx.scratch.find::<Dialect>().is_some();
    let mut handshake = upgrade::Handshake::begin(&mut ex.cx, wanted.as_ref());
    let wants = Wants {
        te_trailers: rq.te_trailers || (grpc && translated),
        expect_continue: rq.expect_continue,
        upgrade: wanted.as_ref(),
        grpc,
        informational: relay.as_ref().map(|f| f as &(dyn Fn(StatusCode, HeaderMap) + Send + Sync)),
    };
    let got = match callee {
        Callee::Service(target) => attempt::forward(ex, view, &wants, target).await?,
        // Boxed: the rare way must not make every request's future larger.
        Callee::Host(way) => Box::pin(passthrough::forward(ex, &wants, way)).await?,
    };
    let Got { status, headers, body, upgraded, made } = got;
    let origin = if made { Origin::Filter } else { Origin::Upstream };
    let mut rs = ResponseCx { status, headers, body, origin };
    let tunnel = match upgraded {
        Some(io) => Some(handshake.accept(&mut rs, io, on_upgrade.take())?),
        None => None,
    };
    Ok(Answer { rs, tunnel })
}

/// A fault as a response, with the fields that filters promised for any answer.
fn render(ex: &mut Exchange, fault: &Fault) -> ResponseCx {
    ex.tally.refused = Some((fault.reason, fault.by));
    // What a filter or a gate refuses never reached an endpoint, whatever its fault says of tries.
    let may_have_run = fault.reason.side() == Side::Upstream && fault.proof == Proof::MayHaveRun;
    ex.cx.scratch.put(Failure { reason: fault.reason, may_have_run });
    let mut asked = fault::Asked::of(&ex.cx.method, &ex.cx.headers, &ex.cx.request_id);
    if let Some(caller) = ex.cx.scratch.find::<Dialect>() {
        asked.grpc = caller.grpc.as_ref();
    }
    let (parts, body) = fault::response(fault, &asked).into_parts();
    ResponseCx { status: parts.status, headers: parts.headers, body, origin: Origin::Fault }
}

/// Makes the head legal for the client's version, ties the exchange to the body, and starts a tunnel if one was agreed.
fn finish(
    rq: &mut Request,
    caller: &Caller,
    route: &Route,
    rs: ResponseCx,
    tunnel: Option<upgrade::Tunnel>,
) -> Response<Outgoing> {
    let Request { ref mut ex, te_trailers, grpc, upgrade: ref wanted, .. } = *rq;
    let mut ex = ex.answered();
    let ResponseCx { status, mut headers, body, origin } = rs;
    for (name, value) in ex.cx.reply_headers.drain(..) {
        if name == header::VARY || name == header::SET_COOKIE {
            headers.append(name, value)
        } else {
            headers.insert(name, value).is_some()
        };
    }
    if ex.tally.debug {
        let total = Some(now().since(ex.cx.started));
        headers.insert(SERVER_TIMING, server_timing::header(&ex.cx.trail, total));
    }
    if origin == Origin::Upstream && ex.view.listener(&ex.cx.conn.listener).is_some_and(|l| l.plan.via) {
        via::add(&mut headers, Version::HTTP_11, &PSEUDONYM);
    }
    if origin == Origin::Fault || (origin == Origin::Filter && !headers.contains_key(&super::REQUEST_ID)) {
        headers.insert(super::REQUEST_ID.clone(), ex.cx.request_id.clone());
    }
    // What a GET would say, for a body that is known and does not go out (RFC 9110 section 9.3.2).
    if ex.cx.method == Method::HEAD
        && origin == Origin::Filter
        && let Some(length) = body.size_hint().exact()
    {
        headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    let streams = attempt::streams(status, &headers, grpc);
    let upgrade = wanted.as_ref().filter(|_| tunnel.is_some());
    // A filter that acted on the response may have put anything there.
    let clean = origin == Origin::Upstream && !route.answers;
    // An extended CONNECT goes on as a GET where the endpoint speaks HTTP/1.1; its client still waits for CONNECT's answer.
    let extended = upgrade.is_some() && ex.cx.version == Version::HTTP_2;
    let method = if extended { Method::CONNECT } else { ex.cx.method.clone() };
    let to =
        legal::Recipient { method: &method, version: ex.cx.version, te_trailers, upgrade, connected: extended, clean };
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = status;
    head.headers = headers;
    let mut body = body;
    match legal::response(&mut head, &body.size_hint(), to) {
        Ok(legal::Fate::Send) => {}
        Ok(legal::Fate::Omit | legal::Fate::Tunnel) => body = Body::Empty,
        Err(fault) => {
            let rs = render(&mut ex, &fault);
            (head.status, head.headers, body) = (rs.status, rs.headers, rs.body);
        }
    }
    if ex.cx.version != Version::HTTP_2 && ex.tally.refused.is_some_and(|(reason, _)| leaves_body_unread(reason)) {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    ex.tally.status = head.status;
    let idle = route.idle_timeout;
    match tunnel {
        Some(tunnel) => {
            tunnel.start(ex, idle, caller.drain.clone());
            Response::from_parts(head, Outgoing::bare(Body::Empty))
        }
        None => Response::from_parts(head, Outgoing::new(body, ex, idle, streams)),
    }
}

/// Whether the rest of the request's body is still to come and nobody will read it: the connection ends with the answer,
/// which has to say so (RFC 9112 section 9.6), or the client loses the request it sends next.
const fn leaves_body_unread(reason: Reason) -> bool {
    matches!(reason, Reason::BodyTooLarge | Reason::BodyTimeout | Reason::BadFraming)
}

/// What would become of a request that nobody sends.
pub struct Hypothetical {
    /// The head would be refused.
    pub refused: Option<Fault>,
    /// Routes that were looked at, and why each won or lost.
    pub candidates: Vec<Candidate<u32>>,
    /// The route, a position in the snapshot.
    pub route: Option<u32>,
    /// A filter's own answer or refusal; `None`: the request goes through.
    pub verdict: Option<String>,
    /// What each filter decided.
    pub trail: Trail,
    /// The target as the filters left it.
    pub target: String,
}

/// Runs the head, the route and the chain of a request without charging quotas or calling anybody.
pub async fn hypothetical(view: &Arc<View>, listener: &Listener, caller: &Caller, mut parts: Parts) -> Hypothetical {
    let mut found = Hypothetical {
        refused: None,
        candidates: Vec::new(),
        route: None,
        verdict: None,
        trail: Trail::default(),
        target: String::new(),
    };
    let admitted = match admit(&mut parts, &caller.conn, &listener.plan.limits, listener.plan.paths) {
        Ok(admitted) => admitted,
        Err(fault) => {
            found.refused = Some(fault);
            return found;
        }
    };
    let (authority, target) = (admitted.authority.clone(), admitted.target.clone());
    let (method, headers) = (admitted.method.clone(), admitted.headers.clone());
    let mut rq = begin(view, listener, caller, admitted, now());
    rq.ex.cx.dry_run = true;
    rq.ex.cx.trail.timed = true;
    let user = match rq.undecided.is_empty() {
        true => None,
        false => rq.decide(listener).await,
    };
    found.candidates = listener.table.explain(&Probe {
        host: authority.host(),
        path: target.path(),
        query: target.query(),
        method: &method,
        headers: &headers,
        claims: user.as_ref().map(|user| &user.claims),
    });
    found.route = rq.ex.route;
    found.refused = rq.doomed.take();
    let cx = &mut rq.ex.cx;
    if let Some(route) = found.route.map(|i| &view.routes[i as usize]) {
        let mut ran = 0;
        found.verdict = match chain(cx, route, None, &mut ran).await {
            Ok(None) => None,
            Ok(Some(reply)) => Some(reply.status().to_string()),
            Err(fault) => Some(format!("{} {fault}", fault.status())),
        };
    }
    found.trail = cx.trail.clone();
    let host = cx.upstream_host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(cx.authority.as_str());
    found.target = format!("http://{host}{}", cx.target);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<'a, F: Future>(_: fn(&'a mut Request, &'a Caller) -> F) -> usize {
        size_of::<F>()
    }

    /// Both are moved into their boxes once a request, byte by byte, whether the bytes mean anything yet or not.
    #[test]
    fn what_a_request_moves_stays_small() {
        assert!(size(serve) <= 2048, "{}", size(serve));
        assert!(size_of::<Exchange>() <= 2304, "{}", size_of::<Exchange>());
    }
}
