//! What only shows when everything is read: names used twice, loops, things that can never act.

use std::collections::{BTreeMap, BTreeSet};

use onehop_filters::contract::section::{Key, Value, suggest};
use onehop_filters::contract::units::Duration;
use onehop_filters::contract::{Node, Span, Spot};

use super::super::plan::{Action, Bind, Fallback, Match, Plan, Route, Tcp};
use super::Lower;

/// Names that may be referred to, whether or not their sections are right.
#[derive(Default)]
pub struct Names {
    pub listeners: BTreeSet<String>,
    /// Those of them that take connections, not requests.
    pub tcp: BTreeSet<String>,
    pub plans: BTreeSet<String>,
    pub services: BTreeSet<String>,
    pub workload: bool,
    /// Of each service that has any.
    pub subsets: BTreeMap<String, BTreeSet<String>>,
}

impl Names {
    pub fn of(root: &Node) -> Self {
        let names = |key: &str| {
            root.get(key).map(Node::entries).unwrap_or_default().iter().map(|(k, _)| k.name.clone()).collect()
        };
        let listeners = root.get("listeners").map(Node::entries).unwrap_or_default();
        Self {
            tcp: listeners.iter().filter(|(_, node)| takes_connections(node)).map(|(k, _)| k.name.clone()).collect(),
            listeners: names("listeners"),
            plans: names("plans"),
            services: names("services"),
            workload: root.get("workload").is_some(),
            subsets: root.get("services").map(Node::entries).unwrap_or_default().iter().filter_map(subsets).collect(),
        }
    }
}

/// Whether a listener's section makes it one for connections.
fn takes_connections(listener: &Node) -> bool {
    let says = |node: &Node, word: &str| matches!(&node.value, Value::Str(text) if text == word);
    match listener.get("protocols").map(|n| &n.value) {
        Some(Value::Seq(items)) => items.iter().any(|item| says(item, "tcp")),
        _ => listener.get("tls").and_then(|tls| tls.get("mode")).is_some_and(|mode| says(mode, "passthrough")),
    }
}

impl Lower<'_> {
    pub(super) fn must_know_listener(&mut self, name: &Spot<String>) {
        if !self.known.listeners.contains(&name.value) {
            self.dangling("listener", name, |n| &n.listeners);
        }
    }
    pub(super) fn must_know_plan(&mut self, name: &Spot<String>) {
        if !self.known.plans.contains(&name.value) {
            self.dangling("plan", name, |n| &n.plans);
        }
    }
    pub(super) fn must_know_service(&mut self, name: &str, span: Span) {
        if !self.known.services.contains(name) {
            self.dangling("service", &Spot { span, value: name.to_owned() }, |n| &n.services);
        }
    }
    pub(super) fn must_know_subset(&mut self, service: &str, subset: &Spot<String>) {
        let known = self.known.subsets.get(service);
        if self.known.services.contains(service) && !known.is_some_and(|all| all.contains(&subset.value)) {
            let known: Vec<&str> = known.into_iter().flatten().map(String::as_str).collect();
            let help = suggest(&subset.value, &known);
            self.error(subset.span, format!("service `{service}` has no subset `{}`", subset.value), help);
        }
    }
    fn dangling(&mut self, kind: &str, name: &Spot<String>, known: impl Fn(&Names) -> &BTreeSet<String>) {
        let all: Vec<&str> = known(&self.known).iter().map(String::as_str).collect();
        let help = suggest(&name.value, &all);
        self.error(name.span, format!("there is no {kind} `{}`", name.value), help);
    }
    pub(super) fn must_have_workload(&mut self, span: Span) {
        if !self.known.workload {
            let help = "add `workload: { name: NAME, cert: FILE, key: FILE, ca: FILE }`";
            self.error(span, "`mode: mesh` needs the workload's identity", help);
        }
    }

    pub(super) fn cross_check(&mut self, plan: &Plan) {
        self.repeated_routes(plan);
        self.repeated_binds(plan);
        self.fallback_loops(plan);
        self.slow_tries(plan);
        self.passed_on(plan);
        self.carried(plan);
        self.shadowed(plan);
        self.unused(plan);
    }

    fn repeated_routes(&mut self, plan: &Plan) {
        let mut seen = BTreeMap::new();
        for route in &plan.routes {
            match seen.get(&route.name) {
                Some(first) => {
                    let message = format!("the route name `{}` stands a second time", route.name);
                    self.error(route.span, message, format!("rename one; the first is at {}", place(*first)));
                }
                None => drop(seen.insert(route.name.clone(), route.span)),
            }
        }
    }

    fn repeated_binds(&mut self, plan: &Plan) {
        // Port 0 is another port each time.
        let fixed = |b: &Bind| !matches!(b, Bind::Tcp(a) if a.port() == 0);
        let mut listeners: Vec<_> = plan.listeners.values().filter(|l| fixed(&l.bind)).collect();
        listeners.sort_by_key(|l| (l.span.file, l.span.line, l.span.column));
        let mut seen = BTreeMap::new();
        if let Some(bind) = plan.admin.bind.as_ref().filter(|b| fixed(b)) {
            seen.insert(bind.clone(), ("admin".to_owned(), None));
        }
        for listener in listeners {
            match seen.get(&listener.bind) {
                Some((first, at)) => {
                    let at = at.map_or_else(String::new, |s| format!(" at {}", place(s)));
                    let message = format!("listener `{}` has the same bind as `{first}`{at}", listener.name);
                    self.error(listener.span, message, "give each its own address or port");
                }
                None => drop(seen.insert(listener.bind.clone(), (listener.name.to_string(), Some(listener.span)))),
            }
        }
    }

    /// A fallback that leads back to where it came from would answer nothing.
    fn fallback_loops(&mut self, plan: &Plan) {
        for (name, service) in &plan.services {
            let mut at = service;
            for _ in 0..plan.services.len() {
                let Some(Fallback::Service(next)) = &at.fallback else { break };
                if next == name {
                    let message = format!("the fallback of service `{name}` leads back to it");
                    self.error(service.span, message, "fall back to another service, or to `respond`");
                    break;
                }
                match plan.services.get(next) {
                    Some(service) => at = service,
                    None => break,
                }
            }
        }
    }

    fn slow_tries(&mut self, plan: &Plan) {
        for route in &plan.routes {
            let (Action::Forward(targets), Some(total)) = (&route.action, route.request_timeout) else { continue };
            for target in targets {
                let retry = plan.services.get(&target.service).and_then(|s| s.roles.get("retry"));
                let Some(node) = retry.and_then(|r| r.get("perTryTimeout")) else { continue };
                if node.read::<Duration>().is_ok_and(|d| d.0 > total) {
                    let message = format!(
                        "`perTryTimeout` is longer than the {} that route `{}` allows a request",
                        Duration(total),
                        route.name
                    );
                    self.warn(node.span, message, "it never acts there; make it shorter");
                }
            }
        }
    }

    /// Routes of TCP listeners, and such listeners without one.
    fn passed_on(&mut self, plan: &Plan) {
        for route in plan.routes.iter().filter(|r| r.tcp) {
            let on = route.listeners.iter().flatten().filter_map(|name| plan.listeners.get(name));
            let passed = on.clone().any(|l| l.tcp == Some(Tcp::Passthrough));
            let nameless = on.clone().find(|l| l.tcp == Some(Tcp::Bytes) && l.tls.is_none());
            if let (Some(listener), false) = (nameless, route.hosts.is_empty()) {
                let message = format!("on listener `{}` nobody says a server name", listener.name);
                let help = "remove `hosts`, or give the listener `tls`";
                self.error(route.span, message, help);
            }
            let Action::Forward(targets) = &route.action else { continue };
            for service in targets.iter().filter_map(|to| plan.services.get(&to.service)) {
                if matches!(service.fallback, Some(Fallback::Respond(_))) {
                    let message = format!("service `{}` falls back to an answer, and nobody asks here", service.name);
                    self.error(route.span, message, "fall back to a service: `fallback: { service: NAME }`");
                }
                for key in ["sessionPersistence", "endpointOverride"] {
                    if let Some(section) = service.roles.get(key) {
                        let message = format!("`{key}` reads fields of requests, and route `{}` has none", route.name);
                        self.warn(
                            section.span,
                            message,
                            "bind connections by `loadBalancer: { policy: maglev, hash: ip }`",
                        );
                    }
                }
                if passed && service.tls.as_ref().is_some_and(|tls| !tls.mesh) {
                    let message = format!("TLS is passed through to service `{}`, inside TLS of ours", service.name);
                    self.warn(route.span, message, "remove `tls` of the service, unless its endpoints end both");
                }
            }
        }
        for listener in plan.listeners.values().filter(|l| l.tcp.is_some()) {
            let mine = |r: &Route| r.listeners.iter().flatten().any(|name| *name == *listener.name);
            if !plan.routes.iter().any(mine) {
                let message = format!("no route names listener `{}`: it closes every connection", listener.name);
                self.warn(listener.span, message, "add `- { name: NAME, listeners: [LISTENER], to: SERVICE }`");
            }
        }
    }

    /// Identities come from calls that the application serves, for calls that it makes: those arrive on mesh listeners.
    fn carried(&mut self, plan: &Plan) {
        for route in plan.routes.iter().filter(|route| route.carry_identity) {
            let on = |name: &str| route.listeners.as_ref().is_none_or(|mine| mine.iter().any(|n| n == name));
            if !plan.listeners.iter().any(|(name, listener)| on(name) && (listener.mesh || listener.capture.is_some()))
            {
                let message =
                    format!("route `{}` is on no mesh listener: no call comes there from an application", route.name);
                self.error(route.span, message, "remove `carry.identity`, or write `exposure: mesh` on its listener");
            }
        }
    }

    /// A later route whose every match stands in an earlier one never gets a request: "first in file" decides.
    fn shadowed(&mut self, plan: &Plan) {
        let mut seen: BTreeMap<String, &Route> = BTreeMap::new();
        for route in &plan.routes {
            let places = places(route, plan);
            let first = places.iter().map(|p| seen.get(p).copied()).collect::<Option<Vec<_>>>();
            if let Some(first) = first.as_ref().and_then(|f| f.first()) {
                let message = format!("route `{}` never gets a request: `{}` matches the same", route.name, first.name);
                self.warn(route.span, message, "remove it, or match something else");
            }
            for place in places {
                seen.entry(place).or_insert(route);
            }
        }
    }

    fn unused(&mut self, plan: &Plan) {
        let mut used: BTreeSet<&str> = BTreeSet::new();
        for route in &plan.routes {
            if let Action::Forward(targets) = &route.action {
                used.extend(targets.iter().map(|target| target.service.as_str()));
            }
            // A filter may ask a service: whatever its section says that is the name of one.
            route.filters.iter().for_each(|(_, section)| texts(section, &mut used));
        }
        plan.identities.values().for_each(|(_, section)| texts(section, &mut used));
        for service in plan.services.values() {
            if let Some(Fallback::Service(s)) = &service.fallback {
                used.insert(s);
            }
        }
        for (name, service) in plan.services.iter().filter(|(name, _)| !used.contains(name.as_str())) {
            self.warn(service.span, format!("service `{name}` is used by no route"), "route to it, or remove it");
        }
        if plan.listeners.is_empty() {
            let help = "add `listeners: { web: { bind: 0.0.0.0:8080 } }`";
            self.warn(Span { file: 0, line: 1, column: 1 }, "there is no listener: nothing is served", help);
        }
    }
}

/// Names of the subsets of a service that has any.
fn subsets((name, service): &(Key, Node)) -> Option<(String, BTreeSet<String>)> {
    let all = service.get("subsets")?.entries().iter().map(|(name, _)| name.name.clone()).collect();
    Some((name.name.clone(), all))
}

/// Every text in a section.
fn texts<'a>(node: &'a Node, found: &mut BTreeSet<&'a str>) {
    match &node.value {
        Value::Str(text) => drop(found.insert(text)),
        Value::Seq(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Map(map) => map.iter().for_each(|(_, value)| texts(value, found)),
        _ => {}
    }
}

fn place(span: Span) -> String {
    format!("line {}, column {}", span.line, span.column)
}

/// Every (listener, host, match) of a route, as text that is equal where the router cannot tell two apart.
fn places(route: &Route, plan: &Plan) -> Vec<String> {
    let http = || plan.listeners.iter().filter(|(_, l)| l.tcp.is_none()).map(|(name, _)| name.clone());
    let listeners = route.listeners.clone().unwrap_or_else(|| http().collect());
    let any_host = [String::from("*")];
    let any_match = [Match::default()];
    let hosts = if route.hosts.is_empty() { &any_host } else { route.hosts.as_slice() };
    let matches = if route.matches.is_empty() { &any_match } else { route.matches.as_slice() };
    let mut all = Vec::with_capacity(listeners.len() * hosts.len() * matches.len());
    for m in matches {
        let mut m = m.clone();
        m.headers.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
        m.query.sort_by(|a, b| a.0.cmp(&b.0));
        m.claims.sort_by(|a, b| a.0.cmp(&b.0));
        m.cookies.sort_by(|a, b| a.0.cmp(&b.0));
        m.methods.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        for host in hosts {
            for listener in &listeners {
                all.push(format!("{listener} {host} {m:?}"));
            }
        }
    }
    all
}
