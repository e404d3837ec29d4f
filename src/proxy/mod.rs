//! The two loops: request scope and attempt scope.

pub mod head;
pub mod headers;
