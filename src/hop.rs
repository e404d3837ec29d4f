//! Assembly: the one file that knows every room, and how a configuration becomes the running system.
//!
//! The life of a config, in order: compile (nothing changes), bind new listeners (nothing is served from them yet),
//! publish one pointer, commit the listeners, let go of what is gone. An error before publish changes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use onehop_filters::contract::metrics::Registry;
use onehop_filters::contract::{ConfigError, Entry, now};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::admin::Admin;
use crate::config::plan::{self, Bind, Plan};
use crate::config::{self, Files, Report, Source};
use crate::edge::listener::ListenerSet;
use crate::observe::log::Log;
use crate::observe::metrics::EngineMetrics;
use crate::proxy::session::Sessions;
use crate::runtime::{Control, Signal, Signals, Workers, cores, purge};
use crate::snapshot::Snapshot;
use crate::snapshot::cell::Cell;
use crate::snapshot::compile::{Compiler, compile};
use crate::snapshot::estate::{Estate, Staging};

mod facts;

/// How often retired snapshots, idle upstream connections and the files of upstream TLS are looked at.
const SWEEP: Duration = Duration::from_secs(5);

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

impl From<Report> for StartError {
    fn from(report: Report) -> Self {
        Self::Config(Box::new(report))
    }
}

/// A running gateway and sidecar.
pub struct Hop {
    shared: Arc<Shared>,
    workers: Workers,
    control: Control,
}

/// What the control thread works on.
pub struct Shared {
    me: Weak<Self>,
    entries: &'static [Entry],
    sources: Vec<Source>,
    cell: Arc<Cell>,
    estate: Arc<Estate>,
    registry: Arc<Registry>,
    engine: EngineMetrics,
    listeners: Arc<ListenerSet>,
    log: Log,
    control: tokio::runtime::Handle,
    generation: AtomicU64,
    /// What is kept of the running plan. Contended by reloads and admin views only.
    running: Mutex<Arc<Running>>,
    /// What was wrong with the newest config, while it is not the running one.
    rejected: Mutex<Option<Report>>,
    /// Hash of the text that was read last, good or not. Contended by nobody: it goes with `applying`.
    tried: Mutex<Option<u64>>,
    /// Held through a reload, so that two are served one after the other.
    applying: Mutex<()>,
    /// Contended by reloads that move it only.
    admin: Mutex<Option<Admin>>,
    stop: Notify,
}

/// What is asked of a plan once it is compiled. The plan itself goes: at thousands of routes it takes many times the
/// memory of its text, from which all of it can be made again.
struct Running {
    hash: u64,
    dir: PathBuf,
    files: Files,
    admin: plan::Admin,
    lifecycle: plan::Lifecycle,
    workers: Option<usize>,
}

impl From<Plan> for Running {
    fn from(plan: Plan) -> Self {
        let Plan { hash, dir, files, admin, lifecycle, workers, .. } = plan;
        Self { hash, dir, files, admin, lifecycle, workers }
    }
}

impl Hop {
    /// Starts everything, or nothing.
    ///
    /// # Errors
    /// The configuration is wrong, or the machine refuses a thread or a socket.
    pub fn start(sources: Vec<Source>, entries: &'static [Entry]) -> Result<Self, StartError> {
        Self::start_with(sources, entries, None)
    }

    /// As [`Hop::start`], with the process's log, so that its level follows the configuration.
    ///
    /// # Errors
    /// As [`Hop::start`].
    pub fn start_with(sources: Vec<Source>, entries: &'static [Entry], log: Option<Log>) -> Result<Self, StartError> {
        // What counts as a change is measured from here: no edit between reading and watching is missed.
        let running = Arc::new(OnceLock::<Weak<Shared>>::new());
        let reloaded = running.clone();
        let watching = config::watch(sources.clone(), move || {
            if let Some(shared) = reloaded.get().and_then(Weak::upgrade) {
                shared.files_changed();
            }
        });
        let plan = config::load(&sources, entries)?;
        let workers = Workers::start(plan.workers.unwrap_or_else(cores))?;
        let control = Control::start()?;
        let handle = control.handle().clone();
        let _inside = handle.enter();
        let registry = Arc::new(Registry::default());
        let engine = EngineMetrics::new(&registry);
        let estate = Arc::new(Estate::default());
        let mut staging = estate.stage();
        let snapshot = build(entries, &registry, &engine, &mut staging, &handle, &plan, 1)?;
        let cell = Arc::new(Cell::new(snapshot));
        let sessions = Arc::new(Sessions::new(cell.clone(), registry.clone()));
        let listeners = ListenerSet::new(workers.handles(), sessions, registry.clone());
        let staged =
            listeners.apply(&plan.listeners, plan.workload.as_ref()).map_err(|e| plan.files.report(vec![e]))?;
        let log = match log {
            Some(log) => {
                // The filter was checked with the plan.
                let _ = log.configure(&plan.telemetry.log);
                log
            }
            None => Log::new(&plan.telemetry.log, std::io::sink, false).map_err(std::io::Error::other)?.0,
        };
        for warning in &plan.warnings {
            tracing::warn!("{warning}");
        }
        let shared = Arc::new_cyclic(|me| Shared {
            me: me.clone(),
            entries,
            sources,
            cell,
            estate: estate.clone(),
            registry,
            engine,
            listeners,
            log,
            control: handle.clone(),
            generation: AtomicU64::new(1),
            running: Mutex::new(Arc::new(plan.into())),
            rejected: Mutex::new(None),
            tried: Mutex::new(None),
            applying: Mutex::new(()),
            admin: Mutex::new(None),
            stop: Notify::new(),
        });
        shared.open_admin(&shared.running.lock().admin)?;
        staging.publish(&handle);
        staged.commit();
        shared.engine.generation.set(1);
        shared.engine.swaps.inc();
        let _ = running.set(Arc::downgrade(&shared));
        shared.control.spawn(watching);
        shared.housekeeping();
        Ok(Self { shared, workers, control })
    }

    /// Where listeners really listen, by name (TCP ones).
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<String, SocketAddr> {
        let all = self.shared.listeners.addresses().into_iter();
        all.filter_map(|(name, bind)| match bind {
            Bind::Tcp(address) => Some((name, address)),
            Bind::Unix(_) => None,
        })
        .collect()
    }

    /// Where admin listens, if on TCP.
    #[must_use]
    pub fn admin(&self) -> Option<SocketAddr> {
        self.shared.admin_address()
    }

    /// The service behind the listener of this name, for embedding and tests: no socket involved.
    #[must_use]
    pub fn service(&self, listener: &str) -> Option<crate::proxy::embed::Embedded> {
        // One that takes connections has no requests to route.
        let known = self.shared.cell.load().listener(listener).is_some_and(|l| l.plan.tcp.is_none());
        known.then(|| crate::proxy::embed::Embedded::new(self.shared.cell.clone(), listener))
    }

    /// Metrics of the process.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Registry> {
        &self.shared.registry
    }

    /// Reads the sources again and puts them in force. Returns the generation.
    ///
    /// # Errors
    /// What is wrong with the new configuration; the old one goes on.
    pub fn reload(&self) -> Result<u64, Report> {
        self.shared.reload()
    }

    /// Puts another configuration in force. Returns its generation.
    ///
    /// # Errors
    /// As [`Hop::reload`].
    pub fn apply(&self, sources: &[Source]) -> Result<u64, Report> {
        let _one_at_a_time = self.shared.applying.lock();
        self.shared.apply(config::load(sources, self.shared.entries)?)
    }

    /// Serves until a signal ends it: SIGHUP reloads, SIGUSR1 reopens logs, SIGTERM or SIGINT drains, a second one
    /// stops at once. Returns whether everything in flight could finish.
    pub fn serve_until_signal(self) -> bool {
        let shared = self.shared.clone();
        let done = self.control.spawn(move || async move {
            let mut signals = match Signals::listen() {
                Ok(signals) => signals,
                Err(e) => {
                    tracing::error!(error = %e, "cannot listen for signals");
                    return false;
                }
            };
            // Not before signals are taken: whoever reads it may send one, and SIGHUP would end the process.
            shared.announce();
            loop {
                let stop = shared.stop.notified();
                let signal = tokio::select! {
                    signal = signals.next() => signal,
                    () = stop => Signal::Terminate,
                };
                match signal {
                    Signal::Reload => drop(shared.reload()),
                    Signal::Reopen => shared.reopen_logs(),
                    Signal::Kill => return false,
                    Signal::Terminate => break,
                }
            }
            let how = shared.running.lock().lifecycle.clone();
            tracing::info!(drain = ?how.drain, "draining");
            tokio::select! {
                idle = shared.listeners.drain(&how) => idle,
                () = second(&mut signals) => {
                    shared.listeners.kill().await;
                    false
                }
            }
        });
        let idle = wait(done);
        self.end();
        idle
    }

    /// Drains for at most `limit`, then ends.
    pub fn stop(self, limit: Duration) {
        let mut how = self.shared.running.lock().lifecycle.clone();
        how.drain = limit;
        how.unready = Duration::ZERO;
        let listeners = self.shared.listeners.clone();
        let done = self.control.spawn(move || async move { listeners.drain(&how).await });
        wait(done);
        self.end();
    }

    fn end(self) {
        let snapshot = self.shared.cell.load();
        if let Some(log) = &snapshot.access_log {
            log.flush(Duration::from_secs(1));
        }
        if let Some(tracer) = snapshot.tracer.clone() {
            wait(self.control.spawn(move || async move { tracer.flush(Duration::from_secs(2)).await }));
        }
        drop(snapshot);
        // The admin listener holds the facts it shows, which hold it.
        self.shared.admin.lock().take();
        self.workers.stop();
        self.control.stop();
    }
}

/// Waits on this thread for a task of another.
fn wait(task: tokio::task::JoinHandle<bool>) -> bool {
    let waiter = tokio::runtime::Builder::new_current_thread().build();
    waiter.is_ok_and(|runtime| runtime.block_on(task).unwrap_or(false))
}

async fn second(signals: &mut Signals) {
    loop {
        if matches!(signals.next().await, Signal::Kill | Signal::Terminate) {
            return;
        }
    }
}

fn build(
    entries: &'static [Entry],
    registry: &Arc<Registry>,
    engine: &EngineMetrics,
    staging: &mut Staging<'_>,
    control: &tokio::runtime::Handle,
    plan: &Plan,
    generation: u64,
) -> Result<Snapshot, Report> {
    let mut compiler = Compiler { entries, metrics: registry, engine, staging, control };
    compile(&mut compiler, plan, generation).map_err(|errors| Report::sorted(plan.files.clone(), errors))
}

impl Shared {
    /// Reads the sources again and puts them in force. A refused configuration changes nothing, and is told to the log,
    /// the metrics and the admin view.
    pub fn reload(&self) -> Result<u64, Report> {
        // Held while reading too: who reads last is in force last.
        let _one_at_a_time = self.applying.lock();
        self.read_and_apply()
    }

    /// The watched files have another content than when they were last looked at. Somebody who asked for a reload, or a
    /// signal, may have been faster: what runs already is not put in force again, what was refused is not refused twice.
    fn files_changed(&self) {
        let _one_at_a_time = self.applying.lock();
        let found = config::hash_of(&self.sources);
        if found.is_some() && found == Some(self.running.lock().hash) {
            // Perhaps it went back to what runs after a mistake.
            *self.rejected.lock() = None;
            return;
        }
        if found.is_none() || found != *self.tried.lock() {
            // The result is told where a reload's is told.
            let _ = self.read_and_apply();
        }
    }

    /// Call with `applying` held.
    fn read_and_apply(&self) -> Result<u64, Report> {
        *self.tried.lock() = config::hash_of(&self.sources);
        let result = config::load(&self.sources, self.entries).and_then(|plan| self.apply(plan));
        match &result {
            Ok(generation) => tracing::info!(generation, "configuration in force"),
            Err(report) => {
                self.engine.swaps_rejected.inc();
                tracing::error!("configuration rejected, the running one stays:\n{report}");
            }
        }
        *self.rejected.lock() = result.as_ref().err().cloned();
        result
    }

    /// Call with `applying` held.
    fn apply(&self, plan: Plan) -> Result<u64, Report> {
        let _inside = self.control.enter();
        let begun = now();
        let running = self.running.lock().clone();
        if plan.workers != running.workers {
            tracing::warn!("runtime.workers changes with the next start");
        }
        let generation = self.generation.load(Relaxed) + 1;
        let mut staging = self.estate.stage();
        let snapshot =
            build(self.entries, &self.registry, &self.engine, &mut staging, &self.control, &plan, generation)?;
        let staged =
            self.listeners.apply(&plan.listeners, plan.workload.as_ref()).map_err(|e| plan.files.report(vec![e]))?;
        if plan.admin != running.admin {
            self.open_admin(&plan.admin).map_err(|e| {
                let message = format!("admin.bind cannot be opened: {e}");
                plan.files.report(vec![ConfigError::at(plan.admin_span, message)])
            })?;
        }
        // The filter was checked with the plan.
        let _ = self.log.configure(&plan.telemetry.log);
        self.cell.publish(snapshot);
        staging.publish(&self.control);
        staged.commit();
        self.generation.store(generation, Relaxed);
        *self.running.lock() = Arc::new(plan.into());
        self.engine.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.engine.swaps.inc();
        self.engine.swap_duration.observe(now().since(begun));
        Ok(generation)
    }

    fn reopen_logs(&self) {
        if let Some(log) = &self.cell.load().access_log {
            log.reopen();
        }
    }

    /// Work of the control thread that goes on for as long as the hop exists.
    fn housekeeping(self: &Arc<Self>) {
        self.control.spawn(ListenerSet::watch_certificates(Arc::downgrade(&self.listeners)));
        let cell = Arc::downgrade(&self.cell);
        let metrics = self.registry.clone();
        self.control.spawn(async move {
            let mut settled = 1;
            loop {
                tokio::time::sleep(SWEEP).await;
                let Some(cell) = cell.upgrade() else { return };
                let held = cell.sweep();
                let snapshot = cell.load();
                if held == 0 && snapshot.generation != settled {
                    // Nobody reads an older configuration any more: what it and the reload took is free.
                    settled = snapshot.generation;
                    purge::now();
                }
                for upstream in snapshot.upstreams() {
                    upstream.sweep(now());
                    upstream.refresh_tls(&metrics);
                }
            }
        });
    }

    /// One line that says where everything listens: people read it, scripts and tests parse it.
    fn announce(&self) {
        let mut line = String::from("onehop: ready");
        if let Some(admin) = self.admin_address() {
            line.push_str(&format!(" admin={admin}"));
        }
        for (name, bind) in self.listeners.addresses() {
            match bind {
                Bind::Tcp(address) => line.push_str(&format!(" {name}={address}")),
                Bind::Unix(path) => line.push_str(&format!(" {name}=unix://{}", path.display())),
            }
        }
        eprintln!("{line}");
    }
}

/// Builds everything a plan describes and throws it away: certificates, keys, filters. Binds nothing, starts nothing.
/// What filters remark is given back: numbers that follow from the configuration.
///
/// # Errors
/// Everything that is wrong.
pub fn check(plan: &Plan, entries: &'static [Entry]) -> Result<Vec<String>, Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|e| plan.files.report(vec![ConfigError::at(plan.span, format!("no runtime: {e}"))]))?;
    let _inside = runtime.enter();
    let registry = Arc::new(Registry::default());
    let estate = Estate::default();
    let engine = EngineMetrics::new(&registry);
    let snapshot = build(entries, &registry, &engine, &mut estate.stage(), runtime.handle(), plan, 0)?;
    for listener in plan.listeners.values() {
        crate::edge::listener::Settings::check(listener, plan.workload.as_ref())
            .map_err(|e| plan.files.report(vec![e]))?;
    }
    let mut remarks = std::mem::take(&mut *snapshot.directory.remarks.lock());
    // A plan's are told once, not for every route.
    remarks.sort_unstable();
    remarks.dedup();
    Ok(remarks)
}

/// `onehop run`. `settled` is called once everything is up and what only start-up needed can go.
#[must_use]
pub fn run(sources: Vec<Source>, settled: impl FnOnce()) -> std::process::ExitCode {
    use std::process::ExitCode;
    let log = Log::install("info").ok();
    match Hop::start_with(sources, onehop_filters::BUILTIN, log) {
        Ok(hop) => {
            settled();
            // In-flight work that was cut at the end of the grace is in the log; leaving on a signal is no failure.
            hop.serve_until_signal();
            ExitCode::SUCCESS
        }
        Err(StartError::Config(report)) => {
            eprint!("{report}");
            ExitCode::from(1)
        }
        Err(e) => {
            eprintln!("onehop: {e}");
            ExitCode::from(1)
        }
    }
}
