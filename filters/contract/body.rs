//! Message bodies. With no body filter on the route, hyper's body goes straight through.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::fault::Fault;

/// A body that ended before its end, and why.
pub type BodyError = Box<Fault>;

/// Any other body, erased. One allocation.
pub type BoxBody = Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError> + Send>>;

/// A request or response body.
#[derive(Default)]
pub enum Body {
    /// No body at all.
    #[default]
    Empty,
    /// One known chunk. `None` once it has been read.
    Full(Option<Bytes>),
    /// Anything that streams: what arrives from a peer, or a body filter's adapter around it.
    Stream(BoxBody),
}

impl Body {
    /// A body of known bytes.
    #[must_use]
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Full(Some(bytes)) }
    }

    /// Erases a streaming body.
    #[must_use]
    pub fn stream(body: impl HttpBody<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self::Stream(Box::pin(body))
    }
}

/// What came of reading a body ahead.
#[derive(Debug, Clone)]
pub enum Buffered {
    /// All of it.
    Whole(Bytes),
    /// Its beginning, at least as long as asked for; the rest still streams.
    Partial(Bytes),
}

impl Body {
    /// Reads the body ahead, up to `limit` bytes, and leaves it as it was: whoever comes later reads it from its first
    /// byte, trailers included. A body within the limit is one known chunk afterwards.
    ///
    /// # Errors
    /// The body broke off.
    pub async fn buffer(&mut self, limit: usize) -> Result<Buffered, BodyError> {
        let mut source = match std::mem::take(self) {
            Self::Empty => return Ok(Buffered::Whole(Bytes::new())),
            Self::Full(bytes) => {
                let bytes = bytes.unwrap_or_default();
                *self = Self::full(bytes.clone());
                let short = bytes.len() <= limit;
                return Ok(if short { Buffered::Whole(bytes) } else { Buffered::Partial(bytes) });
            }
            Self::Stream(source) => source,
        };
        let mut first = None;
        let mut rest = BytesMut::new();
        let mut trailers = None;
        let mut ended = false;
        while !ended && first.as_ref().map_or(0, Bytes::len) + rest.len() <= limit {
            match source.frame().await {
                None => ended = true,
                Some(frame) => match frame?.into_data() {
                    // One chunk, the common case, is not copied.
                    Ok(data) if first.is_none() => first = Some(data),
                    Ok(data) => rest.extend_from_slice(&data),
                    Err(frame) => trailers = frame.into_trailers().ok(),
                },
            }
        }
        let read = match first {
            Some(first) if rest.is_empty() => first,
            Some(first) => [&first[..], &rest[..]].concat().into(),
            None => Bytes::new(),
        };
        let whole = ended;
        *self = match (ended, &trailers) {
            (true, None) => Self::full(read.clone()),
            _ => Self::stream(Resumed { read: Some(read.clone()), source: (!ended).then_some(source), trailers }),
        };
        Ok(if whole { Buffered::Whole(read) } else { Buffered::Partial(read) })
    }
}

/// A body that was read ahead: first what was read, then what is still to come.
struct Resumed {
    read: Option<Bytes>,
    source: Option<BoxBody>,
    trailers: Option<http::HeaderMap>,
}

impl HttpBody for Resumed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(read) = self.read.take().filter(|read| !read.is_empty()) {
            return Poll::Ready(Some(Ok(Frame::data(read))));
        }
        match &mut self.source {
            Some(source) => source.as_mut().poll_frame(cx),
            None => Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.as_ref().is_none_or(Bytes::is_empty)
            && self.trailers.is_none()
            && self.source.as_ref().is_none_or(|source| source.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.as_ref().map_or(0, |read| read.len() as u64);
        let rest = self.source.as_ref().map_or_else(|| SizeHint::with_exact(0), |source| source.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(read + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(read + upper);
        }
        hint
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Full(_) => "Full",
            Self::Stream(_) => "Stream",
        })
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Stream(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http::HeaderMap;
    use http_body_util::StreamBody;

    use super::*;

    fn body(chunks: &[&'static str], trailers: bool) -> Body {
        let mut frames: Vec<_> = chunks.iter().map(|c| Ok(Frame::data(Bytes::from_static(c.as_bytes())))).collect();
        if trailers {
            let mut map = HeaderMap::new();
            map.insert("grpc-status", http::HeaderValue::from_static("0"));
            frames.push(Ok(Frame::trailers(map)));
        }
        Body::stream(StreamBody::new(stream::iter(frames)))
    }

    async fn read(body: Body) -> (Bytes, bool) {
        let all = body.collect().await.expect("whole");
        let trailers = all.trailers().is_some();
        (all.to_bytes(), trailers)
    }

    #[tokio::test]
    async fn a_short_body_is_known_and_still_there() {
        let mut it = body(&["ab", "cd"], false);
        assert!(matches!(it.buffer(4).await, Ok(Buffered::Whole(b)) if b == "abcd"));
        assert_eq!(it.size_hint().exact(), Some(4));
        assert_eq!(read(it).await, (Bytes::from_static(b"abcd"), false));
    }

    #[tokio::test]
    async fn trailers_survive() {
        let mut it = body(&["ab"], true);
        assert!(matches!(it.buffer(4).await, Ok(Buffered::Whole(b)) if b == "ab"));
        assert!(!it.is_end_stream());
        assert_eq!(read(it).await, (Bytes::from_static(b"ab"), true));
    }

    #[tokio::test]
    async fn a_long_body_streams_on_behind_its_beginning() {
        let mut it = body(&["abc", "def", "ghi"], true);
        assert!(matches!(it.buffer(4).await, Ok(Buffered::Partial(b)) if b == "abcdef"));
        assert_eq!(read(it).await, (Bytes::from_static(b"abcdefghi"), true));
    }

    #[tokio::test]
    async fn known_bodies_are_not_touched() {
        let mut it = Body::full("hello");
        assert!(matches!(it.buffer(4).await, Ok(Buffered::Partial(b)) if b == "hello"));
        assert!(matches!(it.buffer(5).await, Ok(Buffered::Whole(b)) if b == "hello"));
        assert_eq!(read(it).await.0, "hello");
        assert!(matches!(Body::Empty.buffer(0).await, Ok(Buffered::Whole(b)) if b.is_empty()));
    }
}
