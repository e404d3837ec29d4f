//! How the process ends: phases that only go forward, and a count of what is still alive.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use onehop_filters::contract::Moment;
use tokio::sync::{Notify, watch};

use super::wheel::timeout;

/// How far the end has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    #[default]
    Running,
    /// `/readyz` says no, so that balancers look elsewhere; everything is served as before.
    Unready,
    /// No new connections; each connection ends after what it has begun (`connection: close`, GOAWAY).
    Draining,
    /// Everything ends now.
    Kill,
}

/// A place that ends in an orderly way: the whole process, or one listener.
pub struct Drain {
    phase: watch::Sender<Phase>,
    live: AtomicUsize,
    idle: Notify,
}

impl Default for Drain {
    fn default() -> Self {
        Self { phase: watch::Sender::new(Phase::Running), live: AtomicUsize::new(0), idle: Notify::new() }
    }
}

impl Drain {
    /// A running one.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// How far it has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Follows the phase.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Goes on to a phase; never back.
    pub fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let forward = to > *phase;
            if forward {
                *phase = to;
            }
            forward
        });
    }

    /// Completes once the phase is reached.
    pub async fn reached(&self, phase: Phase) {
        // The sender is in `self`, so the channel cannot close meanwhile.
        let _ = self.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Counts something as alive until the ticket is dropped.
    pub fn enter(self: &Arc<Self>) -> Ticket {
        self.enter_counted().1
    }

    /// The same, unless `limit` are alive.
    #[must_use]
    pub fn enter_below(self: &Arc<Self>, limit: usize) -> Option<Ticket> {
        let ticket = self.enter_counted();
        (ticket.0 < limit).then_some(ticket.1)
    }

    /// How many were alive before, and the ticket.
    fn enter_counted(self: &Arc<Self>) -> (usize, Ticket) {
        (self.live.fetch_add(1, SeqCst), Ticket(self.clone()))
    }

    /// How much is alive.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.load(SeqCst)
    }

    /// Waits until nothing is alive; false if `until` came first.
    pub async fn wait_idle(&self, until: Moment) -> bool {
        let idle = async {
            loop {
                // Registered before the count is read, or the last ticket could leave unheard in between.
                let mut left = std::pin::pin!(self.idle.notified());
                left.as_mut().enable();
                if self.live() == 0 {
                    return;
                }
                left.await;
            }
        };
        timeout(until, idle).await.is_ok()
    }
}

/// See [`Drain::enter`].
#[must_use]
pub struct Ticket(Arc<Drain>);

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.0.live.fetch_sub(1, SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use onehop_filters::contract::now;

    use super::*;

    #[tokio::test]
    async fn phases_only_go_forward() {
        let drain = Drain::new();
        let mut seen = drain.subscribe();
        drain.advance(Phase::Draining);
        drain.advance(Phase::Unready);
        assert_eq!(drain.phase(), Phase::Draining);
        seen.changed().await.unwrap();
        assert_eq!(*seen.borrow_and_update(), Phase::Draining);
        assert!(!seen.has_changed().unwrap(), "going back is no news");
        drain.reached(Phase::Unready).await;
    }

    #[tokio::test]
    async fn idle_is_when_the_last_ticket_is_gone() {
        let drain = Drain::new();
        assert!(drain.wait_idle(now()).await, "nothing was ever alive");
        let (one, two) = (drain.enter(), drain.enter());
        assert_eq!(drain.live(), 2);
        assert!(!drain.wait_idle(now() + Duration::from_millis(5)).await);
        drop(one);
        let waiting = {
            let drain = drain.clone();
            tokio::spawn(async move { drain.wait_idle(Moment::MAX).await })
        };
        tokio::task::yield_now().await;
        drop(two);
        assert!(waiting.await.unwrap());
    }
}
