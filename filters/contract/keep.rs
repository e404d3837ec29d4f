//! A body on its way to the caller, of which a copy is kept: for caches and for answers that are given again.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::body::{Body, BodyError};

/// What to do with the whole body, once it is there.
pub type Keep = Box<dyn FnOnce(Bytes) + Send>;

/// A body that is handed on as it comes, and kept if it ends well, within the limit and without trailers.
pub struct Kept {
    body: Body,
    copy: BytesMut,
    limit: usize,
    keep: Option<Keep>,
}

impl Kept {
    /// Wraps a body. What is known at once is kept at once and needs no wrapping.
    pub fn wrap(body: Body, limit: usize, keep: Keep) -> Body {
        match body {
            Body::Empty => {
                keep(Bytes::new());
                Body::Empty
            }
            Body::Full(Some(bytes)) if bytes.len() <= limit => {
                keep(bytes.clone());
                Body::Full(Some(bytes))
            }
            Body::Full(_) => body,
            Body::Stream(_) if body.size_hint().lower() > limit as u64 => body,
            Body::Stream(_) => Body::stream(Self { body, copy: BytesMut::new(), limit, keep: Some(keep) }),
        }
    }

    fn note(&mut self, chunk: &Bytes) {
        if self.copy.len() + chunk.len() > self.limit {
            self.give_up();
        } else if self.keep.is_some() {
            self.copy.extend_from_slice(chunk);
        }
    }

    fn end(&mut self) {
        if let Some(keep) = self.keep.take() {
            keep(std::mem::take(&mut self.copy).freeze());
        }
    }

    fn give_up(&mut self) {
        self.keep = None;
        self.copy = BytesMut::new();
    }
}

impl HttpBody for Kept {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &polled {
            None => self.end(),
            Some(Err(_)) => self.give_up(),
            Some(Ok(frame)) => match frame.data_ref() {
                Some(chunk) => {
                    self.note(chunk);
                    // Nobody has to ask again after the last byte.
                    if self.body.is_end_stream() {
                        self.end();
                    }
                }
                None => self.give_up(),
            },
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
