//! Bodies on their way between gRPC-Web and gRPC.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as HttpBody, Frame};

use super::framing::{self, Decoder};
use crate::contract::{Body, BodyError, Fault, Reason};

/// A request of `application/grpc-web-text`, decoded. A binary one needs nothing: its frames are gRPC's own.
pub struct Inward {
    pub body: Body,
    pub decoder: Decoder,
}

impl HttpBody for Inward {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let broken =
            || Some(Err(Box::new(Fault::new(Reason::BadBody).detail("the body is not base64").by(super::NAME))));
        loop {
            let data = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                None if this.decoder.finish().is_ok() => return Poll::Ready(None),
                None => {
                    this.decoder = Decoder::default();
                    this.body = Body::Empty;
                    return Poll::Ready(broken());
                }
                Some(Err(fault)) => return Poll::Ready(Some(Err(fault))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    // The protocol has no trailers on the way in.
                    Err(_) => continue,
                },
            };
            let mut out = Vec::with_capacity(data.len() / 4 * 3 + 3);
            if this.decoder.push(&data, &mut out).is_err() {
                this.decoder = Decoder::default();
                this.body = Body::Empty;
                return Poll::Ready(broken());
            }
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.decoder.finish().is_ok()
    }
}

/// A response of gRPC with its trailers as the last frame, and in base64 if asked for.
pub struct Outward {
    pub body: Body,
    pub text: bool,
    pub ended: bool,
    /// Trailers that stood in the head: there is no other body then.
    pub trailers: Option<HeaderMap>,
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

impl Outward {
    fn piece(&self, bytes: Bytes) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let bytes = if self.text { framing::encode(&bytes).into() } else { bytes };
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

impl HttpBody for Outward {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let mut trailers = this.trailers.take();
        while trailers.is_none() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Err(fault)) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(fault)));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return this.piece(data),
                    Err(frame) => trailers = frame.into_trailers().ok(),
                },
                // A service that ends without a status has failed, whatever it sent.
                None => {
                    let mut missing = HeaderMap::new();
                    missing.insert(GRPC_STATUS, HeaderValue::from_static("2"));
                    missing.insert(GRPC_MESSAGE, HeaderValue::from_static("the service ended without a status"));
                    trailers = Some(missing);
                }
            }
        }
        this.ended = true;
        this.piece(framing::trailers(&trailers.unwrap_or_default()).into())
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
