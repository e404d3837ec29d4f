//! API management: request scope.

mod accept;
mod answers;
pub mod api_key;
pub mod auth;
pub mod basic;
mod bearer;
pub mod cache;
pub mod caller;
pub mod catalogue;
pub mod compression;
pub mod concurrency;
pub mod content;
pub mod cors;
pub mod csrf;
pub mod decompression;
pub mod error_pages;
pub mod ext_auth;
pub mod fault;
pub mod grpc_web;
pub mod idempotency;
pub mod introspection;
pub mod ip_rules;
pub mod jose;
pub mod jwt;
pub mod left;
pub mod maintenance;
pub mod mirror;
pub mod mtls;
pub mod oidc;
mod openapi;
pub mod quota;
pub mod signature;
pub mod transcode;
pub mod transform;
pub mod validate;
mod watched;

pub use bearer::CLIENT_IDS;

#[cfg(test)]
pub(crate) mod fixture;

#[cfg(test)]
mod tests {
    use crate::BUILTIN;
    use crate::contract::{Entry, Role};

    #[test]
    fn every_entry_is_complete() {
        let ours = |e: &&Entry| {
            use Role::{Answer, Api, Credential, Identity, Note};
            matches!(e.role, Api { .. } | Answer(_) | Note(_) | Identity(_) | Credential(_))
        };
        for (at, entry) in BUILTIN.iter().filter(ours).enumerate() {
            assert!(!BUILTIN.iter().filter(ours).take(at).any(|e| e.name == entry.name), "{} stands twice", entry.name);
            // What consumers hold is explained with the identity that reads it.
            let title = match entry.role {
                Role::Credential(_) => format!("`{}`", entry.name),
                _ => format!("# {}", entry.name),
            };
            assert!(entry.readme.contains(&title), "{}: README", entry.name);
            assert!(entry.example.contains(&format!("{}:", entry.name)), "{}: the example shows its key", entry.name);
            let schema = (entry.schema)(&mut schemars::SchemaGenerator::default());
            assert!(schema.as_value().is_object(), "{}: schema", entry.name);
        }
    }
}
