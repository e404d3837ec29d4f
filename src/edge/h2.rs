//! HTTP/2: hyper's server over the coalescing io, with the clocks and rates it lacks.

pub(super) mod exec;
pub(super) mod frames;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use onehop_filters::contract::{Moment, now};

use self::exec::Streams;
pub(super) use self::frames::PREFACE;
use self::frames::Work;
use super::coalesce::Handle;
use super::conn::{Framing, Setup, Watch, Wire, after, answer};
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
    let settings = setup.settings.clone();
    let link = setup.link.clone();
    link.wire.head_since.store(0, Relaxed);
    let handle = Handle::new(io, link.clone());
    let streams = Streams::new(settings.limits.body_idle_timeout);
    let service = {
        let (serve, link, streams) = (setup.serve.clone(), link.clone(), streams.clone());
        service_fn(move |request: Request<Incoming>| {
            let exchange = Wire::begin(&link, Framing::Length(0), false);
            answer(&serve, request, exchange, None, Some(streams.announce()))
        })
    };
    let mut conn = builder(&settings, streams).serve_connection(TokioIo::new(handle.clone()), service);
    let mut clocks = Clocks::new();
    let over = poll_fn(|cx| {
        let (phase, fresh) = watch.phase(cx);
        if phase == Phase::Kill {
            return Poll::Ready(Over::Cut("killed"));
        }
        link.wire.draining.store(phase == Phase::Draining, Relaxed);
        if phase == Phase::Draining && clocks.farewell.is_none() {
            // hyper keeps this in mind until the preface is through: a request may stand right behind it.
            clocks.farewell = Some(now());
            Pin::new(&mut conn).graceful_shutdown();
        }
        loop {
            let polled = Pin::new(&mut conn).poll(cx);
            // Always, whatever the poll said: this is the flush that h2 was told had happened.
            let written = handle.poll_out(cx);
            if let Poll::Ready(result) = polled {
                return Poll::Ready(result.map_or_else(|e| Over::Ended(word(&e)), |()| Over::Quiet));
            }
            if let Poll::Ready(Err(_)) = written {
                return Poll::Ready(Over::Ended("reset"));
            }
            match clocks.judge(&handle, &link.wire, &settings) {
                Verdict::Wait(due) => {
                    watch.ring(cx, due, fresh);
                    return Poll::Pending;
                }
                Verdict::Over(over) => return Poll::Ready(over),
                // The farewell is written by another turn.
                Verdict::Leave => Pin::new(&mut conn).graceful_shutdown(),
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
        Over::Cut(why) => {
            handle.lock().reset_on_close();
            setup.closed(why);
        }
        Over::Flood(why) => {
            handle.lock().deaf = true;
            // hyper cannot name a code: GOAWAY goes out, then the connection is gone.
            Pin::new(&mut conn).graceful_shutdown();
            poll_fn(|cx| {
                let _ = Pin::new(&mut conn).poll(cx);
                let _ = handle.poll_out(cx);
                Poll::Ready(())
            })
            .await;
            setup.closed(why);
        }
    }
}

enum Over {
    /// In good order.
    Quiet,
    /// By the client, or by an error.
    Ended(&'static str),
    /// By a clock: the client takes or sends nothing.
    Cut(&'static str),
    /// By a rate.
    Flood(&'static str),
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

fn builder(settings: &Settings, streams: Streams) -> http2::Builder<Streams> {
    let limits = &settings.limits;
    let mut builder = http2::Builder::new(streams);
    builder
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .header_table_size(HEADER_TABLE)
        .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER)
        .enable_connect_protocol();
    builder
}

fn word(error: &hyper::Error) -> &'static str {
    use std::error::Error as _;
    match error.source().and_then(|e| e.downcast_ref::<h2::Error>()) {
        Some(e) if e.is_io() => "reset",
        Some(e) if e.is_go_away() && e.is_remote() => "client-gone",
        Some(_) => "protocol",
        None => "io",
    }
}

/// Kept beside [`Streams::announce`] for the response body.
pub(super) type Stalled = Option<Arc<exec::Stall>>;
