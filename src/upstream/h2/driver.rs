//! The task that moves a connection's frames and pings a peer that has gone quiet under load.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::Connection;
use h2::{Ping, PingPong};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use super::gather::{Gather, Handle};
use super::session::State;
use crate::upstream::pool::Open;

/// A connection with streams on it is pinged this often.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Without a pong for this long the connection is dead, and its streams with it.
const PONG_WITHIN: Duration = Duration::from_secs(20);

/// Runs until the connection has ended.
pub(super) async fn drive(
    mut connection: Connection<Gather, Bytes>,
    wire: Handle,
    state: Arc<State>,
    settled: oneshot::Sender<()>,
    open: Open,
) {
    let mut pulse = connection.ping_pong().map(|pings| Pulse::new(pings, settled));
    std::future::poll_fn(|cx| {
        let ended = Pin::new(&mut connection).poll(cx).is_ready();
        let dead = pulse.as_mut().is_some_and(|pulse| pulse.poll(cx, &state).is_ready());
        // After every poll, the last one too: what was gathered in it must go out.
        match wire.poll_drain(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            _ if ended || dead => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
    state.close();
    drop(open);
}

struct Pulse {
    pings: PingPong,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    /// Told of the first pong.
    settled: Option<oneshot::Sender<()>>,
}

impl Pulse {
    /// The first ping goes out with the preface: its pong proves that the peer's settings were read before it.
    fn new(mut pings: PingPong, settled: oneshot::Sender<()>) -> Self {
        let waiting = pings.send_ping(Ping::opaque()).is_ok();
        Self { pings, timer: Box::pin(sleep(PONG_WITHIN)), waiting, settled: Some(settled) }
    }

    /// Ready: the peer is dead.
    fn poll(&mut self, cx: &mut Context<'_>, state: &State) -> Poll<()> {
        loop {
            if self.waiting && self.pings.poll_pong(cx).is_ready() {
                self.waiting = false;
                if let Some(settled) = self.settled.take() {
                    // Nobody waits any more if the request was cancelled.
                    let _ = settled.send(());
                }
                self.timer.set(sleep(PING_EVERY));
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.waiting {
                return Poll::Ready(());
            }
            if state.streams() > 0 {
                self.waiting = self.pings.send_ping(Ping::opaque()).is_ok();
                self.timer.set(sleep(PONG_WITHIN));
            } else {
                self.timer.set(sleep(PING_EVERY));
            }
        }
    }
}
