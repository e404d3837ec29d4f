//! Between hyper's HTTP/1 and [`Serve`]: counts exchanges, keeps panics in, and makes responses safe to hand over.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::CONNECTION;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use onehop_filters::contract::{BodyError, Fault, Reason};

use super::Exchange;
use crate::edge::body::Incoming;
use crate::edge::serve::{Link, Serve};

/// There is no answer: hyper ends the connection.
#[derive(Debug, thiserror::Error)]
#[error("the service gave no answer")]
pub struct Broken;

/// Calls the service. `most`: requests after which the connection closes.
pub fn answer<S: Serve>(
    serve: &Arc<S>,
    request: Request<hyper::body::Incoming>,
    exchange: Exchange,
    most: Option<u64>,
) -> impl Future<Output = Result<Response<Outbound<S::Body>>, Broken>> + Send + use<S> {
    let (version, connect) = (request.version(), request.method() == Method::CONNECT);
    let request = request.map(Incoming::H1);
    let called = catch_unwind(AssertUnwindSafe(|| serve.call(request, exchange.link(), 0)));
    let mut exchange = exchange;
    async move {
        let answered = match called {
            Ok(future) => AssertUnwindSafe(future).catch_unwind().await,
            Err(panic) => Err(panic),
        };
        let link = exchange.link().clone();
        let Ok(mut response) = answered else {
            link.wire.panicked.store(true, Relaxed);
            exchange.ended();
            return Err(Broken);
        };
        link.wire.answered.store(true, Relaxed);
        link.wire.final_only.store(true, Relaxed);
        let status = response.status();
        let tunnel = status == StatusCode::SWITCHING_PROTOCOLS || connect && status.is_success();
        link.wire.tunnel.store(tunnel, Relaxed);
        if !tunnel && (link.drain() || most.is_some_and(|most| link.requests() >= most)) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            link.wire.leaving.store(true, Relaxed);
        }
        if status.is_informational() && !tunnel {
            return Err(Broken);
        }
        // hyper would take an upstream's HTTP/1.0 over, and panics at versions it does not know.
        *response.version_mut() = Version::HTTP_11;
        let cut_is_silent = version == Version::HTTP_10;
        if response.body().is_end_stream() {
            exchange.ended();
        }
        Ok(response.map(|body| Outbound { body, exchange, cut_is_silent }))
    }
}

/// Runs something of ours or of a filter's, and keeps a panic from taking the worker along.
pub fn catch<T>(link: &Link, run: impl FnOnce() -> T) -> Result<T, BodyError> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|_| {
        link.wire.panicked.store(true, Relaxed);
        Box::new(Fault::new(Reason::Internal))
    })
}

/// A response body. The exchange ends with it.
#[derive(Debug)]
pub struct Outbound<B> {
    body: B,
    exchange: Exchange,
    /// Towards HTTP/1.0 a cut body ends like a whole one, unless the connection is reset.
    cut_is_silent: bool,
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Body for Outbound<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = catch(this.exchange.link(), || Pin::new(&mut this.body).poll_frame(cx))
            .unwrap_or_else(|fault| Poll::Ready(Some(Err(fault))));
        match &polled {
            Poll::Ready(Some(Err(_))) => {
                if this.cut_is_silent {
                    this.exchange.link().reset_on_close();
                }
                this.exchange.ended();
            }
            Poll::Ready(None) => this.exchange.ended(),
            Poll::Ready(Some(Ok(_))) if this.body.is_end_stream() => this.exchange.ended(),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
