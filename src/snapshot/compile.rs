//! Plan to snapshot: every filter is built, every name becomes a position, and what must outlive the config is taken
//! from the estate. Nothing here changes the running system; errors leave no trace.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use onehop_filters::contract::entry::CheckTls;
use onehop_filters::contract::metrics::Registry;
use onehop_filters::contract::principal::{Consumer, Plan as ConsumerPlan};
use onehop_filters::contract::{
    Build, ConfigError, Directory, Entry, Filter, Held, Node, Phase, Role, RouteInfo, RouteView, ServiceId, Shown,
    ShownPath, Span, Surface,
};

use rustls_pki_types::ServerName;

use super::estate::Staging;
use super::incoming::Incoming;
use super::overload::Overload;
use super::own_paths::{self, OwnPaths};
use super::service::{self, Service};
use super::split::Split;
use super::{Action, Fallback, Link, Listener, Route, Snapshot, Target};
use crate::config::plan::{self, Plan};
use crate::observe::access_log::AccessLog;
use crate::observe::metrics::{EngineMetrics, RouteMetrics, ServiceMetrics, TcpMetrics};
use crate::observe::spans::Tracer;
use crate::route::{RouteSpec, Table};
use crate::upstream::passthrough::Passthrough;
use crate::upstream::{self, Upstream, tls::ClientTls};

/// What compiling needs beside the plan.
pub struct Compiler<'a, 'e> {
    /// Every filter there is.
    pub entries: &'a [Entry],
    /// Metrics of the process.
    pub metrics: &'a Arc<Registry>,
    /// What is counted once per process.
    pub engine: &'a EngineMetrics,
    /// What outlives configs.
    pub staging: &'a mut Staging<'e>,
    /// Where exporters run.
    pub control: &'a tokio::runtime::Handle,
}

/// Compiles a plan.
///
/// # Errors
/// Everything that is wrong with it, each with its place.
pub fn compile(compiler: &mut Compiler<'_, '_>, plan: &Plan, generation: u64) -> Result<Snapshot, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let mut directory = directory(compiler, plan, &mut errors);
    let targets = targets(compiler, plan, &directory, &mut errors);
    let mut routes = routes(compiler, plan, &directory, &mut errors);
    directory.surfaces = Vec::new();
    let own = if errors.is_empty() { own_paths::add(compiler, plan, &directory, &mut routes) } else { Vec::new() };
    let mut listeners = listeners(plan, &own, &mut errors);
    pass_through(compiler, plan, &directory, &mut routes, &mut listeners);
    let overload = Overload::build(plan, &mut compiler.build(plan, &directory, "runtime".to_owned(), Span::default()));
    let logs = telemetry(compiler, plan).map_err(|e| errors.push(e)).ok();
    // Kept, so that a call that began under one config bounds what it causes under the next.
    let incoming = listeners.iter().any(Listener::is_outbound).then(|| {
        compiler.build(plan, &directory, "carry".to_owned(), plan.span).keep("incoming", "", Incoming::default)
    });
    let incoming = incoming.filter(|_| plan.routes.iter().any(|route| route.inherit_deadline || route.carry_identity));
    let (Some((access_log, tracer)), true) = (logs, errors.is_empty()) else { return Err(errors) };
    Ok(Snapshot {
        generation,
        hash: plan.hash,
        listeners,
        routes,
        targets,
        unrouted: unrouted(compiler.metrics),
        engine: compiler.engine.clone(),
        access_log,
        tracer,
        telemetry: plan.telemetry.clone(),
        overload,
        lifecycle: plan.lifecycle.clone(),
        directory,
        carries_identity: incoming.is_some() && plan.routes.iter().any(|route| route.carry_identity),
        incoming,
    })
}

impl Compiler<'_, '_> {
    fn build<'b>(&'b mut self, plan: &Plan, directory: &'b Directory, scope: String, span: Span) -> Build<'b> {
        Build {
            scope,
            span,
            dir: plan.dir.clone(),
            directory,
            metrics: self.metrics.clone(),
            keeper: &mut *self.staging,
        }
    }

    fn entry(&self, name: &str, wanted: fn(&Role) -> bool) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name && wanted(&e.role))
    }
}

fn directory(compiler: &mut Compiler<'_, '_>, plan: &Plan, errors: &mut Vec<ConfigError>) -> Directory {
    // Services are compiled in the order of their names.
    let services = plan.services.keys().cloned().zip((0..).map(ServiceId)).collect();
    let http1 = plan.routes.iter().filter_map(|route| Some((route.name.to_string(), http1(plan, route)?)));
    let mut directory = Directory {
        services,
        http1: http1.collect(),
        zone: plan.zone.clone(),
        state: plan.state.clone(),
        ..Directory::default()
    };
    directory.listeners = plan.listeners.keys().cloned().collect();
    directory.surfaces = surfaces(compiler.entries, plan);
    for (name, p) in &plan.plans {
        let made = ConsumerPlan { name: name.as_str().into(), priority: p.priority, sections: p.sections.clone() };
        directory.plans.insert(name.clone(), Arc::new(made));
    }
    for (name, c) in &plan.consumers {
        let consumer = Arc::new(Consumer {
            name: name.as_str().into(),
            plan: c.plan.as_ref().and_then(|p| directory.plans.get(p).cloned()),
            scopes: c.scopes.iter().map(|s| s.as_str().into()).collect(),
        });
        for (key, section) in &c.credentials {
            let held = Held { owner: name.clone(), section: section.clone() };
            directory.held.entry(key.clone()).or_default().push(held);
        }
        directory.consumers.insert(name.clone(), consumer);
    }
    let mut identities = BTreeMap::new();
    for (name, (kind, node)) in &plan.identities {
        let Some(Entry { role: Role::Identity(build), .. }) =
            compiler.entry(kind, |r| matches!(r, Role::Identity(_))).copied()
        else {
            errors.push(ConfigError::at(node.span, format!("there is no identity kind `{kind}`")));
            continue;
        };
        match build(node, &mut compiler.build(plan, &directory, format!("identities.{name}"), node.span)) {
            Ok(made) => {
                identities.insert(name.clone(), made);
            }
            Err(e) => errors.push(e),
        }
    }
    directory.identities = identities;
    directory.held.clear();
    directory
}

/// Routes that say something about themselves, or answer by themselves.
fn surfaces(entries: &[Entry], plan: &Plan) -> Vec<Surface> {
    let shows = |key: &str| entries.iter().any(|e| e.name == key && matches!(e.role, Role::Answer(_) | Role::Note(_)));
    let any = plan::Match::default();
    let shown = |m: &plan::Match| Shown {
        path: match &m.path {
            None => ShownPath::Any,
            Some(plan::PathMatch::Exact(path)) => ShownPath::Exact(path.clone()),
            Some(plan::PathMatch::Prefix(path)) => ShownPath::Prefix(path.clone()),
            Some(plan::PathMatch::Regex(path)) => ShownPath::Regex(path.clone()),
        },
        methods: m.methods.clone(),
    };
    let routes = plan.routes.iter().filter(|route| route.filters.iter().any(|(key, _)| shows(key)));
    let surface = |route: &plan::Route| Surface {
        name: route.name.clone(),
        listeners: route.listeners.clone(),
        hosts: route.hosts.clone(),
        matches: match route.matches.as_slice() {
            [] => vec![shown(&any)],
            matches => matches.iter().map(shown).collect(),
        },
        sections: route.filters.clone(),
    };
    routes.map(surface).collect()
}

/// A service of the route that only speaks HTTP/1.1.
fn http1(plan: &Plan, route: &plan::Route) -> Option<String> {
    let plan::Action::Forward(to) = &route.action else { return None };
    let mut names = to.iter().map(|callee| &callee.service);
    let found = names.find(|name| plan.services.get(*name).is_some_and(|s| s.protocol == plan::Protocol::H1))?;
    Some(found.clone())
}

fn targets(
    compiler: &mut Compiler<'_, '_>,
    plan: &Plan,
    directory: &Directory,
    errors: &mut Vec<ConfigError>,
) -> Vec<Target> {
    let mut targets = Vec::with_capacity(plan.services.len());
    for service in plan.services.values() {
        match target(compiler, plan, directory, service) {
            Ok(made) => targets.push(made),
            Err(e) => errors.push(e),
        }
    }
    if errors.is_empty() {
        let subsets = plan.services.values().zip(&targets).flat_map(|(service, target)| {
            service::subsets(service).map(|subset| target.subset(&subset)).collect::<Vec<_>>()
        });
        let subsets: Vec<Target> = subsets.collect();
        targets.extend(subsets);
    }
    targets
}

fn target(
    compiler: &mut Compiler<'_, '_>,
    plan: &Plan,
    directory: &Directory,
    service: &plan::Service,
) -> Result<Target, ConfigError> {
    let entries = compiler.entries;
    let metrics = compiler.metrics.clone();
    let tls = match &service.tls {
        Some(tls) => Some(client_tls(compiler, plan, directory, service, tls)?),
        None => None,
    };
    let mut build = compiler.build(plan, directory, format!("services.{}", service.name), service.span);
    let upstream = connections(&mut build, service, tls.as_ref());
    let default = default_name(&service.discover.1).and_then(|n| ServerName::try_from(n).ok());
    let check_tls = tls.as_ref().and_then(|(tls, _)| {
        let nowhere = onehop_filters::contract::mesh::Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        Some(CheckTls { config: tls.config(), name: tls.server_name(default.as_ref(), &nowhere).ok()? })
    });
    let made = Service::build(service, entries, &mut build, check_tls)?;
    let (cluster, upstream_of_removed) = (made.cluster.clone(), Arc::downgrade(&upstream));
    // The cluster may be that of the running config: it hears nothing of one that is refused.
    build.at_publish(move || {
        cluster.on_removed(move |endpoint| {
            if let Some(upstream) = upstream_of_removed.upgrade() {
                upstream.forget(endpoint.id);
            }
        });
    });
    let fallback = service.fallback.as_ref().and_then(|f| match f {
        plan::Fallback::Respond(canned) => Some(Fallback::Respond(canned.clone())),
        plan::Fallback::Service(name) => position(plan, name).map(Fallback::Target),
    });
    let tcp = gets_connections(plan, &service.name).then(|| TcpMetrics::new(&metrics, &service.name));
    Ok(Target { service: made, upstream, fallback, metrics: ServiceMetrics::new(&metrics, &service.name), tcp })
}

/// Whether a TCP listener passes connections to the service, or does when another fails.
fn gets_connections(plan: &Plan, service: &str) -> bool {
    let falls_back_here = |name: &String| {
        let fallback = plan.services.get(name).and_then(|s| s.fallback.as_ref());
        matches!(fallback, Some(plan::Fallback::Service(other)) if other == service)
    };
    plan.routes.iter().filter(|route| route.tcp).any(|route| match &route.action {
        plan::Action::Forward(to) => to.iter().any(|to| to.service == *service || falls_back_here(&to.service)),
        _ => false,
    })
}

/// Services are compiled in the order of their names; a position is the rank of the name.
fn position(plan: &Plan, name: &str) -> Option<usize> {
    plan.services.keys().position(|n| n == name)
}

/// Client certificates are read anew at each load; the same content gives the same object, sessions included.
fn client_tls(
    compiler: &mut Compiler<'_, '_>,
    plan: &Plan,
    directory: &Directory,
    service: &plan::Service,
    tls: &plan::UpstreamTls,
) -> Result<(Arc<ClientTls>, String), ConfigError> {
    let wrong = |e| ConfigError::at(service.span, format!("service `{}`: tls: {e}", service.name));
    let shape = upstream::tls::shape(tls, plan.workload.as_ref()).map_err(wrong)?;
    let made = ClientTls::build(tls, plan.workload.as_ref()).map_err(wrong)?;
    let mut build = compiler.build(plan, directory, format!("services.{}", service.name), service.span);
    Ok((build.keep("tls", &shape, || made), shape))
}

/// The host name that discovery starts from, for SNI when none is configured.
fn default_name(section: &Node) -> Option<String> {
    let text = match &section.value {
        onehop_filters::contract::section::Value::Str(s) => s.as_str(),
        onehop_filters::contract::section::Value::Map(_) => match &section.get("name")?.value {
            onehop_filters::contract::section::Value::Str(s) => s.as_str(),
            _ => return None,
        },
        onehop_filters::contract::section::Value::Seq(items) => match &items.first()?.value {
            onehop_filters::contract::section::Value::Str(s) => s.as_str(),
            _ => return None,
        },
        _ => return None,
    };
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    (!host.is_empty() && !host.contains('/')).then(|| host.trim_matches(['[', ']']).to_owned())
}

fn connections(
    build: &mut Build<'_>,
    service: &plan::Service,
    tls: Option<&(Arc<ClientTls>, String)>,
) -> Arc<Upstream> {
    let settings = upstream::Settings {
        service: service.name.clone(),
        protocol: service.protocol,
        tls: tls.map(|(tls, _)| tls.clone()),
        connect_timeout: service.connect_timeout,
        pool_idle: service.pool_idle,
        proxy_protocol: service.proxy_protocol,
        connections: service.connections,
        default_name: default_name(&service.discover.1).and_then(|n| ServerName::try_from(n).ok()),
        ..upstream::Settings::new(service.name.clone())
    };
    let spoken = (service.protocol, service.proxy_protocol);
    let shape = format!("{spoken:?} {}", tls.map_or("", |(_, shape)| shape));
    let kept = build.keep("upstream", &shape, || Upstream::new(settings.clone()));
    let adjusted = kept.clone();
    build.at_publish(move || adjusted.adjust(settings));
    kept
}

fn routes(
    compiler: &mut Compiler<'_, '_>,
    plan: &Plan,
    directory: &Directory,
    errors: &mut Vec<ConfigError>,
) -> Vec<Route> {
    let mut routes = Vec::with_capacity(plan.routes.len());
    for route in &plan.routes {
        // Filters know requests.
        let made = if route.tcp { Ok((Box::default(), 0)) } else { chain(compiler, plan, directory, route) };
        let action = action(plan, route).map_err(|e| errors.push(e)).ok();
        match made {
            Ok((chain, known)) => {
                if let Err(e) = claims_are_vouched_for(route, &chain) {
                    errors.push(e);
                }
                routes.extend(action.map(|action| Route {
                    info: Arc::new(RouteInfo {
                        name: route.name.clone(),
                        upgrades: route.upgrades.clone(),
                        to: match &route.action {
                            plan::Action::Forward(to) => exact(callees(plan, to)),
                            _ => Vec::new(),
                        },
                    }),
                    answers: chain.iter().any(|l| l.response),
                    chain,
                    preflights: compiler.entries.iter().any(|entry| {
                        matches!(entry.role, Role::Api { phase: Phase::Cors, .. })
                            && route.filters.iter().any(|(key, _)| key == entry.name)
                    }),
                    request_timeout: route.request_timeout,
                    idle_timeout: route.idle_timeout,
                    body_limit: route.body_limit,
                    inherit_deadline: route.inherit_deadline,
                    carry_identity: route.carry_identity,
                    known,
                    action,
                    metrics: RouteMetrics::new(compiler.metrics, &route.name),
                }));
            }
            Err(mut found) => errors.append(&mut found),
        }
    }
    routes
}

/// Nothing in hand: there may be thousands of routes.
fn exact<T>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut list: Vec<T> = items.collect();
    list.shrink_to_fit();
    list
}

/// A route chosen by claims must ask for them, and let nobody pass without: else strangers would be sent there by what
/// nobody said.
fn claims_are_vouched_for(route: &plan::Route, chain: &[Link]) -> Result<(), ConfigError> {
    if route.matches.iter().all(|m| m.claims.is_empty()) {
        return Ok(());
    }
    let name = &route.name;
    if chain.iter().all(|link| link.filter.asks().identities.is_empty()) {
        return Err(ConfigError::at(route.span, format!("route `{name}` matches on claims and asks nobody for them"))
            .help("add `auth: { require: IDENTITY }`"));
    }
    if chain.iter().any(|link| link.filter.asks().optional) {
        return Err(ConfigError::at(route.span, format!("route `{name}` matches on claims and lets strangers pass"))
            .help("remove `optional`; give strangers a route without `claims`"));
    }
    Ok(())
}

fn action(plan: &Plan, route: &plan::Route) -> Result<Action, ConfigError> {
    Ok(match &route.action {
        plan::Action::Forward(to) => {
            let targets: Vec<(usize, u32)> =
                to.iter().filter_map(|callee| Some((target_of(plan, callee)?, callee.weight))).collect();
            let edits = to.iter().filter_map(|callee| Some((target_of(plan, callee)?, callee.edits.clone()?)));
            let split = Split::new(&targets).edited(edits);
            Action::Forward(match &route.sticky {
                Some(sticky) => split.sticky(sticky, to)?,
                None => split,
            })
        }
        plan::Action::Redirect(redirect) => Action::Redirect(Box::new(redirect.clone())),
        plan::Action::Respond(canned) => Action::Respond(canned.clone()),
        // Its chain never ends without an answer.
        plan::Action::Filter => Action::Nothing,
    })
}

/// The services of a split, by position.
fn callees<'a>(plan: &'a Plan, to: &'a [plan::Callee]) -> impl Iterator<Item = (ServiceId, u32)> + 'a {
    to.iter().filter_map(|callee| Some((ServiceId(position(plan, &callee.service)?), callee.weight)))
}

/// The position of what is called in [`Snapshot::targets`]: subsets stand behind all services, in the order of both names.
fn target_of(plan: &Plan, callee: &plan::Callee) -> Option<usize> {
    let Some(subset) = &callee.subset else { return position(plan, &callee.service) };
    let all = plan.services.iter().flat_map(|(service, s)| s.subsets.keys().map(move |subset| (service, subset)));
    Some(plan.services.len() + all.clone().position(|at| at == (&callee.service, subset))?)
}

/// Builds the filters of a route in the order of their phases, which is not the user's to get wrong. Also how many of
/// them find out who calls.
fn chain(
    compiler: &mut Compiler<'_, '_>,
    plan: &Plan,
    directory: &Directory,
    route: &plan::Route,
) -> Result<(Box<[Link]>, u16), Vec<ConfigError>> {
    let keys: Vec<&str> = route.filters.iter().map(|(k, _)| k.as_str()).collect();
    let view = RouteView { name: &route.name, keys: &keys };
    let mut found: Vec<(Phase, &'static str, Arc<dyn Filter>)> = Vec::new();
    let mut last: Option<(&'static str, Arc<dyn Filter>)> = None;
    let mut errors = Vec::new();
    let entries = compiler.entries;
    for entry in entries {
        let section = route.filters.iter().find(|(k, _)| k == entry.name).map(|(_, node)| node);
        let span = section.map_or(route.span, |n| n.span);
        let wanted = match entry.role {
            Role::Api { implied, .. } => section.is_some() || implied(&view, directory),
            Role::Answer(_) | Role::Note(_) => section.is_some(),
            _ => false,
        };
        if !wanted {
            continue;
        }
        let build = &mut compiler.build(plan, directory, format!("routes.{}", route.name), span);
        let made = match (entry.role, section) {
            (Role::Api { phase, build: make, .. }, section) => {
                make(section, build).map(|filter| found.push((phase, entry.name, filter)))
            }
            (Role::Answer(make), Some(section)) => make(section, build).map(|filter| last = Some((entry.name, filter))),
            (Role::Note(judge), Some(section)) => judge(section, build),
            _ => Ok(()),
        };
        errors.extend(made.err());
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    found.sort_by_key(|(phase, name, _)| (*phase, *name));
    let known = found.iter().filter(|(phase, ..)| *phase < Phase::Quota).count();
    let known = u16::try_from(known).expect("a route has no more filters than there are entries");
    let links = found.into_iter().map(|(_, name, filter)| (name, filter)).chain(last);
    let links = links.map(|(name, filter)| Link { name, response: filter.needs().response, filter });
    Ok((links.collect(), known))
}

fn listeners(plan: &Plan, own: &[OwnPaths], errors: &mut Vec<ConfigError>) -> Vec<Listener> {
    let mut listeners = Vec::with_capacity(plan.listeners.len());
    for (name, listener) in &plan.listeners {
        let mine = plan.routes.iter().zip(0u32..).filter(|(r, _)| match &r.listeners {
            Some(names) => names.iter().any(|n| n == name),
            // Every listener that takes requests.
            None => listener.tcp.is_none(),
        });
        let own =
            own.iter().filter(|own| listener.tcp.is_none() && own.is_on(name)).map(|own| (own.spec.clone(), own.route));
        let inherits = mine.clone().any(|(route, _)| route.inherit_deadline);
        let carries = inherits || mine.clone().any(|(route, _)| route.carry_identity);
        match Table::build(mine.map(|(route, i)| (RouteSpec::from(route), i)).chain(own)) {
            Ok(table) => {
                listeners.push(Listener { plan: listener.clone(), table, stranger: None, inherits, carries });
            }
            Err(e) => errors.push(ConfigError::at(listener.span, e.to_string())),
        }
    }
    listeners
}

/// Adds the route of hosts that no route names, for the listeners that let them through.
fn pass_through(
    compiler: &mut Compiler<'_, '_>,
    plan: &Plan,
    directory: &Directory,
    routes: &mut Vec<Route>,
    listeners: &mut [Listener],
) {
    // The defaults of routes.
    const REQUEST: Duration = Duration::from_secs(15);
    const IDLE: Duration = Duration::from_secs(300);
    let open: Vec<_> = listeners.iter_mut().filter(|l| l.plan.passthrough).collect();
    let (Ok(position), false) = (u32::try_from(routes.len()), open.is_empty()) else { return };
    let mut build = compiler.build(plan, directory, "passthrough".to_owned(), Span::default());
    let way = build.keep("upstream", "", Passthrough::default);
    routes.push(Route {
        info: Arc::new(RouteInfo { name: "passthrough".into(), upgrades: Vec::new(), to: Vec::new() }),
        request_timeout: Some(REQUEST),
        idle_timeout: Some(IDLE),
        action: Action::Pass(way),
        metrics: RouteMetrics::new(compiler.metrics, &"passthrough".into()),
        ..unrouted(compiler.metrics)
    });
    for listener in open {
        listener.stranger = Some(position);
    }
}

pub(super) fn unrouted(metrics: &Arc<Registry>) -> Route {
    Route {
        info: Arc::new(RouteInfo { name: "".into(), upgrades: Vec::new(), to: Vec::new() }),
        chain: Box::new([]),
        known: 0,
        answers: false,
        preflights: false,
        request_timeout: None,
        idle_timeout: None,
        body_limit: None,
        inherit_deadline: false,
        carry_identity: false,
        action: Action::Nothing,
        metrics: RouteMetrics::new(metrics, &"".into()),
    }
}

type Sinks = (Option<Arc<AccessLog>>, Option<Arc<Tracer>>);

fn telemetry(compiler: &mut Compiler<'_, '_>, plan: &Plan) -> Result<Sinks, ConfigError> {
    let metrics = compiler.metrics.clone();
    let control = compiler.control.clone();
    let directory = Directory::default();
    let mut build = compiler.build(plan, &directory, "telemetry".to_owned(), plan.span);
    let log = match &plan.telemetry.access_log {
        Some(log) => {
            // Opened here, so that a log that cannot be written is an error of the config; kept by what it is.
            let opened = AccessLog::open(log, &metrics)
                .map_err(|e| ConfigError::at(plan.span, format!("access log {}: {e}", log.path.display())))?;
            Some(build.keep("accessLog", &format!("{log:?}"), || opened))
        }
        None => None,
    };
    let tracer = match &plan.telemetry.tracing {
        Some(tracing) => {
            let made = Tracer::new(tracing, &metrics, &control)
                .map_err(|e| ConfigError::at(plan.span, format!("tracing: {e}")))?;
            Some(build.keep("tracing", &format!("{tracing:?}"), || made))
        }
        None => None,
    };
    Ok((log, tracer))
}
