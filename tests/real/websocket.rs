//! A WebSocket client and server that know nothing of onehop between them.

use super::common::{Onehop, get_with};
use super::kit::{Authority, Server, python, succeed};

#[test]
fn web_sockets_pass_where_the_route_allows_them() {
    let (_server, address) = Server::start_on_a_port(&mut python("websocket_server.py"));
    let authority = Authority::new();
    let (cert, key) = authority.issue(&["localhost", "127.0.0.1"]);
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners:\n\
         \x20 plain: {{ bind: '127.0.0.1:0' }}\n\
         \x20 tls: {{ bind: '127.0.0.1:0', tls: {{ certificates: [{{ cert: {cert}, key: {key} }}] }} }}\n\
         routes:\n\
         - {{ name: chat, matches: [{{ path: {{ prefix: /chat }} }}], upgrades: [websocket], to: up }}\n\
         - {{ name: rest, to: up }}\n\
         services: {{ up: {{ discover: {{ static: ['{address}'] }} }} }}\n"
    ));
    let out = succeed(python("websocket_client.py").arg(format!("ws://{}/chat", onehop.at("plain"))));
    assert_eq!(out, "all\n");
    let out = succeed(python("websocket_client.py").args([format!("wss://{}/chat", onehop.at("tls")), authority.ca()]));
    assert_eq!(out, "all\n");

    let handshake = "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n\
                     sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let refused = get_with(onehop.at("plain"), "a.example", "/rest", handshake);
    assert_ne!(refused.status(), 101, "{}", refused.text());
}
