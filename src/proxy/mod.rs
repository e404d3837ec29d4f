//! The two loops: request scope and attempt scope.
