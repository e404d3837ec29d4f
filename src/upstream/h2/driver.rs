//! The task that moves a connection's frames and pings a peer that has gone quiet under load.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::Connection;
use h2::{Ping, PingPong};
use onehop_filters::contract::mesh::stable_hash;
use onehop_filters::contract::now;
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use super::gather::{Gather, Handle};
use super::session::State;
use crate::config::plan::Connections;
use crate::upstream::pool::Open;

/// A timer needs some end.
const NEVER: Duration = Duration::from_secs(86_400 * 365);

/// Give or take a tenth: connections that were opened together are not replaced together.
fn spread(age: Duration) -> Duration {
    let chance = stable_hash(&[&now().0.to_be_bytes()]) >> 48;
    // From 0 to 65,535 of 65,536.
    age.mul_f64(0.9 + 0.2 * f64::from(u32::try_from(chance).unwrap_or_default()) / 65_536.0)
}

/// Runs until the connection has ended.
pub(super) async fn drive(
    mut connection: Connection<Gather, Bytes>,
    wire: Handle,
    state: Arc<State>,
    settled: oneshot::Sender<()>,
    open: Open,
    limits: Connections,
) {
    let mut pulse = connection.ping_pong().map(|pings| Pulse::new(pings, settled, limits));
    let mut age = limits.max_age.map(|age| Box::pin(sleep(spread(age))));
    std::future::poll_fn(|cx| {
        if age.as_mut().is_some_and(|age| age.as_mut().poll(cx).is_ready()) {
            // The pool lets go of it, and it ends after its streams.
            state.close();
            age = None;
        }
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
    limits: Connections,
    /// Told of the first pong.
    settled: Option<oneshot::Sender<()>>,
}

impl Pulse {
    /// The first ping goes out with the preface: its pong proves that the peer's settings were read before it.
    fn new(mut pings: PingPong, settled: oneshot::Sender<()>, limits: Connections) -> Self {
        let waiting = pings.send_ping(Ping::opaque()).is_ok();
        Self { pings, timer: Box::pin(sleep(limits.pong)), waiting, limits, settled: Some(settled) }
    }

    fn rest(&mut self) {
        self.timer.set(sleep(self.limits.ping.unwrap_or(NEVER)));
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
                self.rest();
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.waiting {
                return Poll::Ready(());
            }
            if state.streams() > 0 || self.limits.ping_idle {
                self.waiting = self.pings.send_ping(Ping::opaque()).is_ok();
                self.timer.set(sleep(self.limits.pong));
            } else {
                self.rest();
            }
        }
    }
}
