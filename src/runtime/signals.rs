//! What the operator says by signal.

use std::io;

use tokio::signal::unix::{Signal as Source, SignalKind, signal};

/// A wish of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGUSR1: reopen log files.
    Reopen,
    /// The first SIGTERM or SIGINT: drain, then end.
    Terminate,
    /// Any further SIGTERM or SIGINT: end now.
    Kill,
}

/// Signals of this process, from now on no longer handled by the system's defaults.
pub struct Signals {
    hangup: Source,
    user1: Source,
    terminate: Source,
    interrupt: Source,
    terminating: bool,
}

impl Signals {
    /// Takes the signals over. Call it inside a runtime, before anything is served.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminating: false,
        })
    }

    /// The next one. Several of a kind that arrive together may count as one, as signals do. May be dropped unfinished.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => self.end(),
            _ = self.interrupt.recv() => self.end(),
            _ = self.hangup.recv() => Signal::Reload,
            _ = self.user1.recv() => Signal::Reopen,
        }
    }

    fn end(&mut self) -> Signal {
        if std::mem::replace(&mut self.terminating, true) { Signal::Kill } else { Signal::Terminate }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Raw, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn each_signal_has_its_meaning_and_the_second_end_is_at_once() {
        let mut signals = Signals::listen().unwrap();
        for (raw, meaning) in [
            (Raw::HUP, Signal::Reload),
            (Raw::USR1, Signal::Reopen),
            (Raw::INT, Signal::Terminate),
            (Raw::HUP, Signal::Reload),
            (Raw::TERM, Signal::Kill),
            (Raw::INT, Signal::Kill),
        ] {
            kill_process(getpid(), raw).unwrap();
            assert_eq!(signals.next().await, meaning);
        }
    }
}
