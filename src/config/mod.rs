//! Configuration: text > [`onehop_filters::contract::Node`] tree > [`plan::Plan`]. Every error has a place and a cure.

pub mod plan;
