//! The API loop: judge the head, match the route, run its chain, act, and walk back out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::upgrade::OnUpgrade;
use onehop_filters::contract::trail::Outcome;
use onehop_filters::contract::{
    Body, Conn, Fault, Moment, Origin, Reason, RequestCx, ResponseCx, Step, Verdict, now,
};
use smallvec::SmallVec;

use super::exchange::{Exchange, Outgoing, Tally};
use super::head::{Admitted, admit};
use super::headers::{forwarded, legal, request_id, trace, via};
use super::{attempt, deadline, ledger, upgrade};
use crate::edge::Link;
use crate::fault;
use crate::route::rewrite;
use crate::route::table::Probe;
use crate::snapshot::cell::{Cell, View};
use crate::snapshot::{Action, Listener, Route};
use crate::upstream::Reply;

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
    /// Forwarding fields for the upstream head.
    pub stamp: &'a [(HeaderName, HeaderValue)],
}

/// A request as the edge hands it over.
pub struct Incoming {
    /// Head.
    pub parts: Parts,
    /// Body, limited by the listener already.
    pub body: Body,
    /// Where it came from.
    pub conn: Arc<Conn>,
    /// The connection's own tools; none when embedded.
    pub link: Option<Arc<Link>>,
    /// The way to the raw connection, if the client asked for another protocol.
    pub on_upgrade: Option<OnUpgrade>,
}

/// Serves one request.
pub async fn serve(cell: Arc<Cell>, rq: Incoming) -> Response<Outgoing> {
    let view = cell.view();
    let started = now();
    let Incoming { parts, body, conn, link, on_upgrade } = rq;
    let raw = ledger::RawHead::of(&parts);
    let Some(listener) = view.listener(&conn.listener) else {
        // The listener left with the last reload; its connections drain.
        return ledger::refuse(&view, &conn, &raw, started, &Fault::new(Reason::Draining).by("listener"));
    };
    let admitted = match admit(parts, &conn, &listener.plan.limits, listener.plan.paths) {
        Ok(admitted) => admitted,
        Err(fault) => return ledger::refuse(&view, &conn, &raw, started, &fault),
    };
    let mut request = match begin(&view, listener, admitted, body, conn, started) {
        Ok(request) => request,
        Err(refused) => {
            let (ex, fault) = *refused;
            return answer_fault(ex, fault, None);
        }
    };
    request.link = link;
    request.on_upgrade = on_upgrade;
    run(request).await
}

/// A request with its exchange.
struct Request {
    ex: Box<Exchange>,
    te_trailers: bool,
    expect_continue: bool,
    upgrade: Option<HeaderValue>,
    grpc: bool,
    stamp: SmallVec<[(HeaderName, HeaderValue); 4]>,
    link: Option<Arc<Link>>,
    on_upgrade: Option<OnUpgrade>,
    misdirected: bool,
}

type Refused = Box<(Box<Exchange>, Fault)>;

/// Settles everything about the request that does not depend on its route, then its route.
fn begin(
    view: &Arc<View>,
    listener: &Listener,
    admitted: Admitted,
    body: Body,
    conn: Arc<Conn>,
    started: Moment,
) -> Result<Request, Refused> {
    let Admitted { method, version, https, authority, target, mut headers, te_trailers, expect_continue, upgrade, .. } =
        admitted;
    let plan = &listener.plan;
    let grpc = headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    let debug = conn.trusted && headers.contains_key(&view.telemetry.debug_header);
    let believed = conn.trusted || conn.mesh;
    let client = forwarded::apply(&mut headers, &conn, &plan.trusted, &authority, https);
    let request_id = request_id::take(&mut headers, believed);
    let restart = view.telemetry.tracing.as_ref().is_some_and(|t| t.restart) && !believed;
    let ratio = view.telemetry.tracing.as_ref().map_or(0.0, |t| t.sample);
    let trace = trace::begin(&mut headers, restart, view.tracer.as_ref().map(|_| ratio));
    let left = deadline::take(&mut headers, grpc);
    let looped = plan.via && via::looped(&headers);
    if plan.via {
        via::append(&mut headers, version);
    }

    let probe = Probe {
        host: authority.host(),
        path: target.path(),
        query: target.query(),
        method: &method,
        headers: &headers,
    };
    let found = listener.table.find(&probe).copied();
    let route = found.map_or(&view.unrouted, |i| &view.routes[i as usize]);
    let deadline = due(route, started, left.filter(|_| believed || route.inherit_deadline || grpc));
    let workload = conn.tls.as_ref().and_then(|t| t.workload.clone());
    let mut cx = RequestCx {
        conn,
        started,
        method,
        version,
        https: client.https,
        authority,
        target,
        headers,
        body,
        client_ip: client.ip,
        request_id,
        route: route.info.clone(),
        user: None,
        consumer: None,
        workload,
        deadline,
        trace,
        upstream_host: None,
        reply_headers: SmallVec::new(),
        trail: onehop_filters::contract::trail::Trail::default(),
        dry_run: false,
    };
    cx.trail.timed = debug || trace.sampled;
    let misdirected = false;
    let ex = Box::new(Exchange { cx, view: view.clone(), route: found, tally: Tally::default(), admission: None });
    if looped {
        return Err(Box::new((ex, Fault::new(Reason::LoopDetected).by("via"))));
    }
    Ok(Request {
        ex,
        te_trailers,
        expect_continue,
        upgrade,
        grpc,
        stamp: client.stamp,
        link: None,
        on_upgrade: None,
        misdirected,
    })
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

async fn run(mut rq: Request) -> Response<Outgoing> {
    if let Some(link) = &rq.link
        && link.misdirected(rq.ex.cx.host())
    {
        rq.misdirected = true;
    }
    let view = rq.ex.view.clone();
    let route = rq.ex.route.map_or(&view.unrouted, |i| &view.routes[i as usize]);
    let mut ran = 0;
    let result = if rq.misdirected {
        Err(Box::new(Fault::new(Reason::Misdirected).by("tls")))
    } else {
        match chain(&mut rq.ex.cx, route, &mut ran).await {
            Ok(None) => {
                rq.ex.tally.chain_done = now();
                act(&mut rq, route).await.map_err(Box::new)
            }
            Ok(Some(reply)) => Ok(Answer::made(*reply)),
            Err(fault) => Err(fault),
        }
    };
    let (mut rs, tunnel) = match result {
        Ok(answer) => (answer.rs, answer.tunnel),
        Err(fault) => (render(&mut rq.ex, &fault), None),
    };
    if route.answers {
        back(&mut rq.ex, route, ran, &mut rs).await;
    }
    finish(rq, route, rs, tunnel)
}

/// Walks the chain in. `ran` counts the filters whose `on_request` was called.
async fn chain(
    cx: &mut RequestCx,
    route: &Route,
    ran: &mut usize,
) -> Result<Option<Box<Response<Body>>>, Box<Fault>> {
    for link in &*route.chain {
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
    Ok(None)
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

async fn act(rq: &mut Request, route: &Route) -> Result<Answer, Fault> {
    match &route.action {
        Action::Forward(split) => {
            let target =
                split.choose(super::seed()).ok_or_else(|| Fault::new(Reason::NoWeight).by("routes"))?;
            call(rq, target).await
        }
        Action::Redirect(redirect) => {
            let cx = &rq.ex.cx;
            let location = rewrite::location(redirect, cx.https, &cx.authority, &cx.target, &cx.route.prefixes)
                .map_err(|_| Fault::new(Reason::BadPath).by("redirect"))?;
            let mut reply = Response::new(Body::Empty);
            *reply.status_mut() = redirect.status;
            reply.headers_mut().insert(header::LOCATION, location);
            Ok(Answer::made(reply))
        }
        Action::Respond(canned) => {
            let mut reply = Response::new(Body::full(canned.body.clone()));
            *reply.status_mut() = canned.status;
            *reply.headers_mut() = canned.headers.clone();
            Ok(Answer::made(reply))
        }
        Action::Nothing => Err(Fault::new(Reason::NoRoute).by("routes")),
    }
}

async fn call(rq: &mut Request, target: usize) -> Result<Answer, Fault> {
    let Request { ex, upgrade: wanted, link, on_upgrade, .. } = rq;
    if let Some(protocol) = wanted
        && !ex.cx.route.upgrades.iter().any(|u| u.as_bytes() == protocol.as_bytes())
    {
        return Err(Fault::new(Reason::UpgradeRefused).by("upgrades"));
    }
    let relay = link.as_ref().filter(|_| ex.cx.version == Version::HTTP_11).cloned();
    let relay = relay.map(|link| {
        move |status: StatusCode, headers: HeaderMap| {
            link.informational(status, &headers);
        }
    });
    let mut handshake = upgrade::Handshake::begin(&mut ex.cx, wanted.as_ref());
    let wants = Wants {
        te_trailers: rq.te_trailers,
        expect_continue: rq.expect_continue,
        upgrade: wanted.as_ref(),
        grpc: rq.grpc,
        informational: relay.as_ref().map(|f| f as &(dyn Fn(StatusCode, HeaderMap) + Send + Sync)),
        stamp: &rq.stamp,
    };
    let reply = attempt::forward(ex, &wants, target).await?;
    let Reply { status, headers, body, upgraded, made, .. } = reply;
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
    fault::respond(fault, &ex.cx)
}

fn answer_fault(mut ex: Box<Exchange>, fault: Fault, link: Option<Arc<Link>>) -> Response<Outgoing> {
    let rs = render(&mut ex, &fault);
    let rq = Request {
        ex,
        te_trailers: false,
        expect_continue: false,
        upgrade: None,
        grpc: false,
        stamp: SmallVec::new(),
        link,
        on_upgrade: None,
        misdirected: false,
    };
    let view = rq.ex.view.clone();
    finish(rq, &view.unrouted, rs, None)
}

/// Makes the head legal for the client's version, ties the exchange to the body, and starts a tunnel if one was agreed.
fn finish(rq: Request, route: &Route, rs: ResponseCx, tunnel: Option<upgrade::Tunnel>) -> Response<Outgoing> {
    let Request { mut ex, te_trailers, grpc, link, .. } = rq;
    let ResponseCx { status, mut headers, body, origin } = rs;
    for (name, value) in ex.cx.reply_headers.drain(..) {
        if name == header::VARY { headers.append(name, value) } else { headers.insert(name, value).is_some() };
    }
    if ex.cx.trail.timed && ex.cx.conn.trusted {
        crate::observe::server_timing::write(&ex.cx.trail, &mut headers);
    }
    if ex.view.listener(&ex.cx.conn.listener).is_some_and(|l| l.plan.via) {
        via::append(&mut headers, Version::HTTP_11);
    }
    if origin == Origin::Fault || (origin == Origin::Filter && !headers.contains_key(&super::REQUEST_ID)) {
        headers.insert(super::REQUEST_ID.clone(), ex.cx.request_id.clone());
    }
    if link.as_ref().is_some_and(|l| l.draining()) && ex.cx.version < Version::HTTP_2 && tunnel.is_none() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let streams = attempt::streams(status, &headers, grpc);
    let outgoing = legal::Outgoing { status, headers, client: ex.cx.version, te_trailers, upgrade: tunnel.is_some() };
    let no_body = ex.cx.method == Method::HEAD;
    let (head, body) = match legal::response(outgoing, body, no_body) {
        Ok(legal) => legal,
        Err(fault) => {
            let rs = render(&mut ex, &fault);
            let again = legal::Outgoing {
                status: rs.status,
                headers: rs.headers,
                client: ex.cx.version,
                te_trailers,
                upgrade: false,
            };
            legal::response(again, rs.body, no_body).expect("our own faults are legal responses")
        }
    };
    ex.tally.status = head.status;
    let idle = route.idle_timeout;
    match tunnel {
        Some(tunnel) => {
            tunnel.start(ex, idle);
            Response::from_parts(head, Outgoing::bare(Body::Empty))
        }
        None => Response::from_parts(head, Outgoing::new(body, ex, idle, streams)),
    }
}

/// For problems that never reach the chain.
#[must_use]
pub fn bare(rs: Response<Bytes>) -> Response<Outgoing> {
    rs.map(|bytes| Outgoing::bare(Body::full(bytes)))
}
