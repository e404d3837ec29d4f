//! The way to endpoints: pools, dialling, an HTTP/1 codec, HTTP/2 sessions.
//!
//! One [`Upstream`] per service, which outlives configs. Each worker has its own connections, so nothing is contended.

pub mod dial;
pub mod h1;
mod h2;
pub mod passthrough;
mod pool;
pub mod proxy_header;
pub mod raw;
pub mod tls;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version};
use onehop_filters::contract::mesh::Endpoint;
use onehop_filters::contract::metrics::Registry;
use onehop_filters::contract::{Body, Conn, Fault, Moment, Proof, Reason, now, worker};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tower::ServiceExt;

use crate::config::plan::{self, Protocol, SendProxy};
use dial::{Dial, Dialed, Dialer};
use pool::{Keep, Shard};
use proxy_header::Client;
use tls::{ClientTls, Offer};

pub use pool::Connections;

/// How to reach the endpoints of a service.
#[derive(Clone)]
pub struct Settings {
    /// For logs.
    pub service: Arc<str>,
    pub protocol: Protocol,
    /// `None`: in the clear.
    pub tls: Option<Arc<ClientTls>>,
    /// Host name as written in discovery: verified where the TLS section names no other.
    pub default_name: Option<ServerName<'static>>,
    /// Covers TCP, TLS and the preface.
    pub connect_timeout: Duration,
    /// Idle connections are closed after this; below the endpoint's own limit, or its close races our next request.
    pub pool_idle: Duration,
    /// Idle HTTP/1 connections kept, per endpoint and worker.
    pub max_idle_per_endpoint: usize,
    /// Bytes of a response head, and of a trailer section.
    pub head_limit: usize,
    /// How many connections, and for how long.
    pub connections: plan::Connections,
    /// What each connection begins with. Connections are then kept for one client each.
    pub proxy_protocol: Option<SendProxy>,
}

impl Settings {
    /// The defaults.
    #[must_use]
    pub fn new(service: impl Into<Arc<str>>) -> Self {
        Self {
            service: service.into(),
            protocol: Protocol::Auto,
            tls: None,
            default_name: None,
            connect_timeout: Duration::from_secs(1),
            pool_idle: Duration::from_secs(55),
            max_idle_per_endpoint: 256,
            head_limit: 32 * 1024,
            connections: plan::Connections::default(),
            proxy_protocol: None,
        }
    }

    const fn keep(&self) -> Keep {
        Keep {
            per_endpoint: self.max_idle_per_endpoint,
            idle: self.pool_idle,
            age: self.connections.max_age,
            sessions: self.connections.h2_max,
        }
    }
}

/// A request head. Borrowed, so that another try costs no clone.
pub struct Head<'a> {
    pub method: &'a Method,
    pub target: &'a PathAndQuery,
    /// Scheme, where it is sent (HTTP/2).
    pub https: bool,
    /// `host` or `:authority`, as the endpoint is to see it.
    pub host: &'a [u8],
    /// Without connection-specific fields. Framing fields in it are ignored: the body says how long it is.
    pub headers: &'a HeaderMap,
    /// Written besides, replacing fields of the same name.
    pub extra: &'a [(HeaderName, HeaderValue)],
    /// `te: trailers`.
    pub te_trailers: bool,
    /// The body waits for `100 Continue`, for a second at most.
    pub expect_continue: bool,
    /// The protocol to switch to. HTTP/1: `connection: upgrade`; HTTP/2: extended CONNECT. For a WebSocket, whichever it
    /// came in as, give `sec-websocket-key`: HTTP/2 drops it, HTTP/1 needs it.
    pub upgrade: Option<&'a HeaderValue>,
    /// gRPC needs HTTP/2 even where nothing else asks for it.
    pub grpc: bool,
    /// Who calls, for endpoints that are told by a PROXY header.
    pub client: Option<&'a Conn>,
}

/// A response.
pub struct Reply {
    /// 200 to 599, or 101 with `upgraded`.
    pub status: StatusCode,
    /// Without connection-specific fields and framing. `content-length` stays where there is no body to frame (HEAD, 304),
    /// `upgrade` on a 101. Values are slices of a read buffer: copy what is kept for long.
    pub headers: HeaderMap,
    /// Owns its connection: dropping it cancels the exchange.
    pub body: Body,
    /// The tunnel, after 101 over HTTP/1 or 200 to an extended CONNECT.
    pub upgraded: Option<Box<dyn Io>>,
    /// The connection had carried a request before.
    pub reused: bool,
    /// Time spent on connecting, zero if reused.
    pub connect: Duration,
    pub protocol: Version,
}

/// A tunnel's bytes.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Is told of interim answers (102 to 199). 100 stays here: it releases the request body.
pub type Informational<'a> = Option<&'a (dyn Fn(StatusCode, HeaderMap) + Send + Sync)>;

/// See the module.
pub struct Upstream {
    shards: Box<[Arc<Shard>]>,
}

impl Upstream {
    /// Without any connection.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let shards = (0..worker::shards()).map(|_| Arc::new(Shard::new(settings.clone()))).collect();
        Self { shards }
    }

    /// Sends one try. The body is taken once a connection exists and only if it streams; it is put back if the try fails
    /// while it is still whole. Dropping the future cancels the try, and drops a body that was taken.
    ///
    /// One repetition happens inside: a reused connection that ended before the first byte of an answer is the race
    /// between its close and our request, not a failure of the endpoint. It is repeated on a fresh connection if nothing
    /// left this host, or if the method is idempotent (RFC 9112 section 9.3.1), and the body is whole.
    ///
    /// # Errors
    /// The reason, and whether the request provably never ran.
    pub async fn send(
        &self,
        endpoint: &Arc<Endpoint>,
        head: &Head<'_>,
        body: &mut Body,
        informational: Informational<'_>,
    ) -> Result<Reply, Fault> {
        if !head.host.iter().all(|b| (0x21..0x7f).contains(b)) {
            return Err(Fault::never_ran(Reason::BadHost).by("upstream"));
        }
        let shard = &self.shards[worker::shard() % self.shards.len()];
        let settings = shard.settings();
        let way = Way::new(&settings, shard, endpoint, head.client);
        match way.version(head) {
            Speaks::H1 => way.h1(&mut None, head, body, informational).await,
            // Boxed, so that requests over HTTP/1 are not as large as the way over HTTP/2.
            Speaks::H2 => Box::pin(way.h2(Offer::H2, head, body, informational)).await,
            Speaks::Alpn => Box::pin(way.h2(Offer::Both, head, body, informational)).await,
        }
    }

    /// Takes over new settings; connections live on. A change of TLS or protocol needs a new [`Upstream`].
    pub fn adjust(&self, settings: Settings) {
        for shard in &self.shards {
            shard.adjust(settings.clone());
        }
    }

    /// An endpoint was removed: its idle connections close, those in use after what they carry.
    pub fn forget(&self, endpoint: u64) {
        for shard in &self.shards {
            shard.forget(endpoint);
        }
    }

    /// Closes connections that have been idle for too long. For the control thread, every few seconds.
    pub fn sweep(&self, at: Moment) {
        for shard in &self.shards {
            shard.sweep(at);
        }
    }

    /// Takes changed certificate and CA files into use for new handshakes; connections that stand stay. Files that cannot
    /// be used change nothing, and are told once. For the control thread, every few seconds.
    pub fn refresh_tls(&self, metrics: &Registry) {
        // Every shard has the same: settings are changed in all of them, and their TLS is shared.
        let Some(settings) = self.shards.first().map(|shard| shard.settings()) else { return };
        let Some(tls) = &settings.tls else { return };
        let service = &*settings.service;
        match tls.refresh() {
            Ok(false) => {}
            Ok(true) => tracing::info!(service, "changed TLS files are in use"),
            Err(e) => {
                tracing::error!(service, "changed TLS files cannot be used, those before stay: {e}");
                let help = "Changed certificate and CA files of a service that could not be used.";
                let name = "onehop_upstream_certificate_reload_failures_total";
                metrics.counter(name, help, &[("service", service)]).inc();
            }
        }
    }

    /// Connections by endpoint id, over all workers.
    #[must_use]
    pub fn connections(&self) -> BTreeMap<u64, Connections> {
        let mut sum = BTreeMap::new();
        for shard in &self.shards {
            shard.count(&mut sum);
        }
        sum
    }
}

/// Goes to the end of the queue of this turn.
async fn turn() {
    let mut queued = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut queued, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

enum Speaks {
    H1,
    H2,
    /// ALPN will say.
    Alpn,
}

/// One worker's way to one endpoint.
struct Way<'a> {
    settings: &'a Settings,
    shard: &'a Arc<Shard>,
    endpoint: &'a Arc<Endpoint>,
    /// What its connections are kept under: the endpoint, and the client where each has its own.
    key: u64,
    client: Option<Client>,
}

impl<'a> Way<'a> {
    fn new(settings: &'a Settings, shard: &'a Arc<Shard>, endpoint: &'a Arc<Endpoint>, conn: Option<&Conn>) -> Self {
        let way = Self { settings, shard, endpoint, key: endpoint.id, client: None };
        if settings.proxy_protocol.is_none() {
            return way;
        }
        // A call that a filter makes is nobody's: it has no connection.
        let conn = conn.filter(|conn| conn.id != 0);
        let client = conn.map(|conn| Client { source: conn.client, destination: conn.local });
        way.told(client)
    }

    /// For a client whose address the endpoint is told: its connections carry nobody else's requests.
    fn told(self, client: Option<Client>) -> Self {
        let key = client.map_or(self.endpoint.id, |client| self.endpoint.id ^ client.key());
        Self { key, client, ..self }
    }

    fn version(&self, head: &Head<'_>) -> Speaks {
        match self.settings.protocol {
            Protocol::H1 => Speaks::H1,
            Protocol::H2 => Speaks::H2,
            Protocol::Auto if head.grpc => Speaks::H2,
            // Whether an endpoint takes upgrades over HTTP/2 is known only after asking; HTTP/1 always can.
            Protocol::Auto if self.settings.tls.is_none() || head.upgrade.is_some() => Speaks::H1,
            Protocol::Auto if self.shard.spoken(self.key) == Some(false) => Speaks::H1,
            // Asked anew for every session: the endpoint may have changed.
            Protocol::Auto => Speaks::Alpn,
        }
    }

    /// On HTTP/1; `fresh` is a connection just opened for this request.
    async fn h1(
        &self,
        fresh: &mut Option<(Dialed, pool::Open, Duration)>,
        head: &Head<'_>,
        body: &mut Body,
        informational: Informational<'_>,
    ) -> Result<Reply, Fault> {
        let limits = h1::Limits { head: self.settings.head_limit, requests: self.settings.connections.max_requests };
        let streams = matches!(body, Body::Stream(_));
        let mut repeated = false;
        loop {
            let idle = if fresh.is_some() || repeated { None } else { self.shard.checkout(self.key) };
            let (conn, reused, connect) = match idle {
                Some(conn) => (conn, true, Duration::ZERO),
                None => {
                    let (dialed, open, took) = match fresh.take() {
                        Some(made) => made,
                        // Boxed: the rare way must not make every request's future as large as a TLS handshake.
                        None => Box::pin(self.dial(Offer::H1)).await?,
                    };
                    (Box::new(h1::Conn::new(dialed.wire, Arc::downgrade(self.shard), open)), false, took)
                }
            };
            if reused {
                // Requests that became ready in the same turn of the event loop are written one after the other: their
                // endpoints are woken once, not once a request. (A connection just opened waited long enough.)
                turn().await;
            }
            match h1::send(conn, head, body, informational, limits).await {
                Ok(reply) => return Ok(Reply { reused, connect, ..reply }),
                Err(failed) => {
                    let whole = !streams || matches!(body, Body::Stream(_));
                    let safe = failed.fault.proof == Proof::NeverRan || head.method.is_idempotent();
                    if !(reused && failed.silent && whole && safe) {
                        return Err(failed.fault);
                    }
                    repeated = true;
                }
            }
        }
    }

    /// On HTTP/2, or on what ALPN chooses.
    async fn h2(
        &self,
        offer: Offer,
        head: &Head<'_>,
        body: &mut Body,
        informational: Informational<'_>,
    ) -> Result<Reply, Fault> {
        let streams = matches!(body, Body::Stream(_));
        let mut moves = 0;
        loop {
            let found = match self.shard.session(self.key, false) {
                Some(session) => Found::Session(session, Duration::ZERO),
                // Boxed: the rare way must not make every request's future as large as a handshake.
                None => Box::pin(self.session(offer)).await?,
            };
            let (session, connect) = match found {
                Found::Session(session, connect) => (session, connect),
                Found::H1(mut fresh) => return Box::pin(self.h1(&mut fresh, head, body, informational)).await,
            };
            match h2::send(&session, head, body, informational).await {
                Ok(reply) => return Ok(Reply { reused: connect.is_zero(), connect, ..reply }),
                Err(failed) => {
                    let whole = !streams || matches!(body, Body::Stream(_));
                    // Every session that was open may have been told to go away; one that was just opened was not.
                    moves += 1;
                    if !failed.moved || !whole || !connect.is_zero() || moves > self.settings.connections.h2_max {
                        return Err(failed.fault);
                    }
                }
            }
        }
    }

    /// Opens a session with room. One opens at a time: who waited for it finds it.
    async fn session(&self, offer: Offer) -> Result<Found, Fault> {
        let id = self.key;
        let from = now();
        let opening = self.shard.opening(id);
        let Ok(_turn) = tokio::time::timeout(self.settings.connect_timeout, opening.lock()).await else {
            return Err(too_slow());
        };
        if let Some(session) = self.shard.session(id, false) {
            return Ok(Found::Session(session, Duration::ZERO));
        }
        if offer == Offer::Both && self.shard.spoken(id) == Some(false) {
            return Ok(Found::H1(None));
        }
        let (dialed, open, took) = match self.dial(offer).await {
            Ok(made) => made,
            // A crowded session is better than none.
            Err(fault) => {
                let crowded = self.shard.session(id, true).ok_or(fault)?;
                return Ok(Found::Session(crowded, Duration::ZERO));
            }
        };
        if self.settings.tls.is_some() {
            if offer == Offer::Both {
                self.shard.learn(id, dialed.h2);
            }
            match (dialed.h2, offer) {
                (false, Offer::Both) => return Ok(Found::H1(Some((dialed, open, took)))),
                (false, _) => {
                    return Err(Fault::never_ran(Reason::TlsFailed)
                        .detail("the endpoint does not offer HTTP/2")
                        .by("upstream"));
                }
                (true, _) => {}
            }
        }
        let begin = h2::Session::begin(dialed.wire, open, self.settings);
        let patience = self.settings.connect_timeout.saturating_sub(took);
        let session = tokio::time::timeout(patience, begin).await.unwrap_or_else(|_| Err(too_slow()))?;
        self.shard.add(id, session.clone());
        Ok(Found::Session(session, now().since(from)))
    }

    async fn dial(&self, offer: Offer) -> Result<(Dialed, pool::Open, Duration), Fault> {
        let Settings { tls, default_name, connect_timeout, .. } = self.settings;
        let dialer = Dialer { tls: tls.clone(), name: default_name.clone() };
        let from = now();
        let open = self.shard.open(self.key, self.endpoint.id);
        let preface = self.settings.proxy_protocol.map(|v| proxy_header::header(v, self.client.as_ref()));
        let preface = preface.unwrap_or_default();
        let dialing = dialer.oneshot(Dial { address: self.endpoint.address.clone(), offer, preface });
        let dialed = tokio::time::timeout(*connect_timeout, dialing).await.unwrap_or_else(|_| Err(too_slow()));
        let took = now().since(from);
        match dialed {
            Ok(dialed) => Ok((dialed, open, took)),
            Err(fault) => {
                tracing::debug!(service = %self.settings.service, endpoint = ?self.endpoint, %fault, ?took, "cannot connect");
                Err(fault)
            }
        }
    }
}

enum Found {
    Session(Arc<h2::Session>, Duration),
    /// ALPN chose HTTP/1; the connection it was asked on, if there is one.
    H1(Option<(Dialed, pool::Open, Duration)>),
}

fn too_slow() -> Fault {
    Fault::never_ran(Reason::ConnectTimeout).by("upstream")
}

/// The endpoint broke the protocol.
fn bad(detail: impl Into<std::borrow::Cow<'static, str>>) -> Fault {
    Fault::new(Reason::BadResponse).detail(detail).by("upstream")
}

/// The connection ended before the answer. TLS alerts after the handshake are how a server refuses our certificate.
fn lost(e: Option<&std::io::Error>) -> Fault {
    let Some(e) = e else { return Fault::new(Reason::Reset).by("upstream") };
    match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls @ rustls::Error::AlertReceived(_)) => {
            Fault::new(Reason::TlsFailed).detail(tls.to_string()).by("upstream")
        }
        _ => Fault::new(Reason::Reset).detail(e.kind().to_string()).by("upstream"),
    }
}
