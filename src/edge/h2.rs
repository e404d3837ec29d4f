//! HTTP/2: the h2 crate's server over the coalescing io, with the clocks and rates it lacks. h2 is the engine (frames,
//! HPACK, windows, the limits on memory); which streams run, how their bodies move and when the connection ends is here.

mod date;
pub(super) mod frames;
mod stream;
#[cfg(test)]
mod tests;
mod upload;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use h2::Reason as Code;
use h2::server::{Builder, Connection, Handshake};
use onehop_filters::contract::{Moment, now};

pub(super) use self::frames::PREFACE;
use self::frames::Work;
/// A tunnel to a caller: a connection with one on it is not idle.
pub type Tunnel = crate::runtime::tunnel::Tunnel<super::conn::Exchange>;
pub use self::upload::Upload;
use super::coalesce::Handle;
use super::conn::{Setup, Watch, Wire, after, linger};
use super::drain_signal::Phase;
use super::serve::{Serve, Settings};
use super::stream::Stream;

const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const FRAME: u32 = 16 * 1024;
const HEADER_TABLE: u32 = 4096;
const SEND_BUFFER: usize = 64 * 1024;
/// How long a client without streams may take to acknowledge our GOAWAY: h2 waits for it forever.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves until the connection ends.
pub async fn run<S: Serve>(io: Stream, setup: &Setup<S>, watch: &mut Watch) {
    let (settings, link) = (&setup.settings, &setup.link);
    link.wire.head_since.store(0, Relaxed);
    let handle = Handle::new(io, link.clone());
    let mut peer = Peer { stage: Stage::Greeting(builder(settings).handshake(handle.clone())), leaving: false };
    let mut clocks = Clocks::new();
    let over = poll_fn(|cx| {
        let (phase, fresh) = watch.phase(cx);
        if phase == Phase::Kill {
            return Poll::Ready(Over::Cut("killed"));
        }
        link.wire.draining.store(phase == Phase::Draining, Relaxed);
        if phase == Phase::Draining && clocks.farewell.is_none() {
            clocks.farewell = Some(now());
            peer.leave();
        }
        loop {
            let polled = peer.poll(cx, setup);
            link.wire.drop_interims();
            // Always, whatever the poll said: this is the flush that h2 was told had happened.
            let written = handle.poll_out(cx);
            if let Poll::Ready(result) = polled {
                return Poll::Ready(result.map_or_else(|e| Over::of(&e), |()| Over::Quiet));
            }
            if let Poll::Ready(Err(_)) = written {
                return Poll::Ready(Over::Ended("reset"));
            }
            match clocks.judge(&handle, &link.wire, settings) {
                Verdict::Wait(due) => {
                    watch.ring(cx, due, fresh);
                    return Poll::Pending;
                }
                Verdict::Over(over) => return Poll::Ready(over),
                // The farewell is written by another turn.
                Verdict::Leave => peer.leave(),
            }
        }
    })
    .await;
    match over {
        Over::Quiet => {
            poll_fn(|cx| {
                handle.close_now(cx);
                Poll::Ready(())
            })
            .await;
        }
        Over::Ended(why) => setup.closed(if link.wire.panicked.load(Relaxed) { "panic" } else { why }),
        Over::Broken => {
            setup.closed("protocol");
            Box::pin(say_goodbye(peer, handle, None)).await;
        }
        Over::Cut(why) => {
            handle.lock().reset_on_close();
            setup.closed(why);
        }
        Over::Flood(why) => {
            setup.closed(why);
            handle.lock().deaf = true;
            Box::pin(say_goodbye(peer, handle, Some(Code::ENHANCE_YOUR_CALM))).await;
        }
    }
}

/// The connection, from its preface on.
struct Peer {
    stage: Stage,
    /// To be said once the preface is through: a request may stand right behind it.
    leaving: bool,
}

enum Stage {
    Greeting(Handshake<Handle, Bytes>),
    Open(Connection<Handle, Bytes>),
    /// The client never said the preface.
    Stranger,
}

impl Peer {
    /// Begins the two-step GOAWAY (RFC 9113 section 6.8).
    fn leave(&mut self) {
        match &mut self.stage {
            Stage::Open(conn) => conn.graceful_shutdown(),
            Stage::Greeting(_) | Stage::Stranger => self.leaving = true,
        }
    }

    /// Moves frames, and begins the streams that arrived. Ready once all has been said.
    fn poll<S: Serve>(&mut self, cx: &mut Context<'_>, setup: &Setup<S>) -> Poll<Result<(), h2::Error>> {
        if let Stage::Greeting(greeting) = &mut self.stage {
            match ready!(Pin::new(greeting).poll(cx)) {
                Ok(conn) => self.stage = Stage::Open(conn),
                Err(e) => {
                    self.stage = Stage::Stranger;
                    return Poll::Ready(Err(e));
                }
            }
            if self.leaving {
                self.leave();
            }
        }
        let Stage::Open(conn) = &mut self.stage else { return Poll::Ready(Ok(())) };
        while let Some(accepted) = ready!(conn.poll_accept(cx)) {
            let (request, respond) = accepted?;
            stream::begin(&setup.serve, &setup.link, request, respond, setup.settings.limits.body_idle_timeout);
        }
        Poll::Ready(Ok(()))
    }
}

/// Says why, as far as the client takes it, and closes so that it arrives. With a `code` of ours; without, h2 has said it,
/// unless the client is a stranger.
async fn say_goodbye(peer: Peer, handle: Handle, code: Option<Code>) {
    match peer.stage {
        Stage::Open(mut conn) => {
            if let Some(code) = code {
                conn.abrupt_shutdown(code);
                let _ = poll_fn(|cx| conn.poll_closed(cx)).now_or_never();
            }
        }
        greeting => {
            drop(greeting);
            // GOAWAY, no stream seen (RFC 9113 section 3.4 asks for one after an invalid preface).
            let code = u32::from(code.unwrap_or(Code::PROTOCOL_ERROR)).to_be_bytes();
            let goaway = [&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &code].concat();
            handle.lock().append(&goaway);
        }
    }
    let _ = poll_fn(|cx| handle.poll_out(cx)).now_or_never();
    if let Some(io) = handle.into_io() {
        linger(io).await;
    }
}

enum Over {
    /// In good order.
    Quiet,
    /// By the client, or by an error.
    Ended(&'static str),
    /// By an error of the client's that it is told about.
    Broken,
    /// By a clock: the client takes or sends nothing.
    Cut(&'static str),
    /// By a rate.
    Flood(&'static str),
}

impl Over {
    fn of(e: &h2::Error) -> Self {
        if e.is_io() {
            Self::Ended("reset")
        } else if e.is_go_away() && e.is_remote() {
            Self::Ended("client-gone")
        } else {
            Self::Broken
        }
    }
}

enum Verdict {
    Wait(Moment),
    Leave,
    Over(Over),
}

/// The clocks of one connection. Which of them run follows from its state.
struct Clocks {
    born: Moment,
    idle_since: Option<Moment>,
    block: Option<(u64, Moment)>,
    farewell: Option<Moment>,
}

impl Clocks {
    fn new() -> Self {
        Self { born: now(), idle_since: None, block: None, farewell: None }
    }

    fn judge(&mut self, handle: &Handle, wire: &Wire, settings: &Settings) -> Verdict {
        let limits = &settings.limits;
        let now = now();
        let mut co = handle.lock();
        let work = Work {
            served: wire.served.load(Relaxed),
            premature: wire.premature.load(Relaxed),
            bytes_out: wire.bytes_out.load(Relaxed),
        };
        if let Some(why) = co.frames.judge(now, work) {
            return Verdict::Over(Over::Flood(why));
        }
        let (greeted, block, blocked_since) = (co.frames.greeted(), co.frames.open_block(), co.blocked_since);
        drop(co);
        let mut due = Moment::MAX;
        let mut rings = |at: Moment| {
            due = due.min(at);
            at <= now
        };
        if !greeted && rings(after(self.born, limits.head_timeout)) {
            return Verdict::Over(Over::Cut("preface-timeout"));
        }
        if let Some(id) = block {
            let since = self.block.filter(|open| open.0 == id).map_or(now, |open| open.1);
            self.block = Some((id, since));
            if rings(after(since, limits.head_timeout)) {
                return Verdict::Over(Over::Cut("head-timeout"));
            }
        }
        if let Some(since) = blocked_since
            && rings(after(since, limits.body_idle_timeout))
        {
            return Verdict::Over(Over::Cut("slow-reader"));
        }
        if wire.in_flight.load(Relaxed) > 0 {
            self.idle_since = None;
        } else {
            let since = *self.idle_since.get_or_insert_with(|| {
                handle.shrink();
                now
            });
            if let Some(farewell) = self.farewell {
                if rings(farewell.max(since) + FAREWELL) {
                    return Verdict::Over(Over::Quiet);
                }
            } else if greeted && rings(after(since, limits.idle_timeout)) {
                self.farewell = Some(now);
                return Verdict::Leave;
            }
        }
        if self.farewell.is_none() && limits.requests.is_some_and(|most| work.served >= most) {
            self.farewell = Some(now);
            return Verdict::Leave;
        }
        Verdict::Wait(due)
    }
}

fn builder(settings: &Settings) -> Builder {
    let limits = &settings.limits;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.streams)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .header_table_size(HEADER_TABLE)
        .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .enable_connect_protocol();
    builder
}
