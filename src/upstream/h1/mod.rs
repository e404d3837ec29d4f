//! HTTP/1.1 towards endpoints: an own codec, driven by the request's own task. A connection needs no task of its own;
//! the head is borrowed and written straight into the connection's buffer; header values are slices of what was read.

mod body;
pub mod chunked;
pub(super) mod conn;
pub(super) mod encode;
mod exchange;
mod fields;
mod names;
pub mod parse;
pub mod trailers;
mod tunnel;
pub(super) mod upload;

#[cfg(test)]
mod tests;

pub(super) use conn::Conn;
pub(super) use exchange::{Limits, send};
