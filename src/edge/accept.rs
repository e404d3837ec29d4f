//! From a listening socket to a connection that can take its first request.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use onehop_filters::contract::Conn;
use onehop_filters::contract::metrics::Gauge;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;

use super::accept_greet::{Arrival, NOWHERE};
use super::accept_io::{Io, Plain};
use super::guard::Place;
use super::listener_state::{ListenerState, Port, Settings};
pub use super::serve::Alpn;
use crate::runtime::{Phase, Ticket};

/// A connection, handed over.
pub struct Accepted {
    /// The socket.
    pub io: Io,
    /// In the clear: bytes that were read behind a PROXY header. They come before what the socket gives.
    pub first: Bytes,
    /// What is known of it.
    pub conn: Conn,
    /// The server name of a ClientHello that was not answered here; `first` begins with it.
    pub sni: Option<Arc<str>>,
    /// The address the client connected to: as the PROXY header says it, else the socket's own.
    pub destination: SocketAddr,
    /// What the peer speaks.
    pub alpn: Alpn,
    /// Its listener; `listener.drain` tells when to end.
    pub listener: Arc<ListenerState>,
    /// The listener's settings when it was accepted.
    pub settings: Arc<Settings>,
    /// Counts it as alive; to be dropped last.
    pub permit: Permit,
}

/// A connection's place among those its listener may have.
pub struct Permit {
    open: Gauge,
    _ticket: Ticket,
    /// Among those of its client, where they are limited.
    pub(super) place: Option<Place>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.open.add(-1);
    }
}

/// Serves connections. Called on the worker the connection belongs to, inside its runtime; must not block: it spawns.
pub trait Handler: Send + Sync + 'static {
    /// Takes a connection over.
    fn handle(&self, accepted: Accepted);
}

impl<F: Fn(Accepted) + Send + Sync + 'static> Handler for F {
    fn handle(&self, accepted: Accepted) {
        self(accepted);
    }
}

/// A listening socket on the runtime of its worker.
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// What it takes to accept for one address.
pub(super) struct Acceptance {
    pub(super) port: Arc<Port>,
    pub(super) handler: Arc<dyn Handler>,
    /// For listeners that deal connections out in turn.
    pub(super) workers: Arc<[Handle]>,
    /// Tells the port that it is still being accepted from.
    pub(super) _busy: Ticket,
}

/// After an error that is the process's and not the peer's (no descriptors, no memory) accepting rests for this long,
/// twice as long each time: trying again at once would only burn the CPU that could free some.
const REST: Duration = Duration::from_millis(5);
const LONGEST_REST: Duration = Duration::from_secs(1);

impl Acceptance {
    /// Accepts until the address closes; then takes what the kernel holds ready, so that nobody who was let in is cut off.
    pub(super) async fn run(self, socket: Socket) {
        let mut closed = pin!(self.port.open.reached(Phase::Draining));
        let mut rest = REST;
        loop {
            let next = tokio::select! {
                biased;
                () = &mut closed => break,
                next = socket.accept() => next,
            };
            match next {
                Ok(stream) => {
                    rest = REST;
                    self.contained(stream);
                }
                Err(e) if of_the_peer(&e) => {}
                Err(e) => {
                    if rest == REST {
                        let name = &self.port.listener().settings().plan.name;
                        tracing::warn!(listener = %name, error = %e, "cannot accept connections");
                    }
                    tokio::select! {
                        () = &mut closed => break,
                        () = tokio::time::sleep(rest) => {}
                    }
                    rest = (rest * 2).min(LONGEST_REST);
                }
            }
        }
        socket.empty(|stream| self.contained(stream));
    }

    /// A handler that panics costs its connection, never the worker's ear.
    fn contained(&self, stream: Stream) {
        if catch_unwind(AssertUnwindSafe(|| self.incoming(stream))).is_err() {
            tracing::error!("a connection was dropped: its handler panicked");
        }
    }

    fn incoming(&self, (io, peer): Stream) {
        let state = self.port.listener();
        let settings = state.settings();
        let counts = &settings.counts;
        let Some(ticket) = state.drain.enter_below(settings.plan.limits.connections) else {
            counts.over_limit.inc();
            return;
        };
        counts.accepted.inc();
        counts.open.add(1);
        let permit = Permit { open: counts.open.clone(), _ticket: ticket, place: None };
        // A unix socket has one acceptor for all workers.
        let in_turn = settings.plan.accept_balance || matches!(io, Plain::Unix(_));
        let arrival = Arrival { io, peer, settings, state, permit, handler: self.handler.clone() };
        if !in_turn || self.workers.len() == 1 {
            arrival.begin();
            return;
        }
        let turn = self.port.turn.fetch_add(1, Relaxed);
        // A socket is registered with one runtime's epoll; it moves as a bare descriptor.
        if let Some(moved) = arrival.unregister() {
            self.workers[turn % self.workers.len()].spawn(async move {
                if let Some(arrival) = moved.register() {
                    arrival.begin();
                }
            });
        }
    }
}

/// accept(2): errors of the connection that was to be returned, not of the socket that returns it.
fn of_the_peer(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied};
    matches!(e.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied)
}

type Stream = (Plain, SocketAddr);

impl Socket {
    async fn accept(&self) -> io::Result<Stream> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Takes what the kernel holds ready and closes. Asks the socket itself: what the runtime knows of it is as old as
    /// the runtime's last look.
    fn empty(self, mut take: impl FnMut(Stream)) {
        match self {
            Self::Tcp(s) => {
                let Ok(s) = s.into_std() else { return };
                while let Some((stream, peer)) = next(|| s.accept()) {
                    let stream = stream.set_nonblocking(true).and_then(|()| stream.try_into());
                    stream.into_iter().for_each(|stream| take((Plain::Tcp(stream), peer)));
                }
            }
            Self::Unix(s) => {
                let Ok(s) = s.into_std() else { return };
                while let Some((stream, _)) = next(|| s.accept()) {
                    let stream = stream.set_nonblocking(true).and_then(|()| stream.try_into());
                    stream.into_iter().for_each(|stream| take((Plain::Unix(stream), NOWHERE)));
                }
            }
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        match self {
            Self::Tcp(s) => s.poll_accept(cx).map_ok(|(s, peer)| (Plain::Tcp(s), peer)),
            Self::Unix(s) => s.poll_accept(cx).map_ok(|(s, _)| (Plain::Unix(s), NOWHERE)),
        }
    }
}

/// The next connection, if there is one.
fn next<T>(mut accept: impl FnMut() -> io::Result<T>) -> Option<T> {
    loop {
        match accept() {
            Ok(next) => return Some(next),
            Err(e) if of_the_peer(&e) => {}
            Err(_) => return None,
        }
    }
}
