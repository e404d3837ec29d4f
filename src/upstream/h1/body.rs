//! A response body still arriving. It owns the connection: drives the rest of the request, and gives the connection
//! back on the last byte.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use onehop_filters::contract::{BodyError, Fault, Reason};

use super::chunked::{Decoder, Event};
use super::exchange::Exchange;
use super::parse::Framing;
use crate::upstream::bad;

enum Rest {
    Length(u64),
    Chunked(Decoder),
    Close,
}

/// See the module.
pub(super) struct Incoming {
    /// `None` once the last byte was taken, or the body failed.
    exchange: Option<Exchange>,
    rest: Rest,
    trailers: Option<HeaderMap>,
}

impl Incoming {
    pub fn new(exchange: Exchange, framing: Framing) -> Self {
        let rest = match framing {
            Framing::Length(left) => Rest::Length(left),
            Framing::Chunked => Rest::Chunked(Decoder::new(exchange.limits.head)),
            Framing::Close => Rest::Close,
        };
        Self { exchange: Some(exchange), rest, trailers: None }
    }

    /// Takes payload that was read already.
    fn decode(&mut self, cx: &mut Context<'_>) -> Result<Option<Bytes>, Fault> {
        let Some(exchange) = &mut self.exchange else { return Ok(None) };
        let read = &mut exchange.conn.read;
        let (data, ended) = match &mut self.rest {
            Rest::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                *left -= take as u64;
                (read.split_to(take).freeze(), *left == 0)
            }
            Rest::Close => (read.split().freeze(), false),
            Rest::Chunked(decoder) => {
                let mut data = Bytes::new();
                if let Event::Data(payload) = decoder.decode(read).map_err(broken)? {
                    data = payload;
                }
                // Taken apart from its data, the end is seen as soon as it is here.
                if decoder.ended() {
                    self.trailers = decoder.trailers();
                }
                (data, decoder.ended())
            }
        };
        if ended && let Some(mut exchange) = self.exchange.take() {
            exchange.push(cx)?;
            exchange.finish();
        }
        Ok(if data.is_empty() { None } else { Some(data) })
    }

    const fn expected(&self) -> u64 {
        match &self.rest {
            Rest::Length(left) => *left,
            Rest::Chunked(decoder) => decoder.expected(),
            Rest::Close => u64::MAX,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>> {
        loop {
            if let Some(data) = self.decode(cx)? {
                return Poll::Ready(Ok(Some(data)));
            }
            let expected = self.expected();
            let Some(exchange) = &mut self.exchange else { return Poll::Ready(Ok(None)) };
            exchange.push(cx)?;
            match ready!(exchange.conn.poll_read(expected, cx)) {
                Ok(n) if n > 0 => {}
                // TLS reports an end without close_notify as an error, so a clean end is the peer's word.
                Ok(_) if matches!(self.rest, Rest::Close) => {
                    self.exchange = None;
                    return Poll::Ready(Ok(None));
                }
                _ => return Poll::Ready(Err(Fault::new(Reason::Truncated).by("upstream"))),
            }
        }
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match ready!(self.poll(cx)) {
            Ok(Some(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Ok(None) => Poll::Ready(self.trailers.take().map(|t| Ok(Frame::trailers(t)))),
            Err(fault) => {
                self.exchange = None;
                Poll::Ready(Some(Err(Box::new(fault))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.exchange.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.rest {
            Rest::Length(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }
}

fn broken(e: super::chunked::Bad) -> Fault {
    bad(e.to_string())
}
