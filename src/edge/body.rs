//! A request body as it arrives: counted, timed, and never silently short.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use onehop_filters::contract::{BodyError, Fault, Reason, trailers};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::h2::{Tunnel, Upload};

/// A request body off the wire, without limits: see [`Inbound`].
#[derive(Debug)]
pub enum Incoming {
    /// None comes.
    Empty,
    /// All of it, there already.
    Whole(Bytes),
    /// From hyper.
    H1(hyper::body::Incoming),
    /// From a stream.
    H2(Box<Upload>),
    /// The stream of an HTTP/2 CONNECT, once it has been answered with success.
    Connect(oneshot::Receiver<Tunnel>),
}

impl Incoming {
    /// Whether nothing comes any more.
    #[must_use]
    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Connect(_) => true,
            Self::Whole(_) => false,
            Self::H1(body) => body.is_end_stream(),
            Self::H2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Connect(_) => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::H1(body) => body.size_hint(),
            Self::H2(body) => body.size_hint(),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        match self {
            Self::Empty | Self::Connect(_) => Poll::Ready(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::H1(body) => Pin::new(body).poll_frame(cx).map_err(|e| fault_of(&e)),
            Self::H2(body) => body
                .poll_frame(cx)
                .map_err(|_| Fault::new(Reason::ClientGone).detail("the stream was reset").by("edge")),
        }
    }
}

/// A request body with a limit and a clock. Its failures are [`Fault`]s of the client's side.
#[derive(Debug)]
pub struct Inbound {
    incoming: Incoming,
    seen: u64,
    limit: u64,
    idle: Duration,
    /// Made when the body first keeps us waiting.
    sleep: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    over: bool,
    count: Option<Arc<AtomicU64>>,
}

impl Inbound {
    /// Wraps the body of a request. `limit`: bytes; `idle`: the longest wait between two frames, zero for no limit.
    #[must_use]
    pub fn new(incoming: Incoming, limit: Option<u64>, idle: Duration) -> Self {
        let limit = limit.unwrap_or(u64::MAX);
        Self { incoming, seen: 0, limit, idle, sleep: None, waiting: false, over: false, count: None }
    }

    /// Refuses a body whose announced length is over the limit, before it is asked for.
    ///
    /// # Errors
    /// [`Reason::BodyTooLarge`].
    pub fn check(&self) -> Result<(), Fault> {
        if self.incoming.size_hint().lower() > self.limit { Err(too_large()) } else { Ok(()) }
    }

    /// Shares the count of bytes received with whoever writes it down.
    #[must_use]
    pub fn counted(mut self, count: Arc<AtomicU64>) -> Self {
        self.count = Some(count);
        self
    }

    /// Bytes received so far.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    fn fail(&mut self, fault: Fault) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.over = true;
        Poll::Ready(Some(Err(Box::new(fault))))
    }

    /// Whether the client has kept us waiting too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.idle.is_zero() {
            return Poll::Pending;
        }
        let idle = self.idle;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        if !self.waiting {
            self.waiting = true;
            sleep.as_mut().reset(Instant::now() + idle);
        }
        sleep.as_mut().poll(cx)
    }
}

fn too_large() -> Fault {
    Fault::new(Reason::BodyTooLarge).by("edge")
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        if let Err(fault) = this.check() {
            return this.fail(fault);
        }
        loop {
            let frame = match this.incoming.poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    ready!(this.poll_idle(cx));
                    return this.fail(Fault::new(Reason::BodyTimeout).by("edge"));
                }
            };
            this.waiting = false;
            let mut frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(fault)) => return this.fail(fault),
                None => {
                    this.over = true;
                    return Poll::Ready(None);
                }
            };
            if let Some(data) = frame.data_ref() {
                // An empty frame says nothing, and peers count them.
                if data.is_empty() {
                    continue;
                }
                this.seen += data.len() as u64;
                if let Some(count) = &this.count {
                    count.fetch_add(data.len() as u64, Relaxed);
                }
                if this.seen > this.limit {
                    return this.fail(too_large());
                }
            } else if let Some(trailers) = frame.trailers_mut() {
                trailers::strip(trailers);
            }
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Whose fault a failed read is: broken framing is a bad request, anything else a client that left.
fn fault_of(error: &hyper::Error) -> Fault {
    let mut cause = error.source();
    while let Some(e) = cause {
        if let Some(io) = e.downcast_ref::<io::Error>()
            && matches!(io.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
        {
            return Fault::new(Reason::BadFraming).detail("the chunked coding is broken").by("edge");
        }
        cause = e.source();
    }
    Fault::new(Reason::ClientGone).by("edge")
}
