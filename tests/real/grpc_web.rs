//! Google's gRPC-Web client, through onehop, to Google's gRPC server.

use std::path::Path;

use super::common::Onehop;
use super::kit::{Server, python, succeed, tool};

#[test]
fn the_web_client_calls_the_grpc_server() {
    let (_server, address) = Server::start_on_a_port(&mut python("grpc_server.py"));
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         routes: [{{ name: all, grpcWeb: {{}}, to: up }}]\n\
         services: {{ up: {{ discover: {{ static: ['{address}'] }}, protocol: grpc }} }}\n"
    ));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for format in ["binary", "text"] {
        let mut node = tool("node");
        node.arg(root.join("tests/real/node/grpc_web.js")).args([&*onehop.at("web").to_string(), format]);
        let out = succeed(&mut node);
        assert!(out.contains("unary: grüße\n"), "{format}: {out}");
        assert!(out.contains("fail: error 9 ausverkauft: 100 % weg\n"), "{format}: {out}");
        assert!(out.contains("unknown: error 12 "), "{format}: {out}");
        assert!(out.contains("deadline: error 4 "), "{format}: {out}");
        if format == "text" {
            assert!(out.contains("stream: 0 1 2 end\n"), "{out}");
            assert!(out.contains("half: one two error 15 no more\n"), "{out}");
        }
        assert!(out.ends_with("all\n"), "{format}: {out}");
    }
}
