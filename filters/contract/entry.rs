//! What a filter is to the engine: one [`Entry`]. Schema, help, docs and example tests are all derived from it.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use super::call::ServiceId;
use super::filter::{Authenticator, Filter};
use super::mesh::{Affinity, Balance, Discover, Endpoint, Gate, Retry};
use super::metrics::Registry;
use super::principal::{Consumer, Plan};
use super::section::{ConfigError, Node, Span, Spot};
use super::surface::Surface;

/// A filter, as listed in `BUILTIN` or handed to the engine by an embedding program.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Its key in the config.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Its README.
    pub readme: &'static str,
    /// A complete config that uses it; a test runs `check` on it.
    pub example: &'static str,
    /// JSON Schema of its section.
    pub schema: fn(&mut schemars::SchemaGenerator) -> schemars::Schema,
    /// What it does and how it is built.
    pub role: Role,
}

/// What an [`Entry`] builds, and where its key stands.
#[derive(Clone, Copy)]
pub enum Role {
    /// A key on a route.
    Api {
        /// Place in the chain.
        phase: Phase,
        /// Whether the route gets it although its key is absent.
        implied: fn(&RouteView<'_>, &Directory) -> bool,
        /// `None`: implied.
        build: fn(Option<&Node>, &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError>,
    },
    /// A key on a route that answers its requests, in place of `to`, `redirect` and `respond`: built like a filter, and
    /// called last.
    Answer(fn(&Node, &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError>),
    /// A key on a route that says something about it and does nothing in its chain. Whoever is concerned reads it in
    /// [`Directory::surfaces`]; it is judged here.
    Note(fn(&Node, &mut Build<'_>) -> Result<(), ConfigError>),
    /// A kind of credential, a key under `identities.NAME`.
    Identity(fn(&Node, &mut Build<'_>) -> Result<Arc<dyn Authenticator>, ConfigError>),
    /// What consumers hold for a kind of identity, a key under `consumers.NAME`. Judges the sections of all consumers
    /// together, whether or not an identity reads them; identities find them in [`Directory::held`]. The path is the
    /// folder that relative paths start in.
    Credential(fn(&[Held], &Path) -> Vec<ConfigError>),
    /// A kind of discovery, a key under `services.NAME.discover`.
    Discover(fn(&Node, &mut Build<'_>) -> Result<Arc<dyn Discover>, ConfigError>),
    /// A balancing policy, a value of `services.NAME.loadBalancer.policy`; reads the whole `loadBalancer` section.
    Balance(fn(Option<&Node>, &mut Build<'_>) -> Result<Arc<dyn Balance>, ConfigError>),
    /// A gate, a key on a service. Built for every service, so that defaults act; `None` = not meant for this service.
    Gate(fn(Option<&Node>, &mut Build<'_>) -> Result<Option<Arc<dyn Gate>>, ConfigError>),
    /// The retry policy, key `retry` on a service. Built for every service.
    Retry(fn(Option<&Node>, &mut Build<'_>) -> Result<Arc<dyn Retry>, ConfigError>),
    /// What binds requests to endpoints, a key on a service. Built only where the key stands; asked in the order of the
    /// list of entries.
    Affinity(fn(&Node, &mut Build<'_>) -> Result<Arc<dyn Affinity>, ConfigError>),
    /// Active health checks, key `healthCheck` on a service. Built only where the key stands.
    Check(fn(&Node, &mut Build<'_>) -> Result<Arc<dyn Check>, ConfigError>),
}

/// Place of an API filter in the chain, outermost first. Within a phase: by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Answers preflights before anything costs.
    Cors,
    /// Changes how an answer is written for this caller, whoever made it: compression, gRPC-Web.
    Encode,
    /// Cheap guards before any credential is looked at: addresses, cross-site requests.
    Guard,
    /// Who is it, and may it.
    Auth,
    /// Asks somebody else whether it may, knowing who it is.
    Authorize,
    /// Has it got any left.
    Quota,
    /// Is the message well-formed.
    Validate,
    /// Rewrites.
    Transform,
    /// Was it asked before, under the same key.
    Idempotency,
    /// Answers from memory.
    Cache,
    /// Breaks on purpose what lies behind.
    Fault,
    /// Speaks the service's protocol for a caller that does not: gRPC-JSON transcoding.
    Bridge,
}

/// What an implied filter may look at.
pub struct RouteView<'a> {
    /// Route name.
    pub name: &'a str,
    /// Keys of the route.
    pub keys: &'a [&'a str],
}

/// Probes endpoints by itself, on the control thread, and writes `EndpointState::health`.
pub trait Check: Send + Sync + 'static {
    /// Runs for ever; `members` gives the current endpoints; dropped when the service is gone.
    fn run(&self, members: Members, tls: Option<CheckTls>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// Whether endpoints that join from now on are unhealthy until they pass.
    fn starts_unhealthy(&self) -> bool {
        false
    }
}

/// Gives the current endpoints of a service; `None` once the service is gone.
pub type Members = Arc<dyn Fn() -> Option<Arc<[Arc<Endpoint>]>> + Send + Sync>;

/// How checks reach an endpoint over TLS.
#[derive(Clone)]
pub struct CheckTls {
    /// Client side, as the service's `tls` says.
    pub config: Arc<rustls::ClientConfig>,
    /// Name to ask for and to verify.
    pub name: rustls_pki_types::ServerName<'static>,
}

/// Everything with a name that filters may refer to.
#[derive(Default)]
pub struct Directory {
    /// `identities`.
    pub identities: BTreeMap<String, Arc<dyn Authenticator>>,
    /// `plans`.
    pub plans: BTreeMap<String, Arc<Plan>>,
    /// `consumers`.
    pub consumers: BTreeMap<String, Arc<Consumer>>,
    /// Credentials of consumers, by the key under `consumers.NAME`. Only there while identities are built.
    pub held: BTreeMap<String, Vec<Held>>,
    /// `services`.
    pub services: BTreeMap<String, ServiceId>,
    /// Routes that call a service which only speaks HTTP/1.1, by name, with the name of that service.
    pub http1: BTreeMap<String, String>,
    /// Names under `listeners`.
    pub listeners: Vec<String>,
    /// Routes that say something about themselves, or answer by themselves, in file order. Only there while filters are
    /// built.
    pub surfaces: Vec<Surface>,
    /// `state`.
    pub state: Arc<super::state::Settings>,
    /// `runtime.zone`: where this process runs; empty = not known. `None`: not written.
    pub zone: Option<Arc<str>>,
    /// What `check --effective` says besides the configuration: numbers that follow from it.
    pub remarks: parking_lot::Mutex<Vec<String>>,
}

impl Directory {
    /// What consumers hold under this key, in the order of their names.
    #[must_use]
    pub fn held(&self, key: &str) -> &[Held] {
        self.held.get(key).map_or(&[], Vec::as_slice)
    }
}

/// What one consumer holds for one kind of identity.
#[derive(Clone, Debug)]
pub struct Held {
    /// Name of the consumer.
    pub owner: String,
    /// Its section.
    pub section: Node,
}

/// What building a filter may use.
pub struct Build<'a> {
    /// Unique and stable within the config: `routes.orders`, `services.stock`, `identities.corp`.
    pub scope: String,
    /// Where the section (or its owner) stands, for errors that no deeper node causes.
    pub span: Span,
    /// Folder of the config file: relative paths start here.
    pub dir: PathBuf,
    /// Names.
    pub directory: &'a Directory,
    /// Metrics.
    pub metrics: Arc<Registry>,
    /// What outlives this config.
    pub keeper: &'a mut dyn Keeper,
}

impl Build<'_> {
    /// The object of this name that outlives configs: the same name, type and shape as before gives the same object,
    /// anything else a new one. A rejected config leaves no trace.
    pub fn keep<T: Send + Sync + 'static>(&mut self, name: &str, shape: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let key = format!("{}/{name}", self.scope);
        if let Some(found) = self.keeper.find(TypeId::of::<T>(), &key, shape)
            && let Ok(same) = found.downcast::<T>()
        {
            return same;
        }
        let made = Arc::new(make());
        self.keeper.stage(TypeId::of::<T>(), key, shape.to_owned(), made.clone());
        made
    }
    /// The service of this name, for [`super::Services::call`].
    ///
    /// # Errors
    /// There is none, with a suggestion.
    pub fn service(&self, name: &Spot<String>) -> Result<ServiceId, ConfigError> {
        let all = &self.directory.services;
        let found = all.get(&name.value).copied();
        found.ok_or_else(|| ConfigError::unknown(name.span, "service", &name.value, all.keys().map(String::as_str)))
    }
    /// The route that is being built, as its callers see it: there for notes and answers.
    #[must_use]
    pub fn surface(&self) -> Option<&Surface> {
        let route = self.scope.strip_prefix("routes.")?;
        self.directory.surfaces.iter().find(|surface| &*surface.name == route)
    }
    /// Makes sure that the services of this route may be called over HTTP/2, as gRPC is.
    ///
    /// # Errors
    /// One says `protocol: h1`.
    pub fn speaks_http2(&self) -> Result<(), ConfigError> {
        let route = self.scope.strip_prefix("routes.").unwrap_or(&self.scope);
        match self.directory.http1.get(route) {
            None => Ok(()),
            Some(service) => {
                Err(ConfigError::at(self.span, format!("service `{service}` speaks HTTP/1.1, gRPC does not"))
                    .help(format!("write `protocol: grpc` at `services.{service}`")))
            }
        }
    }
    /// Runs at publish, never if the config is rejected: adjusts a kept object in place, starts a connection, ...
    pub fn at_publish(&mut self, act: impl FnOnce() + Send + 'static) {
        self.keeper.at_publish(Box::new(act));
    }
    /// Runs on the control thread from publish on. Hold only a `Weak` to what it serves and end when that is gone.
    pub fn background(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.keeper.background(Box::pin(task));
    }
    /// An absolute path for a path in the config.
    #[must_use]
    pub fn path(&self, path: &Path) -> PathBuf {
        self.dir.join(path)
    }
}

/// Owner of what outlives configs; the engine implements it.
pub trait Keeper {
    /// The living object of this type, key and shape (from the running config, or staged by the one being built).
    fn find(&self, kind: TypeId, key: &str, shape: &str) -> Option<Arc<dyn Any + Send + Sync>>;
    /// Remembers a new one, for good once the config is published.
    fn stage(&mut self, kind: TypeId, key: String, shape: String, made: Arc<dyn Any + Send + Sync>);
    /// See [`Build::at_publish`].
    fn at_publish(&mut self, act: Box<dyn FnOnce() + Send>);
    /// See [`Build::background`].
    fn background(&mut self, task: Pin<Box<dyn Future<Output = ()> + Send>>);
}
