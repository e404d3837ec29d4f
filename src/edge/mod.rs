//! Listeners, TLS, the gate under hyper, connections, drain.

pub mod proxy_protocol;
