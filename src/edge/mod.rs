//! Listeners, TLS, the gate under hyper, connections, drain.
