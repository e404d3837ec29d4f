//! Mesh: attempt scope.

pub mod adaptive_concurrency;
pub mod balance;
pub mod chance;
pub mod circuit_breaker;
pub mod discover;
pub mod endpoint_override;
pub mod health_check;
pub mod outlier_detection;
mod places;
pub mod retry;
pub mod session_persistence;
mod verdict;

#[cfg(test)]
mod bed;

/// Name of the service whose section is being built, for metric labels: `services.stock` is `stock`.
fn service_of(scope: &str) -> &str {
    scope.strip_prefix("services.").unwrap_or(scope)
}
