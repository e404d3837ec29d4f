//! The set of listening sockets, and how a new configuration takes effect on it.
//!
//! A socket belongs to its address and to nothing else: what a listener is, TLS and protocols included, each accepted
//! connection loads anew. A reload keeps the sockets of all addresses that stay, since closing one would reset whoever
//! the kernel has just let in; new addresses are bound before old ones close; one that cannot be bound changes nothing.
//! Where TLS or the protocols of an address change, connections of the old kind drain.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use onehop_filters::contract::metrics::{Counter, Gauge, Registry};
use onehop_filters::contract::{ConfigError, now};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::accept::{Acceptance, Handler, Socket};
use super::listener_bind::{Bound, UnixFile};
use super::serve;
use super::tls::{Acceptor, Stamps, Tickets};
use super::tls_certs::CertInfo;
use crate::config::plan::{Bind, Capture, Lifecycle, Listener, TlsIdentity};
use crate::runtime::{Drain, Phase};

/// How often certificate files are looked at.
const CERTIFICATE_POLL: Duration = Duration::from_secs(5);
/// What connections get to end in once they are told to end now.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Every listening socket of the process. Changed from the control thread only, one change at a time.
pub struct ListenerSet {
    workers: Arc<[Handle]>,
    handler: Arc<dyn Handler>,
    metrics: Arc<Registry>,
    /// The whole process: `/readyz` follows it. Connections follow their listener's.
    pub drain: Arc<Drain>,
    /// Taken by the control thread, and by admin views on the same thread.
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    live: BTreeMap<Key, Live>,
    /// Closed listeners whose connections are still ending.
    retired: Vec<Arc<ListenerState>>,
    /// By listener name; never dropped, so that a listener that comes back still knows its clients.
    tickets: HashMap<String, Tickets>,
}

/// What a socket belongs to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    bind: Bind,
    /// Port 0 may be asked for many times and is another port each time.
    name: Option<Arc<str>>,
}

struct Live {
    port: Arc<Port>,
    /// Removes the file when the listener closes.
    _file: Option<UnixFile>,
}

/// The sockets of one address, as those who accept from them see them.
pub(super) struct Port {
    state: ArcSwap<ListenerState>,
    /// Draining: accept no more.
    pub(super) open: Arc<Drain>,
    /// For balanced accept: whose turn it is.
    pub(super) turn: AtomicUsize,
}

impl Port {
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
    identity: Option<TlsIdentity>,
    tickets: Option<Tickets>,
}

#[derive(Clone)]
/// What is counted of one listener.
pub(super) struct Counts {
    pub(super) accepted: Counter,
    pub(super) over_limit: Counter,
    pub(super) proxy_failed: Counter,
    pub(super) tls_failed: Counter,
    pub(super) timed_out: Counter,
    pub(super) open: Gauge,
    refused_certificates: Counter,
}

impl Counts {
    fn new(metrics: &Registry, listener: &str) -> Self {
        let name = ("listener", listener);
        let counter = |outcome| {
            let help = "Connections, by what became of them before their first request.";
            metrics.counter("onehop_connections_total", help, &[name, ("outcome", outcome)])
        };
        Self {
            accepted: counter("accepted"),
            over_limit: counter("over-limit"),
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
    fn new(settings: Settings, address: Bind) -> Self {
        Self { settings: ArcSwap::from_pointee(settings), address, drain: Drain::new(), refused: Mutex::default() }
    }

    /// The settings of now.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Why the newest certificate files are not in use, if they are not.
    #[must_use]
    pub fn certificate_error(&self) -> Option<String> {
        self.refused.lock().as_ref().map(|(_, why)| why.clone())
    }
}

impl Settings {
    /// Reads the certificates of a listener, as it would when it opens.
    ///
    /// # Errors
    /// A certificate, key or CA cannot be used.
    pub fn check(plan: &Listener, identity: Option<&TlsIdentity>) -> Result<(), ConfigError> {
        let tickets = Tickets::new().map_err(|e| ConfigError::at(plan.span, format!("tls: {e}")))?;
        Self::acceptor(plan, identity, Some(&tickets)).map(drop)
    }

    /// Whether a connection that was accepted under one may go on under the other.
    fn same_kind(&self, other: &Self) -> bool {
        // Its name is what a connection finds its routes by.
        let kind = |s: &Self| (s.plan.name.clone(), s.tls.is_some(), s.plan.h1, s.plan.h2);
        kind(self) == kind(other)
    }

    fn acceptor(
        plan: &Listener,
        identity: Option<&TlsIdentity>,
        tickets: Option<&Tickets>,
    ) -> Result<Option<Arc<Acceptor>>, ConfigError> {
        let (Some(tls), Some(tickets)) = (&plan.tls, tickets) else { return Ok(None) };
        Acceptor::build(plan, tls, identity, tickets).map(|a| Some(Arc::new(a)))
    }
}

impl Key {
    fn of(plan: &Listener) -> Self {
        let any_port = matches!(&plan.bind, Bind::Tcp(a) if a.port() == 0);
        Self { bind: plan.bind.clone(), name: any_port.then(|| plan.name.clone()) }
    }
}

/// A change that is ready and has not happened. Dropped without [`Staged::commit`], it never will.
#[must_use]
pub struct Staged {
    set: Arc<ListenerSet>,
    keep: Vec<(Key, Settings)>,
    add: Vec<(Key, Bound, Settings)>,
    tickets: HashMap<String, Tickets>,
}

impl ListenerSet {
    /// No listeners yet. `workers` are where connections live; metrics count them.
    #[must_use]
    pub fn new(workers: Arc<[Handle]>, handler: Arc<dyn Handler>, metrics: Arc<Registry>) -> Arc<Self> {
        assert!(!workers.is_empty(), "a listener needs a worker");
        Arc::new(Self { workers, handler, metrics, drain: Drain::new(), inner: Mutex::default() })
    }

    /// Prepares a change to exactly these listeners: reads certificates and binds what is new. `identity` is the
    /// workload's, for `mode: mesh`.
    ///
    /// # Errors
    /// A certificate cannot be used or an address cannot be bound; points at its listener. Nothing has changed then.
    pub fn apply(
        self: &Arc<Self>,
        wanted: &BTreeMap<String, Arc<Listener>>,
        identity: Option<&TlsIdentity>,
    ) -> Result<Staged, ConfigError> {
        let inner = self.inner.lock();
        let mut staged = Staged { set: self.clone(), keep: vec![], add: vec![], tickets: HashMap::new() };
        let mut binds: BTreeMap<&Bind, &Listener> = BTreeMap::new();
        for plan in wanted.values() {
            let key = Key::of(plan);
            if key.name.is_none()
                && let Some(other) = binds.insert(&plan.bind, plan)
            {
                let both = format!("listeners `{}` and `{}` have the same `bind`", other.name, plan.name);
                return Err(ConfigError::at(plan.span, both).help("give each listener an address of its own"));
            }
            let tickets = match &plan.tls {
                None => None,
                Some(_) => Some(match inner.tickets.get(&*plan.name) {
                    Some(known) => known.clone(),
                    None => {
                        let fresh = Tickets::new().map_err(|e| ConfigError::at(plan.span, format!("tls: {e}")))?;
                        staged.tickets.insert(plan.name.to_string(), fresh.clone());
                        fresh
                    }
                }),
            };
            let settings = Settings {
                edge: Arc::new(serve::Settings::from(&**plan)),
                tls: Settings::acceptor(plan, identity, tickets.as_ref())?,
                plan: plan.clone(),
                counts: Counts::new(&self.metrics, &plan.name),
                identity: identity.cloned(),
                tickets,
            };
            if inner.live.contains_key(&key) {
                staged.keep.push((key, settings));
            } else {
                let bound = Bound::new(&plan.bind, self.workers.len()).map_err(|e| unbound(plan, &e))?;
                staged.add.push((key, bound, settings));
            }
        }
        Ok(staged)
    }

    /// Where listeners really listen, by name.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<String, Bind> {
        let inner = self.inner.lock();
        let listeners = inner.live.values().map(|l| l.port.listener());
        listeners.map(|l| (l.settings().plan.name.to_string(), l.address.clone())).collect()
    }

    /// Listeners that accept.
    #[must_use]
    pub fn listeners(&self) -> Vec<Arc<ListenerState>> {
        self.inner.lock().live.values().map(|l| l.port.listener()).collect()
    }

    /// Certificates in use.
    #[must_use]
    pub fn certificates(&self) -> Vec<CertInfo> {
        let tls = self.listeners().into_iter().filter_map(|l| l.settings().tls.clone());
        tls.flat_map(|a| a.certificates().cloned().collect::<Vec<_>>()).collect()
    }

    /// Live connections, those of closed listeners too.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.everything().iter().map(|l| l.drain.live()).sum()
    }

    fn everything(&self) -> Vec<Arc<ListenerState>> {
        let mut inner = self.inner.lock();
        inner.retired.retain(|l| l.drain.live() > 0);
        inner.live.values().map(|l| l.port.listener()).chain(inner.retired.iter().cloned()).collect()
    }

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
        self.close(|state| inbound.iter().any(|l| Arc::ptr_eq(l, state)));
        let mut idle = true;
        // The application behind the inbound side still calls out while it finishes: outbound closes last.
        for listener in inbound.iter().chain(&outbound) {
            idle &= listener.drain.wait_idle(until).await;
        }
        self.close(|_| true);
        for listener in &outbound {
            idle &= listener.drain.wait_idle(until).await;
        }
        self.kill().await;
        idle
    }

    /// Ends everything now, but for the moment that a last write takes.
    pub async fn kill(&self) {
        self.drain.advance(Phase::Kill);
        self.close(|_| true);
        let until = now() + LAST_WORDS;
        for listener in self.everything() {
            listener.drain.advance(Phase::Kill);
            listener.drain.wait_idle(until).await;
        }
    }

    fn close(&self, which: impl Fn(&Arc<ListenerState>) -> bool) {
        let mut inner = self.inner.lock();
        let (closing, open) =
            std::mem::take(&mut inner.live).into_iter().partition(|(_, live)| which(&live.port.listener()));
        inner.live = open;
        let closing: BTreeMap<_, _> = closing;
        closing.into_values().for_each(|live| inner.retire(live));
    }

    /// Looks at certificate files for as long as the set exists. For the control thread.
    pub async fn watch_certificates(set: Weak<Self>) {
        loop {
            tokio::time::sleep(CERTIFICATE_POLL).await;
            let Some(set) = set.upgrade() else { return };
            set.reload_certificates();
        }
    }

    /// Takes changed certificate files into use for new handshakes. Files that cannot be used change nothing: the ones
    /// before them stay, and the log and [`ListenerState::certificate_error`] say why.
    pub fn reload_certificates(&self) {
        for listener in self.listeners() {
            listener.reload_certificates();
        }
    }
}

impl ListenerState {
    fn reload_certificates(&self) {
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
                    edge: settings.edge.clone(),
                    tls,
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

impl Inner {
    /// Closes sockets.
    fn retire(&mut self, live: Live) {
        live.port.open.advance(Phase::Draining);
        self.drain(live.port.listener());
    }

    /// Lets the connections of a listener end.
    fn drain(&mut self, listener: Arc<ListenerState>) {
        listener.drain.advance(Phase::Draining);
        self.retired.push(listener);
    }
}

impl Staged {
    /// Makes the change: settings of kept listeners, then new listeners, then the end of those that are gone. Their
    /// connections drain.
    pub fn commit(self) {
        let Self { set, keep, add, tickets } = self;
        let mut inner = set.inner.lock();
        inner.tickets.extend(tickets);
        let mut next = BTreeMap::new();
        for (key, settings) in keep {
            // One change at a time: what was there when this was staged still is.
            if let Some(live) = inner.live.remove(&key) {
                let listener = live.port.listener();
                if listener.settings().same_kind(&settings) {
                    listener.settings.store(Arc::new(settings));
                    *listener.refused.lock() = None;
                } else {
                    live.port.state.store(Arc::new(ListenerState::new(settings, listener.address.clone())));
                    inner.drain(listener);
                }
                next.insert(key, live);
            }
        }
        for (key, bound, settings) in add {
            next.insert(key, set.open(bound, settings));
        }
        let gone = std::mem::replace(&mut inner.live, next);
        for live in gone.into_values() {
            tracing::info!(listener = %live.port.listener().settings().plan.name, "listener closed");
            inner.retire(live);
        }
        inner.retired.retain(|l| l.drain.live() > 0);
    }
}

impl ListenerSet {
    fn open(&self, bound: Bound, settings: Settings) -> Live {
        let name = settings.plan.name.clone();
        let state = Arc::new(ListenerState::new(settings, bound.address()));
        tracing::info!(listener = %name, address = ?state.address, "listening");
        let port = Arc::new(Port { state: ArcSwap::new(state), open: Drain::new(), turn: AtomicUsize::new(0) });
        let start = |worker: &Handle, socket: Listening| {
            let acceptor =
                Acceptance { port: port.clone(), handler: self.handler.clone(), workers: self.workers.clone() };
            let name = name.clone();
            worker.spawn(async move {
                match socket.register() {
                    Ok(socket) => acceptor.run(socket).await,
                    Err(e) => {
                        tracing::error!(listener = %name, error = %e, "a worker cannot watch its listening socket")
                    }
                }
            });
        };
        let file = match bound {
            Bound::Tcp(_, sockets) => {
                for (worker, socket) in self.workers.iter().zip(sockets) {
                    start(worker, Listening::Tcp(socket));
                }
                None
            }
            // One socket cannot be shared by `SO_REUSEPORT`: its first worker accepts for all.
            Bound::Unix(socket, mut file) => {
                if let Err(e) = file.publish() {
                    tracing::error!(listener = %name, error = %e, "the socket file cannot take its place");
                }
                start(&self.workers[0], Listening::Unix(socket));
                Some(file)
            }
        };
        Live { port, _file: file }
    }
}

/// A bound socket that no runtime watches yet.
enum Listening {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Listening {
    /// Inside the runtime that is to watch it.
    fn register(self) -> std::io::Result<Socket> {
        match self {
            Self::Tcp(s) => s.try_into().map(Socket::Tcp),
            Self::Unix(s) => s.try_into().map(Socket::Unix),
        }
    }
}

fn unbound(plan: &Listener, e: &std::io::Error) -> ConfigError {
    use std::io::ErrorKind::{AddrInUse, AddrNotAvailable, PermissionDenied};
    let address = match &plan.bind {
        Bind::Tcp(a) => a.to_string(),
        Bind::Unix(p) => format!("unix://{}", p.display()),
    };
    let error = ConfigError::at(plan.span, format!("listener `{}` cannot listen on {address}: {e}", plan.name));
    match e.kind() {
        AddrInUse => error.help("another process listens there"),
        PermissionDenied => error.help("ports below 1024 need the capability CAP_NET_BIND_SERVICE"),
        AddrNotAvailable => error.help("no network interface of this machine has the address"),
        _ => error,
    }
}

#[cfg(test)]
mod tests;
