//! Signed tokens, for every identity that reads some: form and claims of a JWS (RFC 7515, 7519), keys (RFC 7517) and
//! where they come from, claims as header fields. Not a filter.

pub mod claims;
pub mod discovery;
pub mod fields;
pub mod keys;
pub mod source;
#[cfg(test)]
mod tests;
pub mod token;

use std::time::SystemTime;

/// Seconds since 1970, as dates in tokens count.
pub fn unix() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
