//! The onehop filter contract and every built-in filter.
//!
//! A filter author needs [`contract`] only; [`BUILTIN`] is the one list of what ships with the engine.

pub mod api;
pub mod contract;
pub mod mesh;

use contract::Entry;

/// Every built-in filter, one line each. Their order in a chain is their phase's, not this list's.
pub const BUILTIN: &[Entry] = &[
    api::api_key::ENTRY,
    api::auth::ENTRY,
    api::cors::ENTRY,
    api::jwt::ENTRY,
    api::quota::ENTRY,
    api::transform::ENTRY,
];
