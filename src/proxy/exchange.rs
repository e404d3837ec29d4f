//! One request and its answer, from the first filter to the last byte.
//!
//! A request ends when its *body* ends: the response body owns the [`Exchange`], so permits, counters, the log line and
//! the span are released or written at end of stream, error or drop. A client that left is an outcome, not silence.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use onehop_filters::contract::mesh::Endpoint;
use onehop_filters::contract::{Body, BodyError, Fault, Moment, Reason, RequestCx, now};

use smallvec::SmallVec;

use super::attempt::Admission;
use super::ledger;
use crate::runtime::wheel::{Deadline, deadline};
use crate::snapshot::cell::View;
use crate::snapshot::incoming::UnderWay;

/// Everything one request owns. Boxed once.
pub struct Exchange {
    /// The request as filters see it.
    pub cx: RequestCx,
    /// What the caller asked for, before any filter rewrote it. Logs and spans name its path; never its query, from
    /// which a filter may have taken a credential.
    pub asked: PathAndQuery,
    /// The snapshot it runs under.
    pub view: Arc<View>,
    /// Its route, a position in the snapshot; `None` = no route matched.
    pub route: Option<u32>,
    /// What the endpoint is told besides the request's own fields.
    pub fields: Told,
    /// What happened.
    pub tally: Tally,
    /// Its place at the gates, while an answer streams.
    pub admission: Option<Admission>,
}

/// An exchange that has no answer yet. Dropped as such it is over all the same: the client left, and the ledger says so.
pub struct Unanswered(Option<Box<Exchange>>);

impl Unanswered {
    /// Boxes it, once.
    #[must_use]
    pub fn new(exchange: Exchange) -> Self {
        Self(Some(Box::new(exchange)))
    }

    /// There is an answer: its body ends the exchange.
    #[must_use]
    pub fn answered(&mut self) -> Box<Exchange> {
        self.0.take().expect(Self::HELD)
    }

    const HELD: &str = "an exchange is held until it is answered";
}

impl Deref for Unanswered {
    type Target = Exchange;

    fn deref(&self) -> &Exchange {
        self.0.as_ref().expect(Self::HELD)
    }
}

impl DerefMut for Unanswered {
    fn deref_mut(&mut self) -> &mut Exchange {
        self.0.as_mut().expect(Self::HELD)
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let Some(mut exchange) = self.0.take() else { return };
        // Nobody sent a hypothetical request.
        if !exchange.cx.dry_run {
            exchange.tally.status = Reason::ClientGone.status();
            exchange.tally.unanswered = true;
            ledger::close(exchange, End::Aborted);
        }
    }
}

/// Fields for the endpoint, written behind the request's own and instead of those of the same name.
pub struct Told {
    /// First those of every try (forwarding, request id), then those of the current one.
    pub own: SmallVec<[(HeaderName, HeaderValue); 6]>,
    /// How many are those of every try.
    pub common: usize,
}

/// What happened, for the log, the metrics and the span.
#[derive(Default)]
pub struct Tally {
    /// Status sent.
    pub status: StatusCode,
    /// None was: the client left before.
    pub unanswered: bool,
    /// Why we answered ourselves, and which filter or room decided.
    pub refused: Option<(Reason, &'static str)>,
    /// Tries made.
    pub attempts: u32,
    /// Position of the service called last.
    pub target: Option<usize>,
    /// Endpoint of the last try.
    pub endpoint: Option<Arc<Endpoint>>,
    /// When the filters were through.
    pub chain_done: Moment,
    /// Time spent connecting, over all tries.
    pub connect: Duration,
    /// When the last try's head arrived.
    pub head: Moment,
    /// Time from the first try to the answer's head.
    pub upstream: Duration,
    /// Bytes of request body that went through, shared with the body itself.
    pub bytes_in: Option<Arc<std::sync::atomic::AtomicU64>>,
    /// Bytes of response body handed to the client's connection.
    pub bytes_out: u64,
    /// `grpc-status` of the answer.
    pub grpc: Option<u32>,
    /// Whether a trusted caller asked for the trail.
    pub debug: bool,
    /// Why each further try was made, and in the end why none was.
    pub retries: SmallVec<[&'static str; 3]>,
    /// Its place among the calls under way; left when the request is over.
    pub under_way: Option<UnderWay>,
    /// One entry per try, only kept when the request is traced.
    pub tries: Vec<Try>,
}

/// One try, for the trace.
pub struct Try {
    /// Its span id.
    pub span: u64,
    /// When it began.
    pub started: Moment,
    /// When its head arrived or it failed.
    pub ended: Moment,
    /// Where it went.
    pub endpoint: Arc<Endpoint>,
    /// What came of it.
    pub result: Result<StatusCode, Reason>,
}

/// How a response body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The last byte was handed to the client's connection.
    Complete,
    /// The upstream, a limit or a filter cut it.
    Cut(Reason),
    /// Nobody wanted the rest.
    Aborted,
}

/// The response body as it goes to the client.
pub struct Outgoing {
    body: Body,
    exchange: Option<Box<Exchange>>,
    clock: Clock,
}

/// Limits of a response under way, armed only when the body makes its reader wait.
struct Clock {
    idle: Option<Duration>,
    total: Moment,
    progress: Moment,
    timer: Option<Deadline>,
}

impl Outgoing {
    /// A body that ends the exchange when it ends. `stream`: bound by idle time only, not by the request's deadline.
    #[must_use]
    pub fn new(body: Body, exchange: Box<Exchange>, idle: Option<Duration>, stream: bool) -> Self {
        let total = if stream { Moment::MAX } else { exchange.cx.deadline };
        let mut out =
            Self { body, exchange: Some(exchange), clock: Clock { idle, total, progress: Moment::ZERO, timer: None } };
        if out.body.is_end_stream() {
            out.finish(End::Complete);
        }
        out
    }

    /// A body that belongs to no exchange: an answer to a head that never became a request.
    #[must_use]
    pub const fn bare(body: Body) -> Self {
        let clock = Clock { idle: None, total: Moment::MAX, progress: Moment::ZERO, timer: None };
        Self { body, exchange: None, clock }
    }

    fn finish(&mut self, end: End) {
        if let Some(exchange) = self.exchange.take() {
            ledger::close(exchange, end);
        }
    }

    /// Fails the body once it has stood still too long or the deadline has passed.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let clock = &mut self.clock;
        loop {
            if let Some(timer) = &mut clock.timer {
                std::task::ready!(Pin::new(timer).poll(cx));
                clock.timer = None;
                let now = now();
                if now >= clock.total {
                    return Poll::Ready(Reason::Deadline);
                }
                // Zero: bytes moved since the timer was set, so the wait is newer than it.
                let waiting = clock.progress != Moment::ZERO;
                if waiting && clock.idle.is_some_and(|idle| now >= clock.progress + idle) {
                    return Poll::Ready(Reason::IdleTimeout);
                }
            }
            // Progress is stamped when the wait begins, so a stream that flows never reads the clock per frame.
            if clock.progress == Moment::ZERO {
                clock.progress = now();
            }
            let next = clock.idle.map_or(clock.total, |idle| clock.total.min(clock.progress + idle));
            if next == Moment::MAX {
                return Poll::Pending;
            }
            clock.timer = Some(deadline(next));
        }
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.clock.progress = Moment::ZERO;
                    if let Some(ex) = &mut this.exchange {
                        if let Some(data) = frame.data_ref() {
                            // An empty DATA frame counts against the peer's patience (hyper and h2 pass it through).
                            if data.is_empty() && !this.body.is_end_stream() {
                                continue;
                            }
                            ex.tally.bytes_out += data.len() as u64;
                        } else if let Some(trailers) = frame.trailers_ref() {
                            ex.tally.grpc = ledger::grpc_status(trailers).or(ex.tally.grpc);
                        }
                    }
                    if this.body.is_end_stream() {
                        this.finish(End::Complete);
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Poll::Ready(None) => {
                    this.finish(End::Complete);
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(fault))) => {
                    this.finish(End::Cut(fault.reason));
                    this.body = Body::Empty;
                    return Poll::Ready(Some(Err(fault)));
                }
                Poll::Pending => {
                    let reason = std::task::ready!(this.poll_limits(cx));
                    this.finish(End::Cut(reason));
                    this.body = Body::Empty;
                    return Poll::Ready(Some(Err(Box::new(Fault::new(reason)))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.finish(End::Aborted);
    }
}
