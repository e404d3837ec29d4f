//! API management: request scope.
