//! `consumers.NAME.certificates`: which certificates are whose.

use std::collections::BTreeMap;

use crate::contract::principal::Workload;
use crate::contract::{ConfigError, Held, Spot};

/// A name that a certificate is known by. Always the whole name: no patterns, no prefixes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// The one URI of an X509-SVID.
    Spiffe(String),
    Uri(String),
    /// Lower-case.
    Dns(String),
    /// The distinguished name, as `openssl x509 -subject -nameopt rfc2253` in the certificate's own order.
    Subject(String),
    /// SHA-256 of the certificate.
    Thumbprint([u8; 32]),
}

impl Name {
    pub fn parse(text: &str) -> Option<Self> {
        if text.chars().any(char::is_control) || text.contains('*') {
            return None;
        }
        if text.starts_with("spiffe://") {
            return Some(Self::Spiffe(text.to_owned()));
        }
        let (kind, name) = text.split_once(':').filter(|(_, name)| !name.is_empty())?;
        Some(match kind {
            "uri" => Self::Uri(name.to_owned()),
            "dns" => Self::Dns(name.to_ascii_lowercase()),
            "subject" => Self::Subject(name.trim().to_owned()),
            "sha256" => Self::Thumbprint(thumbprint(name)?),
            _ => return None,
        })
    }

    /// Every name of a certificate.
    pub fn of(workload: &Workload) -> impl Iterator<Item = Self> {
        let spiffe = workload.id.starts_with("spiffe://").then(|| Self::Spiffe(workload.id.to_string()));
        let alternative = |name: &std::sync::Arc<str>| match name.contains(':') {
            true => Self::Uri(name.to_string()),
            false => Self::Dns(name.to_string()),
        };
        let subject = (!workload.subject.is_empty()).then(|| Self::Subject(workload.subject.to_string()));
        let others = spiffe.into_iter().chain(workload.names.iter().map(alternative)).chain(subject);
        std::iter::once(Self::Thumbprint(workload.thumbprint)).chain(others)
    }
}

/// 64 hex digits, with colons between bytes or without.
fn thumbprint(text: &str) -> Option<[u8; 32]> {
    let hex: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
    if hex.len() != 64 || !hex.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    hex.chunks(2).map(byte).collect::<Option<Vec<u8>>>()?.try_into().ok()
}

/// The certificates of all consumers. Every mistake is found.
pub fn read(held: &[Held]) -> (BTreeMap<Name, String>, Vec<ConfigError>) {
    let mut all = BTreeMap::new();
    let mut errors = Vec::new();
    for Held { owner, section } in held {
        let names: Vec<Spot<String>> = section.read().unwrap_or_else(|e| {
            errors.push(e);
            Vec::new()
        });
        for text in names {
            let Some(name) = Name::parse(&text.value) else {
                let message = format!("`{}` is not a name of a certificate", text.value);
                let help = "write a whole name: `spiffe://...`, `dns:NAME`, `uri:URI`, `subject:DN` or `sha256:HEX`";
                errors.push(ConfigError::at(text.span, message).help(help));
                continue;
            };
            if let Some(first) = all.insert(name, owner.clone()) {
                let message = format!("`{}` is a certificate of consumer `{first}` already", text.value);
                errors.push(ConfigError::at(text.span, message).help("a certificate has one owner: remove one"));
            }
        }
    }
    (all, errors)
}
