//! A request body on a stream.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, StatusCode};
use http_body::{Frame, SizeHint};

use crate::edge::body::Incoming;
use crate::edge::serve::Link;

/// See the module. Dropping it before its end tells the client so once the answer is through: RST_STREAM with NO_ERROR
/// (RFC 9113 section 8.1), or CANCEL with no answer.
#[derive(Debug)]
pub struct Upload {
    stream: RecvStream,
    /// What had arrived before anybody asked.
    first: Option<Bytes>,
    /// From `content-length`, which h2 holds the client to.
    left: Option<u64>,
    data_ended: bool,
    ended: bool,
    /// The client waits for `100 Continue` (RFC 9110 section 10.1.1).
    expects: Option<Arc<Link>>,
}

impl Upload {
    /// The body of a request that just arrived. Short ones are often there already, and are taken whole.
    pub fn incoming(mut stream: RecvStream, length: Option<u64>, expects: Option<Arc<Link>>) -> Incoming {
        if stream.is_end_stream() {
            return Incoming::Empty;
        }
        let mut first = None;
        // Whoever reads on registers anew.
        if let Poll::Ready(Some(Ok(data))) = stream.poll_data(&mut Context::from_waker(std::task::Waker::noop())) {
            let _ = stream.flow_control().release_capacity(data.len());
            if stream.is_end_stream() {
                return if data.is_empty() { Incoming::Empty } else { Incoming::Whole(data) };
            }
            first = Some(data);
        }
        let expects = expects.filter(|_| first.is_none());
        Incoming::H2(Box::new(Self { stream, first, left: length, data_ended: false, ended: false, expects }))
    }

    /// The stream's number.
    pub fn id(&self) -> u32 {
        self.stream.stream_id().as_u32()
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(link) = self.expects.take() {
            link.informational(self.id(), StatusCode::CONTINUE, HeaderMap::new());
        }
        while !self.data_ended {
            let data = match self.first.take() {
                Some(data) => data,
                None => match ready!(self.stream.poll_data(cx)) {
                    Some(Ok(data)) => {
                        // The window reopens as our reader takes data: that is the back-pressure.
                        let _ = self.stream.flow_control().release_capacity(data.len());
                        data
                    }
                    // Any reset in mid-body is a cut, NO_ERROR too: had the stream ended, h2 would say so.
                    Some(Err(e)) => {
                        self.ended = true;
                        return Poll::Ready(Some(Err(e)));
                    }
                    None => {
                        self.data_ended = true;
                        break;
                    }
                },
            };
            if !data.is_empty() {
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        self.ended = true;
        match trailers {
            Ok(trailers) => Poll::Ready(trailers.map(|fields| Ok(Frame::trailers(fields)))),
            Err(e) => Poll::Ready(Some(Err(e))),
        }
    }

    pub fn is_end_stream(&self) -> bool {
        self.ended || self.first.is_none() && self.stream.is_end_stream()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
