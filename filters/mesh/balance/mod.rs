//! Balancing policies. What they share: priorities, zones, panic, slow start and avoiding what was tried ([`pool`]).

pub mod config;
mod division;
pub mod hash;
pub mod hashed;
#[cfg(test)]
mod hashed_tests;
pub mod least_request;
pub mod maglev;
pub mod peak_ewma;
pub mod plain;
pub mod pool;
pub mod random;
pub mod ring_hash;
pub mod round_robin;
#[cfg(test)]
mod simulation_tests;
mod spread;
mod tier;
pub mod utilization;
pub mod zones;
