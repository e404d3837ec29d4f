//! onehop between clients and servers that other people wrote. Nothing here is simulated: each test starts the real
//! counterpart on free ports with a config of its own, and ends it by its process id.
//!
//! `tests/real/install.sh` installs what is needed; a tool that is missing fails its tests.

mod common;
#[path = "real/kit.rs"]
mod kit;

#[path = "real/cache.rs"]
mod cache;
#[path = "real/credentials.rs"]
mod credentials;
#[path = "real/curl.rs"]
mod curl;
#[path = "real/dns.rs"]
mod dns;
#[path = "real/etcd.rs"]
mod etcd;
#[path = "real/ext_auth.rs"]
mod ext_auth;
#[path = "real/grpc.rs"]
mod grpc;
#[path = "real/grpc_web.rs"]
mod grpc_web;
#[path = "real/h2spec.rs"]
mod h2spec;
#[path = "real/introspection.rs"]
mod introspection;
#[path = "real/jwks.rs"]
mod jwks;
#[path = "real/kubernetes.rs"]
mod kubernetes;
#[path = "real/load.rs"]
mod load;
#[path = "real/nginx.rs"]
mod nginx;
#[path = "real/oidc.rs"]
mod oidc;
#[path = "real/otlp.rs"]
mod otlp;
#[path = "real/ratelimit.rs"]
mod ratelimit;
#[path = "real/redis.rs"]
mod redis;
#[path = "real/registries.rs"]
mod registries;
#[path = "real/tls.rs"]
mod tls;
#[path = "real/transcode.rs"]
mod transcode;
#[path = "real/websocket.rs"]
mod websocket;
#[path = "real/xds.rs"]
mod xds;
