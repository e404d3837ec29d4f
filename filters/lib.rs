//! The onehop filter contract and every built-in filter.
//!
//! A filter author needs [`contract`] only; [`BUILTIN`] is the one list of what ships with the engine.
#![forbid(unsafe_code)]

pub mod api;
pub mod contract;
pub mod mesh;

use contract::Entry;

/// Every built-in filter, one line each. Their order in a chain is their phase's, not this list's.
pub const BUILTIN: &[Entry] = &[
    api::api_key::ENTRY,
    api::api_key::KEYS,
    api::auth::ENTRY,
    api::basic::ENTRY,
    api::basic::PASSWORDS,
    api::cache::ENTRY,
    api::catalogue::ENTRY,
    api::catalogue::describe::ENTRY,
    api::CLIENT_IDS,
    api::compression::ENTRY,
    api::concurrency::ENTRY,
    api::cors::ENTRY,
    api::csrf::ENTRY,
    api::decompression::ENTRY,
    api::error_pages::ENTRY,
    api::ext_auth::ENTRY,
    api::fault::ENTRY,
    api::grpc_web::ENTRY,
    api::idempotency::ENTRY,
    api::introspection::ENTRY,
    api::ip_rules::ENTRY,
    api::jwt::ENTRY,
    api::maintenance::ENTRY,
    api::mirror::ENTRY,
    api::mtls::CERTIFICATES,
    api::mtls::ENTRY,
    api::oidc::ENTRY,
    api::quota::ENTRY,
    api::quota::guard::ENTRY,
    api::quota::usage::ENTRY,
    api::signature::ENTRY,
    api::signature::KEYS,
    api::transcode::ENTRY,
    api::transform::ENTRY,
    api::validate::ENTRY,
    mesh::discover::static_::ENTRY,
    mesh::discover::dns::ENTRY,
    mesh::discover::srv::ENTRY,
    mesh::discover::file::ENTRY,
    mesh::discover::consul::ENTRY,
    mesh::discover::eds::ENTRY,
    mesh::discover::etcd::ENTRY,
    mesh::discover::kubernetes::ENTRY,
    mesh::discover::eureka::ENTRY,
    mesh::discover::nacos::ENTRY,
    mesh::balance::round_robin::ENTRY,
    mesh::balance::random::ENTRY,
    mesh::balance::least_request::ENTRY,
    mesh::balance::peak_ewma::ENTRY,
    mesh::balance::ring_hash::ENTRY,
    mesh::balance::maglev::ENTRY,
    mesh::balance::utilization::ENTRY,
    mesh::retry::ENTRY,
    mesh::adaptive_concurrency::ENTRY,
    mesh::circuit_breaker::ENTRY,
    mesh::outlier_detection::ENTRY,
    mesh::health_check::ENTRY,
    // The first that knows an endpoint decides.
    mesh::endpoint_override::ENTRY,
    mesh::session_persistence::ENTRY,
];
