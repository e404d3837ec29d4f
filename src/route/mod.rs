//! Route table and path normalisation; pure.
