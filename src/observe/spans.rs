//! Spans: one SERVER span per sampled request, one CLIENT span per try, what filters decided as events.
//!
//! Built only when a request ends and was sampled, from what it carried along. Handed over a bounded queue to one task
//! on the control thread, which exports in batches; a collector that is slow or gone costs spans, and they are counted.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode, Version};
use onehop_filters::contract::mesh::Address;
use onehop_filters::contract::metrics::{Counter, Registry};
use onehop_filters::contract::{Moment, Reason, Trace, now, trail::Trail};
use opentelemetry::trace::{Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter, SpanLinks};
use opentelemetry_semantic_conventions::attribute as semconv;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::server_timing;
use crate::config::plan;

/// Requests whose spans wait for export at most.
const QUEUE: usize = 2048;
/// Requests per export.
const BATCH: usize = 256;
/// How long the first span of a batch waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// How long one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// What can be wrong with `telemetry.tracing`.
#[derive(Debug, thiserror::Error)]
pub enum SpansError {
    /// The collector's address is not one that can be used.
    #[error("telemetry.tracing.otlp: {0}")]
    Collector(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Whether a new trace of this id is recorded at this ratio: the same answer on every hop, and the same as the
/// OpenTelemetry SDK's `TraceIdRatioBased`.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a share")]
pub fn sample(trace_id: u128, ratio: f64) -> bool {
    ratio >= 1.0 || (trace_id as u64 >> 1) < (ratio.max(0.0) * (1u64 << 63) as f64) as u64
}

/// A request that ended.
#[derive(Clone, Debug)]
pub struct ServerSpan<'a> {
    /// Ids of the request; [`Trace::span`] is this span.
    pub trace: Trace,
    /// Trace and span of an untrusted caller whose trace was not continued.
    pub link: Option<(u128, u64)>,
    /// Route name, empty if none matched.
    pub route: &'a str,
    /// Method.
    pub method: &'a Method,
    /// Host without port.
    pub host: &'a str,
    /// Path without query: the query may hold secrets.
    pub path: &'a str,
    /// Whether the scheme is https.
    pub https: bool,
    /// Version the client spoke.
    pub version: Version,
    /// Status sent, if any.
    pub status: Option<StatusCode>,
    /// Why it was not answered as asked.
    pub reason: Option<Reason>,
    /// The client, after trusted proxies.
    pub client_ip: Option<IpAddr>,
    /// `user-agent`.
    pub user_agent: &'a str,
    /// Head complete.
    pub started: Moment,
    /// Last byte sent.
    pub ended: Moment,
    /// Every try, in order.
    pub attempts: &'a [AttemptSpan<'a>],
    /// What was decided, written as events.
    pub trail: &'a Trail,
}

/// One try.
#[derive(Clone, Debug)]
pub struct AttemptSpan<'a> {
    /// The id that was sent upstream as parent.
    pub span: u64,
    /// Service name.
    pub service: &'a str,
    /// Endpoint, if one was picked.
    pub endpoint: Option<&'a Address>,
    /// Status received, if any.
    pub status: Option<StatusCode>,
    /// Why it failed.
    pub reason: Option<Reason>,
    /// Sent, or begun to connect.
    pub started: Moment,
    /// Ended.
    pub ended: Moment,
}

enum Message {
    Spans(Vec<SpanData>),
    Flush(oneshot::Sender<()>),
}

/// Hands spans to the exporter. Cheap to clone.
#[derive(Clone)]
pub struct Tracer {
    queue: mpsc::Sender<Message>,
    scope: InstrumentationScope,
    dropped: Counter,
}

impl Tracer {
    /// Starts an exporter for a collector on the runtime of `handle`. It connects when there is something to send and
    /// ends when the last clone of the tracer is gone.
    ///
    /// # Errors
    /// If the collector's address is unusable.
    pub fn new(plan: &plan::Tracing, registry: &Registry, handle: &Handle) -> Result<Self, SpansError> {
        // The lazy channel spawns its driver here.
        let _guard = handle.enter();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(plan.otlp.clone())
            .with_timeout(EXPORT_TIMEOUT)
            .with_retry_policy(opentelemetry_otlp::RetryPolicy::recommended())
            .build()?;
        Ok(Self::with_exporter(exporter, plan, registry, handle))
    }

    /// Like [`Tracer::new`] with any exporter.
    #[must_use]
    pub fn with_exporter<E: SpanExporter + 'static>(
        mut exporter: E,
        plan: &plan::Tracing,
        registry: &Registry,
        handle: &Handle,
    ) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        exporter.set_resource(
            &Resource::builder()
                .with_service_name(plan.service_name.clone())
                .with_attribute(KeyValue::new(semconv::SERVICE_VERSION, version))
                .build(),
        );
        let (queue, messages) = mpsc::channel(QUEUE);
        let spans =
            |outcome| registry.counter("onehop_spans_total", "Spans by what became of them.", &[("outcome", outcome)]);
        let (exported, dropped) = (spans("exported"), spans("dropped"));
        handle.spawn(export(exporter, messages, exported, dropped.clone()));
        Self { queue, scope: InstrumentationScope::builder("onehop").with_version(version).build(), dropped }
    }

    /// Records a request and its tries. Call it once, when the request ended, if [`Trace::sampled`]. Never blocks.
    pub fn server_span(&self, span: &ServerSpan<'_>) {
        let clock = Clock::read();
        let mut spans = Vec::with_capacity(1 + span.attempts.len());
        spans.push(self.server(span, &clock));
        self.clients(span, &clock, &mut spans);
        self.send(spans);
    }

    /// Records the tries of a call that a filter made for a request, whose own span comes when it ends.
    pub fn client_spans(&self, span: &ServerSpan<'_>) {
        let mut spans = Vec::with_capacity(span.attempts.len());
        self.clients(span, &Clock::read(), &mut spans);
        self.send(spans);
    }

    fn clients(&self, span: &ServerSpan<'_>, clock: &Clock, spans: &mut Vec<SpanData>) {
        spans.extend(span.attempts.iter().zip(0..).map(|(attempt, n)| self.client(span, attempt, n, clock)));
    }

    fn send(&self, spans: Vec<SpanData>) {
        if let Err(refused) = self.queue.try_send(Message::Spans(spans))
            && let Message::Spans(spans) = refused.into_inner()
        {
            self.dropped.add(spans.len() as u64);
        }
    }

    /// Waits until everything recorded so far is exported or given up, at most `patience`. Returns whether it is.
    pub async fn flush(&self, patience: Duration) -> bool {
        let (done, wait) = oneshot::channel();
        let flush = async { self.queue.send(Message::Flush(done)).await.is_ok() && wait.await.is_ok() };
        tokio::time::timeout(patience, flush).await.unwrap_or(false)
    }

    fn server(&self, span: &ServerSpan<'_>, clock: &Clock) -> SpanData {
        let method = known(span.method);
        // Semantic conventions: `{method} {http.route}`, or the method alone. Never a path: names must be few.
        let name: Cow<'static, str> = match (method, span.route) {
            (None, "") => "HTTP".into(),
            (None, route) => format!("HTTP {route}").into(),
            (Some(method), "") => method.into(),
            (Some(method), route) => format!("{method} {route}").into(),
        };
        let mut attributes = Vec::with_capacity(16);
        attributes.push(KeyValue::new(semconv::HTTP_REQUEST_METHOD, method.unwrap_or("_OTHER")));
        if method.is_none() {
            attributes.push(KeyValue::new(semconv::HTTP_REQUEST_METHOD_ORIGINAL, span.method.to_string()));
        }
        attributes.push(KeyValue::new(semconv::URL_SCHEME, if span.https { "https" } else { "http" }));
        attributes.push(KeyValue::new(semconv::URL_PATH, span.path.to_owned()));
        text(&mut attributes, semconv::SERVER_ADDRESS, span.host);
        text(&mut attributes, semconv::HTTP_ROUTE, span.route);
        attributes.push(KeyValue::new(semconv::NETWORK_PROTOCOL_VERSION, version(span.version)));
        if let Some(ip) = span.client_ip {
            attributes.push(KeyValue::new(semconv::CLIENT_ADDRESS, ip.to_string()));
        }
        text(&mut attributes, semconv::USER_AGENT_ORIGINAL, span.user_agent);
        // A server is in error when it failed itself; a 4xx is the caller's business.
        let failed = span.status.is_none_or(|s| s.is_server_error()) || span.reason == Some(Reason::ClientGone);
        outcome(&mut attributes, span.status, span.reason, failed);
        let status = if failed { error(span.reason) } else { Status::Unset };
        let mut data = self.data(span, SpanKind::Server, span.trace.span, name, (span.started, span.ended), clock);
        data.parent_span_id = SpanId::from(span.trace.parent);
        data.parent_span_is_remote = span.trace.parent != 0;
        data.attributes = attributes;
        data.status = status;
        data.events = events(span, clock);
        if let Some((trace_id, span_id)) = span.link {
            data.links.links.push(Link::with_context(context(trace_id, span_id, false, true)));
        }
        data
    }

    fn client(&self, span: &ServerSpan<'_>, attempt: &AttemptSpan<'_>, resend: i64, clock: &Clock) -> SpanData {
        let method = known(span.method);
        let mut attributes = Vec::with_capacity(10);
        attributes.push(KeyValue::new(semconv::HTTP_REQUEST_METHOD, method.unwrap_or("_OTHER")));
        text(&mut attributes, "onehop.service", attempt.service);
        match attempt.endpoint {
            Some(Address::Tcp(address)) => {
                attributes.push(KeyValue::new(semconv::SERVER_ADDRESS, address.ip().to_string()));
                attributes.push(KeyValue::new(semconv::SERVER_PORT, i64::from(address.port())));
            }
            Some(Address::Unix(path)) => {
                attributes.push(KeyValue::new(semconv::SERVER_ADDRESS, path.display().to_string()));
            }
            None => {}
        }
        if resend > 0 {
            attributes.push(KeyValue::new(semconv::HTTP_REQUEST_RESEND_COUNT, resend));
        }
        // A client is in error for every 4xx and 5xx it got.
        let failed = attempt.status.is_none_or(|s| s.as_u16() >= 400) || attempt.reason.is_some();
        outcome(&mut attributes, attempt.status, attempt.reason, failed);
        let name = method.unwrap_or("HTTP").into();
        let mut data = self.data(span, SpanKind::Client, attempt.span, name, (attempt.started, attempt.ended), clock);
        data.parent_span_id = SpanId::from(span.trace.span);
        data.attributes = attributes;
        data.status = if failed { error(attempt.reason) } else { Status::Unset };
        data
    }

    fn data(
        &self,
        span: &ServerSpan<'_>,
        kind: SpanKind,
        id: u64,
        name: Cow<'static, str>,
        (started, ended): (Moment, Moment),
        clock: &Clock,
    ) -> SpanData {
        SpanData {
            span_context: context(span.trace.trace_id, id, true, false),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: kind,
            name,
            start_time: clock.wall(started),
            end_time: clock.wall(ended.max(started)),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

fn context(trace_id: u128, span: u64, sampled: bool, remote: bool) -> SpanContext {
    let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    SpanContext::new(TraceId::from(trace_id), SpanId::from(span), flags, remote, TraceState::NONE)
}

/// One event per decision. Decisions carry costs, not times: an event stands where the costs before it add up to.
fn events(span: &ServerSpan<'_>, clock: &Clock) -> SpanEvents {
    let mut at = span.started;
    let mut out = SpanEvents::default();
    for decision in span.trail.decisions() {
        at = (at + Duration::from_nanos(decision.nanos.into())).min(span.ended.max(span.started));
        let mut attributes = vec![KeyValue::new("onehop.outcome", server_timing::word(decision.outcome))];
        if !decision.why.is_empty() {
            attributes.push(KeyValue::new("onehop.why", decision.why));
        }
        if decision.value != 0 {
            attributes.push(KeyValue::new("onehop.value", i64::try_from(decision.value).unwrap_or(i64::MAX)));
        }
        if decision.nanos != 0 {
            attributes.push(KeyValue::new("onehop.nanos", i64::from(decision.nanos)));
        }
        out.events.push(Event::new(decision.by, clock.wall(at), attributes, 0));
    }
    out.dropped_count = u32::from(span.trail.dropped());
    out
}

fn text(attributes: &mut Vec<KeyValue>, key: &'static str, value: &str) {
    if !value.is_empty() {
        attributes.push(KeyValue::new(key, Value::from(value.to_owned())));
    }
}

fn outcome(attributes: &mut Vec<KeyValue>, status: Option<StatusCode>, reason: Option<Reason>, failed: bool) {
    if let Some(status) = status {
        attributes.push(KeyValue::new(semconv::HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16())));
    }
    if let Some(reason) = reason {
        attributes.push(KeyValue::new("onehop.reason", reason.code()));
    }
    if failed {
        let kind = match (reason, status) {
            (Some(reason), _) => Value::from(reason.code()),
            (None, Some(status)) => Value::from(status.as_str().to_owned()),
            (None, None) => Value::from("_OTHER"),
        };
        attributes.push(KeyValue::new(semconv::ERROR_TYPE, kind));
    }
}

/// The description stays empty where the status says it all.
fn error(reason: Option<Reason>) -> Status {
    Status::error(reason.map_or("", Reason::title))
}

/// Methods that may stand in names and attributes as they are (semantic conventions, `http.request.method`).
fn known(method: &Method) -> Option<&'static str> {
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"]
        .into_iter()
        .find(|m| method.as_str() == *m)
}

const fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_11 => "1.1",
        Version::HTTP_2 => "2",
        _ => "3",
    }
}

/// The two clocks, read together: spans want the wall, requests carry [`Moment`]s.
struct Clock {
    wall: SystemTime,
    moment: Moment,
}

impl Clock {
    fn read() -> Self {
        Self { wall: SystemTime::now(), moment: now() }
    }
    fn wall(&self, at: Moment) -> SystemTime {
        let past = self.wall.checked_sub(self.moment.since(at)).unwrap_or(SystemTime::UNIX_EPOCH);
        past + at.since(self.moment)
    }
}

async fn export<E: SpanExporter>(
    exporter: E,
    mut messages: mpsc::Receiver<Message>,
    exported: Counter,
    dropped: Counter,
) {
    let mut down = false;
    let mut batch = Vec::with_capacity(BATCH);
    while messages.recv_many(&mut batch, BATCH).await > 0 {
        let wait = tokio::time::sleep(DELAY);
        tokio::pin!(wait);
        let flush = |m: &Message| matches!(m, Message::Flush(_));
        while batch.len() < BATCH && !batch.iter().any(flush) {
            let room = BATCH - batch.len();
            tokio::select! {
                () = &mut wait => break,
                n = messages.recv_many(&mut batch, room) => if n == 0 { break },
            }
        }
        let mut spans = Vec::with_capacity(batch.len() * 2);
        let mut flushes = Vec::new();
        for message in batch.drain(..) {
            match message {
                Message::Spans(more) => spans.extend(more),
                Message::Flush(done) => flushes.push(done),
            }
        }
        let n = spans.len() as u64;
        if n > 0 {
            let failure = match tokio::time::timeout(EXPORT_TIMEOUT, exporter.export(spans)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("the collector did not answer in time".to_owned()),
            };
            let counter = if failure.is_some() { &dropped } else { &exported };
            counter.add(n);
            // Told when it changes, not for every batch.
            match &failure {
                Some(error) if !down => tracing::warn!(%error, "spans cannot be exported and are dropped"),
                None if down => tracing::info!("spans are exported again"),
                _ => {}
            }
            down = failure.is_some();
        }
        for done in flushes {
            let _ = done.send(());
        }
    }
    let _ = exporter.shutdown();
}

#[cfg(test)]
#[path = "spans_tests.rs"]
mod tests;
