//! Connections that are no requests to us: routed once, by the server name if there is one, and passed on byte by byte.
//!
//! The mesh loop is that of requests: gates, pick, connect, judge, once per try. A try that failed sent nothing of the
//! caller's, so another endpoint may have it. The endpoint is dialled before the caller says a word: where servers speak
//! first, somebody has to.

use std::pin::pin;
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use onehop_filters::contract::mesh::{Again, Endpoint, Judge, TryOutcome};
use onehop_filters::contract::metrics::Registry;
use onehop_filters::contract::principal::Priority;
use onehop_filters::contract::trail::Trail;
use onehop_filters::contract::{Body, Conn, Fault, Moment, Reason, RequestCx, RouteInfo, Scratch, Side, now};
use smallvec::SmallVec;
use tokio::io::AsyncWriteExt as _;

use super::attempt::{self, Admission, Held, Tried};
use super::relay::{Ended, Flow, relay};
use super::seed;
use crate::config::plan::Tcp;
use crate::edge::accept::Accepted;
use crate::edge::stream::Stream;
use crate::observe::access_log::AccessLog;
use crate::observe::metrics::{Outcome as Counted, TcpMetrics};
use crate::observe::record::{Phases, Record};
use crate::route::Probe;
use crate::runtime::{Drain, Phase, wheel};
use crate::snapshot::cell::{Cell, View};
use crate::snapshot::{Action, Fallback};
use crate::upstream::proxy_header::Client;
use crate::upstream::raw::Connection;

/// For all tries together, queues and pauses included: what a request may take by default.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
/// Alert `unrecognized_name`, fatal (RFC 6066 section 3, RFC 8446 section 6): no route has the name asked for.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

static NO_FIELDS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);
static NO_ROUTE: LazyLock<Arc<RouteInfo>> =
    LazyLock::new(|| Arc::new(RouteInfo { name: "".into(), upgrades: Vec::new(), to: Vec::new() }));

/// Serves a connection of a TCP listener to its end.
pub(super) async fn serve(cell: Arc<Cell>, registry: Arc<Registry>, accepted: Accepted) {
    let Accepted { io, first, conn, sni, destination, listener, settings, permit, .. } = accepted;
    let passthrough = settings.plan.tcp == Some(Tcp::Passthrough);
    let sni = sni.or_else(|| conn.tls.as_ref()?.sni.clone());
    let mut caller = io.into_stream(first);
    // It may be quiet for hours.
    caller.keep_alive();
    let mut line = Line::new(registry, conn, sni, passthrough);
    let drain = listener.drain.clone();
    let opened = {
        let view = cell.view_for(&line.conn.listener);
        line.log.clone_from(&view.access_log);
        line.generation = view.generation;
        // Boxed: a connection that stands for days does not carry what opening it took.
        let opening = Box::pin(open(&view, destination, &mut line));
        tokio::select! {
            biased;
            () = drain.reached(Phase::Kill) => Err(Fault::new(Reason::Draining).by("tcp")),
            opened = opening => opened,
        }
    };
    match opened {
        Ok(opened) => {
            let end = copy(&mut caller, opened, &drain, &mut line).await;
            drop(caller);
            line.close(end);
        }
        Err(fault) => {
            refuse(caller, passthrough && fault.reason == Reason::NoRoute).await;
            tracing::debug!(listener = %line.conn.listener, %fault, "connection refused");
            line.close(Some((fault.reason, if fault.by.is_empty() { "tcp" } else { fault.by })));
        }
    }
    drop(permit);
}

/// A failure must not look like an orderly end.
async fn refuse(mut caller: Stream, alert: bool) {
    if alert {
        // In time, or not at all: it fits any socket's buffer.
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            let _ = caller.write_all(&UNRECOGNIZED_NAME).await;
            let _ = caller.shutdown().await;
        })
        .await;
    } else {
        caller.reset_on_close();
    }
}

/// A connection to an endpoint, and what holds its place there.
struct Opened {
    upstream: Connection,
    held: Held,
    idle: Option<Duration>,
    /// How long it may go on once its listener drains.
    grace: Duration,
    metrics: Option<TcpMetrics>,
}

/// Copies until the end; why it was not an orderly one.
async fn copy(
    caller: &mut Stream,
    opened: Opened,
    drain: &Arc<Drain>,
    line: &mut Line,
) -> Option<(Reason, &'static str)> {
    let Opened { mut upstream, held, idle, grace, metrics } = opened;
    if let Some(metrics) = &metrics {
        line.into.counter = Some(metrics.received.clone());
        line.out.counter = Some(metrics.sent.clone());
        metrics.open.add(1);
    }
    let over = async {
        drain.reached(Phase::Draining).await;
        let _ = wheel::timeout(now() + grace, drain.reached(Phase::Kill)).await;
    };
    let ended = {
        let copying = pin!(relay(caller, &mut upstream, idle, (&mut line.into, &mut line.out)));
        tokio::select! {
            ended = copying => Some(ended),
            () = over => None,
        }
    };
    if let Some(metrics) = &metrics {
        metrics.open.add(-1);
    }
    line.closed = metrics.map(|m| m.closed);
    drop(held);
    let cut = match ended {
        Some(Ended::Closed) => return None,
        Some(Ended::ClientBroke) => Reason::ClientGone,
        Some(Ended::UpstreamBroke) => Reason::Reset,
        Some(Ended::Idle) => Reason::IdleTimeout,
        None => Reason::Draining,
    };
    // Whoever is left must not take what came so far for the whole.
    caller.reset_on_close();
    upstream.reset_on_close();
    Some((cut, "tcp"))
}

/// Finds the route, and opens a connection to an endpoint of one of its services.
async fn open(view: &Arc<View>, destination: std::net::SocketAddr, line: &mut Line) -> Result<Opened, Fault> {
    let listener = view.listener(&line.conn.listener);
    let probe = Probe {
        host: line.sni.as_deref().unwrap_or_default(),
        path: "/",
        query: None,
        method: &Method::CONNECT,
        headers: &NO_FIELDS,
        claims: None,
    };
    let found = listener.and_then(|l| l.table.lookup(&probe)).map(|hit| *hit.value as usize);
    let route = &view.routes[found.ok_or_else(|| Fault::never_ran(Reason::NoRoute))?];
    line.route = route.info.clone();
    let Action::Forward(split) = &route.action else { return Err(Reason::NoRoute.into()) };
    let first = split.choose(seed()).ok_or_else(|| Fault::never_ran(Reason::NoWeight))?;
    let client = Client { source: line.conn.client, destination };
    let (upstream, held, target) = match tries(view, first, client, line).await {
        Ok((upstream, held)) => (upstream, held, first),
        Err(fault) => match view.targets[first].fallback {
            // One step only, as for requests.
            Some(Fallback::Target(other)) if fault.reason.side() != Side::Client => {
                let (upstream, held) = tries(view, other, client, line).await?;
                (upstream, held, other)
            }
            _ => return Err(fault),
        },
    };
    let metrics = view.targets[target].tcp.clone();
    if let Some(metrics) = &metrics {
        metrics.connect.observe(line.connect);
    }
    Ok(Opened { upstream, held, idle: route.idle_timeout, grace: view.lifecycle.drain, metrics })
}

/// The mesh loop of one service.
async fn tries(
    view: &Arc<View>,
    position: usize,
    client: Client,
    line: &mut Line,
) -> Result<(Connection, Held), Fault> {
    let target = &view.targets[position];
    let service = &target.service;
    line.service = service.name.clone();
    let retry = &*service.retry;
    let hash = service.balance.hash(&stand_in(view, line));
    let mut begun = now();
    retry.begin(begun);
    let deadline = begun + CONNECT_WITHIN;
    let mut tried = Tried::default();
    loop {
        let (mut place, admitted) = Admission::enter(view, position, Priority::Normal, begun, deadline).await?;
        begun = admitted;
        let endpoint = attempt::pick(&mut place, service, begun, (hash, None), &tried)?;
        line.attempts += 1;
        line.endpoint = Some(endpoint.clone());
        tried.once.push(endpoint.id);
        let until = retry.per_try_timeout().map_or(deadline, |limit| deadline.min(begun + limit));
        let connecting = wheel::timeout(until, target.upstream.connect(&endpoint, client)).await;
        let connected = connecting.unwrap_or_else(|_| Err(Fault::never_ran(Reason::ConnectTimeout).by("timeouts")));
        let ended = now();
        let result = match &connected {
            Ok(_) => Ok((StatusCode::OK, &*NO_FIELDS)),
            Err(fault) => Err((fault.reason, fault.proof)),
        };
        let outcome = TryOutcome { result, grpc: None, latency: ended.since(begun) };
        place.observe(&outcome, ended);
        target.metrics.record(Counted::of(&outcome), None);
        let fault = match connected {
            Ok((upstream, took)) => {
                line.connect += took;
                return Ok((upstream, place.hold()));
            }
            Err(fault) => fault,
        };
        if retry.attempts() == 0 {
            return Err(fault);
        }
        // Nothing of the caller's was sent: another try is as good as the first.
        let judge = Judge {
            now: ended,
            deadline,
            tries: u32::try_from(tried.once.len()).unwrap_or(u32::MAX),
            idempotent: true,
            replayable: true,
            outcome: &outcome,
            seed: seed(),
        };
        match retry.judge(&judge) {
            Again::After(pause) => {
                target.metrics.retry();
                line.retries.push(fault.reason.code());
                drop(place);
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                begun = now();
            }
            Again::No(why) => {
                line.retries.push(why);
                return Err(fault);
            }
        }
    }
}

/// What a balancing policy may look at, as if it were a request: its address, and nothing else.
fn stand_in(view: &Arc<View>, line: &Line) -> RequestCx {
    let host = line.sni.as_deref().and_then(|name| Authority::try_from(name).ok());
    RequestCx {
        conn: line.conn.clone(),
        started: line.begun,
        method: Method::CONNECT,
        version: Version::HTTP_11,
        https: false,
        authority: host.unwrap_or_else(|| Authority::from_static("-")),
        target: PathAndQuery::from_static("/"),
        headers: HeaderMap::new(),
        body: Body::Empty,
        client_ip: line.conn.client.ip(),
        request_id: HeaderValue::from_static("-"),
        route: line.route.clone(),
        covered: 0,
        user: None,
        consumer: None,
        workload: line.conn.tls.as_ref().and_then(|tls| tls.workload.clone()),
        deadline: Moment::MAX,
        trace: Default::default(),
        upstream_host: None,
        reply_headers: SmallVec::new(),
        scratch: Scratch::default(),
        services: view.clone(),
        trail: Trail::default(),
        dry_run: false,
    }
}

/// What is written down of a connection once it is over. Holds no snapshot: a connection may outlive many.
struct Line {
    registry: Arc<Registry>,
    log: Option<Arc<AccessLog>>,
    generation: u64,
    begun: Moment,
    conn: Arc<Conn>,
    sni: Option<Arc<str>>,
    transport: &'static str,
    route: Arc<RouteInfo>,
    service: Arc<str>,
    endpoint: Option<Arc<Endpoint>>,
    attempts: u32,
    retries: SmallVec<[&'static str; 2]>,
    connect: Duration,
    into: Flow,
    out: Flow,
    closed: Option<onehop_filters::contract::metrics::Counter>,
}

impl Line {
    fn new(registry: Arc<Registry>, conn: Conn, sni: Option<Arc<str>>, passthrough: bool) -> Self {
        Self {
            registry,
            log: None,
            generation: 0,
            begun: now(),
            conn: Arc::new(conn),
            sni,
            transport: if passthrough { "tls" } else { "tcp" },
            route: NO_ROUTE.clone(),
            service: "".into(),
            endpoint: None,
            attempts: 0,
            retries: SmallVec::new(),
            connect: Duration::ZERO,
            into: Flow::default(),
            out: Flow::default(),
            closed: None,
        }
    }

    fn close(self, why: Option<(Reason, &'static str)>) {
        match (why, &self.closed) {
            (None, Some(closed)) => closed.inc(),
            // The rare end of a connection: looking the counter up costs nobody.
            _ => {
                let outcome = why.map_or(TcpMetrics::CLOSED, |(reason, _)| reason.code());
                TcpMetrics::ended(&self.registry, &self.service, outcome).inc();
            }
        }
        let Some(log) = &self.log else { return };
        let took = now().since(self.begun);
        let number = self.conn.id.to_string();
        log.write(&Record {
            request_id: number.as_bytes(),
            transport: self.transport,
            sni: self.sni.as_deref().unwrap_or_default(),
            reason: why.map(|(reason, _)| reason),
            filter: why.map_or("", |(_, by)| by),
            route: &self.route.name,
            listener: &self.conn.listener,
            client_ip: Some(self.conn.client.ip().to_canonical()),
            workload: self.conn.tls.as_ref().and_then(|t| t.workload.as_ref()).map_or("", |w| &w.id),
            service: &self.service,
            endpoint: self.endpoint.as_ref().map(|e| &e.address),
            attempts: self.attempts,
            retries: &self.retries,
            bytes_in: self.into.bytes,
            bytes_out: self.out.bytes,
            duration: took,
            phases: Phases { connect: self.connect, ..Phases::default() },
            generation: self.generation,
            aborted: matches!(why, Some((Reason::ClientGone | Reason::Reset, _))),
            ..Record::default()
        });
    }
}
