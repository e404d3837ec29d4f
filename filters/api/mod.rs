//! API management: request scope.

pub mod api_key;
pub mod auth;
pub mod jwt;

#[cfg(test)]
pub(crate) mod fixture;
