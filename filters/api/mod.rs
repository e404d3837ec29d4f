//! API management: request scope.

pub mod api_key;
pub mod auth;
pub mod cors;
pub mod jwt;
pub mod quota;
pub mod transform;

#[cfg(test)]
pub(crate) mod fixture;
