//! Route table, path normalisation, rewriting; pure.

mod explain;
mod matcher;
pub mod path;
pub mod rewrite;
mod table;

#[cfg(test)]
mod tests;

pub use explain::{Candidate, Verdict};
pub use matcher::Probe;
pub use table::{Hit, RouteSpec, Table, TableError};
