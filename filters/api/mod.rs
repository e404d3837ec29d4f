//! API management: request scope.

pub mod api_key;
pub mod auth;
pub mod compression;
pub mod content;
pub mod cors;
pub mod decompression;
pub mod grpc_web;
pub mod jwt;
pub mod quota;
pub mod transcode;
pub mod transform;
pub mod validate;
mod watched;

#[cfg(test)]
pub(crate) mod fixture;

#[cfg(test)]
mod tests {
    use crate::BUILTIN;
    use crate::contract::{Entry, Role};

    #[test]
    fn every_entry_is_complete() {
        let ours = |e: &&Entry| matches!(e.role, Role::Api { .. } | Role::Identity(_));
        for (at, entry) in BUILTIN.iter().filter(ours).enumerate() {
            assert!(!BUILTIN.iter().filter(ours).take(at).any(|e| e.name == entry.name), "{} stands twice", entry.name);
            assert!(entry.readme.starts_with(&format!("# {}", entry.name)), "{}: README", entry.name);
            assert!(entry.example.contains(&format!("{}:", entry.name)), "{}: the example shows its key", entry.name);
            let schema = (entry.schema)(&mut schemars::SchemaGenerator::default());
            assert!(schema.as_value().is_object(), "{}: schema", entry.name);
        }
    }
}
