//! Assembly: the one file that knows every room, and how a configuration becomes the running system.
//!
//! [`Hop::apply`] is the life of a config in order: compile (nothing changes), bind new listeners (nothing is served from
//! them yet), publish one pointer, commit the listeners, let go of what is gone. An error before publish changes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use onehop_filters::contract::metrics::Registry;
use onehop_filters::contract::{ConfigError, Entry, now, worker};
use parking_lot::Mutex;

use crate::admin::{self, Admin};
use crate::config::load::{self, Source};
use crate::config::plan::{self, Plan};
use crate::config::report::Report;
use crate::edge::listener::ListenerSet;
use crate::observe::log::Log;
use crate::observe::metrics::EngineMetrics;
use crate::proxy::session::Sessions;
use crate::runtime::{Control, Drain, Phase, Signal, Signals, Workers, cores};
use crate::snapshot::cell::Cell;
use crate::snapshot::compile::{Compiler, compile};
use crate::snapshot::estate::Estate;

mod facts;

/// Why a hop could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not usable.
    #[error("{0}")]
    Config(Box<Report>),
    /// The machine refused.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// A running gateway and sidecar.
pub struct Hop {
    shared: Arc<Shared>,
    workers: Option<Workers>,
    control: Option<Control>,
}

/// What the control thread works on.
pub struct Shared {
    entries: &'static [Entry],
    sources: Vec<Source>,
    cell: Arc<Cell>,
    estate: Estate,
    registry: Arc<Registry>,
    engine: EngineMetrics,
    listeners: ListenerSet,
    drain: Arc<Drain>,
    admin: Mutex<Option<(plan::Admin, Admin)>>,
    log: Option<Log>,
    control: tokio::runtime::Handle,
    generation: AtomicU64,
    /// The running plan, for `/config`; replaced with each publish, on the control thread.
    plan: Mutex<Arc<Plan>>,
    /// Contended only by two reloads at once: they are served one after the other.
    applying: Mutex<()>,
}
