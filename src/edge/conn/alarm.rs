//! One timer a connection, moved only when it must ring earlier, or has rung.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use onehop_filters::contract::clock::recent;
use onehop_filters::contract::{Moment, now};
use tokio::time::{Instant, Sleep};

use crate::edge::drain_signal::{DrainSignal, Phase};

/// `limit` after `since`; a zero limit is never.
pub fn after(since: Moment, limit: Duration) -> Moment {
    if limit.is_zero() { Moment::MAX } else { since + limit }
}

/// The timer. Rings at or before the deadline asked for; whoever polls it looks at the clock and asks again.
#[derive(Debug, Default)]
pub struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    /// What the sleep is set to; `None` once it rang.
    due: Option<Moment>,
}

impl Alarm {
    /// Makes sure that the task is woken by `deadline`. `fresh`: the waker may have changed.
    pub fn set(&mut self, cx: &mut Context<'_>, deadline: Moment, fresh: bool) {
        if deadline == Moment::MAX || (self.due.is_some_and(|due| due <= deadline && due > recent()) && !fresh) {
            return;
        }
        let at = Instant::now() + deadline.since(now());
        let sleep = match &mut self.sleep {
            Some(sleep) => {
                sleep.as_mut().reset(at);
                sleep
            }
            None => self.sleep.insert(Box::pin(tokio::time::sleep_until(at))),
        };
        if sleep.as_mut().poll(cx).is_pending() {
            self.due = Some(deadline);
        } else {
            // The deadline passed in between: come back at once.
            self.due = None;
            cx.waker().wake_by_ref();
        }
    }
}

/// What ends a connection from outside: its deadline, and the drain.
pub struct Watch {
    drain: DrainSignal,
    phase: Phase,
    /// Registered once per change: a poll takes a lock that all connections share.
    change: Option<Pin<Box<dyn Future<Output = (DrainSignal, Phase)> + Send>>>,
    waker: Option<Waker>,
    alarm: Alarm,
    born: Moment,
    draining_since: Option<Moment>,
}

impl Watch {
    pub fn new(drain: DrainSignal) -> Self {
        let phase = drain.phase();
        let born = now();
        let draining_since = (phase >= Phase::Draining).then_some(born);
        Self { drain, phase, change: None, waker: None, alarm: Alarm::default(), born, draining_since }
    }

    pub fn born(&self) -> Moment {
        self.born
    }

    /// The phase of the drain, registering for the next one.
    pub fn phase(&mut self, cx: &mut Context<'_>) -> (Phase, bool) {
        let fresh = !self.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker()));
        if fresh {
            self.waker = Some(cx.waker().clone());
        }
        while self.phase != Phase::Kill && (fresh || self.change.is_none() || self.drain.stirred()) {
            let change = self.change.get_or_insert_with(|| {
                let mut drain = self.drain.clone();
                Box::pin(async move {
                    let phase = drain.changed().await;
                    (drain, phase)
                })
            });
            let Poll::Ready((drain, phase)) = change.as_mut().poll(cx) else { break };
            (self.drain, self.change) = (drain, None);
            self.phase = self.phase.max(phase);
            if self.draining_since.is_none() && self.phase >= Phase::Draining {
                self.draining_since = Some(now());
            }
        }
        (self.phase, fresh)
    }

    /// Rings by `deadline`.
    pub fn ring(&mut self, cx: &mut Context<'_>, deadline: Moment, fresh: bool) {
        self.alarm.set(cx, deadline, fresh);
    }

    /// For stages without HTTP state: whether it is over, and why. An idle connection also ends `grace` into a drain.
    pub fn poll_over(
        &mut self,
        cx: &mut Context<'_>,
        due: Moment,
        idle: bool,
        grace: Duration,
    ) -> Option<&'static str> {
        let (phase, fresh) = self.phase(cx);
        if phase == Phase::Kill {
            return Some("killed");
        }
        let drained = match self.draining_since {
            Some(since) if idle => since + grace,
            _ => Moment::MAX,
        };
        let now = now();
        if drained <= now {
            return Some("drain");
        }
        if due <= now {
            return Some("timeout");
        }
        self.ring(cx, due.min(drained), fresh);
        None
    }
}
