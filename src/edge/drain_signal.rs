//! How a connection learns that it should end.

use tokio::sync::watch;

pub use crate::runtime::Phase;

/// The listening end, one clone per connection. A dropped sender counts as [`Phase::Kill`].
#[derive(Clone, Debug)]
pub struct DrainSignal(watch::Receiver<Phase>);

impl DrainSignal {
    /// A trigger and its signal.
    #[must_use]
    pub fn new() -> (watch::Sender<Phase>, Self) {
        let (trigger, signal) = watch::channel(Phase::Running);
        (trigger, Self(signal))
    }

    /// The phase right now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.0.has_changed().is_err() { Phase::Kill } else { *self.0.borrow() }
    }

    /// Whether something happened since [`Self::changed`] last resolved: one atomic load, no lock.
    #[must_use]
    pub fn stirred(&self) -> bool {
        self.0.has_changed().unwrap_or(true)
    }

    /// Waits for the next phase.
    pub async fn changed(&mut self) -> Phase {
        match self.0.changed().await {
            Ok(()) => *self.0.borrow_and_update(),
            Err(_) => Phase::Kill,
        }
    }
}

impl From<watch::Receiver<Phase>> for DrainSignal {
    fn from(signal: watch::Receiver<Phase>) -> Self {
        Self(signal)
    }
}
