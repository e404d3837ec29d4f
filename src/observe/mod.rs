//! What the process tells about itself: metrics, access log, spans, the decision trail, its own log.
//!
//! A leaf: everything here is told what happened and imports no other room. Nothing here ever makes a request wait.

pub mod access_log;
mod collector;
pub mod exposition;
pub mod json;
pub mod log;
pub mod metrics;
pub mod process;
pub mod record;
pub mod redact;
pub mod server_timing;
pub mod spans;
