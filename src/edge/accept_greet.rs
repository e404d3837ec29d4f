//! The time between `accept` and the first request: PROXY header and TLS handshake.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use onehop_filters::contract::{Conn, Moment, Tls, now};
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::accept::{Accepted, Alpn, Handler, Permit};
use super::accept_io::{Io, Plain, Rewind};
use super::hello::{Hello, HelloError};
use super::listener_state::{ListenerState, Settings};
use super::proxy_protocol::{Parsed, Proxied, ProxyError, parse};
use super::tls::Acceptor;
use super::tls_peer::{BadNames, workload};
use crate::config::plan::{Bind, ProxyProtocol, Tcp};
use crate::runtime::{Phase, timeout};

/// Room for a PROXY header, and for the ClientHello or request head that often comes with it.
const FIRST_READ: usize = 512;
/// Unix peers have no address. A listener that is to trust them lists 0.0.0.0/32 among its `trustedProxies`.
pub(super) const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A connection between `accept` and its handler.
pub(super) struct Arrival<S = Plain> {
    pub(super) io: S,
    pub(super) peer: SocketAddr,
    pub(super) settings: Arc<Settings>,
    pub(super) state: Arc<ListenerState>,
    pub(super) permit: Permit,
    pub(super) handler: Arc<dyn Handler>,
}

/// A socket that no runtime watches.
pub(super) enum Bare {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl<S> Arrival<S> {
    fn with<T>(self, change: impl FnOnce(S) -> io::Result<T>) -> Option<Arrival<T>> {
        let Self { io, peer, settings, state, permit, handler } = self;
        let io = change(io).ok()?;
        Some(Arrival { io, peer, settings, state, permit, handler })
    }

    fn trusted(&self) -> bool {
        let ip = self.peer.ip().to_canonical();
        self.settings.plan.trusted.iter().any(|net| net.contains(&ip))
    }
}

impl Arrival<Bare> {
    pub(super) fn register(self) -> Option<Arrival> {
        self.with(|io| match io {
            Bare::Tcp(s) => s.try_into().map(Plain::Tcp),
            Bare::Unix(s) => s.try_into().map(Plain::Unix),
        })
    }
}

/// Why a connection never got to its handler.
#[derive(Debug, thiserror::Error)]
enum Greeting {
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("the peer is none of `trustedProxies`, and only those may send a PROXY header")]
    Stranger,
    #[error("{0}")]
    Io(io::Error),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error(transparent)]
    Names(#[from] BadNames),
    #[error("the peer does not speak a protocol of this listener")]
    Protocol,
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("the client's address is not welcome, or has too many connections")]
    Unwelcome,
}

impl Arrival {
    pub(super) fn unregister(self) -> Option<Arrival<Bare>> {
        self.with(|io| match io {
            Plain::Tcp(s) => s.into_std().map(Bare::Tcp),
            Plain::Unix(s) => s.into_std().map(Bare::Unix),
        })
    }

    pub(super) fn begin(mut self) {
        if let Plain::Tcp(s) = &self.io {
            // Responses are written whole; waiting to fill a segment would only delay their ends.
            let _ = s.set_nodelay(true);
        }
        let plan = &self.settings.plan;
        let trusted = self.trusted();
        let proxied = match plan.proxy_protocol {
            ProxyProtocol::None => false,
            // Only who is trusted to name a client is asked for one: anybody else's bytes are what they are.
            ProxyProtocol::Optional => trusted,
            ProxyProtocol::Required => true,
        };
        // Behind a PROXY header comes who is meant.
        let guarded = plan.clients.is_some() || plan.limits.per_client.is_some();
        if guarded && !proxied && !matches!(self.io, Plain::Unix(_)) && !self.welcome(self.peer.ip()) {
            return;
        }
        let plan = &self.settings.plan;
        if proxied || self.settings.tls.is_some() || plan.tcp == Some(Tcp::Passthrough) {
            tokio::spawn(Box::pin(self.greet(proxied)));
            return;
        }
        self.in_the_clear(None, Bytes::new());
    }

    /// Whether this address may connect, and as often as it does; counted if not. Its place is held with the permit.
    fn welcome(&mut self, ip: IpAddr) -> bool {
        let (plan, counts) = (&self.settings.plan, &self.settings.counts);
        if plan.clients.as_ref().is_some_and(|clients| !clients.admit(ip)) {
            counts.forbidden.inc();
            return false;
        }
        let Some(limit) = plan.limits.per_client else { return true };
        self.permit.place = self.state.clients.enter(ip, limit);
        if self.permit.place.is_none() {
            counts.over_client_limit.inc();
        }
        self.permit.place.is_some()
    }

    /// PROXY header and TLS handshake, both before one deadline.
    async fn greet(mut self, proxied: bool) {
        let limit = match self.settings.plan.limits.tls_timeout {
            Duration::ZERO => Moment::MAX,
            limit => now() + limit,
        };
        let state = self.state.clone();
        let killed = state.drain.reached(Phase::Kill);
        let settings = self.settings.clone();
        let (counts, name) = (&settings.counts, &settings.plan.name);
        let peer = self.peer;
        let greeting = timeout(limit, async {
            let (client, first) = if proxied { self.header().await? } else { (None, Bytes::new()) };
            let meant = client.map_or(self.peer.ip(), |c| c.source.ip());
            if proxied && (client.is_some() || !matches!(self.io, Plain::Unix(_))) && !self.welcome(meant) {
                return Err(Greeting::Unwelcome);
            }
            match self.settings.plan.tcp {
                Some(Tcp::Passthrough) => self.overhear(client, first).await,
                _ => self.secure(client, first).await,
            }
        });
        tokio::select! {
            biased;
            done = greeting => match done {
                Ok(Ok(())) => {}
                Ok(Err(why)) => {
                    match why {
                        Greeting::Proxy(_) | Greeting::Stranger | Greeting::Io(_) => counts.proxy_failed.inc(),
                        Greeting::Tls(_) | Greeting::Names(_) | Greeting::Protocol | Greeting::Hello(_) => {
                            counts.tls_failed.inc();
                        }
                        Greeting::Unwelcome => {}
                    }
                    tracing::debug!(listener = %name, %peer, %why, "connection refused");
                }
                Err(_) => counts.timed_out.inc(),
            },
            () = killed => {}
        }
    }

    /// Reads the PROXY header, and gives what was read behind it.
    async fn header(&mut self) -> Result<(Option<Proxied>, Bytes), Greeting> {
        let required = self.settings.plan.proxy_protocol == ProxyProtocol::Required;
        // Whoever can reach the port could name any client. A socket file is guarded by its own permissions.
        if !self.trusted() && !matches!(self.io, Plain::Unix(_)) {
            return Err(Greeting::Stranger);
        }
        let mut bytes = BytesMut::with_capacity(FIRST_READ);
        loop {
            let (proxied, consumed) = match parse(&bytes)? {
                Parsed::Header { consumed, proxied } => (proxied, consumed),
                Parsed::Absent if required => return Err(ProxyError::Missing.into()),
                Parsed::Absent => (None, 0),
                Parsed::More(n) => {
                    bytes.reserve(n);
                    match self.io.read_buf(&mut bytes).await.map_err(Greeting::Io)? {
                        0 if required => return Err(ProxyError::Missing.into()),
                        0 => (None, 0),
                        _ => continue,
                    }
                }
            };
            bytes.advance(consumed);
            // An empty view would keep the buffer.
            let first = if bytes.is_empty() { Bytes::new() } else { bytes.freeze() };
            return Ok((proxied, first));
        }
    }

    /// Reads the ClientHello, which is the endpoint's to answer.
    async fn overhear(mut self, client: Option<Proxied>, first: Bytes) -> Result<(), Greeting> {
        let mut bytes = BytesMut::from(first);
        let mut hello = Hello::default();
        let mut seen = 0;
        let greeting = loop {
            if let Some(greeting) = hello.feed(&bytes[seen..])? {
                break greeting;
            }
            seen = bytes.len();
            bytes.reserve(FIRST_READ);
            if self.io.read_buf(&mut bytes).await.map_err(Greeting::Io)? == 0 {
                return Err(HelloError::Cut.into());
            }
        };
        let sni = greeting.server_name.map(Arc::from);
        let (io, arrival) = self.split();
        arrival.hand_over(io.into(), client, None, (bytes.freeze(), sni), Alpn::Unknown);
        Ok(())
    }

    /// The TLS handshake, if the listener has one.
    async fn secure(self, client: Option<Proxied>, first: Bytes) -> Result<(), Greeting> {
        let Some(acceptor) = self.settings.tls.clone() else {
            self.in_the_clear(client, first);
            return Ok(());
        };
        let (plain, arrival) = self.split();
        let stream = handshake(&acceptor, Rewind::new(first, plain)).await.map_err(Greeting::Tls)?;
        let session = stream.get_ref().1;
        let alpn = match session.alpn_protocol() {
            Some(b"h2") => Alpn::H2,
            _ if arrival.settings.plan.tcp.is_some() => Alpn::Unknown,
            // RFC 9113 section 3.2: HTTP/2 over TLS is only what ALPN agreed on.
            _ if arrival.settings.plan.h1 => Alpn::H1,
            _ => return Err(Greeting::Protocol),
        };
        let tls = Tls {
            sni: session.server_name().map(Arc::from),
            version: match session.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLSv1.3",
            },
            workload: workload(session.peer_certificates())?.map(Arc::new),
        };
        arrival.hand_over(Io::Tls(Box::new(stream)), client, Some(tls), (Bytes::new(), None), alpn);
        Ok(())
    }

    fn in_the_clear(self, client: Option<Proxied>, first: Bytes) {
        let plan = &self.settings.plan;
        let alpn = match (plan.h1, plan.h2) {
            (_, false) => Alpn::H1,
            (false, true) => Alpn::H2,
            (true, true) => Alpn::Unknown,
        };
        let (io, arrival) = self.split();
        arrival.hand_over(io.into(), client, None, (first, None), alpn);
    }

    fn split(self) -> (Plain, Arrival<()>) {
        let Self { io, peer, settings, state, permit, handler } = self;
        (io, Arrival { io: (), peer, settings, state, permit, handler })
    }
}

async fn handshake(acceptor: &Acceptor, io: Rewind) -> io::Result<TlsStream<Rewind>> {
    TlsAcceptor::from(acceptor.config().clone()).accept(io).await
}

impl Arrival<()> {
    /// `first`: bytes that were read already, and the server name among them.
    fn hand_over(
        self,
        io: Io,
        client: Option<Proxied>,
        tls: Option<Tls>,
        (first, sni): (Bytes, Option<Arc<str>>),
        alpn: Alpn,
    ) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let peer = SocketAddr::new(self.peer.ip().to_canonical(), self.peer.port());
        let conn = Conn {
            id: NEXT.fetch_add(1, Relaxed),
            listener: self.settings.plan.name.clone(),
            peer,
            local: self.state.local(&io),
            client: client.map_or(peer, |c| c.source),
            trusted: self.trusted(),
            mesh: self.settings.plan.mesh,
            tls,
        };
        let destination = client.map_or(conn.local, |c| c.destination);
        let Self { settings, state, permit, handler, .. } = self;
        handler.handle(Accepted { io, first, conn, sni, destination, alpn, listener: state, settings, permit });
    }
}

impl ListenerState {
    /// The address a peer connected to: known without asking if the socket is bound to one.
    fn local(&self, io: &Io) -> SocketAddr {
        let tcp = match io {
            Io::Tcp(s) => s,
            Io::Tls(s) => match s.get_ref().0.socket() {
                Plain::Tcp(s) => s,
                Plain::Unix(_) => return NOWHERE,
            },
            Io::Unix(_) => return NOWHERE,
        };
        match &self.address {
            Bind::Tcp(bound) if !bound.ip().is_unspecified() => *bound,
            _ => tcp.local_addr().map_or(NOWHERE, |a| SocketAddr::new(a.ip().to_canonical(), a.port())),
        }
    }
}
