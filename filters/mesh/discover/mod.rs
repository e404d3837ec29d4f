//! Discovery kinds. What they share: how an endpoint is written ([`endpoint`]), how names are asked for ([`resolve`]), and
//! how a registry is (`registry`).

pub mod consul;
pub mod dns;
pub mod eds;
pub mod endpoint;
pub mod etcd;
pub mod eureka;
pub mod file;
pub mod kubernetes;
pub mod nacos;
mod race;
mod registry;
pub mod resolve;
pub mod srv;
pub mod static_;
#[cfg(test)]
mod stub;
