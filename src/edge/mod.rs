//! Listeners, TLS, the gate under hyper, connections, drain.

pub mod body;
mod coalesce;
mod conn;
pub mod drain_signal;
mod gate;
mod h1;
mod h2;
pub mod serve;
pub mod stream;
