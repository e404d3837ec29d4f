//! API management: request scope.

#[cfg(test)]
pub(crate) mod fixture;
