//! Connections that are passed on, between programs that know nothing of it: OpenSSL and curl before nginx behind TLS that
//! is not decrypted, Redis and its client, and HAProxy and nginx as readers of PROXY headers.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use super::common::Onehop;
use super::kit::{Authority, Server, eventually, free_port, reachable, run, succeed, texts, tool};
use super::nginx::Nginx;

fn start(listeners: &str, routes: &str, services: &str) -> Onehop {
    Onehop::start(&format!(
        "version: 1\nadmin: {{ bind: '127.0.0.1:0' }}\nlisteners:\n{listeners}\nroutes:\n{routes}\nservices:\n{services}\n\
         telemetry: {{ accessLog: {{ path: /dev/stderr }} }}\n"
    ))
}

fn secure(authority: &Authority, name: &str) -> Nginx {
    let (cert, key) = authority.issue(&[name]);
    Nginx::start(&format!(
        "server {{ listen 127.0.0.1:PORT ssl http2; server_name {name}; ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;\n\
         location / {{ return 200 \"{name} $ssl_server_name $ssl_protocol $server_protocol\\n\"; }} }}"
    ))
}

/// TLS that is passed through, to one nginx for each name.
struct Passing {
    onehop: Onehop,
    authority: Authority,
    _endpoints: [Nginx; 2],
}

impl Passing {
    fn start() -> Self {
        let authority = Authority::new();
        let endpoints = [secure(&authority, "shop.example"), secure(&authority, "www.blog.example")];
        let [shop, blog] = endpoints.each_ref().map(|nginx| nginx.address);
        let onehop = start(
            "  tls: { bind: '127.0.0.1:0', tls: { mode: passthrough } }",
            "- { name: shop, listeners: [tls], hosts: [shop.example], to: shop }\n\
             - { name: blog, listeners: [tls], hosts: ['*.blog.example'], to: blog }",
            &format!(
                "  shop: {{ discover: {{ static: ['{shop}'] }} }}\n  blog: {{ discover: {{ static: ['{blog}'] }} }}"
            ),
        );
        Self { onehop, authority, _endpoints: endpoints }
    }

    fn curl(&self, host: &str, options: &[&str]) -> Command {
        let at = self.onehop.at("tls");
        let mut curl = tool("curl");
        curl.args(["-sS", "--max-time", "20", "--cacert", &self.authority.ca()]);
        curl.args(["--resolve", &format!("{host}:{}:127.0.0.1", at.port())]).args(options);
        curl.arg(format!("https://{host}:{}/", at.port()));
        curl
    }
}

#[test]
fn curl_reaches_each_nginx_by_its_name_and_verifies_it() {
    let bed = Passing::start();
    for (host, options, says) in [
        ("shop.example", &["--http1.1", "--tls-max", "1.2"][..], "shop.example shop.example TLSv1.2 HTTP/1.1\n"),
        ("shop.example", &["--http2"], "shop.example shop.example TLSv1.3 HTTP/2.0\n"),
        ("www.blog.example", &["--http2"], "www.blog.example www.blog.example TLSv1.3 HTTP/2.0\n"),
    ] {
        assert_eq!(succeed(&mut bed.curl(host, options)), says);
    }
    let refused = run(&mut bed.curl("blog.example", &[]), Duration::from_secs(20));
    let (_, why) = texts(&refused);
    assert!(!refused.status.success() && why.contains("unrecognized name"), "{why}");
}

#[test]
fn a_hello_of_openssl_in_several_records_is_read() {
    let bed = Passing::start();
    // OpenSSL cuts its hello into records of 512 bytes; the protocols make it longer than that.
    let protocols: Vec<String> = (0..60).map(|n| format!("a-protocol-{n}")).collect();
    let mut openssl = tool("openssl");
    openssl.args(["s_client", "-connect", &bed.onehop.at("tls").to_string(), "-servername", "shop.example"]);
    openssl.args(["-max_send_frag", "512", "-alpn", &format!("{},http/1.1", protocols.join(","))]);
    openssl.args(["-CAfile", &bed.authority.ca(), "-verify_return_error", "-msg"]);
    let (said, _) = texts(&run(&mut openssl, Duration::from_secs(20)));
    let records = said.matches(">>> TLS 1.0, RecordHeader [length 0005]").count();
    assert!(records >= 2, "one record only:\n{said}");
    assert!(said.contains("Verify return code: 0 (ok)") && said.contains("subject=CN = shop.example"), "{said}");
    eventually("it is logged", || bed.onehop.log().contains("\"sni\":\"shop.example\""));
}

#[test]
fn redis_is_served_through_a_tcp_listener() {
    let (port, dir) = (free_port(), tempfile::tempdir().expect("a folder"));
    let _redis = Server::start(
        tool("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
            .arg(dir.path()),
    );
    reachable(SocketAddr::from(([127, 0, 0, 1], port)));
    let onehop = start(
        "  redis: { bind: '127.0.0.1:0', protocols: [tcp] }",
        "- { name: redis, listeners: [redis], to: redis }",
        &format!("  redis: {{ discover: {{ static: ['127.0.0.1:{port}'] }}, healthCheck: {{ tcp: {{}} }} }}"),
    );
    let here = onehop.at("redis").port().to_string();
    let ask = |args: &[&str]| succeed(tool("redis-cli").args(["-p", &here]).args(args));
    assert_eq!(ask(&["ping"]), "PONG\n");
    let large = "x".repeat(100_000);
    assert_eq!(ask(&["set", "large", &large]), "OK\n");
    assert_eq!(ask(&["get", "large"]).trim_end(), large);
    // Many connections, and many commands in flight on each.
    let report = succeed(
        tool("redis-benchmark")
            .args(["-p", &here, "-n", "20000", "-c", "40", "-P", "16", "-d", "1000", "-t", "set,get", "-q"]),
    );
    assert!(report.contains("SET: ") && report.contains("GET: "), "{report}");
    eventually("every connection is over", || {
        onehop.admin_get("/metrics").body().contains("onehop_tcp_connections_open{service=\"redis\"} 0")
    });
    let metrics = onehop.admin_get("/metrics").body();
    let received = metrics.lines().find_map(|l| l.strip_prefix("onehop_tcp_received_bytes_total{service=\"redis\"} "));
    assert!(received.and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n > 20_000_000), "{metrics}");
}

/// An HAProxy that says who it takes its caller for.
fn haproxy() -> (Server, SocketAddr, tempfile::TempDir) {
    let (port, dir) = (free_port(), tempfile::tempdir().expect("a folder"));
    let config = dir.path().join("haproxy.cfg");
    std::fs::write(
        &config,
        format!(
            "defaults\n  mode http\n  timeout client 10s\n  timeout server 10s\n  timeout connect 10s\n\
             frontend f\n  bind 127.0.0.1:{port} accept-proxy\n  http-request return status 200 content-type text/plain \
             lf-string \"%[src]:%[src_port] %[dst]:%[dst_port]\"\n"
        ),
    )
    .expect("a file");
    let server = Server::start(tool("haproxy").arg("-f").arg(&config));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    reachable(address);
    (server, address, dir)
}

#[test]
fn haproxy_and_nginx_are_told_who_connects() {
    let (_haproxy, haproxy, _dir) = haproxy();
    let nginx = Nginx::start(
        "server { listen 127.0.0.1:PORT proxy_protocol;\n\
         location / { return 200 \"$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_addr:\
         $proxy_protocol_server_port\"; } }",
    );
    for (reader, endpoint) in [("haproxy", haproxy), ("nginx", nginx.address)] {
        for version in ["v1", "v2"] {
            let onehop = start(
                "  bytes: { bind: '127.0.0.1:0', protocols: [tcp] }\n  web: { bind: '127.0.0.1:0' }",
                "- { name: bytes, listeners: [bytes], to: up }\n- { name: web, listeners: [web], to: up }",
                &format!("  up: {{ discover: {{ static: ['{endpoint}'] }}, proxyProtocol: {version} }}"),
            );
            for listener in ["bytes", "web"] {
                let at = onehop.at(listener);
                // Three requests on one connection, and one on another.
                let url = format!("http://{at}/");
                let ask = |urls: &[&str]| {
                    let port = " 127.0.0.1:%{local_port}\n";
                    succeed(tool("curl").args(["-sS", "--max-time", "20", "-w", port]).args(urls))
                };
                let out = ask(&[&url, &url, &url]) + &ask(&[&url]);
                assert_eq!(out.lines().count(), 4, "{out}");
                for line in out.lines() {
                    let words: Vec<&str> = line.split(' ').collect();
                    let expected = [words[2], &at.to_string(), words[2]];
                    assert_eq!(words, expected, "{reader} {version} {listener}");
                }
            }
        }
    }
}
