//! HTTP/1: hyper behind the gate while requests come, nothing but the socket while none do.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use http::header::HeaderName;
use http::{Request, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use onehop_filters::contract::clock::recent;
use onehop_filters::contract::{Fault, Moment, Reason, now};

use super::conn::{Exchange, Framing, Setup, Watch, Wire, after, answer, last_word, linger};
use super::drain_signal::Phase;
use super::gate::{self, Fill, Gate};
use super::serve::{Link, Serve, Settings};
use crate::runtime::purge;

/// hyper's buffer each way, unless heads may be larger.
const BUFFER: usize = 32 * 1024;
/// Field lines hyper parses without allocating.
const FIELDS: usize = 100;

/// Serves until the connection ends. Between busy spells ("parked") all that is left is the gate and this small
/// future; a head arrives whole before hyper is built, so a slow one costs its own bytes only.
pub async fn run<S: Serve>(mut gate: Box<Gate>, setup: &Setup<S>, watch: &mut Watch) {
    let mut idle_since = now();
    loop {
        let head = poll_fn(|cx| await_head(&mut gate, &setup.settings, watch, idle_since, cx)).await;
        let end = match head {
            Head::Complete => Box::pin(busy(gate, setup, watch)).await,
            Head::Refused => End::Refused(gate),
            Head::Over(why) => {
                if let Some(why) = why {
                    setup.closed(why);
                }
                return;
            }
        };
        match end {
            End::Idle(parked, since) => {
                setup.link.wire.parked.fetch_add(1, Relaxed);
                purge::parked();
                (gate, idle_since) = (parked, since);
            }
            End::Refused(gate) => return Box::pin(refuse(gate, setup)).await,
            End::Linger(gate) => return Box::pin(linger(gate.into_parts().0)).await,
            End::Over => return,
        }
    }
}

/// Says why, in one last response.
async fn refuse<S: Serve>(gate: Box<Gate>, setup: &Setup<S>) {
    let fault = setup.link.wire.take_fault().unwrap_or_else(|| Fault::new(Reason::BadRequest));
    let words = setup.serve.reject(&setup.link, &fault);
    setup.closed("refused");
    last_word(gate.into_parts().0, &words).await;
}

enum Head {
    Complete,
    Refused,
    Over(Option<&'static str>),
}

fn await_head(
    gate: &mut Gate,
    settings: &Settings,
    watch: &mut Watch,
    idle_since: Moment,
    cx: &mut Context<'_>,
) -> Poll<Head> {
    match gate.poll_head(cx) {
        Poll::Ready(Ok(Fill::Complete)) => return Poll::Ready(Head::Complete),
        Poll::Ready(Ok(Fill::Refused)) => return Poll::Ready(Head::Refused),
        Poll::Ready(Ok(Fill::Eof)) => return Poll::Ready(Head::Over(gate.begun().map(|_| "cut-head"))),
        Poll::Ready(Err(e)) => return Poll::Ready(Head::Over(Some(io_word(&e)))),
        Poll::Pending => {}
    }
    let begun = gate.begun();
    let due = match begun {
        Some(begun) => after(begun, settings.limits.head_timeout),
        None => after(idle_since, settings.limits.idle_timeout),
    };
    match watch.poll_over(cx, due, begun.is_none(), settings.grace) {
        None => Poll::Pending,
        Some("timeout") if begun.is_some() => {
            gate.refuse(Fault::new(Reason::HeadTimeout).by("gate"));
            Poll::Ready(Head::Refused)
        }
        // Idle connections end in good order, whoever tires of them.
        Some("timeout" | "drain") => Poll::Ready(Head::Over(None)),
        Some(why) => Poll::Ready(Head::Over(Some(why))),
    }
}

enum End {
    Idle(Box<Gate>, Moment),
    Refused(Box<Gate>),
    /// Answered, with input that nobody read.
    Linger(Box<Gate>),
    Over,
}

/// What a poll of the connection came to.
enum Turn {
    Idle(Moment),
    Refused,
    Done(Result<(), hyper::Error>),
    Cut(&'static str),
}

/// With hyper: from a whole head to the next quiet spell.
async fn busy<S: Serve>(gate: Box<Gate>, setup: &Setup<S>, watch: &mut Watch) -> End {
    let (link, settings) = (&setup.link, &setup.settings);
    let wire = &link.wire;
    let service = {
        let (serve, link, most) = (setup.serve.clone(), link.clone(), settings.limits.requests);
        service_fn(move |mut request: Request<Incoming>| {
            let exchange = begin(&link, &mut request);
            answer(&serve, request, exchange, most)
        })
    };
    let mut conn = builder(settings).serve_connection(TokioIo::new(gate), service).with_upgrades();
    let mut idle_since = None;
    let turn = poll_fn(|cx| {
        wire.task.register(cx.waker());
        let (phase, fresh) = watch.phase(cx);
        if phase == Phase::Kill {
            return Poll::Ready(Turn::Cut("killed"));
        }
        wire.draining.store(phase == Phase::Draining, Relaxed);
        let polled = Pin::new(&mut conn).poll(cx);
        if wire.faulted.load(Relaxed) {
            return Poll::Ready(Turn::Refused);
        }
        if let Poll::Ready(result) = polled {
            return Poll::Ready(Turn::Done(result));
        }
        let (turn, due) = judge(wire, settings, &mut idle_since);
        if let Some(turn) = turn {
            return Poll::Ready(turn);
        }
        watch.ring(cx, due, fresh);
        Poll::Pending
    })
    .await;
    // `None`: upgraded, the io has gone to whoever took the tunnel.
    let Some(parts) = conn.into_parts() else { return End::Over };
    let mut gate = parts.io.into_inner();
    match turn {
        Turn::Idle(since) => End::Idle(gate, since),
        Turn::Refused => End::Refused(gate),
        Turn::Cut("head-timeout") => {
            gate.refuse(Fault::new(Reason::HeadTimeout).by("gate"));
            End::Refused(gate)
        }
        Turn::Cut(why) => {
            gate.into_parts().0.reset_on_close();
            setup.closed(why);
            End::Over
        }
        Turn::Done(result) => {
            if let Err(e) = &result {
                setup.closed(if wire.panicked.load(Relaxed) { "panic" } else { word(e) });
            }
            if wire.reset.load(Relaxed) {
                gate.into_parts().0.reset_on_close();
                End::Over
            } else if result.is_ok() && (gate.unread() || wire.leaving.load(Relaxed)) {
                End::Linger(gate)
            } else {
                End::Over
            }
        }
    }
}

/// Which clock runs, and whether it is over.
fn judge(wire: &Wire, settings: &Settings, idle_since: &mut Option<Moment>) -> (Option<Turn>, Moment) {
    let limits = &settings.limits;
    let unflushed = wire.unflushed.load(Relaxed);
    let in_flight = wire.in_flight.load(Relaxed) > 0;
    if wire.idle.load(Relaxed) && !in_flight && !unflushed {
        let now = recent();
        let since = *idle_since.get_or_insert(now);
        let due = since + settings.park_after;
        return ((due <= now).then_some(Turn::Idle(since)), due);
    }
    *idle_since = None;
    let (due, why) = if let Some(since) = wire.blocked_since() {
        (after(since, limits.body_idle_timeout), "slow-reader")
    } else if let Some(since) = wire.head_since() {
        (after(since, limits.head_timeout), "head-timeout")
    } else if let Some(since) = wire.eof_since()
        && in_flight
        && !wire.answered.load(Relaxed)
    {
        (after(since, settings.half_close), "client-gone")
    } else {
        return (None, Moment::MAX);
    };
    ((due <= now()).then_some(Turn::Cut(why)), due)
}

/// Tells the gate how the body is framed, in hyper's judgement.
fn begin(link: &std::sync::Arc<Link>, request: &mut Request<Incoming>) -> Exchange {
    let framing = match request.body() {
        body if body.is_end_stream() => Framing::Length(0),
        body => body.size_hint().exact().map_or(Framing::Chunked, Framing::Length),
    };
    if link.wire.blanked.swap(false, Relaxed) {
        request.headers_mut().remove(HeaderName::from_static(gate::BLANK));
    }
    Wire::begin(link, framing, request.version() == Version::HTTP_11)
}

fn builder(settings: &Settings) -> http1::Builder {
    let limits = &settings.limits;
    let mut builder = http1::Builder::new();
    // The gate has every clock; half-closed clients are its business, too (`Gate::watch`).
    builder.half_close(true);
    builder.max_header_size(limits.head.max(1)).max_buf_size(limits.head.max(BUFFER)).header_read_timeout(None);
    if limits.fields > FIELDS {
        builder.max_headers(limits.fields);
    }
    builder
}

fn word(error: &hyper::Error) -> &'static str {
    if error.is_incomplete_message() {
        "client-gone"
    } else if error.is_parse() {
        "bad-request"
    } else if error.is_user() {
        "body"
    } else {
        "io"
    }
}

fn io_word(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => "reset",
        _ => "io",
    }
}
