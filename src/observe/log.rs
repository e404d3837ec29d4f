//! The process's own log: text on standard error, with a level that can be changed while it runs.

use std::io::IsTerminal as _;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layered, SubscriberExt as _};
use tracing_subscriber::{EnvFilter, Registry, reload};

/// What can be wrong with a log filter.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not in the form `level` or `target=level,...`.
    #[error("`{0}` is not a log filter: expected a level (error, warn, info, debug, trace) or `target=level,...`")]
    Filter(String),
    /// A log is installed already.
    #[error("the process has a log already")]
    Installed,
}

/// The filter of the log. A change can be for a time only; then the configured filter comes back by itself.
#[derive(Clone)]
pub struct Log(Arc<Inner>);

struct Inner {
    handle: reload::Handle<EnvFilter, Registry>,
    /// Contended by admin requests and reloads, all on the control thread.
    state: Mutex<State>,
}

struct State {
    /// What the configuration says.
    base: String,
    /// What was asked for instead, and until when.
    other: Option<(String, Option<SystemTime>)>,
    /// Counts changes, so that an outdated timer does nothing.
    epoch: u64,
}

/// The filter in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// The filter.
    pub filter: String,
    /// What the configuration says.
    pub configured: String,
    /// When `configured` comes back, if ever.
    pub until: Option<SystemTime>,
}

/// A subscriber that writes what passes the filter.
pub type Subscriber<W> = Layered<
    tracing_subscriber::fmt::Layer<
        Layered<reload::Layer<EnvFilter, Registry>, Registry>,
        tracing_subscriber::fmt::format::DefaultFields,
        tracing_subscriber::fmt::format::Format,
        W,
    >,
    Layered<reload::Layer<EnvFilter, Registry>, Registry>,
>;

impl Log {
    /// Makes this the log of the process.
    ///
    /// # Errors
    /// If the filter does not parse, or the process has a log.
    pub fn install(filter: &str) -> Result<Self, LogError> {
        let (log, subscriber) = Self::new(filter, std::io::stderr, std::io::stderr().is_terminal())?;
        tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Installed)?;
        Ok(log)
    }

    /// A log and the subscriber behind it, for tests and embedding programs.
    ///
    /// # Errors
    /// If the filter does not parse.
    pub fn new<W>(filter: &str, writer: W, colour: bool) -> Result<(Self, Subscriber<W>), LogError>
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        let (layer, handle) = reload::Layer::new(parse(filter)?);
        let text = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colour);
        let state = Mutex::new(State { base: filter.into(), other: None, epoch: 0 });
        Ok((Self(Arc::new(Inner { handle, state })), Registry::default().with(layer).with(text)))
    }

    /// The filter in force.
    #[must_use]
    pub fn level(&self) -> Level {
        let state = self.0.state.lock();
        let (filter, until) = state.other.clone().unwrap_or_else(|| (state.base.clone(), None));
        Level { filter, configured: state.base.clone(), until }
    }

    /// Follows the configuration. A filter set by [`Log::set`] stays in force.
    ///
    /// # Errors
    /// If the filter does not parse; then nothing changes.
    pub fn configure(&self, filter: &str) -> Result<(), LogError> {
        let parsed = parse(filter)?;
        let mut state = self.0.state.lock();
        filter.clone_into(&mut state.base);
        if state.other.is_none() {
            self.0.apply(parsed);
        }
        Ok(())
    }

    /// Puts another filter in force, for ever or for a time. The time needs a tokio runtime.
    ///
    /// # Errors
    /// If the filter does not parse; then nothing changes.
    pub fn set(&self, filter: &str, period: Option<Duration>) -> Result<(), LogError> {
        let parsed = parse(filter)?;
        let mut state = self.0.state.lock();
        state.epoch += 1;
        let until = period.and_then(|p| SystemTime::now().checked_add(p));
        state.other = Some((filter.to_owned(), until));
        self.0.apply(parsed);
        if let Some(period) = period {
            let (inner, epoch) = (Arc::downgrade(&self.0), state.epoch);
            tokio::spawn(async move {
                tokio::time::sleep(period).await;
                revert(&inner, epoch);
            });
        }
        Ok(())
    }

    /// Puts the configured filter back in force.
    pub fn reset(&self) {
        self.0.forget(&mut self.0.state.lock());
    }
}

fn revert(inner: &Weak<Inner>, epoch: u64) {
    let Some(inner) = inner.upgrade() else { return };
    let mut state = inner.state.lock();
    if state.epoch == epoch {
        inner.forget(&mut state);
    }
}

impl Inner {
    fn forget(&self, state: &mut State) {
        state.epoch += 1;
        state.other = None;
        self.apply(parse(&state.base).expect("it parsed when it was configured"));
    }

    fn apply(&self, filter: EnvFilter) {
        // Fails only when the subscriber is gone, and then nothing is logged.
        let _ = self.handle.reload(filter);
    }
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let wrong = || LogError::Filter(filter.to_owned());
    // An empty filter would silence even errors.
    if filter.trim().is_empty() {
        return Err(wrong());
    }
    // `verbose` parses as the name of a target at level trace, which nobody means.
    for directive in filter.split(',').map(str::trim) {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if !["off", "error", "warn", "info", "debug", "trace"].contains(&level.to_ascii_lowercase().as_str()) {
            return Err(wrong());
        }
    }
    EnvFilter::try_new(filter).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(filter: &str) -> (Log, impl tracing::Subscriber + Send + Sync, Lines) {
        let lines = Lines::default();
        let writer = lines.clone();
        let (log, subscriber) = Log::new(filter, move || writer.clone(), false).expect("parses");
        (log, subscriber, lines)
    }

    #[test]
    fn the_filter_decides_and_can_change() {
        let (log, subscriber, lines) = log("info");
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("quiet");
            log.set("debug", None).expect("parses");
            tracing::debug!("two");
            log.configure("warn").expect("parses");
            tracing::debug!("three");
            assert!(log.set("nonsense", None).is_err() && log.configure("").is_err());
        });
        let text = String::from_utf8(lines.0.lock().clone()).expect("UTF-8");
        assert!(!text.contains("quiet") && text.contains("two") && text.contains("three"), "{text}");
        assert_eq!(log.level(), Level { filter: "debug".into(), configured: "warn".into(), until: None });
    }

    #[tokio::test]
    async fn a_change_for_a_time_ends() {
        let (log, _subscriber, _) = log("info");
        let hour = Duration::from_secs(3600);
        log.set("trace", Some(hour)).expect("parses");
        log.set("onehop=debug,warn", Some(hour)).expect("parses");
        revert(&Arc::downgrade(&log.0), 1);
        assert_eq!(log.level().filter, "onehop=debug,warn", "the first timer is outdated");
        assert!(log.level().until.is_some());
        revert(&Arc::downgrade(&log.0), 2);
        assert_eq!(log.level(), Level { filter: "info".into(), configured: "info".into(), until: None });

        log.set("trace", Some(Duration::from_millis(1))).expect("parses");
        while log.level().filter != "info" {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
