//! Workers, control thread, deadline wheel.
//!
//! | thread | runs |
//! |---|---|
//! | `worker-N`, one per core | accepts, connections, requests, upstream pools: everything a request touches |
//! | `control` | reloads, discovery, health checks, admin, exporters: everything a request must not wait for |
//!
//! Each has its own current-thread runtime, so a request never changes threads; futures are `Send` all the same, which
//! keeps the threading model a choice made here and nowhere else.

pub mod alive;
pub mod drain;
pub mod purge;
pub mod signals;
pub mod tunnel;
pub mod wheel;
pub mod workers;

pub use alive::keep_alive;
pub use drain::{Drain, Phase, Ticket};
pub use signals::{Signal, Signals};
pub use wheel::{Deadline, Elapsed, deadline, timeout};
pub use workers::{Control, Workers, cores};
