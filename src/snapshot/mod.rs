//! Snapshot: compile a plan, publish it, keep what outlives it.
