//! The set of listening sockets, and how a new configuration takes effect on it.
//!
//! A socket belongs to its address and to nothing else: what a listener is, TLS and protocols included, each accepted
//! connection loads anew. A reload keeps the sockets of all addresses that stay, since closing one would reset whoever
//! the kernel has just let in; new addresses are bound before old ones close; one that cannot be bound changes nothing.
//! Where TLS, the protocols or what is asked of callers change, connections of the old kind drain.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use onehop_filters::contract::ConfigError;
use onehop_filters::contract::metrics::Registry;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::accept::{Acceptance, Handler, Socket};
use super::listener_bind::{Bound, UnixFile};
use super::listener_state::{Counts, Port};
pub use super::listener_state::{ListenerState, Settings};
use super::serve;
use super::tls::Tickets;
use super::tls_certs::CertInfo;
use crate::config::plan::{Bind, Listener, TlsIdentity};
use crate::runtime::{Drain, Phase};

/// How often certificate files are looked at.
const CERTIFICATE_POLL: Duration = Duration::from_secs(5);
/// Every listening socket of the process. Changed from the control thread only, one change at a time.
pub struct ListenerSet {
    workers: Arc<[Handle]>,
    handler: Arc<dyn Handler>,
    metrics: Arc<Registry>,
    /// The whole process: `/readyz` follows it. Connections follow their listener's.
    pub drain: Arc<Drain>,
    /// Taken by the control thread, and by admin views on the same thread.
    pub(super) inner: Mutex<Inner>,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) live: BTreeMap<Key, Live>,
    /// Closed listeners whose connections are still ending.
    retired: Vec<Arc<ListenerState>>,
    /// By listener name; never dropped, so that a listener that comes back still knows its clients.
    tickets: HashMap<String, Tickets>,
}

/// What a socket belongs to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    bind: Bind,
    /// Port 0 may be asked for many times and is another port each time.
    name: Option<Arc<str>>,
}

pub(super) struct Live {
    pub(super) port: Arc<Port>,
    /// Removes the file when the listener closes.
    _file: Option<UnixFile>,
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
                tls: Settings::acceptor(plan, identity, tickets.as_ref())?,
                edge: Arc::new(serve::Settings::from(&**plan)),
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

    pub(super) fn everything(&self) -> Vec<Arc<ListenerState>> {
        let mut inner = self.inner.lock();
        inner.forget();
        inner.live.values().map(|l| l.port.listener()).chain(inner.retired.iter().cloned()).collect()
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

impl Inner {
    /// Closes sockets.
    pub(super) fn retire(&mut self, live: Live) -> Arc<Port> {
        let listener = live.port.listener();
        tracing::info!(listener = %listener.settings().plan.name, "listener closed");
        live.port.open.advance(Phase::Draining);
        self.drain(listener);
        live.port
    }

    /// Forgets closed listeners that nobody knows any more: no connection, and no socket that may still bring one.
    fn forget(&mut self) {
        self.retired.retain(|l| Arc::strong_count(l) > 1);
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
                if let Err(settings) = listener.adopt(settings) {
                    live.port.state.store(Arc::new(ListenerState::new(*settings, listener.address.clone())));
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
            inner.retire(live);
        }
        inner.forget();
    }
}

impl ListenerSet {
    fn open(&self, bound: Bound, settings: Settings) -> Live {
        let name = settings.plan.name.clone();
        let address = bound.address();
        tracing::info!(listener = %name, ?address, "listening");
        let port = Port::new(ListenerState::new(settings, address));
        let start = |worker: &Handle, socket: Listening| {
            let acceptor = Acceptance {
                port: port.clone(),
                handler: self.handler.clone(),
                workers: self.workers.clone(),
                _busy: port.open.enter(),
            };
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
