//! The three identities that meet in one proxy, kept apart (ARCHITECTURE.md, "Identity").

use std::collections::BTreeMap;
use std::sync::Arc;

use super::clock::Moment;
use super::section::Node;

/// Who the end user is: a verified token.
#[derive(Debug)]
pub struct User {
    /// Name of the identity in the config that vouched for it.
    pub identity: Arc<str>,
    /// `sub`, empty if the token has none.
    pub subject: Arc<str>,
    /// All claims, as a JSON object.
    pub claims: serde_json::Map<String, serde_json::Value>,
    /// `scope` (space-delimited) and `scp`/`scopes` (list), merged.
    pub scopes: Vec<Arc<str>>,
    /// When the verdict dies.
    pub expires: Moment,
}

/// Which application calls: the holder of a key, with a plan.
#[derive(Debug)]
pub struct Consumer {
    /// Name in the config.
    pub name: Arc<str>,
    /// Its plan, if any.
    pub plan: Option<Arc<Plan>>,
    /// What it may do.
    pub scopes: Vec<Arc<str>>,
}

/// What a consumer bought.
#[derive(Debug)]
pub struct Plan {
    /// Name in the config.
    pub name: Arc<str>,
    /// Who is shed last under overload.
    pub priority: Priority,
    /// Sections that filters read (`quota`).
    pub sections: BTreeMap<String, Node>,
}

impl Consumer {
    /// Its plan's, or the default.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.plan.as_ref().map(|plan| plan.priority).unwrap_or_default()
    }
}

/// Order of shedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Shed first.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Shed last.
    High,
}

/// Which program calls: the peer of a mutual TLS connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// SPIFFE id if the certificate has exactly one, else its first DNS name, else its subject.
    pub id: Arc<str>,
    /// Every subject alternative name (URI and DNS), as text.
    pub names: Vec<Arc<str>>,
    /// Distinguished name, empty if the certificate has none.
    pub subject: Arc<str>,
    /// SHA-256 of the certificate.
    pub thumbprint: [u8; 32],
}
