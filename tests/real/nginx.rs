//! nginx as an upstream, in the clear and with TLS.

use std::net::SocketAddr;

use super::common::{Onehop, get};
use super::kit::{Authority, Server, free_port, reachable, tool};

/// A running nginx and its folder.
pub struct Nginx {
    pub address: SocketAddr,
    dir: tempfile::TempDir,
    _server: Server,
}

impl Nginx {
    /// Starts with these `server` blocks; `PORT` in them is a free port.
    pub fn start(servers: &str) -> Self {
        let port = free_port();
        let dir = tempfile::tempdir().expect("a temporary folder");
        let at = dir.path().display();
        let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {at}/{kind};"))
            .join(" ");
        let config = format!(
            "daemon off; master_process off; pid {at}/nginx.pid; error_log {at}/error.log;\n\
             events {{ worker_connections 2048; }}\n\
             http {{ access_log {at}/access.log; {temp} keepalive_requests 1000000;\n{} }}\n",
            servers.replace("PORT", &port.to_string())
        );
        std::fs::write(dir.path().join("nginx.conf"), config).expect("a file");
        let server = Server::start(
            tool("nginx")
                .arg("-p")
                .arg(dir.path())
                .arg("-c")
                .arg(dir.path().join("nginx.conf"))
                .args(["-e", &format!("{at}/error.log")]),
        );
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        reachable(address);
        Self { address, dir, _server: server }
    }

    /// One line per request it served.
    pub fn served(&self) -> usize {
        std::fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default().lines().count()
    }
}

#[test]
fn nginx_is_an_upstream() {
    let nginx = Nginx::start(
        "server { listen 127.0.0.1:PORT;\n\
         location / { return 200 \"$request_method $request_uri $http_x_forwarded_for $server_protocol\\n\"; }\n\
         location /nothing { return 204; } }",
    );
    let onehop = Onehop::start(&config(&format!("{{ discover: {{ static: ['{}'] }} }}", nginx.address)));
    let answer = get(onehop.at("web"), "a.example", "/x/./y/../z?q=1%20");
    assert_eq!((answer.status(), &*answer.body()), (200, "GET /x/z?q=1%20 127.0.0.1 HTTP/1.1\n"));
    let empty = get(onehop.at("web"), "a.example", "/nothing");
    assert_eq!((empty.status(), &*empty.body()), (204, ""));
    assert!(empty.header("transfer-encoding").is_none() && empty.header("content-length").is_none());
    assert_eq!(nginx.served(), 2);
}

#[test]
fn nginx_with_tls_is_an_upstream_only_under_its_own_name() {
    let authority = Authority::new();
    let (cert, key) = authority.issue(&["orders.internal"]);
    let nginx = Nginx::start(&format!(
        "server {{ listen 127.0.0.1:PORT ssl http2; server_name orders.internal;\n\
         ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;\n\
         location / {{ return 200 \"$ssl_server_name $server_protocol $ssl_protocol $host\\n\"; }} }}"
    ));
    let service = |sni: &str, protocol: &str| {
        format!(
            "{{ discover: {{ static: ['{}'] }}, protocol: {protocol}, tls: {{ ca: {}, sni: {sni} }}, retry: {{ attempts: 0 }} }}",
            nginx.address,
            authority.ca()
        )
    };
    let onehop = Onehop::start(&config(&service("orders.internal", "auto")));
    let answer = get(onehop.at("web"), "a.example", "/");
    assert_eq!((answer.status(), &*answer.body()), (200, "orders.internal HTTP/2.0 TLSv1.3 a.example\n"));

    let (status, text) = onehop.reload(&config(&service("orders.internal", "h1")));
    assert_eq!(status, 200, "{text}");
    assert_eq!(get(onehop.at("web"), "a.example", "/").body(), "orders.internal HTTP/1.1 TLSv1.3 a.example\n");

    let (status, text) = onehop.reload(&config(&service("stock.internal", "auto")));
    assert_eq!(status, 200, "{text}");
    let refused = get(onehop.at("web"), "a.example", "/");
    assert_eq!(refused.status(), 502, "{}", refused.text());
    let why = refused.header("proxy-status").unwrap_or_default();
    assert!(why.contains("tls"), "{why}");
}

fn config(service: &str) -> String {
    format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         routes: [{{ name: all, to: up }}]\n\
         services: {{ up: {service} }}\n"
    )
}
