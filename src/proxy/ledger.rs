//! What is written down about a request once it is over: metrics, one log line, one span.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, Uri, Version, header};
use onehop_filters::contract::trail::Outcome;
use onehop_filters::contract::{Conn, Fault, Moment, Reason, now};

use super::exchange::{End, Exchange, Outgoing, Try};
use super::request::bare;
use crate::fault;
use crate::observe::access_log::{AccessLog, Record};
use crate::observe::metrics;
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
    // First of all: let the next one in.
    ex.admission = None;
    let ended = now();
    let (reason, by) = match (ex.tally.refused, end) {
        (_, End::Cut(reason)) => (Some(reason), "body"),
        (None, End::Aborted) => (Some(Reason::ClientGone), "body"),
        (Some((reason, by)), _) => (Some(reason), by),
        (None, End::Complete) => (None, ""),
    };
    let view = ex.view.clone();
    let route = ex.route.map_or(&view.unrouted, |i| &view.routes[i as usize]);
    let total = ended.since(ex.cx.started);
    route.metrics.record(ex.tally.status, total, total.saturating_sub(ex.tally.upstream));
    if let Some(reason) = reason {
        metrics::rejected(reason);
    }
    if let Some(log) = &view.access_log {
        log.write(&record(&ex, &view, ended, reason, by, end == End::Aborted));
    }
    if ex.cx.trace.sampled
        && let Some(tracer) = &view.tracer
    {
        let attempts: Vec<AttemptSpan<'_>> = ex
            .tally
            .tries
            .iter()
            .map(|t| AttemptSpan {
                span: t.span,
                started: t.started,
                ended: t.ended,
                endpoint: &t.endpoint,
                service: ex.tally.target.map_or("", |i| &view.targets[i].service.name),
                result: t.result,
            })
            .collect();
        tracer.record(&ServerSpan {
            cx: &ex.cx,
            status: ex.tally.status,
            ended,
            reason,
            attempts: &attempts,
        });
    }
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
        path: cx.target.as_str(),
        protocol: protocol(cx.version),
        status: tally.status.as_u16(),
        reason: reason.map_or("", Reason::code),
        filter: by,
        route: &cx.route.name,
        listener: &cx.conn.listener,
        client_ip: Some(cx.client_ip),
        user: cx.user.as_ref().map(|u| &*u.subject),
        consumer: cx.consumer.as_ref().map(|c| &*c.name),
        workload: cx.workload.as_ref().map(|w| &*w.id),
        service: tally.target.map(|i| &*view.targets[i].service.name),
        endpoint: tally.endpoint.as_ref().map(|e| &e.address),
        attempts: tally.attempts,
        gave_up: tally.gave_up,
        bytes_in: tally.bytes_in.as_ref().map_or(0, |n| n.load(Relaxed)),
        bytes_out: tally.bytes_out,
        grpc_status: tally.grpc,
        duration: ended.since(cx.started),
        chain: tally.chain_done.since(cx.started),
        connect: tally.connect,
        upstream: tally.upstream,
        body: if tally.head == Moment::ZERO { std::time::Duration::ZERO } else { ended.since(tally.head) },
        generation: view.generation,
        trace_id: cx.trace.trace_id,
        user_agent: cx.headers.get(header::USER_AGENT).map_or(b"", HeaderValue::as_bytes),
        aborted,
    }
}

const fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// What is known of a head that may be refused before it is a request. Cheap: reference counts only.
pub struct RawHead {
    method: Method,
    uri: Uri,
    version: Version,
    grpc: bool,
}

impl RawHead {
    /// Of a head as hyper gives it.
    #[must_use]
    pub fn of(parts: &Parts) -> Self {
        let grpc =
            parts.headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
        Self { method: parts.method.clone(), uri: parts.uri.clone(), version: parts.version, grpc }
    }
}

/// Answers a head that never became a request, and writes it down.
#[must_use]
pub fn refuse(
    view: &Snapshot,
    conn: &Arc<Conn>,
    raw: &RawHead,
    started: Moment,
    fault: &Fault,
) -> Response<Outgoing> {
    let id = super::headers::request_id::fresh();
    let response = fault::respond_bare(fault, &id, raw.grpc, raw.method == Method::HEAD);
    let log = view.access_log.as_deref();
    refused(log, view, conn, Some(raw), started, fault, &id, response.status().as_u16());
    bare(response)
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
    metrics::rejected(fault.reason);
    let took = now().since(started);
    view.unrouted.metrics.record(fault.reason.status(), took, took);
    let Some(log) = log else { return };
    log.write(&Record {
        request_id: id.as_bytes(),
        method: raw.map_or("", |r| r.method.as_str()),
        host: raw.and_then(|r| r.uri.authority()).map_or("", |a| a.as_str()),
        path: raw.and_then(|r| r.uri.path_and_query()).map_or("", |p| p.as_str()),
        protocol: raw.map_or("HTTP/1.1", |r| protocol(r.version)),
        status,
        reason: fault.reason.code(),
        filter: if fault.by.is_empty() { "edge" } else { fault.by },
        listener: &conn.listener,
        client_ip: Some(conn.client.ip().to_canonical()),
        duration: took,
        generation: view.generation,
        ..Record::default()
    });
}
