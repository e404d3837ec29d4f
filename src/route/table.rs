//! The route table of one listener, with the Gateway API's precedence.
//!
//! One hashed trie holds every host's literal paths: a node per path segment, an edge found by one hash of (parent,
//! segment). A lookup walks the request's segments once and stops where no route goes further, so it costs the depth
//! of the routes, not their number, and a long path costs no more than a short one. Entries lie sorted by precedence.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::Arc;

use regex::bytes::Regex;
use smallvec::SmallVec;

use super::matcher::{self, Conditions, Probe};
use super::path::normalise_str;
use crate::config::plan::{Match, PathMatch, Route};

/// The part of a route the table needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteSpec {
    /// Lower-case; `*.a.com` = any depth below a.com; empty, or `*` = any host.
    pub hosts: Vec<String>,
    /// Empty = every request to the hosts.
    pub matches: Vec<Match>,
}

impl From<&Route> for RouteSpec {
    fn from(route: &Route) -> Self {
        Self { hosts: route.hosts.clone(), matches: route.matches.clone() }
    }
}

/// Why a table cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A regex does not compile, or is too large.
    #[error("the regex `{pattern}` is not usable: {source}")]
    Regex {
        /// Which of the given routes, from 0.
        route: usize,
        /// As written.
        pattern: String,
        /// Says where and why.
        source: Box<regex::Error>,
    },
    /// More than 2^32 entries or nodes.
    #[error("there are too many routes")]
    TooMany,
}

/// What a lookup found.
#[derive(Debug, PartialEq, Eq)]
pub struct Hit<'t, T> {
    /// The route's value.
    pub value: &'t T,
    /// How much of the probe's path the match covers: the prefix without its trailing slash, or everything for exact
    /// and regex matches. What `replacePrefix` replaces.
    pub covered: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Table<T> {
    /// Sorted by (node, kind, precedence).
    pub(super) entries: Vec<Entry<T>>,
    pub(super) nodes: Vec<Node>,
    edges: HashMap<u64, u32, BuildHasherDefault<Identity>>,
    hosts: HashMap<Box<str>, u32, foldhash::fast::RandomState>,
    /// Without the `*.`.
    wildcards: HashMap<Box<str>, u32, foldhash::fast::RandomState>,
    any: Option<u32>,
    /// Some entry asks for claims.
    claims: bool,
    /// Bounds the search through the suffixes of a host.
    longest_wildcard: usize,
    seed: foldhash::quality::RandomState,
}

#[derive(Debug)]
pub(super) struct Entry<T> {
    pub(super) conditions: Option<Arc<Conditions>>,
    pub(super) regex: Option<Arc<PathRegex>>,
    /// Position of the route in the list given.
    pub(super) order: u32,
    pub(super) node: u32,
    pub(super) kind: Kind,
    pub(super) value: T,
}

#[derive(Debug)]
pub(super) struct PathRegex {
    pub(super) pattern: Box<str>,
    regex: Regex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Exact,
    Prefix,
    Regex,
}

/// A host, or one more path segment below its parent.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) parent: u32,
    /// The segment; at a root the host as written in the config.
    pub(super) segment: Box<str>,
    /// The next node whose edge has the same hash; 0 = none (node 0 is a root, so no edge leads to it).
    twin: u32,
    exact: Range<u32>,
    prefix: Range<u32>,
    regex: Range<u32>,
    root: bool,
}

/// The edge map's keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys of the edge map are u64");
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Order within one node and kind, best first: method, most headers and cookies, most query parameters, most claims,
/// first in the list. Regexes go by their length before that.
type Rank = (Most, bool, Most, Most, Most, u32);
type Most = std::cmp::Reverse<usize>;

impl<T> Entry<T> {
    pub(super) fn rank(&self) -> Rank {
        use std::cmp::Reverse;
        let length = Reverse(self.regex.as_ref().map_or(0, |r| r.pattern.len()));
        let (method, headers, query, claims) = self.conditions.as_ref().map_or((false, 0, 0, 0), |c| {
            (!c.methods.is_empty(), c.headers.len() + c.cookies.len(), c.query.len(), c.claims.len())
        });
        (length, !method, Reverse(headers), Reverse(query), Reverse(claims), self.order)
    }

    fn asks_for_claims(&self) -> bool {
        self.conditions.as_ref().is_some_and(|c| !c.claims.is_empty())
    }

    fn holds_but_claims(&self, probe: &Probe<'_>) -> bool {
        self.regex.as_ref().is_none_or(|r| r.is_match(probe.path))
            && self.conditions.as_ref().is_none_or(|c| c.failure_but_claims(probe).is_none())
    }

    fn holds(&self, probe: &Probe<'_>) -> bool {
        self.regex.as_ref().is_none_or(|r| r.is_match(probe.path))
            && self.conditions.as_ref().is_none_or(|c| c.hold(probe))
    }
}

impl PathRegex {
    pub(super) fn is_match(&self, path: &str) -> bool {
        self.regex.is_match(path.as_bytes())
    }
}

/// One of a route's matches, ready to be placed under a host.
struct Rule {
    kind: Kind,
    /// The literal path that its node stands for.
    path: String,
    regex: Option<Arc<PathRegex>>,
    conditions: Option<Arc<Conditions>>,
}

impl Rule {
    fn compile(rule: &Match) -> Result<Self, (String, regex::Error)> {
        let (kind, path, regex) = match &rule.path {
            None => (Kind::Prefix, String::new(), None),
            Some(PathMatch::Prefix(p)) => (Kind::Prefix, canonical(p).trim_end_matches('/').to_owned(), None),
            Some(PathMatch::Exact(p)) => (Kind::Exact, canonical(p).into_owned(), None),
            Some(PathMatch::Regex(pattern)) => {
                let regex = matcher::regex(pattern).map_err(|e| (pattern.clone(), e))?;
                let regex = PathRegex { pattern: pattern.as_str().into(), regex };
                (Kind::Regex, literal_start(pattern), Some(Arc::new(regex)))
            }
        };
        Ok(Self { kind, path, regex, conditions: Conditions::compile(rule)?.map(Arc::new) })
    }
}

impl<T: Clone> Table<T> {
    /// Compiles routes, given in file order.
    ///
    /// # Errors
    /// A regex that cannot be used.
    pub fn build(routes: impl IntoIterator<Item = (RouteSpec, T)>) -> Result<Self, TableError> {
        let mut table = Self {
            entries: Vec::new(),
            nodes: Vec::new(),
            edges: HashMap::default(),
            hosts: HashMap::default(),
            wildcards: HashMap::default(),
            any: None,
            claims: false,
            longest_wildcard: 0,
            seed: foldhash::quality::RandomState::default(),
        };
        for (order, (spec, value)) in routes.into_iter().enumerate() {
            table.add(order, &spec, &value)?;
        }
        table.entries.sort_by_key(|e| (e.node, e.kind, e.rank()));
        table.entries.shrink_to_fit();
        table.nodes.shrink_to_fit();
        for at in 0..table.entries.len() {
            let (node, kind) = (table.entries[at].node as usize, table.entries[at].kind);
            let range = table.nodes[node].range_mut(kind);
            let at = index(at)?;
            *range = if range.start == range.end { at..at + 1 } else { range.start..at + 1 };
        }
        Ok(table)
    }

    fn add(&mut self, order: usize, spec: &RouteSpec, value: &T) -> Result<(), TableError> {
        let bad_regex = |(pattern, source)| TableError::Regex { route: order, pattern, source: Box::new(source) };
        let everything = [Match::default()];
        let any_host = [String::new()];
        let rules = if spec.matches.is_empty() { &everything[..] } else { &spec.matches };
        let hosts = if spec.hosts.is_empty() { &any_host[..] } else { &spec.hosts };
        // Compiled once, shared by the route's hosts.
        let rules = rules.iter().map(|rule| Rule::compile(rule).map_err(bad_regex)).collect::<Result<Vec<_>, _>>()?;
        for host in hosts {
            let root = self.root(host)?;
            for Rule { kind, path, regex, conditions } in &rules {
                let node = self.grow(root, path)?;
                self.claims |= conditions.as_ref().is_some_and(|c| !c.claims.is_empty());
                let (regex, conditions, value) = (regex.clone(), conditions.clone(), value.clone());
                self.entries.push(Entry { conditions, regex, order: index(order)?, node, kind: *kind, value });
            }
        }
        Ok(())
    }

    fn root(&mut self, host: &str) -> Result<u32, TableError> {
        let next = index(self.nodes.len())?;
        let found = match host.strip_prefix("*.") {
            _ if host.is_empty() || host == "*" => *self.any.get_or_insert(next),
            Some(suffix) => {
                self.longest_wildcard = self.longest_wildcard.max(suffix.len());
                *self.wildcards.entry(suffix.into()).or_insert(next)
            }
            None => *self.hosts.entry(host.into()).or_insert(next),
        };
        if found == next {
            self.nodes.push(Node::new(next, host, true));
        }
        Ok(found)
    }

    /// The node of a literal path below a root, made where it is missing.
    fn grow(&mut self, root: u32, path: &str) -> Result<u32, TableError> {
        let mut at = root;
        for segment in segments(path) {
            at = match self.child(at, segment) {
                Some(child) => child,
                None => {
                    let next = index(self.nodes.len())?;
                    let mut node = Node::new(at, segment, false);
                    node.twin = self.edges.insert(self.seed.hash_one((at, segment)), next).unwrap_or(0);
                    self.nodes.push(node);
                    next
                }
            };
        }
        Ok(at)
    }
}

impl<T> Table<T> {
    /// The route for a request.
    #[must_use]
    pub fn find(&self, probe: &Probe<'_>) -> Option<&T> {
        self.lookup(probe).map(|hit| hit.value)
    }

    /// The route for a request, and how much of the path it matched.
    ///
    /// A less specific host gets its turn only if no route of the more specific one matches.
    #[must_use]
    pub fn lookup(&self, probe: &Probe<'_>) -> Option<Hit<'_, T>> {
        self.walk(probe, &mut |entry, _| entry.holds(probe))
    }

    /// What would match if the user's claims were right, best first, down to what matches without claims. Empty unless
    /// claims decide.
    #[must_use]
    pub fn undecided(&self, probe: &Probe<'_>) -> Vec<Hit<'_, T>> {
        let mut found = Vec::new();
        if self.claims {
            self.walk(probe, &mut |entry, covered| {
                if !entry.asks_for_claims() {
                    return entry.holds(probe);
                }
                if entry.holds_but_claims(probe) {
                    found.push(Hit { value: &entry.value, covered });
                }
                false
            });
        }
        found
    }

    /// Offers entries that host and literal path lead to, best first, until one is taken.
    fn walk<'t>(
        &'t self,
        probe: &Probe<'_>,
        takes: &mut impl FnMut(&'t Entry<T>, usize) -> bool,
    ) -> Option<Hit<'t, T>> {
        if let Some(root) = self.hosts.get(probe.host)
            && let Some(hit) = self.search(*root, probe, takes)
        {
            return Some(hit);
        }
        if !self.wildcards.is_empty() {
            for (dot, _) in probe.host.match_indices('.') {
                let suffix = &probe.host[dot + 1..];
                // A name must stand before the dot, or the star would match nothing.
                if dot > 0
                    && suffix.len() <= self.longest_wildcard
                    && let Some(root) = self.wildcards.get(suffix)
                    && let Some(hit) = self.search(*root, probe, takes)
                {
                    return Some(hit);
                }
            }
        }
        self.search(self.any?, probe, takes)
    }

    fn search<'t>(
        &'t self,
        root: u32,
        probe: &Probe<'_>,
        takes: &mut impl FnMut(&'t Entry<T>, usize) -> bool,
    ) -> Option<Hit<'t, T>> {
        // Nodes on the way with a prefix or a regex, and how much of the path is behind them.
        let mut way: SmallVec<[(u32, usize); 16]> = SmallVec::new();
        let mut regexes = 0;
        let mut at = root;
        let mut covered = 0;
        let mut rest = segments(probe.path);
        let whole = loop {
            let node = &self.nodes[at as usize];
            regexes += node.regex.len();
            if !node.prefix.is_empty() || !node.regex.is_empty() {
                way.push((at, covered));
            }
            let Some(segment) = rest.next() else { break true };
            let Some(child) = self.child(at, segment) else { break false };
            at = child;
            covered += 1 + segment.len();
        };
        let mut first = |range: &Range<u32>, covered| self.slice(range).iter().find(|e| takes(e, covered));
        if whole && let Some(entry) = first(&self.nodes[at as usize].exact, probe.path.len()) {
            return Some(Hit { value: &entry.value, covered: probe.path.len() });
        }
        for &(node, covered) in way.iter().rev() {
            if let Some(entry) = first(&self.nodes[node as usize].prefix, covered) {
                return Some(Hit { value: &entry.value, covered });
            }
        }
        if regexes == 0 {
            return None;
        }
        // Each node's regexes are sorted; those of several nodes are merged as far as needed.
        let mut lists: SmallVec<[&[Entry<T>]; 16]> = way
            .iter()
            .map(|(node, _)| self.slice(&self.nodes[*node as usize].regex))
            .filter(|l| !l.is_empty())
            .collect();
        loop {
            let best = lists.iter_mut().filter(|l| !l.is_empty()).min_by_key(|l| l[0].rank())?;
            let (entry, rest) = best.split_first()?;
            *best = rest;
            if takes(entry, probe.path.len()) {
                return Some(Hit { value: &entry.value, covered: probe.path.len() });
            }
        }
    }

    fn slice(&self, range: &Range<u32>) -> &[Entry<T>] {
        &self.entries[range.start as usize..range.end as usize]
    }

    fn child(&self, parent: u32, segment: &str) -> Option<u32> {
        let mut at = *self.edges.get(&self.seed.hash_one((parent, segment)))?;
        loop {
            let node = &self.nodes[at as usize];
            if node.parent == parent && *node.segment == *segment {
                return Some(at);
            }
            if node.twin == 0 {
                return None;
            }
            at = node.twin;
        }
    }

    /// Hosts with a route, as written in the config; `*` for any host.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(|n| n.root).map(|n| if n.segment.is_empty() { "*" } else { &*n.segment })
    }

    /// Whether some route has this very host, a wildcard over it, or any host.
    #[must_use]
    pub fn knows(&self, host: &str) -> bool {
        self.any.is_some()
            || self.hosts.contains_key(host)
            || host.match_indices('.').any(|(dot, _)| {
                dot > 0
                    && host.len() - dot - 1 <= self.longest_wildcard
                    && self.wildcards.contains_key(&host[dot + 1..])
            })
    }

    /// How many (host, match) pairs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing can match.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes the table holds on to, about, without what the values and compiled regexes own.
    #[must_use]
    pub fn footprint(&self) -> usize {
        let text: usize = self.nodes.iter().map(|n| n.segment.len()).sum();
        let hosts = (self.hosts.capacity() + self.wildcards.capacity()) * (size_of::<(Box<str>, u32)>() + 1);
        self.entries.capacity() * size_of::<Entry<T>>()
            + self.nodes.capacity() * size_of::<Node>()
            + self.edges.capacity() * (size_of::<(u64, u32)>() + 1)
            + text
            + hosts
            + self.entries.iter().filter(|e| e.conditions.is_some()).count() * size_of::<Conditions>()
    }
}

impl Node {
    fn new(parent: u32, segment: &str, root: bool) -> Self {
        Self { parent, segment: segment.into(), twin: 0, exact: 0..0, prefix: 0..0, regex: 0..0, root }
    }

    pub(super) fn is_root(&self) -> bool {
        self.root
    }

    fn range_mut(&mut self, kind: Kind) -> &mut Range<u32> {
        match kind {
            Kind::Exact => &mut self.exact,
            Kind::Prefix => &mut self.prefix,
            Kind::Regex => &mut self.regex,
        }
    }
}

fn index(n: usize) -> Result<u32, TableError> {
    u32::try_from(n).map_err(|_| TableError::TooMany)
}

/// `/a/b` has the segments `a`, `b`; `/a/` has `a` and an empty one; the empty path and `*` have none.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').map(|p| p.split('/')).into_iter().flatten()
}

/// Routes are written by people: their paths take the form that requests have when they get here.
pub(super) fn canonical(path: &str) -> std::borrow::Cow<'_, str> {
    normalise_str(path, false).unwrap_or(std::borrow::Cow::Borrowed(path))
}

/// Whole literal segments that every match of the pattern starts with: only requests below them try the regex.
fn literal_start(pattern: &str) -> String {
    // An alternation could reach outside of what stands before it. Inside a group it cannot, but to know that for sure
    // without parsing, no class or escape may hide a parenthesis.
    let mut depth = 0i32;
    let hidden = pattern.contains(['\\', '[']);
    for c in pattern.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            '|' if hidden || depth <= 0 => return String::new(),
            _ => {}
        }
    }
    let text = pattern.strip_prefix('^').unwrap_or(pattern);
    let literal = text
        .find(|c: char| {
            !(c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '~' | '%' | ':' | '@' | ',' | ';' | '='))
        })
        .unwrap_or(text.len());
    let quantified = text[literal..].starts_with(['?', '*', '+', '{']);
    // Literal characters are ASCII, so the one before is one byte.
    let sure = &text[..literal - usize::from(quantified && literal > 0)];
    // Only what ends in a certain slash is a whole segment.
    sure.rfind('/').map_or(String::new(), |slash| sure[..slash].to_owned())
}
