//! One HTTP/2 connection, shared by the streams of one worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use onehop_filters::contract::{Fault, Moment, Reason, now};
use tokio::sync::oneshot;

use super::driver;
use super::gather::gather;
use crate::upstream::Settings;
use crate::upstream::dial::Wire;
use crate::upstream::pool::Open;

/// What one stream, and all of them together, may have on the way to us.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Payload of one stream that may wait inside h2 for its turn on the wire.
const SEND_BUFFER: usize = 256 * 1024;

/// See the module. Dropping the last owner closes the connection once its streams have ended.
pub(in crate::upstream) struct Session {
    send: SendRequest<Bytes>,
    state: Arc<State>,
    /// Streams at once, whatever more the peer would take: beyond that another connection serves better.
    most: usize,
}

/// What session, driver and streams share.
pub(in crate::upstream) struct State {
    streams: AtomicU32,
    closed: AtomicBool,
    /// Streams it may still carry; `None` = any number.
    left: Option<AtomicU64>,
    /// When the last stream ended ([`Moment`]).
    idle_since: AtomicU64,
}

impl State {
    pub fn close(&self) {
        self.closed.store(true, Relaxed);
    }
    pub fn streams(&self) -> u32 {
        self.streams.load(Relaxed)
    }
}

impl Session {
    /// Exchanges prefaces on a fresh connection and spawns its driver. Waits for the peer's half: then it is known to
    /// speak HTTP/2 before a request depends on it, and how many streams it takes before a burst exceeds them.
    pub async fn begin(wire: Wire, open: Open, settings: &Settings) -> Result<Arc<Self>, Fault> {
        let limits = settings.connections;
        let (io, handle) = gather(wire);
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(settings.head_limit).unwrap_or(u32::MAX))
            .max_send_buffer_size(SEND_BUFFER)
            .initial_max_send_streams(limits.h2_streams)
            .enable_push(false)
            .handshake::<_, Bytes>(io)
            .await
            .map_err(|e| Fault::never_ran(Reason::ConnectFailed).detail(e.to_string()).by("upstream"))?;
        let state = Arc::new(State {
            streams: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            left: (limits.max_requests != u64::MAX).then(|| AtomicU64::new(limits.max_requests)),
            idle_since: AtomicU64::new(now().0),
        });
        let (tell, settled) = oneshot::channel();
        tokio::spawn(driver::drive(connection, handle, state.clone(), tell, open, limits));
        settled.await.map_err(|_| {
            Fault::never_ran(Reason::ConnectFailed).detail("the endpoint does not speak HTTP/2").by("upstream")
        })?;
        Ok(Arc::new(Self { send, state, most: limits.h2_streams }))
    }

    pub fn sender(&self) -> SendRequest<Bytes> {
        self.send.clone()
    }

    /// Whether another stream can start at once.
    pub fn room(&self) -> bool {
        (self.state.streams() as usize) < self.send.current_max_send_streams().min(self.most)
    }

    pub fn streams(&self) -> u32 {
        self.state.streams()
    }

    /// Takes no new streams any more.
    pub fn closed(&self) -> bool {
        self.state.closed.load(Relaxed)
    }

    pub fn close(&self) {
        self.state.close();
    }

    pub fn idle_for(&self, at: Moment) -> Duration {
        if self.streams() > 0 { Duration::ZERO } else { at.since(Moment(self.state.idle_since.load(Relaxed))) }
    }

    /// Counts a stream until the lease is dropped.
    pub fn lease(&self) -> Lease {
        self.state.streams.fetch_add(1, Relaxed);
        if let Some(left) = &self.state.left
            && left.fetch_sub(1, Relaxed) <= 1
        {
            // This stream is its last.
            self.state.close();
        }
        Lease(self.state.clone())
    }

    /// Whether the peer takes extended CONNECT (RFC 8441 section 3).
    pub fn extended_connect(&self) -> bool {
        self.send.is_extended_connect_protocol_enabled()
    }
}

/// A stream's place on its session.
pub(in crate::upstream) struct Lease(Arc<State>);

impl Drop for Lease {
    fn drop(&mut self) {
        if self.0.streams.fetch_sub(1, Relaxed) == 1 {
            self.0.idle_since.store(now().0, Relaxed);
        }
    }
}
