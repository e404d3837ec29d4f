//! Why a route was chosen: for `onehop explain` and warnings at load. Walks every entry, so never on a request.

use std::collections::HashMap;

use super::matcher::{Conditions, Failure, Probe, Value};
use super::table::{Entry, Kind, Table};

/// An entry that shares something with the request, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<T> {
    /// The route's value.
    pub value: T,
    /// Host of the entry, `*` for any.
    pub host: String,
    /// Its path rule, such as `prefix /v1`.
    pub path: String,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes the request.
    Won,
    /// Everything matches, but another entry is more specific; says by what.
    LessSpecific(String),
    /// Something does not match; says what.
    Differs(String),
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Won => f.write_str("won"),
            Self::LessSpecific(why) | Self::Differs(why) => f.write_str(why),
        }
    }
}

impl<T: Clone> Table<T> {
    /// Every entry that shares the host or the beginning of the path, the winner first, then those that match, then
    /// those that nearly do.
    #[must_use]
    pub fn explain(&self, probe: &Probe<'_>) -> Vec<Candidate<T>> {
        let mut matching: Vec<&Entry<T>> = Vec::new();
        let mut missing = Vec::new();
        for entry in &self.entries {
            let (host, path) = self.place(entry);
            let host_holds = host_holds(&host, probe.host);
            let path_holds = entry.path_holds(&path, probe.path);
            let condition = entry.conditions.as_ref().and_then(|c| c.failure(probe));
            let differs = match (host_holds, path_holds, condition) {
                (true, true, None) => {
                    matching.push(entry);
                    continue;
                }
                (false, true, _) => (1, format!("host {} differs", shown(&host))),
                (true, true, Some(Failure::Method)) => (0, format!("method {} is not listed", probe.method)),
                (true, true, Some(Failure::Header(name))) => (0, format!("header {name} differs")),
                (true, true, Some(Failure::Cookie(name))) => (0, format!("cookie {name} differs")),
                (true, true, Some(Failure::Query(name))) => (0, format!("query parameter {name} differs")),
                (true, true, Some(Failure::Claim(name))) => (0, format!("claim {name} differs")),
                (true, true, Some(Failure::Nobody(name))) => (0, format!("claim {name} of nobody: not authenticated")),
                (true, false, _) if entry.kind == Kind::Regex || shares_start(&path, probe.path) => {
                    (1, format!("{} does not match", entry.rule(&path)))
                }
                _ => continue,
            };
            missing.push((differs.0, self.candidate(entry, Verdict::Differs(differs.1))));
        }
        matching.sort_by_cached_key(|e| {
            let (host, path) = self.place(e);
            let depth = if e.kind == Kind::Prefix { path.len() } else { 0 };
            (host_rank(&host), e.kind, std::cmp::Reverse(depth), e.rank())
        });
        missing.sort_by_key(|(distance, _)| *distance);
        let winner = matching.first().copied();
        let ranked = matching.into_iter().map(|entry| {
            let verdict = match winner {
                Some(w) if !std::ptr::eq(w, entry) => Verdict::LessSpecific(self.weaker(entry, w)),
                _ => Verdict::Won,
            };
            self.candidate(entry, verdict)
        });
        ranked.chain(missing.into_iter().map(|(_, c)| c)).collect()
    }

    /// Pairs (hidden, by which) of entries that can never match, because an earlier route asks for the same or less.
    #[must_use]
    pub fn shadowed(&self) -> Vec<(T, T)> {
        let mut seen: HashMap<_, Vec<&Entry<T>>> = HashMap::new();
        let mut hidden = Vec::new();
        // Entries of one node are sorted by precedence, so whatever hides another comes before it.
        for entry in &self.entries {
            let (host, path) = self.place(entry);
            let key = (host, path, entry.kind, entry.regex.as_ref().map(|r| r.pattern.clone()), fields(entry));
            let earlier = seen.entry(key).or_default();
            match earlier.iter().find(|e| methods_cover(e, entry)) {
                Some(by) => hidden.push((entry.value.clone(), by.value.clone())),
                None => earlier.push(entry),
            }
        }
        hidden
    }

    fn candidate(&self, entry: &Entry<T>, verdict: Verdict) -> Candidate<T> {
        let (host, path) = self.place(entry);
        Candidate { value: entry.value.clone(), host: shown(&host).to_owned(), path: entry.rule(&path), verdict }
    }

    /// Host and literal path of an entry, rebuilt from its node.
    fn place(&self, entry: &Entry<T>) -> (String, String) {
        let mut segments = Vec::new();
        let mut node = &self.nodes[entry.node as usize];
        while !node.is_root() {
            segments.push(&*node.segment);
            node = &self.nodes[node.parent as usize];
        }
        let path = segments.iter().rev().fold(String::new(), |path, s| path + "/" + s);
        (node.segment.to_string(), path)
    }

    fn weaker(&self, loser: &Entry<T>, winner: &Entry<T>) -> String {
        let ((host, path), (better_host, better_path)) = (self.place(loser), self.place(winner));
        let rule = winner.rule(&better_path);
        if host != better_host {
            return format!("host {} is less specific than {}", shown(&host), shown(&better_host));
        }
        if (loser.kind, &path) != (winner.kind, &better_path) {
            return format!("{} is less specific than {rule}", loser.rule(&path));
        }
        let (l, w) = (loser.rank(), winner.rank());
        match () {
            () if l.0 != w.0 => format!("{} is shorter than {rule}", loser.rule(&path)),
            () if l.1 != w.1 => format!("names no method, unlike another route with {rule}"),
            () if l.2 != w.2 => format!("asks for fewer headers than another route with {rule}"),
            () if l.3 != w.3 => format!("asks for fewer query parameters than another route with {rule}"),
            () if l.4 != w.4 => format!("asks for fewer claims than another route with {rule}"),
            () => format!("comes later in the file than another route with {rule}"),
        }
    }
}

impl<T> Entry<T> {
    fn path_holds(&self, literal: &str, path: &str) -> bool {
        match self.kind {
            Kind::Exact => literal == path,
            Kind::Prefix => {
                path.strip_prefix(literal).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                    || literal.is_empty()
            }
            Kind::Regex => self.regex.as_ref().is_some_and(|r| r.is_match(path)),
        }
    }

    fn rule(&self, literal: &str) -> String {
        match (self.kind, &self.regex) {
            (Kind::Regex, Some(regex)) => format!("regex {}", regex.pattern),
            (Kind::Exact, _) => format!("exact {literal}"),
            _ if literal.is_empty() => "prefix /".to_owned(),
            _ => format!("prefix {literal}"),
        }
    }
}

fn shown(host: &str) -> &str {
    if host.is_empty() { "*" } else { host }
}

fn host_holds(rule: &str, host: &str) -> bool {
    match rule.strip_prefix("*.") {
        _ if rule.is_empty() || rule == "*" => true,
        // Something stands before the dot.
        Some(suffix) => host.strip_suffix(suffix).is_some_and(|left| left.len() > 1 && left.ends_with('.')),
        None => rule == host,
    }
}

/// Smaller is more specific.
fn host_rank(rule: &str) -> (u8, std::cmp::Reverse<usize>) {
    let kind = match rule {
        "" | "*" => 2,
        _ if rule.starts_with("*.") => 1,
        _ => 0,
    };
    (kind, std::cmp::Reverse(rule.len()))
}

/// Whether both begin with the same segment.
fn shares_start(rule: &str, path: &str) -> bool {
    let first = |p: &str| p.split('/').nth(1).map(str::to_owned);
    first(rule) == first(path)
}

/// Header, query and claim conditions in an order of their own, as text.
fn fields<T>(entry: &Entry<T>) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::Exact(v) => format!("={v}"),
        Value::Regex(r) => format!("~{}", r.as_str()),
        Value::Present => "?".to_owned(),
    };
    let Some(conditions) = &entry.conditions else { return Vec::new() };
    let Conditions { headers, query, cookies, claims, .. } = &**conditions;
    let mut all: Vec<String> = headers.iter().map(|(n, v)| format!("h {n}{}", text(v))).collect();
    all.extend(query.iter().map(|(n, v)| format!("q {n}{}", text(v))));
    all.extend(cookies.iter().map(|(n, v)| format!("c {n}{}", text(v))));
    all.extend(claims.iter().map(|(n, v)| format!("u {n}{}", text(v))));
    all.sort();
    all
}

fn methods_cover<T>(earlier: &Entry<T>, later: &Entry<T>) -> bool {
    let methods = |e: &Entry<T>| e.conditions.as_ref().map_or_else(Vec::new, |c| c.methods.clone());
    let (wide, narrow) = (methods(earlier), methods(later));
    wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(|m| wide.contains(m)))
}
