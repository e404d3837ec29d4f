//! Identity kind `mtls`: the client certificate that the listener verified names a consumer (RFC 8705 section 2).

mod config;
mod names;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::names::Name;
use crate::contract::filter::{AuthError, AuthStep, AuthVerdict, Authenticator};
use crate::contract::metrics::Counter;
use crate::contract::principal::{Consumer, Workload};
use crate::contract::{Build, ConfigError, Entry, Node, RequestCx, Role};
use config::Config;

/// See the module.
pub const ENTRY: Entry = Entry {
    name: "mtls",
    summary: "Client certificates that belong to consumers",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Identity(build),
};

/// `consumers.NAME.certificates`.
pub const CERTIFICATES: Entry = Entry {
    name: "certificates",
    summary: "Names of a consumer's client certificates",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Vec<String>>(),
    role: Role::Credential(|held, _| names::read(held).1),
};

struct Mtls {
    name: Box<str>,
    owners: BTreeMap<Name, Arc<Consumer>>,
    accepted: Counter,
    refused: Counter,
}

fn build(node: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Authenticator>, ConfigError> {
    let Config {} = node.read()?;
    let (names, mut errors) = names::read(build.directory.held(CERTIFICATES.name));
    if let Some(e) = errors.drain(..).next() {
        return Err(e);
    }
    let owner = |(name, owner): (Name, String)| Some((name, build.directory.consumers.get(&owner)?.clone()));
    let name = build.scope.strip_prefix("identities.").unwrap_or(&build.scope);
    let count = |result| {
        build.metrics.counter(
            "onehop_mtls_total",
            "Client certificates that were looked up, by result",
            &[("identity", name), ("result", result)],
        )
    };
    Ok(Arc::new(Mtls {
        name: name.into(),
        owners: names.into_iter().filter_map(owner).collect(),
        accepted: count("accepted"),
        refused: count("refused"),
    }))
}

impl Mtls {
    /// The one consumer that the certificate's names lead to.
    fn owner(&self, workload: &Workload) -> Result<Arc<Consumer>, AuthError> {
        let refuse = |description| AuthError { code: "invalid_token", description };
        let mut found: Option<&Arc<Consumer>> = None;
        for owner in Name::of(workload).filter_map(|name| self.owners.get(&name)) {
            match found {
                Some(first) if first.name != owner.name => {
                    return Err(refuse("the certificate belongs to more than one consumer"));
                }
                _ => found = Some(owner),
            }
        }
        found.cloned().ok_or(refuse("the certificate belongs to no consumer"))
    }
}

impl Authenticator for Mtls {
    fn authenticate<'a>(&'a self, rq: &'a mut RequestCx) -> AuthStep<'a> {
        let Some(workload) = &rq.workload else { return AuthStep::Done(AuthVerdict::Absent) };
        AuthStep::Done(match self.owner(workload) {
            Ok(owner) => {
                self.accepted.inc();
                rq.consumer = Some(owner);
                AuthVerdict::Accepted
            }
            Err(error) => {
                self.refused.inc();
                AuthVerdict::Refused(error)
            }
        })
    }

    /// There is no registered scheme: a certificate is not sent in a field.
    fn challenge(&self, error: Option<&AuthError>) -> String {
        let mut challenge = format!("ClientCertificate realm=\"{}\"", self.name);
        if let Some(e) = error {
            challenge.push_str(&format!(", error=\"{}\", error_description=\"{}\"", e.code, e.description));
        }
        challenge
    }
}
