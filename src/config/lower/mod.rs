//! Tree to [`Plan`]: shapes are read, names resolved, ranges checked. Collects every error it can find.

mod check;
mod listener;
mod route;
mod section;
mod service;

pub use service::POLICY;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use onehop_filters::contract::principal::Priority;
use onehop_filters::contract::section::{Value, suggest};
use onehop_filters::contract::state;
use onehop_filters::contract::{ConfigError, Entry, Held, Node, Optional, Role, Span};

use super::plan::{AccessLog, Admin, Bind, ConsumerPlan, Lifecycle, Plan, PlanPlan, Telemetry, TlsIdentity, Tracing};
use super::raw;
use super::report::{Files, by_place};
use check::Names;
use section::keys;

/// The plan of a merged tree whose variables are filled in; `None` if no plan can be made of it. It is good only if no
/// error was added.
pub fn plan(root: Node, entries: &[Entry], dir: &Path, errors: &mut Vec<ConfigError>) -> Option<Plan> {
    let known = Names::of(&root);
    Lower { entries, dir: dir.to_path_buf(), errors, warnings: Vec::new(), known, filled: None }.plan(root)
}

/// The engine's own sections with every default filled in, as JSON, in the order of the raw types.
pub fn filled(root: Node, entries: &[Entry], dir: &Path) -> serde_json::Value {
    let mut errors = Vec::new();
    let filled = Some(serde_json::Map::new());
    let mut lower = Lower {
        entries,
        dir: dir.to_path_buf(),
        errors: &mut errors,
        warnings: Vec::new(),
        known: Names::of(&root),
        filled,
    };
    lower.plan(root);
    lower.filled.map_or(serde_json::Value::Null, serde_json::Value::Object)
}

/// Where an identity, a discovery kind or a key of a filter may stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Route,
    Plan,
    Identity,
    Consumer,
    Discover,
    Balance,
    Service,
}

/// `runtime`.
struct Runtime {
    workers: Option<usize>,
    max_requests: Option<u32>,
    max_memory: Option<u64>,
    brownout: Vec<Optional>,
    zone: Option<Arc<str>>,
}

struct Lower<'a> {
    entries: &'a [Entry],
    dir: PathBuf,
    errors: &'a mut Vec<ConfigError>,
    warnings: Vec<ConfigError>,
    known: Names,
    /// Collects sections with their defaults, if somebody wants to see them.
    filled: Option<serde_json::Map<String, serde_json::Value>>,
}

impl<'a> Lower<'a> {
    fn plan(&mut self, mut root: Node) -> Option<Plan> {
        // Routes are most of a large configuration: their part of the tree goes as they are read.
        let routes = take(&mut root, "routes");
        let root = &root;
        self.version(root);
        let admin = self.admin(root);
        let listeners = self.named(root, "listeners", "listener", Self::listener);
        let identities = self.named(root, "identities", "identity", |this, name, _, node| {
            this.kind(node, Slot::Identity, &format!("identity `{name}`"))
        });
        let plans = self.named(root, "plans", "plan", |this, _, _, node| this.plan_plan(node));
        let consumers =
            self.named(root, "consumers", "consumer", |this, name, span, node| this.consumer(name, span, node));
        self.credentials(&consumers);
        let services = self.named(root, "services", "service", Self::service);
        let routes = self.routes(routes);
        let workload = self.workload(root);
        let telemetry = self.telemetry(root);
        let lifecycle = self.lifecycle(root);
        let runtime = self.runtime(root);
        let state = self.state(root);
        let plan = Plan {
            dir: self.dir.clone(),
            hash: 0,
            admin,
            listeners,
            identities,
            plans,
            consumers,
            routes,
            services,
            workload,
            telemetry,
            lifecycle,
            workers: runtime.workers,
            span: root.span,
            admin_span: root.get("admin").map_or(root.span, |admin| admin.get("bind").unwrap_or(admin).span),
            max_requests: runtime.max_requests,
            max_memory: runtime.max_memory,
            brownout: runtime.brownout,
            zone: runtime.zone,
            state,
            files: Files::default(),
            warnings: Vec::new(),
        };
        self.cross_check(&plan);
        let mut warnings = std::mem::take(&mut self.warnings);
        by_place(&mut warnings);
        Some(Plan { warnings, ..plan })
    }

    fn error(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.errors.push(ConfigError::at(span, message).help(help));
    }
    fn warn(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.warnings.push(ConfigError::at(span, message).help(help));
    }

    /// Names of the entries that may stand somewhere.
    fn names(&self, slot: Slot) -> Vec<&'static str> {
        let fits = |role: &Role| match role {
            Role::Api { .. } => matches!(slot, Slot::Route | Slot::Plan),
            Role::Answer(_) | Role::Note(_) => slot == Slot::Route,
            Role::Identity(_) => slot == Slot::Identity,
            Role::Credential(_) => slot == Slot::Consumer,
            Role::Discover(_) => slot == Slot::Discover,
            Role::Balance(_) => slot == Slot::Balance,
            Role::Gate(_) | Role::Retry(_) | Role::Affinity(_) | Role::Check(_) => slot == Slot::Service,
        };
        self.entries.iter().filter(|e| fits(&e.role)).map(|e| e.name).collect()
    }

    fn version(&mut self, root: &Node) {
        match root.get("version") {
            Some(n) if n.value == Value::Int(1) => {}
            Some(n) => self.error(n.span, "this version of the configuration is not known", "write `version: 1`"),
            None => self.error(root.span, "`version` is missing", "begin with `version: 1`"),
        }
        self.fill("version", || serde_json::json!(1));
    }

    /// A key that has a meaning in the design and no effect yet: never accepted in silence.
    fn unavailable(&mut self, node: &Node, key: &str, what: &str) {
        if let Some((key, _)) = node.entries().iter().find(|(k, _)| k.name == key) {
            let message = format!("`{}` ({what}) is not available in this version", key.name);
            self.error(key.span, message, format!("remove `{}`", key.name));
        }
    }

    fn admin(&mut self, root: &Node) -> Admin {
        let raw: raw::Admin = self.top(root, "admin");
        let bind = match raw.bind.value.as_str() {
            "none" => None,
            _ => self.bind(&raw.bind),
        };
        Admin { bind }
    }

    /// Exactly one key, which names an entry: `{jwt: {...}}`.
    fn kind(&mut self, node: &Node, slot: Slot, what: &str) -> Option<(String, Node)> {
        let names = self.names(slot);
        let one_of = format!("known here: {}", names.join(", "));
        match node.entries() {
            [(key, section)] if names.contains(&key.name.as_str()) => Some((key.name.clone(), section.clone())),
            [(key, _)] => {
                self.error(key.span, format!("unknown kind `{}`", key.name), suggest(&key.name, &names));
                None
            }
            [] => {
                self.error(node.span, format!("{what} has no kind"), one_of);
                None
            }
            [_, (second, _), ..] => {
                self.error(second.span, format!("{what} has more than one kind"), format!("keep one; {one_of}"));
                None
            }
        }
    }

    fn plan_plan(&mut self, node: &Node) -> Option<PlanPlan> {
        let filters = self.names(Slot::Plan);
        let (engine, sections) = self.split(node, &["priority".to_owned()], &filters)?;
        let priority = match engine.get("priority") {
            Some(n) => self.read::<raw::Priority>(n)?,
            None => raw::Priority::default(),
        };
        let sections = sections.into_iter().map(|(k, n)| (k.name, n)).collect();
        let priority = match priority {
            raw::Priority::Low => Priority::Low,
            raw::Priority::Normal => Priority::Normal,
            raw::Priority::High => Priority::High,
        };
        Some(PlanPlan { priority, sections })
    }

    fn consumer(&mut self, name: &str, span: Span, node: &Node) -> Option<ConsumerPlan> {
        let kinds = self.names(Slot::Consumer);
        let (engine, sections) = self.split(node, &keys::<raw::Consumer>(), &kinds)?;
        let raw: raw::Consumer = self.read(&engine)?;
        self.fill_at("consumers", name, &raw);
        if let Some(plan) = &raw.plan {
            self.must_know_plan(plan);
        }
        let credentials = sections.into_iter().map(|(k, n)| (k.name, n)).collect();
        Some(ConsumerPlan { span, plan: raw.plan.map(|p| p.value), credentials, scopes: raw.scopes })
    }

    /// Credentials are judged over all consumers at once: one that two of them hold names nobody.
    fn credentials(&mut self, consumers: &BTreeMap<String, ConsumerPlan>) {
        for entry in self.entries {
            let Role::Credential(judge) = entry.role else { continue };
            self.errors.extend(judge(&held(consumers, entry.name), &self.dir));
        }
    }

    fn workload(&mut self, root: &Node) -> Option<TlsIdentity> {
        let node = root.get("workload")?;
        self.unavailable(node, "spiffe", "an identity from a SPIFFE agent");
        if node.get("spiffe").is_some() {
            return None;
        }
        let raw: raw::Workload = self.read(node)?;
        self.fill("workload", || serde_json::to_value(&raw).unwrap_or_default());
        if raw.name.is_empty() {
            self.error(raw.name.span, "the workload has an empty name", "name it, such as `orders`");
        }
        let path = |p: &Path| self.dir.join(p);
        Some(TlsIdentity {
            name: Arc::from(raw.name.value.as_str()),
            cert: path(&raw.cert),
            key: path(&raw.key),
            ca: path(&raw.ca),
        })
    }

    fn telemetry(&mut self, root: &Node) -> Telemetry {
        let raw: raw::Telemetry = self.top(root, "telemetry");
        let debug_header = http::HeaderName::try_from(raw.debug_header.as_str()).unwrap_or_else(|_| {
            self.error(raw.debug_header.span, "this is not the name of a header field", HEADER_NAME);
            http::HeaderName::from_static("x-onehop-debug")
        });
        if let Some(tracing) = &raw.tracing {
            let uri = tracing.otlp.parse::<http::Uri>();
            let good = uri.is_ok_and(|u| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some());
            if !good {
                let help = "write the collector's address, such as `http://127.0.0.1:4317`";
                self.error(tracing.otlp.span, "this is not the URL of a collector", help);
            }
            if let Some(ca) = tracing.ca.as_ref().filter(|_| !tracing.otlp.starts_with("https:")) {
                let help = "write `https://...`, or remove `ca`";
                self.error(ca.span, "`ca` has no effect on a collector without TLS", help);
            }
        }
        if raw.log.parse::<tracing_subscriber::EnvFilter>().is_err() {
            self.error(raw.log.span, "this is not a log filter", "write `info`, `debug` or `onehop=debug,info`");
        }
        Telemetry {
            access_log: raw.access_log.map(|l| AccessLog {
                path: self.dir.join(l.path),
                text: l.format == raw::LogFormat::Text,
                sample: l.sample.0,
            }),
            tracing: raw.tracing.map(|t| Tracing {
                otlp: t.otlp.value,
                ca: t.ca.map(|ca| self.dir.join(ca.value)),
                sample: t.sample.0,
                service_name: t.service_name,
                restart: t.restart,
            }),
            debug_header,
            log: raw.log.value,
        }
    }

    fn lifecycle(&mut self, root: &Node) -> Lifecycle {
        let raw: raw::Lifecycle = self.top(root, "lifecycle");
        Lifecycle { drain: raw.drain.0, unready: raw.unready.0, outbound_until_app_exits: raw.outbound_until_app_exits }
    }

    fn runtime(&mut self, root: &Node) -> Runtime {
        let raw: raw::Runtime = self.top(root, "runtime");
        let workers = self.workers(&raw);
        let max_requests = raw.max_requests.as_ref().and_then(|n| match u32::try_from(n.value) {
            Ok(n) if n > 0 => Some(n),
            _ => {
                self.error(n.span, format!("{} requests are no limit", n.value), "from 1 to 4294967295");
                None
            }
        });
        // Less than the process needs by itself would refuse every request.
        const LEAST: u64 = 64 << 20;
        if let Some(size) = raw.max_memory.as_ref().filter(|size| size.value.0 < LEAST) {
            self.error(size.span, "the process needs more memory by itself", "64MiB or more");
        }
        let mut brownout = Vec::with_capacity(raw.brownout.len());
        for work in &raw.brownout {
            if raw.max_requests.is_none() && raw.max_memory.is_none() {
                let help = "set `maxRequests` or `maxMemory`";
                self.error(work.span, "nothing says when there is too much to do", help);
                break;
            }
            let kind = match work.value {
                raw::Optional::Mirror => Optional::Mirror,
                raw::Optional::Tracing => Optional::Tracing,
                raw::Optional::Validation => Optional::Validation,
            };
            if brownout.contains(&kind) {
                self.error(work.span, "this stands twice", "the first to be left out stands first");
            }
            brownout.push(kind);
        }
        let (max_memory, zone) = (raw.max_memory.map(|size| size.value.0), raw.zone.map(Arc::from));
        Runtime { workers, max_requests, max_memory, brownout, zone }
    }

    fn workers(&mut self, raw: &raw::Runtime) -> Option<usize> {
        match &raw.workers.value {
            Value::Str(s) if s == "auto" => None,
            Value::Int(n @ 1..=1024) => usize::try_from(*n).ok(),
            _ => {
                let help = "write `auto` or a whole number from 1 to 1024";
                self.error(raw.workers.span, "this is not a number of workers", help);
                None
            }
        }
    }

    fn state(&mut self, root: &Node) -> Arc<state::Settings> {
        let raw: state::State = self.top(root, "state");
        match raw.settle(&self.dir) {
            Ok(settings) => Arc::new(settings),
            Err(e) => {
                self.errors.push(e);
                Arc::default()
            }
        }
    }

    /// `ip:port` or `unix:///path`.
    fn bind(&mut self, text: &onehop_filters::contract::Spot<String>) -> Option<Bind> {
        if let Some(path) = text.strip_prefix("unix://") {
            if path.starts_with('/') && path.len() > 1 {
                return Some(Bind::Unix(PathBuf::from(path)));
            }
            self.error(text.span, "a unix socket needs an absolute path", "write `unix:///run/onehop.sock`");
            return None;
        }
        match text.parse() {
            Ok(addr) => Some(Bind::Tcp(addr)),
            Err(_) => {
                let help = "write `ip:port`, such as `0.0.0.0:8080` or `[::]:8080`, or `unix:///path`";
                self.error(text.span, format!("`{}` is not an address to listen on", text.value), help);
                None
            }
        }
    }
}

/// Takes what stands under a key out of a map.
fn take(root: &mut Node, key: &str) -> Option<Node> {
    let Value::Map(map) = &mut root.value else { return None };
    let (_, node) = map.iter_mut().find(|(k, _)| k.name == key)?;
    let span = node.span;
    Some(std::mem::replace(node, Node { span, value: Value::Null }))
}

/// What consumers hold under one key, in the order of their names.
pub fn held(consumers: &BTreeMap<String, ConsumerPlan>, key: &str) -> Vec<Held> {
    let held = |(name, consumer): (&String, &ConsumerPlan)| {
        Some(Held { owner: name.clone(), section: consumer.credentials.get(key)?.clone() })
    };
    consumers.iter().filter_map(held).collect()
}

const HEADER_NAME: &str = "letters, digits and `-`, such as `x-request-id`";
