//! API management: request scope.

pub mod api_key;
pub mod auth;
pub mod jwt;
pub mod quota;

#[cfg(test)]
pub(crate) mod fixture;
