//! Admin endpoints, on the control thread.
