//! One listener: its settings of now, its certificates, its counts.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arc_swap::ArcSwap;
use onehop_filters::contract::ConfigError;
use onehop_filters::contract::metrics::{Counter, Gauge, Registry};
use parking_lot::Mutex;

use super::guard::Clients;
use super::serve;
use super::tls::{Acceptor, Tickets};
use crate::config::Stamps;
use crate::config::plan::{Bind, Listener, TlsIdentity};
use crate::runtime::Drain;

/// The sockets of one address, as those who accept from them see them.
pub(super) struct Port {
    pub(super) state: ArcSwap<ListenerState>,
    /// Draining: accept no more. Alive while one of its sockets still takes what the kernel holds ready.
    pub(super) open: Arc<Drain>,
    /// For balanced accept: whose turn it is.
    pub(super) turn: AtomicUsize,
}

impl Port {
    pub(super) fn new(listener: ListenerState) -> Arc<Self> {
        Arc::new(Self { state: ArcSwap::from_pointee(listener), open: Drain::new(), turn: AtomicUsize::new(0) })
    }

    /// The listener of now.
    pub(super) fn listener(&self) -> Arc<ListenerState> {
        self.state.load_full()
    }
}

/// A listener as its connections see it.
pub struct ListenerState {
    settings: ArcSwap<Settings>,
    /// Where it really listens.
    pub address: Bind,
    /// Its own end, and its live connections.
    pub drain: Arc<Drain>,
    /// Who holds how many of its connections.
    pub(super) clients: Arc<Clients>,
    /// The certificate files that were refused last, and why. Control thread only.
    refused: Mutex<Option<(Stamps, String)>>,
}

/// What a configuration says about a listener; loaded once for each connection.
pub struct Settings {
    /// The listener.
    pub plan: Arc<Listener>,
    /// Its TLS side, if it has one.
    pub tls: Option<Arc<Acceptor>>,
    /// What holds for its connections.
    pub edge: Arc<serve::Settings>,
    pub(super) counts: Counts,
    pub(super) identity: Option<TlsIdentity>,
    pub(super) tickets: Option<Tickets>,
}

/// What is counted of one listener.
#[derive(Clone)]
pub(super) struct Counts {
    pub(super) accepted: Counter,
    pub(super) over_limit: Counter,
    pub(super) over_client_limit: Counter,
    pub(super) forbidden: Counter,
    pub(super) proxy_failed: Counter,
    pub(super) tls_failed: Counter,
    pub(super) timed_out: Counter,
    pub(super) open: Gauge,
    refused_certificates: Counter,
}

impl Counts {
    pub(super) fn new(metrics: &Registry, listener: &str) -> Self {
        let name = ("listener", listener);
        let counter = |outcome| {
            let help = "Connections, by what became of them before their first request.";
            metrics.counter("onehop_connections_total", help, &[name, ("outcome", outcome)])
        };
        Self {
            accepted: counter("accepted"),
            over_limit: counter("over-limit"),
            over_client_limit: counter("over-client-limit"),
            forbidden: counter("forbidden"),
            proxy_failed: counter("proxy-failed"),
            tls_failed: counter("tls-failed"),
            timed_out: counter("timed-out"),
            open: metrics.gauge("onehop_connections_open", "Connections that are open.", &[name]),
            refused_certificates: metrics.counter(
                "onehop_certificate_reload_failures_total",
                "Changed certificate files that could not be used.",
                &[name],
            ),
        }
    }
}

impl ListenerState {
    pub(super) fn new(settings: Settings, address: Bind) -> Self {
        Self {
            settings: ArcSwap::from_pointee(settings),
            address,
            drain: Drain::new(),
            clients: Arc::default(),
            refused: Mutex::default(),
        }
    }

    /// The settings of now.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Takes new settings over; gives them back if its connections must not go on under them.
    pub(super) fn adopt(&self, settings: Settings) -> Result<(), Box<Settings>> {
        if !self.settings().same_kind(&settings) {
            return Err(Box::new(settings));
        }
        self.settings.store(Arc::new(settings));
        *self.refused.lock() = None;
        Ok(())
    }

    /// Why the newest certificate files are not in use, if they are not.
    #[must_use]
    pub fn certificate_error(&self) -> Option<String> {
        self.refused.lock().as_ref().map(|(_, why)| why.clone())
    }
}

impl Settings {
    /// Whether a connection that was accepted under one may go on under the other: the same listener, the same way to
    /// speak, and nothing asked of callers that it was not asked.
    fn same_kind(&self, other: &Self) -> bool {
        let kind = |s: &Self| {
            let caller = s.plan.tls.as_ref().map(|t| (t.mesh, t.client_ca.clone(), t.crl.clone(), t.client_required));
            (s.plan.name.clone(), s.plan.h1, s.plan.h2, s.plan.tcp, caller)
        };
        kind(self) == kind(other)
    }

    /// The TLS side, from its files.
    /// Reads the certificates of a listener, as it would when it opens.
    ///
    /// # Errors
    /// A certificate, key or CA cannot be used.
    pub fn check(plan: &Listener, identity: Option<&TlsIdentity>) -> Result<(), ConfigError> {
        let tickets = Tickets::new().map_err(|e| ConfigError::at(plan.span, format!("tls: {e}")))?;
        Self::acceptor(plan, identity, Some(&tickets)).map(drop)
    }

    pub(super) fn acceptor(
        plan: &Listener,
        identity: Option<&TlsIdentity>,
        tickets: Option<&Tickets>,
    ) -> Result<Option<Arc<Acceptor>>, ConfigError> {
        let (Some(tls), Some(tickets)) = (&plan.tls, tickets) else { return Ok(None) };
        Acceptor::build(plan, tls, identity, tickets).map(|a| Some(Arc::new(a)))
    }
}

impl ListenerState {
    /// See [`super::listener::ListenerSet::reload_certificates`].
    pub(super) fn reload_certificates(&self) {
        let settings = self.settings.load_full();
        let Some(old) = settings.tls.as_ref().filter(|tls| tls.stale()) else {
            // Also when broken files were put back as they were.
            *self.refused.lock() = None;
            return;
        };
        let seen = old.files_now();
        let mut refused = self.refused.lock();
        if refused.as_ref().is_some_and(|(files, _)| *files == seen) {
            return;
        }
        let plan = &settings.plan;
        match Settings::acceptor(plan, settings.identity.as_ref(), settings.tickets.as_ref()) {
            Err(e) => {
                tracing::error!(listener = %plan.name, error = %e.message, "changed certificate files are not used");
                settings.counts.refused_certificates.inc();
                *refused = Some((seen, e.message));
            }
            Ok(tls) => {
                *refused = None;
                let fresh = Settings {
                    tls,
                    edge: settings.edge.clone(),
                    plan: plan.clone(),
                    counts: settings.counts.clone(),
                    identity: settings.identity.clone(),
                    tickets: settings.tickets.clone(),
                };
                // A configuration that was published meanwhile has read the files itself.
                self.settings.compare_and_swap(&settings, Arc::new(fresh));
                tracing::info!(listener = %plan.name, "changed certificate files are in use");
            }
        }
    }
}
