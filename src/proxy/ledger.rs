//! What is written down about a request once it is over: metrics, one log line, one span.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, Uri, Version, header};
use onehop_filters::contract::trail::Outcome;
use onehop_filters::contract::{Conn, Fault, Moment, Reason, now};

use super::exchange::{End, Exchange, Outgoing, Try};
use crate::fault;
use crate::observe::access_log::AccessLog;
use crate::observe::record::{Phases, Record};
use crate::observe::spans::{AttemptSpan, ServerSpan};
use crate::snapshot::Snapshot;

/// `grpc-status` of a head or of trailers.
#[must_use]
pub fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    static GRPC_STATUS: http::HeaderName = http::HeaderName::from_static("grpc-status");
    headers.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// Writes a try down: in the trail always, in full only for a traced request.
pub fn note_try(ex: &mut Exchange, t: Try) {
    let took = t.ended.since(t.started);
    match t.result {
        Ok(status) => ex.cx.trail.note("attempt", Outcome::Answer, "", u64::from(status.as_u16()), took),
        Err(reason) => ex.cx.trail.note("attempt", Outcome::Fail, reason.code(), 0, took),
    }
    if ex.cx.trace.sampled {
        ex.tally.tries.push(t);
    }
}

/// The request is over.
pub fn close(mut ex: Box<Exchange>, end: End) {
    if let (Some(place), Some(grpc)) = (&ex.admission, ex.tally.grpc) {
        place.ended(grpc);
    }
    // First of all: let the next one in.
    ex.admission = None;
    ex.view.engine.inflight.add(-1);
    let ended = now();
    let (reason, by) = match (ex.tally.refused, end) {
        (_, End::Cut(reason)) => (Some(reason), "body"),
        (None, End::Aborted) => (Some(Reason::ClientGone), "body"),
        (Some((reason, by)), _) => (Some(reason), by),
        (None, End::Complete) => (None, ""),
    };
    let ex = &*ex;
    let view = &*ex.view;
    let route = ex.route.map_or(&view.unrouted, |i| &view.routes[i as usize]);
    let total = ended.since(ex.cx.started);
    let waited = ex.tally.upstream + body_time(ex, ended);
    route.metrics.record(ex.tally.status, total, waited);
    route.metrics.bodies(bytes_in(ex), ex.tally.bytes_out);
    if let Some(reason) = reason {
        view.engine.reject(reason);
    }
    if let Some(log) = &view.access_log {
        log.write(&record(ex, view, ended, reason, by, end == End::Aborted));
    }
    if ex.cx.trace.sampled
        && let Some(tracer) = &view.tracer
    {
        tracer.server_span(&span(ex, ended, reason, &tries(ex, view)));
    }
}

/// A call that a filter made is answered, or is not: its tries become spans of the request it was made for.
pub fn called(ex: &Exchange) {
    if ex.cx.trace.sampled
        && let Some(tracer) = &ex.view.tracer
    {
        tracer.client_spans(&span(ex, now(), None, &tries(ex, &ex.view)));
    }
}

fn tries<'a>(ex: &'a Exchange, view: &'a Snapshot) -> Vec<AttemptSpan<'a>> {
    let service = ex.tally.target.map_or("", |i| &*view.targets[i].service.name);
    let span = |t: &'a Try| AttemptSpan {
        span: t.span,
        service,
        endpoint: Some(&t.endpoint.address),
        status: t.result.ok(),
        reason: t.result.err(),
        started: t.started,
        ended: t.ended,
    };
    ex.tally.tries.iter().map(span).collect()
}

fn span<'a>(
    ex: &'a Exchange,
    ended: Moment,
    reason: Option<Reason>,
    attempts: &'a [AttemptSpan<'a>],
) -> ServerSpan<'a> {
    let cx = &ex.cx;
    ServerSpan {
        trace: cx.trace,
        link: None,
        route: &cx.route.name,
        method: &cx.method,
        host: cx.host(),
        path: ex.asked.path(),
        https: cx.https,
        version: cx.version,
        status: Some(ex.tally.status),
        reason,
        client_ip: Some(cx.client_ip),
        user_agent: cx.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default(),
        started: cx.started,
        ended,
        attempts,
        trail: &cx.trail,
    }
}

/// From the answer's head to its last byte; nothing for answers of our own.
fn body_time(ex: &Exchange, ended: Moment) -> Duration {
    if ex.tally.head == Moment::ZERO { Duration::ZERO } else { ended.since(ex.tally.head) }
}

fn bytes_in(ex: &Exchange) -> u64 {
    ex.tally.bytes_in.as_ref().map_or(0, |n| n.load(Relaxed))
}

fn record<'a>(
    ex: &'a Exchange,
    view: &'a Snapshot,
    ended: Moment,
    reason: Option<Reason>,
    by: &'a str,
    aborted: bool,
) -> Record<'a> {
    let Exchange { cx, tally, .. } = ex;
    Record {
        request_id: cx.request_id.as_bytes(),
        method: cx.method.as_str(),
        host: cx.authority.as_str(),
        path: ex.asked.path().as_bytes(),
        // A credential that was refused was not taken out.
        query: cx.target.query().filter(|_| reason != Some(Reason::Unauthenticated)).map(str::as_bytes),
        protocol: Some(cx.version),
        transport: "",
        sni: "",
        status: if tally.unanswered { 0 } else { tally.status.as_u16() },
        reason,
        filter: by,
        route: &cx.route.name,
        listener: &cx.conn.listener,
        client_ip: Some(cx.client_ip),
        user: cx.user.as_ref().map_or("", |u| &u.subject),
        consumer: cx.consumer.as_ref().map_or("", |c| &c.name),
        workload: cx.workload.as_ref().map_or("", |w| &w.id),
        service: tally.target.map_or("", |i| &view.targets[i].service.name),
        endpoint: tally.endpoint.as_ref().map(|e| &e.address),
        attempts: tally.attempts,
        retries: &tally.retries,
        bytes_in: bytes_in(ex),
        bytes_out: tally.bytes_out,
        duration: ended.since(cx.started),
        phases: Phases {
            chain: tally.chain_done.since(cx.started),
            connect: tally.connect,
            upstream: tally.upstream,
            body: body_time(ex, ended),
        },
        generation: view.generation,
        trace_id: cx.trace.trace_id,
        user_agent: cx.headers.get(header::USER_AGENT).map_or(b"", HeaderValue::as_bytes),
        aborted,
    }
}

/// What is known of a head that may be refused before it is a request. Cheap: reference counts only.
pub struct RawHead {
    method: Method,
    uri: Uri,
    version: Version,
    grpc: Option<HeaderValue>,
}

impl RawHead {
    /// Of a head as hyper gives it.
    #[must_use]
    pub fn of(parts: &Parts) -> Self {
        let grpc = parts.headers.get(header::CONTENT_TYPE).filter(|v| fault::is_grpc(v)).cloned();
        Self { method: parts.method.clone(), uri: parts.uri.clone(), version: parts.version, grpc }
    }
}

/// Answers a head that never became a request, and writes it down.
#[must_use]
pub fn refuse(view: &Snapshot, conn: &Arc<Conn>, raw: &RawHead, started: Moment, fault: &Fault) -> Response<Outgoing> {
    let id = super::headers::request_id::fresh();
    let asked = fault::Asked { request_id: id.as_bytes(), head: raw.method == Method::HEAD, grpc: raw.grpc.as_ref() };
    let mut response = fault::response(fault, &asked);
    // What follows such a head may be a body, a tunnel or a request: nobody can say, so nobody reads it.
    if raw.version != Version::HTTP_2 && (fault.reason == Reason::BadFraming || raw.method == Method::CONNECT) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let log = view.access_log.as_deref();
    refused(log, view, conn, Some(raw), started, fault, &id, response.status().as_u16());
    response.map(Outgoing::bare)
}

/// Writes down a head that the gate refused before hyper saw it.
pub fn refused_at_gate(view: &Snapshot, conn: &Conn, fault: &Fault, id: &HeaderValue) {
    refused(view.access_log.as_deref(), view, conn, None, now(), fault, id, fault.reason.status().as_u16());
}

#[expect(clippy::too_many_arguments, reason = "one line of a log has many columns")]
fn refused(
    log: Option<&AccessLog>,
    view: &Snapshot,
    conn: &Conn,
    raw: Option<&RawHead>,
    started: Moment,
    fault: &Fault,
    id: &HeaderValue,
    status: u16,
) {
    view.engine.reject(fault.reason);
    let took = now().since(started);
    view.unrouted.metrics.record(fault.reason.status(), took, took);
    let Some(log) = log else { return };
    log.write(&Record {
        request_id: id.as_bytes(),
        method: raw.map_or("", |r| r.method.as_str()),
        host: raw.and_then(|r| r.uri.authority()).map_or("", |a| a.as_str()),
        path: raw.and_then(|r| r.uri.path_and_query()).map_or(b"", |p| p.as_str().as_bytes()),
        protocol: raw.map(|r| r.version),
        status,
        reason: Some(fault.reason),
        filter: if fault.by.is_empty() { "edge" } else { fault.by },
        listener: &conn.listener,
        client_ip: Some(conn.client.ip().to_canonical()),
        duration: took,
        generation: view.generation,
        ..Record::default()
    });
}
