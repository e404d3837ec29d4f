//! One connection: which protocol it speaks, what its parts share, and the clocks that end it.

mod alarm;
mod front;
#[cfg(test)]
pub(super) mod room;
#[cfg(test)]
mod tests;
mod wire;

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(super) use self::alarm::{Alarm, Watch, after};
pub(super) use self::front::{answer, catch};
pub(super) use self::wire::{Exchange, Framing, Wire};
use super::drain_signal::DrainSignal;
use super::gate::Gate;
use super::serve::{Alpn, Link, Serve, Settings};
use super::stream::Stream;
use super::{h1, h2};

/// How much a client may still send, and for how long, after our last word: a close with unread input is a reset, and
/// a reset takes our answer away from the client (RFC 9112 section 9.6).
const LINGER: (usize, Duration) = (256 * 1024, Duration::from_secs(1));

/// What every stage of a connection needs.
pub(super) struct Setup<S> {
    pub serve: Arc<S>,
    pub link: Arc<Link>,
    pub settings: Arc<Settings>,
}

impl<S: Serve> Setup<S> {
    pub fn closed(&self, why: &'static str) {
        self.serve.closed(&self.link, why);
    }
}

/// Runs a connection to its end. Rare stages are boxed and common ones borrow: a parked connection is little more than
/// this future, and each move into a deeper one would add its size again.
pub(super) fn run<S: Serve>(
    io: Stream,
    setup: Setup<S>,
    first: Alpn,
    drain: DrainSignal,
) -> impl Future<Output = ()> + Send {
    let mut gate = Gate::new(io, setup.link.clone(), &setup.settings);
    let mut watch = Watch::new(drain);
    async move {
        let first = match first {
            Alpn::Unknown if setup.settings.h1 && setup.settings.h2 => {
                Box::pin(sniff(&mut gate, &setup, &mut watch)).await
            }
            Alpn::Unknown if setup.settings.h2 => Some(Alpn::H2),
            Alpn::Unknown => Some(Alpn::H1),
            known => Some(known),
        };
        match first {
            Some(Alpn::H2) => {
                let (io, seen) = gate.into_parts();
                Box::pin(h2::run(io.with_prefix(Bytes::from(seen)), &setup, &mut watch)).await;
            }
            Some(_) => h1::run(gate, &setup, &mut watch).await,
            None => {}
        }
    }
}

/// Reads until the bytes are, or cannot become, the HTTP/2 preface. An idle client may take the idle timeout for its
/// first byte; a preface that has begun falls under the head timeout.
async fn sniff<S: Serve>(gate: &mut Gate, setup: &Setup<S>, watch: &mut Watch) -> Option<Alpn> {
    let limits = &setup.settings.limits;
    poll_fn(|cx| {
        loop {
            let seen = gate.seen();
            let n = seen.len().min(h2::PREFACE.len());
            if n > 0 && seen[..n] != h2::PREFACE[..n] {
                return Poll::Ready(Some(Alpn::H1));
            }
            if n == h2::PREFACE.len() {
                return Poll::Ready(Some(Alpn::H2));
            }
            match gate.poll_more(cx) {
                Poll::Ready(Ok(0)) => {
                    if gate.begun().is_some() {
                        setup.closed("cut-head");
                    }
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => {
                    setup.closed("io");
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    let due = match gate.begun() {
                        Some(begun) => after(begun, limits.head_timeout),
                        None => after(watch.born(), limits.idle_timeout),
                    };
                    let over = watch.poll_over(cx, due, gate.begun().is_none(), setup.settings.grace);
                    return match over {
                        // The gate says it the HTTP/1 way: what came so far may be the start of `PRI`, or of `PUT`.
                        Some("timeout") if gate.begun().is_some() => Poll::Ready(Some(Alpn::H1)),
                        Some(why) => {
                            if why == "killed" {
                                setup.closed(why);
                            }
                            Poll::Ready(None)
                        }
                        None => Poll::Pending,
                    };
                }
            }
        }
    })
    .await
}

/// Writes the last word and closes so that it arrives.
pub(super) async fn last_word(mut io: Stream, words: &[u8]) {
    // A client that does not take its refusal in time loses it.
    let _ = tokio::time::timeout(2 * LINGER.1, async {
        if io.write_all(words).await.is_ok() && io.flush().await.is_ok() {
            linger(io).await;
        }
    })
    .await;
}

/// Half-closes, then reads and forgets a bounded amount.
pub(super) async fn linger(mut io: Stream) {
    let _ = tokio::time::timeout(LINGER.1, async {
        let mut scrap = vec![0; 8 * 1024];
        let mut left = LINGER.0;
        if io.shutdown().await.is_err() {
            return;
        }
        while left > 0 {
            match io.read(&mut scrap).await {
                Ok(0) | Err(_) => return,
                Ok(n) => left = left.saturating_sub(n),
            }
        }
    })
    .await;
}
