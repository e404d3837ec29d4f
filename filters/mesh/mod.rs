//! Mesh: attempt scope.
