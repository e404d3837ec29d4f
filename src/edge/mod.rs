//! Listeners, TLS, the gate under hyper, connections, drain.

pub mod proxy_protocol;
pub mod tls;
pub mod tls_certs;
pub mod tls_peer;
