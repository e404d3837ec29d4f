//! A response body on a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use onehop_filters::contract::{BodyError, Fault, Reason, trailers};
use tokio::task::AbortHandle;

use super::session::Lease;

/// See the module. Dropping it before the end resets the stream with CANCEL.
pub(super) struct Incoming {
    stream: RecvStream,
    /// From `content-length`, which h2 holds the peer to.
    left: Option<u64>,
    data_ended: bool,
    /// `None` once the stream has ended.
    lease: Option<Lease>,
    /// The task that sends the rest of the request.
    upload: Option<AbortHandle>,
}

impl Incoming {
    pub const fn new(stream: RecvStream, left: Option<u64>, lease: Lease, upload: Option<AbortHandle>) -> Self {
        Self { stream, left, data_ended: false, lease: Some(lease), upload }
    }

    fn cut(&mut self) -> BodyError {
        self.lease = None;
        Box::new(Fault::new(Reason::Truncated).by("upstream"))
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.lease.is_none() {
            return Poll::Ready(None);
        }
        while !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The window reopens as our reader takes data: that is the back-pressure.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if !data.is_empty() {
                        self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                // Any reset in mid-body is a cut, NO_ERROR too: had the stream ended, h2 would say so.
                Some(Err(_)) => {
                    let cut = self.cut();
                    return Poll::Ready(Some(Err(cut)));
                }
                None => self.data_ended = true,
            }
        }
        let frame = match ready!(self.stream.poll_trailers(cx)) {
            Ok(fields) => fields.and_then(trailers::filter).map(|f| Ok(Frame::trailers(f))),
            Err(_) => Some(Err(self.cut())),
        };
        self.lease = None;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.lease.is_none() || self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            upload.abort();
        }
    }
}
