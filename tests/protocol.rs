//! Protocols end to end through the built binary: HTTP/1.1, HTTP/2, gRPC, WebSocket, TLS, PROXY, and what is counted.

#[path = "protocol/accounts.rs"]
mod accounts;
#[path = "protocol/bodies.rs"]
mod bodies;
mod common;
#[path = "protocol/endpoints.rs"]
mod endpoints;
#[path = "protocol/grpc.rs"]
mod grpc;
#[path = "protocol/http1.rs"]
mod http1;
#[path = "protocol/http2.rs"]
mod http2;
#[path = "protocol/passthrough.rs"]
mod passthrough;
#[path = "protocol/shapes.rs"]
mod shapes;
#[path = "protocol/tcp.rs"]
mod tcp;
#[path = "protocol/tls.rs"]
mod tls;
#[path = "protocol/translate.rs"]
mod translate;
#[path = "protocol/transports.rs"]
mod transports;
#[path = "protocol/upgrade.rs"]
mod upgrade;
