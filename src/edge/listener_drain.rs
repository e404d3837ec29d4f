//! The end of listeners and of their connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use onehop_filters::contract::{Moment, now};

use super::listener::ListenerSet;
use super::listener_state::{ListenerState, Port};
use crate::config::plan::{Capture, Lifecycle};
use crate::runtime::Phase;

/// What connections get to end in once they are told to end now.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl ListenerSet {
    /// Ends the process's service: unready, then no new connections, then waits for those that are left, then ends them.
    /// True if none had to be ended. Dropped halfway (a second signal), [`ListenerSet::kill`] ends the rest.
    pub async fn drain(&self, how: &Lifecycle) -> bool {
        self.drain.advance(Phase::Unready);
        tokio::time::sleep(how.unready).await;
        self.drain.advance(Phase::Draining);
        let until = now() + how.drain;
        let (outbound, inbound): (Vec<_>, Vec<_>) = self
            .everything()
            .into_iter()
            .partition(|l| how.outbound_until_app_exits && l.settings().plan.capture == Some(Capture::Outbound));
        let closed = self.close(|state| inbound.iter().any(|l| Arc::ptr_eq(l, state)));
        emptied(closed, until).await;
        let mut idle = true;
        // The application behind the inbound side still calls out while it finishes: outbound closes last.
        for listener in inbound.iter().chain(&outbound) {
            idle &= listener.drain.wait_idle(until).await;
        }
        emptied(self.close(|_| true), until).await;
        for listener in &outbound {
            idle &= listener.drain.wait_idle(until).await;
        }
        self.kill().await;
        idle
    }

    /// Ends everything now, but for the moment that a last write takes.
    pub async fn kill(&self) {
        self.drain.advance(Phase::Kill);
        let until = now() + LAST_WORDS;
        emptied(self.close(|_| true), until).await;
        for listener in self.everything() {
            listener.drain.advance(Phase::Kill);
            listener.drain.wait_idle(until).await;
        }
    }

    fn close(&self, which: impl Fn(&Arc<ListenerState>) -> bool) -> Vec<Arc<Port>> {
        let mut inner = self.inner.lock();
        let (closing, open): (BTreeMap<_, _>, _) =
            std::mem::take(&mut inner.live).into_iter().partition(|(_, live)| which(&live.port.listener()));
        inner.live = open;
        closing.into_values().map(|live| inner.retire(live)).collect()
    }
}

/// Waits until the kernel's queues of closed addresses are empty: a connection that was let in counts.
async fn emptied(closed: Vec<Arc<Port>>, until: Moment) {
    for port in closed {
        port.open.wait_idle(until).await;
    }
}
