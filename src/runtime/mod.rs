//! Workers, control thread, deadline wheel.
