//! What a connection serves its requests with, and what it tells them about itself.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use onehop_filters::contract::{BodyError, Conn, Fault};

use super::body::Incoming;
use super::conn::{self, Wire};
use super::drain_signal::DrainSignal;
use super::stream::Stream;
use crate::config::plan::{Limits, Listener};

/// What a connection serves its requests with.
pub trait Serve: Send + Sync + 'static {
    /// Response bodies. A body that ends early fails: the client must see the cut.
    type Body: http_body::Body<Data = Bytes, Error = BodyError> + Send + Unpin + 'static;
    /// The answer to come. Boxed, in effect: connections and tasks hold it, and move it about.
    type Future: Future<Output = Response<Self::Body>> + Send + Unpin + 'static;
    /// One request. Cancelled by dropping, when the client leaves. `stream` is its number on the connection, for
    /// [`Link::informational`]; 0 on HTTP/1.
    fn call(self: &Arc<Self>, request: Request<Incoming>, link: &Arc<Link>, stream: u32) -> Self::Future;

    /// A head the gate refused: the complete HTTP/1.1 answer to write, with `connection: close`. Also the place to log
    /// and count it: no request exists.
    fn reject(self: &Arc<Self>, link: &Link, fault: &Fault) -> Bytes;

    /// A connection ended other than by agreement. `why` is one static word, for metrics.
    fn closed(self: &Arc<Self>, link: &Link, why: &'static str);
}

/// The connection as its requests see it.
#[derive(Debug)]
pub struct Link {
    /// Who is connected to whom.
    pub conn: Arc<Conn>,
    pub(super) wire: Wire,
}

impl Link {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(conn: Arc<Conn>) -> Arc<Self> {
        Arc::new(Self { conn, wire: Wire::default() })
    }

    /// Sends an informational response (100, 103) ahead of the final one of this `stream`. Says false where that is
    /// impossible: to an HTTP/1.0 client (RFC 9110 section 15.2), and after the final answer. 101 is not informational
    /// in this sense. On HTTP/2 it is for the request's own future to call.
    pub fn informational(&self, stream: u32, status: StatusCode, headers: HeaderMap) -> bool {
        self.wire.informational(stream, status, headers)
    }

    /// Ends the connection with a reset instead of an orderly close, once this exchange is over: for an HTTP/1.0
    /// client a cut body would look complete.
    pub fn reset_on_close(&self) {
        self.wire.reset.store(true, Relaxed);
    }

    /// Whether the connection is draining: it closes after the exchanges in flight. On HTTP/1.1 the edge itself adds
    /// `connection: close`.
    pub fn drain(&self) -> bool {
        self.wire.draining.load(Relaxed)
    }

    /// Requests this connection has carried, the current ones included.
    pub fn requests(&self) -> u64 {
        self.wire.served.load(Relaxed)
    }

    /// Bytes received, on the plaintext side of TLS.
    pub fn bytes_in(&self) -> u64 {
        self.wire.bytes_in.load(Relaxed)
    }

    /// Bytes sent, on the plaintext side of TLS.
    pub fn bytes_out(&self) -> u64 {
        self.wire.bytes_out.load(Relaxed)
    }

    /// How often the connection gave its HTTP state back because it was idle.
    pub fn parked(&self) -> u64 {
        self.wire.parked.load(Relaxed)
    }
}

/// What holds for every connection of a listener. New ones get the current `Arc`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sizes and times. A zero duration is no limit.
    pub limits: Limits,
    /// Whether HTTP/1 is spoken.
    pub h1: bool,
    /// Whether HTTP/2 is spoken.
    pub h2: bool,
    /// How long a client that closed its sending side may still wait for the answer to begin. A FIN is all one sees of
    /// a client that left, too, so this is also how long its request runs on. Zero is no limit.
    pub half_close: Duration,
    /// Idle time after which HTTP/1 state is given back. Not below 200 ms in production: busy connections never park.
    pub park_after: Duration,
    /// How long an idle connection outlives the start of a drain, so that a request on its way is still answered.
    pub grace: Duration,
}

impl Settings {
    /// Defaults around a listener's limits.
    #[must_use]
    pub fn new(limits: Limits, h1: bool, h2: bool) -> Self {
        let half_close = Duration::from_secs(1);
        let (park_after, grace) = (Duration::from_millis(200), Duration::from_millis(500));
        Self { limits, h1, h2, half_close, park_after, grace }
    }
}

impl From<&Listener> for Settings {
    fn from(listener: &Listener) -> Self {
        Self::new(listener.limits.clone(), listener.h1, listener.h2)
    }
}

/// What the handshake agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// `http/1.1`, or TLS without ALPN.
    H1,
    /// `h2`.
    H2,
    /// Plaintext: the first bytes tell (RFC 9113 section 3.4, the preface).
    Unknown,
}

/// Serves one connection until it ends. Dropping the future cuts it.
pub fn serve<S: Serve>(
    io: Stream,
    serve: Arc<S>,
    link: Arc<Link>,
    settings: Arc<Settings>,
    first: Alpn,
    drain: DrainSignal,
) -> impl Future<Output = ()> + Send {
    conn::run(io, conn::Setup { serve, link, settings }, first, drain)
}
