//! Discovery kinds. What they share: how an endpoint is written ([`endpoint`]) and how names are asked for ([`resolve`]).

pub mod dns;
pub mod endpoint;
pub mod file;
pub mod resolve;
pub mod srv;
pub mod static_;
