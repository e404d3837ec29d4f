//! Google's own gRPC client and server, with onehop between them: every kind of call, in the clear and over TLS.

use super::common::Onehop;
use super::kit::{Authority, Server, python, succeed};

#[test]
fn grpc_calls_of_every_kind_pass() {
    let (_server, address) = Server::start_on_a_port(&mut python("grpc_server.py"));
    let authority = Authority::new();
    let (cert, key) = authority.issue(&["grpc.example"]);
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners:\n\
         \x20 plain: {{ bind: '127.0.0.1:0' }}\n\
         \x20 tls: {{ bind: '127.0.0.1:0', tls: {{ certificates: [{{ cert: {cert}, key: {key} }}] }} }}\n\
         routes: [{{ name: all, to: up }}]\n\
         services: {{ up: {{ discover: {{ static: ['{address}'] }}, protocol: grpc }} }}\n"
    ));
    let plain = succeed(python("grpc_client.py").arg(onehop.at("plain").to_string()));
    assert!(plain.ends_with("all\n"), "{plain}");
    let tls = onehop.at("tls").to_string();
    let tls = succeed(python("grpc_client.py").args([&*tls, &authority.ca(), "grpc.example"]));
    assert!(tls.ends_with("all\n"), "{tls}");
}

#[test]
fn a_missing_grpc_server_is_unavailable_in_grpc_terms() {
    let port = super::kit::free_port();
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ plain: {{ bind: '127.0.0.1:0' }} }}\n\
         routes: [{{ name: all, to: up }}]\n\
         services: {{ up: {{ discover: {{ static: ['127.0.0.1:{port}'] }}, protocol: grpc }} }}\n"
    ));
    let out = succeed(python("grpc_status.py").args([&*onehop.at("plain").to_string(), "/test.Echo/Unary"]));
    assert!(out.starts_with("UNAVAILABLE"), "{out}");
}
