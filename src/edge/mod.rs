//! Listeners, TLS, the gate under hyper, connections, drain.

pub mod accept;
mod accept_greet;
pub mod accept_io;
pub mod body;
mod coalesce;
mod conn;
pub mod drain_signal;
mod gate;
mod guard;
mod h1;
mod h2;
pub mod hello;
pub mod listener;
mod listener_bind;
mod listener_drain;
mod listener_state;
pub mod proxy_protocol;
pub mod serve;
pub mod stream;
pub mod switch;
pub mod tls;
pub mod tls_certs;
pub mod tls_peer;

#[cfg(test)]
mod tls_testing;
