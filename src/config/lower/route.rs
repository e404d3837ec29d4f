//! `routes[n]`.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use onehop_filters::contract::section::{Key, Value, suggest};
use onehop_filters::contract::{Edits, FieldEdits, Node, Role, Span, Spot};

use super::super::env::literal;
use super::super::plan::{
    Action, Callee, CalleeEdits, Canned, Match, PathMatch, PathRewrite, Redirect, Route, Sticky, ValueMatch,
};
use super::super::raw;
use super::listener::limit;
use super::section::{keys, split_help};
use super::{HEADER_NAME, Lower, Slot};

/// Largest compiled form of one regex.
const REGEX_SIZE: usize = 1 << 20;

impl Lower<'_> {
    pub(super) fn routes(&mut self, node: Option<Node>) -> Vec<Route> {
        let Some(node) = node else { return Vec::new() };
        let items = match node.value {
            Value::Seq(items) => items,
            Value::Null => Vec::new(),
            _ => {
                self.error(node.span, "`routes` is a list", "begin each route with `- name: NAME`");
                Vec::new()
            }
        };
        if self.filled.is_some() {
            self.fill("routes", || serde_json::json!([]));
        }
        let (engine, filters) = (keys::<raw::Route>(), self.names(Slot::Route));
        let mut routes: Vec<Route> =
            items.into_iter().filter_map(|item| self.route(&item, &engine, &filters)).collect();
        routes.shrink_to_fit();
        routes
    }

    fn route(&mut self, node: &Node, engine: &[String], filters: &[&str]) -> Option<Route> {
        let (own, others) = self.split(node, engine, filters)?;
        let mut raw: raw::Route = self.read(&own)?;
        let tcp = self.on_tcp(&raw);
        if tcp {
            let timeouts = own.get("timeouts");
            if timeouts.and_then(|t| t.get("idle")).is_none() {
                raw.timeouts.idle = raw::Timeouts::TCP_IDLE;
            }
            self.about_requests(&raw, &own, &others);
        }
        if let Some(list) = self.filled.as_mut().and_then(|f| f.get_mut("routes")).and_then(|r| r.as_array_mut()) {
            let mut shown = serde_json::to_value(&raw).unwrap_or_default();
            if tcp && let Some(timeouts) = shown.get_mut("timeouts").and_then(|t| t.as_object_mut()) {
                timeouts.retain(|key, _| key == "idle");
            }
            list.push(shown);
        }
        if raw.name.is_empty() || raw.name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            self.error(raw.name.span, "a route's name is not empty and has no spaces", "name it, such as `orders`");
        }
        if let Some([]) = raw.listeners.as_deref() {
            let at = own.get("listeners").map_or(own.span, |n| n.span);
            self.error(at, "the route is on no listener", "name a listener, or remove the key for all of them");
        }
        for listener in raw.listeners.iter().flatten() {
            self.must_know_listener(listener);
        }
        let hosts = raw.hosts.iter().filter_map(|h| self.host(h)).collect();
        let matches = raw.matches.iter().filter_map(|m| self.matching(m)).collect();
        let upgrades = raw.upgrades.iter().filter_map(|u| self.upgrade(u)).collect();
        let action = self.action(&raw, &own, &others);
        let sticky = self.sticky(&raw);
        Some(Route {
            name: Arc::from(raw.name.value.as_str()),
            span: raw.name.span,
            listeners: raw.listeners.map(|l| l.into_iter().map(|n| n.value).collect()),
            hosts,
            matches,
            filters: others.into_iter().map(|(k, n)| (k.name, n)).collect(),
            request_timeout: limit(raw.timeouts.request.value.0),
            idle_timeout: limit(raw.timeouts.idle.0),
            upgrades,
            body_limit: raw.body_limit.map(|s| if s.0 == 0 { u64::MAX } else { s.0 }),
            sticky,
            action: action?,
            inherit_deadline: raw.carry.as_ref().is_some_and(|c| c.deadline.is_some()),
            carry_identity: raw.carry.is_some_and(|c| c.identity),
            tcp,
        })
    }

    /// Whether the route is on TCP listeners: then on nothing else, since such a route knows no requests.
    fn on_tcp(&mut self, raw: &raw::Route) -> bool {
        let named = || raw.listeners.iter().flatten();
        let tcp = named().any(|l| self.known.tcp.contains(&l.value));
        if let Some(http) = named().find(|l| tcp && !self.known.tcp.contains(&l.value)) {
            let message = format!("listener `{}` takes requests, and others of this route connections", http.value);
            self.error(http.span, message, "give each kind of listener a route of its own");
        }
        tcp
    }

    /// A route on TCP listeners: what is about requests would do nothing.
    fn about_requests(&mut self, raw: &raw::Route, own: &Node, filters: &[(Key, Node)]) {
        const WHY: &str = "is about requests, and this route's listeners take connections";
        let about = |key: &str| match key {
            "matches" => !raw.matches.is_empty(),
            "upgrades" => !raw.upgrades.is_empty(),
            "bodyLimit" | "carry" | "sticky" | "redirect" | "respond" => true,
            _ => false,
        };
        let request = own.get("timeouts").map(Node::entries).unwrap_or_default();
        let request = request.iter().filter(|(k, _)| k.name == "request");
        let dead = own.entries().iter().filter(|(k, _)| about(&k.name)).chain(request).chain(filters);
        for (key, _) in dead {
            self.error(key.span, format!("`{}` {WHY}", key.name), format!("remove `{}`", key.name));
        }
    }

    /// Lower-case; a wildcard is the whole first label. RFC 1123 section 2.1 letters; underscores occur inside meshes.
    fn host(&mut self, host: &Spot<String>) -> Option<String> {
        let lower = host.to_ascii_lowercase();
        let name = lower.strip_prefix("*.").unwrap_or(&lower);
        let label = |l: &str| {
            (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        let address = name
            .strip_prefix('[')
            .and_then(|n| n.strip_suffix(']'))
            .is_some_and(|n| n.parse::<std::net::Ipv6Addr>().is_ok() && !lower.starts_with('*'));
        if address || (name.len() <= 253 && name.split('.').all(label)) {
            return Some(lower);
        }
        let help = if name.contains('*') {
            "`*` stands only as the whole first label: `*.example.com`; for every host leave `hosts` out"
        } else if name.contains(':') {
            "write the host without its port"
        } else {
            "write a host name, such as `api.example.com` or `*.example.com`"
        };
        self.error(host.span, format!("`{}` is not a host", host.value), help);
        None
    }

    fn matching(&mut self, raw: &raw::Match) -> Option<Match> {
        let path = match &raw.path {
            Some(path) => Some(self.path(path)?),
            None => None,
        };
        let methods = raw.methods.iter().filter_map(|m| self.method(m)).collect();
        let mut headers = Vec::new();
        for (key, node) in self.pairs(raw.headers.as_ref()) {
            let name = self.header_name(&key.name, key.span);
            if let (Some(name), Some(value)) = (name, self.value(&node)) {
                headers.push((name, value));
            }
        }
        let mut query = Vec::new();
        for (key, node) in self.pairs(raw.query.as_ref()) {
            if let Some(value) = self.value(&node) {
                query.push((key.name, value));
            }
        }
        let mut claims = Vec::new();
        for (key, node) in self.pairs(raw.claims.as_ref()) {
            if key.name.split('.').any(str::is_empty) {
                let help = "write the name of a claim, `a.b` for one inside another";
                self.error(key.span, format!("`{}` names no claim", key.name), help);
            } else if let Some(value) = self.value(&node) {
                claims.push((key.name, value));
            }
        }
        let mut cookies = Vec::new();
        for (key, node) in self.pairs(raw.cookies.as_ref()) {
            if let Some(value) = self.value(&node) {
                cookies.push((key.name, value));
            }
        }
        Some(Match { path, methods, headers, query, cookies, claims })
    }

    fn pairs(&mut self, node: Option<&Node>) -> Vec<(Key, Node)> {
        let Some(node) = node else { return Vec::new() };
        if !matches!(node.value, Value::Map(_)) {
            self.error(node.span, "expected a map", "write `name: value`");
        }
        node.entries().to_vec()
    }

    fn path(&mut self, raw: &raw::PathMatch) -> Option<PathMatch> {
        match raw {
            raw::PathMatch::Exact(p) => self.absolute(p).map(PathMatch::Exact),
            raw::PathMatch::Prefix(p) => self.absolute(p).map(|p| {
                let trimmed = p.trim_end_matches('/');
                PathMatch::Prefix(if trimmed.is_empty() { "/" } else { trimmed }.to_owned())
            }),
            raw::PathMatch::Regex(r) => self.regex(r).map(PathMatch::Regex),
        }
    }

    /// A path as it looks once requests are normalised: what can never match is a mistake.
    fn absolute(&mut self, path: &Spot<String>) -> Option<String> {
        let problem = if !path.starts_with('/') {
            Some(("a path begins with `/`", format!("write `/{}`", path.value)))
        } else if path.contains(['?', '#']) {
            Some(("a path has no query and no fragment", "match the query with `query`".to_owned()))
        } else if path.contains("//") || path.split('/').any(|s| s == "." || s == "..") {
            let help = "requests are matched after `//`, `.` and `..` are resolved: write the resolved path";
            Some(("this path can never match", help.to_owned()))
        } else if path.bytes().any(|b| b <= b' ' || b == 0x7f) {
            Some(("a path has no spaces and no control characters", "write `%20` for a space".to_owned()))
        } else {
            None
        };
        if let Some((message, help)) = problem {
            self.error(path.span, message, help);
            return None;
        }
        Some(path.value.clone())
    }

    fn method(&mut self, text: &Spot<String>) -> Option<Method> {
        let upper = text.to_ascii_uppercase();
        if upper != text.value {
            self.error(text.span, "methods are written in capitals", format!("write `{upper}`"));
            return None;
        }
        let method = Method::from_bytes(text.as_bytes());
        if method.is_err() {
            self.error(text.span, format!("`{}` is not a method", text.value), "write a token, such as `GET`");
        }
        method.ok()
    }

    fn value(&mut self, node: &Node) -> Option<ValueMatch> {
        match &node.value {
            Value::Str(text) => Some(ValueMatch::Exact(text.clone())),
            Value::Map(_) => match self.read(node)? {
                raw::TextCondition::Exact(text) => Some(ValueMatch::Exact(text.value)),
                raw::TextCondition::Regex(text) => self.regex(&text).map(ValueMatch::Regex),
                raw::TextCondition::Present(yes) if yes.value => Some(ValueMatch::Present),
                raw::TextCondition::Present(no) => {
                    self.error(no.span, "`present` can only be true", "write `present: true`, or remove it");
                    None
                }
            },
            Value::Seq(_) => {
                self.error(node.span, "one value is matched, not a list", "use `{ regex: \"a|b\" }`");
                None
            }
            other => {
                let shown = Node { span: node.span, value: other.clone() }.to_json();
                let help = format!("put it in quotes: `\"{shown}\"`");
                self.error(node.span, "the value to match is text", help);
                None
            }
        }
    }

    /// Compiled here to find errors, in linear time and bounded size; the router compiles its own.
    fn regex(&mut self, text: &Spot<String>) -> Option<String> {
        let anchored = format!("^(?:{})$", text.value);
        match regex::RegexBuilder::new(&anchored).size_limit(REGEX_SIZE).build() {
            Ok(_) => Some(text.value.clone()),
            Err(regex::Error::CompiledTooBig(_)) => {
                self.error(text.span, "the regex is too large", "use smaller repetitions, or a prefix");
                None
            }
            Err(e) => {
                let why = e.to_string();
                let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                let help = "look-around and back-references are not supported: they take more than linear time";
                self.error(text.span, format!("this is not a regex: {why}"), help);
                None
            }
        }
    }

    fn upgrade(&mut self, text: &Spot<String>) -> Option<Arc<str>> {
        let lower = text.to_ascii_lowercase();
        if lower == "h2c" {
            self.error(text.span, "`h2c` cannot be upgraded to", "RFC 9113 section 3.1 withdrew it; remove it");
            return None;
        }
        if HeaderName::try_from(lower.as_str()).is_err() {
            self.error(text.span, format!("`{}` is not a protocol name", text.value), "write `websocket`");
            return None;
        }
        Some(Arc::from(lower.as_str()))
    }

    fn action(&mut self, raw: &raw::Route, node: &Node, others: &[(Key, Node)]) -> Option<Action> {
        let own = node.entries().iter().filter(|(k, _)| matches!(k.name.as_str(), "to" | "redirect" | "respond"));
        let answers = |key: &Key| {
            self.entries.iter().any(|entry| entry.name == key.name && matches!(entry.role, Role::Answer(_)))
        };
        let others = others.iter().filter(|(key, _)| answers(key));
        let found: Vec<&Key> = own.chain(others).map(|(key, _)| key).collect();
        match found.as_slice() {
            [_] => {}
            [] => {
                let name = &raw.name;
                let message = format!("route `{}` does nothing", name.value);
                self.error(name.span, message, "add one of `to`, `redirect`, `respond`");
                return None;
            }
            [first, second, ..] => {
                let message = format!("`{}` and `{}` exclude each other", first.name, second.name);
                self.error(second.span, message, "keep one of `to`, `redirect`, `respond`");
                return None;
            }
        }
        if let Some(to) = &raw.to {
            return self.targets(to).map(Action::Forward);
        }
        if let Some(redirect) = &raw.redirect {
            return self.redirect(redirect, node).map(Action::Redirect);
        }
        match &raw.respond {
            Some(respond) => self.canned(respond).map(|c| Action::Respond(Arc::new(c))),
            None => Some(Action::Filter),
        }
    }

    fn sticky(&mut self, raw: &raw::Route) -> Option<Sticky> {
        let section = raw.sticky.as_ref()?;
        if !raw.to.as_ref().is_some_and(|to| matches!(to.value, Value::Seq(_))) {
            let help = "write `to: [{ service: a, weight: 90 }, { service: b, weight: 10 }]`";
            self.error(section.span, "there is nothing to choose between", help);
        }
        let (by, cookie) = match (&section.by, &section.cookie) {
            (Some(by), None) => (by.clone(), None),
            (None, Some(name)) => {
                if HeaderName::try_from(name.as_str()).is_err() {
                    self.error(name.span, format!("`{}` is not the name of a cookie", name.value), "write `split`");
                }
                let age = section.max_age.as_ref().map(|age| age.value.0);
                (Spot { span: name.span, value: String::new() }, Some((name.value.clone(), age)))
            }
            _ => {
                let help = "write `by: user.sub`, or `cookie: NAME` for callers without a name";
                self.error(section.span, "exactly one of `by` and `cookie` tells callers apart", help);
                return None;
            }
        };
        if let Some(age) = section.max_age.as_ref().filter(|_| cookie.is_none()) {
            self.error(age.span, "there is no `cookie` to keep", "remove `maxAge`");
        }
        Some(Sticky { by, cookie })
    }

    fn targets(&mut self, to: &Node) -> Option<Vec<Callee>> {
        match &to.value {
            Value::Str(service) => {
                self.must_know_service(service, to.span);
                Some(vec![Callee { service: service.clone(), subset: None, weight: 1, edits: None }])
            }
            Value::Seq(items) if items.is_empty() => {
                self.error(to.span, "`to` names no service", "write `to: SERVICE`");
                None
            }
            Value::Seq(items) => {
                let mut targets: Vec<Callee> = Vec::with_capacity(items.len());
                for item in items {
                    let target: raw::Target = self.read(item)?;
                    self.must_know_service(&target.service.value, target.service.span);
                    let weight = u32::try_from(target.weight.value).ok().filter(|w| *w <= 1_000_000);
                    let Some(weight) = weight else {
                        self.error(target.weight.span, "the weight is too large", "from 0 to 1000000");
                        continue;
                    };
                    if let Some(subset) = &target.subset {
                        self.must_know_subset(&target.service.value, subset);
                    }
                    let edits = self.edits(&target);
                    let subset = target.subset.map(|subset| subset.value);
                    if targets.iter().any(|t| t.service == target.service.value && t.subset == subset) {
                        let message = format!("`{}` stands twice in `to`", target.service.value);
                        self.error(target.service.span, message, "add up its weights");
                    }
                    targets.push(Callee { service: target.service.value, subset, weight, edits });
                }
                if !targets.is_empty() && targets.iter().all(|target| target.weight == 0) {
                    let help = "every request is answered 500; give a service a weight";
                    self.warn(to.span, "every weight is 0", help);
                }
                Some(targets)
            }
            _ => {
                let help = "write a service, or a list: `[{ service: a, weight: 90 }, { service: b, weight: 10 }]`";
                self.error(to.span, "`to` is a service or a list", help);
                None
            }
        }
    }

    /// The header edits of one service; what is wrong with them is reported.
    fn edits(&mut self, target: &raw::Target) -> Option<Arc<CalleeEdits>> {
        let mut read = |edits: Option<&Edits>| {
            let read = edits.map(FieldEdits::read).transpose();
            read.map_err(|e| self.errors.push(e)).ok().flatten().unwrap_or_default()
        };
        let edits = CalleeEdits { request: read(target.request.as_ref()), response: read(target.response.as_ref()) };
        let none = edits.request.is_empty() && edits.response.is_empty();
        (!none).then(|| Arc::new(edits))
    }

    fn redirect(&mut self, raw: &raw::Redirect, route: &Node) -> Option<Redirect> {
        let status = match raw.status.value {
            301 | 302 | 303 | 307 | 308 => StatusCode::from_u16(u16::try_from(raw.status.value).ok()?).ok()?,
            other => {
                let help = "one of 301, 302, 303, 307, 308";
                self.error(raw.status.span, format!("{other} is not the status of a redirect"), help);
                return None;
            }
        };
        let node = route.get("redirect").unwrap_or(route);
        if raw.scheme.is_none() && raw.host.is_none() && raw.port.is_none() && raw.path.is_none() {
            let help = "change at least one of `scheme`, `host`, `port`, `path`";
            self.error(node.span, "the redirect would lead back to itself", help);
        }
        if let Some(scheme) = raw.scheme.as_ref().filter(|s| !matches!(s.as_str(), "http" | "https")) {
            let help = suggest(&scheme.value, &["http", "https"]);
            self.error(scheme.span, format!("`{}` is not a scheme", scheme.value), help);
        }
        if let Some(host) = &raw.host {
            if host.contains('*') {
                self.error(host.span, "a redirect needs one host", "write it without `*`");
            } else {
                self.host(host);
            }
        }
        let port = match &raw.port {
            Some(p) => match u16::try_from(p.value).ok().filter(|p| *p > 0) {
                Some(port) => Some(port),
                None => {
                    self.error(p.span, format!("{} is not a port", p.value), "from 1 to 65535");
                    None
                }
            },
            None => None,
        };
        let path = match &raw.path {
            Some(raw::Rewrite::ReplacePrefix(p)) => Some(PathRewrite::ReplacePrefix(self.absolute(p)?)),
            Some(raw::Rewrite::ReplaceFull(p)) => Some(PathRewrite::ReplaceFull(self.absolute(p)?)),
            None => None,
        };
        Some(Redirect {
            scheme: raw.scheme.as_ref().map(|s| s.value.clone()),
            host: raw.host.as_ref().map(|h| h.value.to_ascii_lowercase()),
            port,
            path,
            status,
        })
    }

    pub(super) fn canned(&mut self, raw: &raw::Respond) -> Option<Canned> {
        let status = u16::try_from(raw.status.value).ok().filter(|s| (200..=599).contains(s));
        let Some(status) = status.and_then(|s| StatusCode::from_u16(s).ok()) else {
            self.error(raw.status.span, format!("{} is not a final status", raw.status.value), "from 200 to 599");
            return None;
        };
        let mut headers = HeaderMap::new();
        for (key, node) in self.pairs(raw.headers.as_ref()) {
            let name = self.header_name(&key.name, key.span);
            let value = match &node.value {
                Value::Str(text) => match self.text(text, node.span).map(HeaderValue::try_from) {
                    Some(Ok(value)) => Some(value),
                    Some(Err(_)) => {
                        let help = "visible characters and spaces, no line breaks";
                        self.error(node.span, "this is not the value of a header field", help);
                        None
                    }
                    None => None,
                },
                _ => {
                    self.error(node.span, "the value of a header field is text", "put it in quotes");
                    None
                }
            };
            if let (Some(name), Some(value)) = (name, value) {
                headers.insert(name, value);
            }
        }
        let body = self.text(&raw.body.value, raw.body.span)?;
        if !body.is_empty() && matches!(status.as_u16(), 204 | 205 | 304) {
            self.error(
                raw.body.span,
                format!("an answer with status {} has no body", status.as_u16()),
                "remove `body`",
            );
        }
        Some(Canned { status, headers, body: body.into() })
    }

    fn text(&mut self, text: &str, span: Span) -> Option<String> {
        literal(text)
            .map_err(|e| {
                let (message, help) = split_help(&e);
                self.error(span, message, help);
            })
            .ok()
    }

    /// A field an author may name. Framing and connection fields are the engine's (RFC 9110 section 7.6.1).
    pub(super) fn header_name(&mut self, name: &str, span: Span) -> Option<HeaderName> {
        let Ok(parsed) = HeaderName::try_from(name) else {
            self.error(span, format!("`{name}` is not the name of a header field"), HEADER_NAME);
            return None;
        };
        if matches!(parsed.as_str(), "connection" | "transfer-encoding" | "content-length" | "keep-alive" | "upgrade") {
            self.error(span, format!("`{name}` belongs to the connection"), "remove it; it is set as needed");
            return None;
        }
        Some(parsed)
    }
}
