//! API management: request scope.

pub mod api_key;
pub mod auth;

#[cfg(test)]
pub(crate) mod fixture;
