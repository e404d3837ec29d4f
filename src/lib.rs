//! onehop: API gateway and service-mesh sidecar in one process.

pub mod admin;
pub mod config;
pub mod demo;
pub mod edge;
pub mod explain;
pub mod fault;
pub mod hop;
pub mod observe;
pub mod proxy;
pub mod route;
pub mod runtime;
pub mod snapshot;
pub mod upstream;
