//! onehop: API gateway and service-mesh sidecar in one process.
//!
//! **Every policy runs exactly once, in one process, in an order you can read.** A request meets the API-management
//! filters (who may, how much, rewritten how) and directly behind them the mesh filters (which endpoint, tried how
//! often), and leaves. What a process is at a place, edge, sidecar or both, is decided by its configuration.
//!
//! # Life of a request
//!
//! [`edge::accept`] > [`edge::serve`] > [`proxy::session`] > [`proxy::request`] (admit the head, route, chain of API
//! filters) > [`proxy::attempt`] (gates, pick, send, judge; once per try) > [`upstream`]; then back out over the filters,
//! and at the end of the response *body* [`proxy::ledger`] writes down what happened.
//!
//! # Life of a configuration
//!
//! Text > [`config::plan::Plan`], a value of which is correct > [`snapshot::Snapshot`], immutable > published as one
//! pointer ([`snapshot::cell`]). What must survive that (counters, pools, endpoints) is in [`snapshot::estate`].
//!
//! # Map
//!
//! | room | what it is |
//! |---|---|
//! | [`hop`] | assembly, and `apply(config)`: start here |
//! | [`config`] | text to a checked plan; every error has a place and a cure |
//! | [`snapshot`] | a plan compiled, the pointer to it, and what outlives it |
//! | [`edge`] | from a listening socket to a request |
//! | [`route`] | which route; pure |
//! | [`proxy`] | the two loops, and what one request owns |
//! | [`upstream`] | from a request to an endpoint's answer |
//! | [`observe`] | metrics, logs, spans |
//! | [`admin`] | health, views, reload, drain |
//! | [`runtime`] | threads, deadlines, signals |
//! | [`fault`] | a failure as an answer |
//!
//! Filters, and everything their authors need, are the crate [`onehop_filters`].
//!
//! # Embedding
//!
//! [`hop::Hop::start`] takes a configuration and a list of filters; [`hop::Hop::service`] gives the routes of a listener
//! as a `tower::Service`.

#![forbid(unsafe_code)]

pub mod admin;
pub mod config;
pub mod demo;
pub mod edge;
pub mod explain;
pub mod fault;
pub mod hop;
pub mod observe;
pub mod proxy;
pub mod route;
pub mod runtime;
pub mod snapshot;
pub mod upstream;
