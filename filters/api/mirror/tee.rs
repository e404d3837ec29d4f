//! A body that keeps what streams through it, for copies that are sent once it has ended.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::contract::{Body, BodyError};

/// What became of the body, told once.
#[derive(Debug, PartialEq, Eq)]
pub enum Kept {
    /// All of it.
    Whole(Bytes),
    /// It grew longer than the limit.
    TooLong,
    /// Nobody read it to its end.
    Unfinished,
}

/// Passes a body on unchanged. Chunks are kept by reference as they go by, up to a limit.
pub struct Tee {
    body: Body,
    limit: usize,
    chunks: Vec<Bytes>,
    length: usize,
    /// Taken when there is something to tell.
    tell: Option<Box<dyn FnOnce(Kept) + Send>>,
}

impl Tee {
    pub fn new(body: Body, limit: usize, tell: impl FnOnce(Kept) + Send + 'static) -> Self {
        Self { body, limit, chunks: Vec::new(), length: 0, tell: Some(Box::new(tell)) }
    }

    fn keep(&mut self, chunk: &Bytes) {
        self.length += chunk.len();
        if self.length > self.limit {
            self.chunks = Vec::new();
            self.tell(Kept::TooLong);
        } else if self.tell.is_some() {
            self.chunks.push(chunk.clone());
        }
    }

    fn end(&mut self) {
        let mut chunks = std::mem::take(&mut self.chunks);
        let whole = match chunks.len() {
            1 => chunks.remove(0),
            _ => chunks
                .into_iter()
                .fold(BytesMut::with_capacity(self.length), |mut all, chunk| {
                    all.extend_from_slice(&chunk);
                    all
                })
                .freeze(),
        };
        self.tell(Kept::Whole(whole));
    }

    fn tell(&mut self, kept: Kept) {
        if let Some(tell) = self.tell.take() {
            tell(kept);
        }
    }
}

impl HttpBody for Tee {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.keep(data);
                }
                // Whoever reads may look at this and never ask for a frame again.
                if self.body.is_end_stream() {
                    self.end();
                }
            }
            Some(Err(_)) => self.tell(Kept::Unfinished),
            None => self.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        self.tell(Kept::Unfinished);
    }
}
