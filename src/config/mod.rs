//! Configuration: text > [`onehop_filters::contract::Node`] tree > [`plan::Plan`]. Every error has a place and a cure.

mod effective;
mod env;
mod load;
mod lower;
pub mod plan;
mod raw;
mod report;
mod schema;
mod stamps;
#[cfg(test)]
mod tests;
mod text;
mod watch;

pub use effective::{effective, effective_json, effective_of};
pub use load::{Source, hash_of, load, load_with};
pub use report::{File, Files, Report, json, text};
pub use schema::schema;
pub use stamps::Stamps;
pub use watch::watch;
