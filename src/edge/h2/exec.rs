//! Runs the streams of a connection, one task each, and ends those whose client stopped taking data: a body is not
//! polled while the stream's window is closed, so no clock in it would ever ring.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use hyper::rt::Executor;
use onehop_filters::contract::{Moment, now};
use parking_lot::Mutex;

use crate::edge::conn::{Alarm, after};

/// When a response body last handed a frame over that nobody has come back from; 0 = it is being waited for.
#[derive(Debug, Default)]
pub struct Stall(AtomicU64);

impl Stall {
    /// The body is being polled.
    pub fn polled(&self) {
        self.0.store(0, Relaxed);
    }

    /// A frame was handed over.
    pub fn handed(&self) {
        self.0.store(now().0.max(1), Relaxed);
    }

    fn since(&self) -> Option<Moment> {
        let since = self.0.load(Relaxed);
        (since != 0).then_some(Moment(since))
    }
}

/// `hyper::rt::Executor` on the current runtime. hyper calls the service and executes its stream back to back, in one
/// poll: the service leaves the stream's [`Stall`] here, `execute` takes it.
#[derive(Clone, Debug)]
pub struct Streams {
    next: Arc<Mutex<Option<Arc<Stall>>>>,
    limit: Duration,
}

impl Streams {
    pub fn new(limit: Duration) -> Self {
        Self { next: Arc::default(), limit }
    }

    /// The watch of the stream that is executed next.
    pub fn announce(&self) -> Arc<Stall> {
        let stall = Arc::<Stall>::default();
        *self.next.lock() = Some(stall.clone());
        stall
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let (next, limit) = (self.next.lock().take(), self.limit);
        match next {
            // An upgrade's pump: its tunnel has its own clocks.
            None => drop(tokio::spawn(stream)),
            Some(stall) => drop(tokio::spawn(watched(stream, stall, limit))),
        }
    }
}

/// Dropping the stream resets it with CANCEL.
async fn watched<F: Future<Output = ()>>(stream: F, stall: Arc<Stall>, limit: Duration) {
    let mut stream = pin!(stream);
    let mut alarm = Alarm::default();
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if let Some(since) = stall.since() {
            let due = after(since, limit);
            if due <= now() {
                return Poll::Ready(());
            }
            alarm.set(cx, due, false);
        }
        Poll::Pending
    })
    .await;
}
