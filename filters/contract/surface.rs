//! Routes as their callers see them: what one route may tell about another.

use std::sync::Arc;

use http::Method;

use super::section::Node;

/// A route that has a [`super::Role::Note`] or a [`super::Role::Answer`].
#[derive(Clone, Debug)]
pub struct Surface {
    /// Its name.
    pub name: Arc<str>,
    /// Names of its listeners; `None` = every listener.
    pub listeners: Option<Vec<String>>,
    /// Lower-case, `*.a.com` among them; empty = any host.
    pub hosts: Vec<String>,
    /// Any of these.
    pub matches: Vec<Shown>,
    /// What filters and notes its keys configure.
    pub sections: Vec<(String, Node)>,
}

/// One way to match a route, as far as it is anybody's business: fields and claims are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The path.
    pub path: ShownPath,
    /// Empty = every method.
    pub methods: Vec<Method>,
}

/// A path that is matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShownPath {
    /// Every one.
    Any,
    /// Exactly this.
    Exact(String),
    /// This and what lies below, by segment; without a slash at the end, unless it is `/`.
    Prefix(String),
    /// Those that fit.
    Regex(String),
}

impl Surface {
    /// The section under a key.
    #[must_use]
    pub fn section(&self, key: &str) -> Option<&Node> {
        self.sections.iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }
    /// Whether it exists on a listener.
    #[must_use]
    pub fn is_on(&self, listener: &str) -> bool {
        self.listeners.as_ref().is_none_or(|names| names.iter().any(|name| name == listener))
    }
}
