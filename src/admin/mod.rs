//! Admin endpoints: health, metrics, what is configured and known, reload, drain, log level.
//!
//! Runs on the control thread, on a listener of its own, so that it answers whatever the data plane is up to and a
//! scrape costs no request its tail. It imports no other room: what it shows and starts comes through [`Facts`].
//!
//! Who may do what: a unix socket (mode 0600) and loopback peers may do everything; a peer from elsewhere, where the
//! operator bound a public address, may only read health and metrics. Browsers are kept out by [`guard`].

pub mod guard;
mod pages;
mod socket;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use onehop_filters::contract::mesh::Switch;
use onehop_filters::contract::metrics::Registry;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use self::guard::Peer;
use self::socket::{Listener, Stream};
use crate::config::plan::Bind;
use crate::observe::log::Log;

/// Connections at a time; further ones are closed at once.
const CONNECTIONS: usize = 128;
/// For a request head to arrive, and for the next request of a kept connection to begin.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest life of a connection: whoever reads slowly gives the place back in the end.
const CONNECTION_AGE: Duration = Duration::from_secs(300);
/// How long [`Admin::stop`] waits for answers on their way.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Size of a request head.
const HEAD: usize = 32 * 1024;

/// What the admin endpoints show and start. Every answer is free of secrets.
pub trait Facts: Send + Sync + 'static {
    /// Whether new requests are welcome, else why not.
    ///
    /// # Errors
    /// The reason, for people.
    fn ready(&self) -> Result<(), String>;
    /// Detail for `/healthz`: version, generation, uptime and the like; an object.
    fn health(&self) -> Value;
    /// Effective configuration, redacted, with its generation and hash.
    fn config(&self) -> Value;
    /// Services, their endpoints and what was learned about each.
    fn endpoints(&self) -> Value;
    /// Circuit breakers by service.
    fn breakers(&self) -> Value;
    /// Opens or closes the breaker of a service by hand; what it is then, `None` if there is no such service.
    fn switch(&self, service: &str, to: Switch) -> Option<Value>;
    /// Certificates in use: names, issuers, when they end.
    fn certs(&self) -> Value;
    /// Reads and applies the configuration anew: what was applied, or what is wrong with it.
    fn reload(&self) -> BoxFuture<'static, Result<Value, Value>>;
    /// Begins to drain; returns at once.
    fn drain(&self);
    /// All metrics.
    fn registry(&self) -> Arc<Registry>;
    /// The process's own log.
    fn log(&self) -> Log;
}

/// A running admin listener. Dropped, it stops at once.
#[derive(Debug)]
pub struct Admin {
    bound: Bind,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Admin {
    /// Binds and serves, on the current tokio runtime.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn start(bind: &Bind, facts: Arc<dyn Facts>) -> io::Result<Self> {
        let listener = Listener::bind(bind)?;
        let bound = listener.bound()?;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept(listener, facts, stopped));
        Ok(Self { bound, stop, task })
    }

    /// Where it listens: the port is the real one where 0 was asked for.
    #[must_use]
    pub const fn bound(&self) -> &Bind {
        &self.bound
    }

    /// Stops accepting and waits for the answers on their way, the one to a reload that moved the listener included.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        let _ = (&mut self.task).await;
        // Connections hold a receiver until they are done.
        let _ = tokio::time::timeout(STOP_PATIENCE, self.stop.closed()).await;
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: Listener, facts: Arc<dyn Facts>, mut stopped: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, mostly: another try at once would spin.
                    tracing::warn!(%error, "the admin listener cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            _ = stopped.changed() => return,
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (facts, stopped) = (facts.clone(), stopped.clone());
        tokio::spawn(async move {
            match stream {
                Stream::Tcp(stream) => connection(stream, peer, facts, stopped).await,
                Stream::Unix(stream) => connection(stream, peer, facts, stopped).await,
            }
            drop(place);
        });
    }
}

async fn connection<I>(io: I, peer: Peer, facts: Arc<dyn Facts>, mut stopped: watch::Receiver<bool>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let facts = facts.clone();
        async move { Ok::<_, std::convert::Infallible>(pages::answer(request, peer, &*facts).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let serve = async {
        tokio::select! {
            done = &mut connection => return done,
            _ = stopped.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    };
    // An error is the peer's: it left, or does not speak HTTP.
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_AGE, serve).await {
        tracing::debug!(%error, "admin connection");
    }
}

#[cfg(test)]
mod tests;
