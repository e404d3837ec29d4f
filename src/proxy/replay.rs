//! A request body that can be sent again, as far as it was kept.
//!
//! The first try streams: every chunk goes on at once and a handle to it is kept (chunks are reference-counted, nothing
//! is copied). Over the limit, or over the process-wide budget, keeping stops and the retry is given up, not the request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use onehop_filters::contract::{Body, BodyError};
use parking_lot::Mutex;

/// Bytes all replay buffers of the process may hold together.
pub const PROCESS_LIMIT: usize = 64 << 20;

static HELD: AtomicUsize = AtomicUsize::new(0);

/// The owner's side: hands out one body per try.
pub struct Replay(Arc<Shared>);

struct Shared {
    /// Contended by nobody: one try reads at a time, and the owner only looks between tries.
    state: Mutex<State>,
    limit: usize,
}

struct State {
    source: Body,
    kept: Vec<Bytes>,
    held: usize,
    /// Trailers, once read; they end the body.
    trailers: Option<http::HeaderMap>,
    ended: bool,
    /// False once a chunk passed that was not kept.
    whole: bool,
}

impl Replay {
    /// Wraps a body; keeps up to `limit` bytes of it.
    #[must_use]
    pub fn new(source: Body, limit: usize) -> Self {
        let state = State { source, kept: Vec::new(), held: 0, trailers: None, ended: false, whole: true };
        Self(Arc::new(Shared { state: Mutex::new(state), limit }))
    }

    /// The body for the next try, from its first byte. Only while [`Replay::possible`].
    #[must_use]
    pub fn body(&self) -> Body {
        Body::stream(Replayed { shared: self.0.clone(), next: 0, done: false })
    }

    /// Whether another try can send the whole body.
    #[must_use]
    pub fn possible(&self) -> bool {
        self.0.state.lock().whole
    }

    /// Whether all of it is kept already, so that two tries may send it at once.
    #[must_use]
    pub fn complete(&self) -> bool {
        let state = self.0.state.lock();
        state.whole && (state.ended || state.source.is_end_stream())
    }

    /// No further try follows: stop keeping, free what was kept and already sent.
    pub fn give_up(&self) {
        self.0.state.lock().whole = false;
    }
}

impl State {
    fn keep(&mut self, chunk: &Bytes, limit: usize) {
        if !self.whole {
            return;
        }
        let n = chunk.len();
        if self.held + n > limit {
            self.whole = false;
            return;
        }
        if HELD.fetch_add(n, Relaxed) + n > PROCESS_LIMIT {
            HELD.fetch_sub(n, Relaxed);
            self.whole = false;
            return;
        }
        self.held += n;
        self.kept.push(chunk.clone());
    }
}

impl Drop for State {
    fn drop(&mut self) {
        HELD.fetch_sub(self.held, Relaxed);
    }
}

/// One try's view.
struct Replayed {
    shared: Arc<Shared>,
    next: usize,
    done: bool,
}

impl HttpBody for Replayed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.done {
            return Poll::Ready(None);
        }
        let mut state = this.shared.state.lock();
        if let Some(chunk) = state.kept.get(this.next) {
            let chunk = chunk.clone();
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if !state.ended {
            match std::task::ready!(Pin::new(&mut state.source).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => {
                        state.keep(&chunk, this.shared.limit);
                        // What was not kept shifts nothing: a later try cannot happen any more.
                        this.next = state.kept.len();
                        return Poll::Ready(Some(Ok(Frame::data(chunk))));
                    }
                    Err(frame) => {
                        state.trailers = frame.into_trailers().ok();
                        state.ended = true;
                    }
                },
                Some(Err(e)) => {
                    state.whole = false;
                    this.done = true;
                    return Poll::Ready(Some(Err(e)));
                }
                None => state.ended = true,
            }
        }
        this.done = true;
        Poll::Ready(state.trailers.clone().map(|t| Ok(Frame::trailers(t))))
    }

    fn is_end_stream(&self) -> bool {
        if self.done {
            return true;
        }
        let state = self.shared.state.lock();
        self.next >= state.kept.len() && state.trailers.is_none() && (state.ended || state.source.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if self.done {
            return SizeHint::with_exact(0);
        }
        let state = self.shared.state.lock();
        let kept: u64 = state.kept[self.next.min(state.kept.len())..].iter().map(|c| c.len() as u64).sum();
        let rest = if state.ended { SizeHint::with_exact(0) } else { state.source.size_hint() };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + kept);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + kept);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn source(chunks: &'static [&'static str]) -> Body {
        let frames = chunks.iter().map(|c| Ok::<_, BodyError>(Frame::data(Bytes::from_static(c.as_bytes()))));
        Body::stream(StreamBody::new(futures_util::stream::iter(frames)))
    }

    async fn read(body: Body) -> Bytes {
        body.collect().await.expect("no fault").to_bytes()
    }

    #[tokio::test]
    async fn second_try_sends_the_same_bytes() {
        let replay = Replay::new(source(&["ab", "cd"]), 64);
        let mut first = replay.body();
        let frame = first.frame().await.expect("a frame").expect("no fault");
        assert_eq!(frame.into_data().expect("data"), "ab");
        drop(first);
        assert!(replay.possible());
        assert_eq!(read(replay.body()).await, "abcd");
        assert_eq!(read(replay.body()).await, "abcd");
    }

    #[tokio::test]
    async fn it_is_complete_once_it_was_read_to_its_end() {
        let replay = Replay::new(source(&["ab", "cd"]), 64);
        let mut first = replay.body();
        assert!(!replay.complete());
        while first.frame().await.is_some() {}
        assert!(replay.complete());
        let (one, other) = (replay.body(), replay.body());
        assert_eq!((read(one).await, read(other).await), ("abcd".into(), "abcd".into()));
        let long = Replay::new(source(&["abcdef", "gh"]), 7);
        read(long.body()).await;
        assert!(!long.complete(), "it was not kept");
    }

    #[tokio::test]
    async fn over_the_limit_the_body_streams_on_and_the_retry_is_given_up() {
        let replay = Replay::new(source(&["abcdef", "gh"]), 7);
        assert_eq!(read(replay.body()).await, "abcdefgh");
        assert!(!replay.possible());
    }

    #[tokio::test]
    async fn held_bytes_return_to_the_process_budget() {
        let before = HELD.load(Relaxed);
        let replay = Replay::new(source(&["abcdef"]), 7);
        read(replay.body()).await;
        drop(replay);
        // Other tests hold a few bytes of their own.
        assert!(HELD.load(Relaxed) <= before + 64);
    }

    #[tokio::test]
    async fn size_hint_is_the_whole_body_for_every_try() {
        let replay = Replay::new(Body::full("hello"), 64);
        assert_eq!(replay.body().size_hint().exact(), Some(5));
        assert_eq!(read(replay.body()).await, "hello");
        assert_eq!(replay.body().size_hint().exact(), Some(5));
    }
}
