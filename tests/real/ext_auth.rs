//! An authorization server on Envoy's own messages (grpcio, xds-protos), asked by onehop and, for comparison, by Envoy.

use std::net::SocketAddr;

use serde_json::Value;

use super::common::{Answer, Endpoint, Onehop, exchange};
use super::kit::{Server, eventually, free_port, python_of, reachable, tool};

fn onehop(authz: SocketAddr, up: SocketAddr) -> Onehop {
    Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         routes:\n- name: all\n  to: up\n\
         \x20 extAuth: {{ grpc: {{ service: authz }}, timeout: 10s, body: {{ limit: 8B, allowPartial: true }}, context: {{ shop: north }} }}\n\
         services:\n\
         \x20 up: {{ discover: {{ static: ['{up}'] }} }}\n\
         \x20 authz: {{ discover: {{ static: ['{authz}'] }}, protocol: grpc }}\n"
    ))
}

fn post(to: SocketAddr, path: &str, body: &str) -> Answer {
    let head =
        "host: shop.example\r\nconnection: close\r\nx-gone: 1\r\nx-list: a\r\nx-user: root\r\ncookie: a=1; b=2\r\n";
    let text = format!("POST {path} HTTP/1.1\r\n{head}content-length: {}\r\n\r\n{body}", body.len());
    exchange(to, text.as_bytes())
}

fn questions(server: &Server) -> Vec<Value> {
    server.lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What was said about the request itself.
fn http(question: &Value) -> &Value {
    &question["attributes"]["request"]["http"]
}

#[test]
fn a_real_authorization_server_decides() {
    let (server, authz) = Server::start_on_a_port(&mut python_of("real-venv-envoy", "ext_authz_server.py"));
    let up = Endpoint::ok();
    let hop = onehop(authz, up.address);
    let web = hop.at("web");

    let good = post(web, "/in?token=s&a=b", "hello world");
    assert_eq!((good.status(), good.header("x-seen").as_deref()), (200, Some("yes")), "{}", good.text());
    let seen = up.last().to_lowercase();
    assert!(seen.starts_with("post /in?a=b&k=v%20w http/1.1\r\n"), "{seen}");
    assert!(seen.contains("x-user: ann\r\n") && seen.contains("x-list: a\r\n") && !seen.contains("x-gone"), "{seen}");

    let asked = questions(&server);
    let http = http(&asked[0]);
    assert_eq!((&http["method"], &http["path"]), (&"POST".into(), &"/in?token=s&a=b".into()), "{http}");
    assert_eq!(
        (&http["host"], &http["scheme"], &http["protocol"]),
        (&"shop.example".into(), &"http".into(), &"HTTP/1.1".into())
    );
    assert_eq!((&http["body"], &http["headers"]["x-envoy-auth-partial-body"]), (&"hello wo".into(), &"true".into()));
    assert_eq!(asked[0]["attributes"]["context_extensions"]["shop"], "north");
    assert!(asked[0]["attributes"]["request"]["time"].is_string(), "{asked:?}");

    let pay = post(web, "/pay", "");
    assert_eq!((pay.status(), pay.body().as_str(), pay.header("x-price").as_deref()), (402, "pay first", Some("5")));
    let login = post(web, "/login", "");
    assert_eq!((login.status(), login.header("location").as_deref()), (302, Some("https://id.example/")));
    assert_eq!(post(web, "/else", "").status(), 403);
    let broken = post(web, "/broken", "");
    assert_eq!(broken.status(), 503, "{}", broken.text());
    assert!(broken.body().contains("grpc-status 13"), "{}", broken.text());
    assert_eq!(up.seen(), 1);
}

/// The same request, asked about by both: what a server can read is the same.
#[test]
fn envoy_asks_the_same_question_and_obeys_the_same_answers() {
    let (server, authz) = Server::start_on_a_port(&mut python_of("real-venv-envoy", "ext_authz_server.py"));
    let up = Endpoint::ok();
    let hop = onehop(authz, up.address);
    let (port, dir) = (free_port(), tempfile::tempdir().expect("a temporary folder"));
    let config = dir.path().join("envoy.yaml");
    std::fs::write(&config, envoy(port, authz, up.address)).expect("a file");
    let _envoy = Server::start(
        tool("envoy").args(["--log-level", "error", "--disable-hot-restart", "--concurrency", "1", "-c"]).arg(&config),
    );
    let envoy = SocketAddr::from(([127, 0, 0, 1], port));
    reachable(envoy);

    for (path, body) in [("/in?token=s&a=b", "hello world"), ("/pay", ""), ("/login", ""), ("/else", "short")] {
        let (ours, theirs) = (post(hop.at("web"), path, body), post(envoy, path, body));
        assert_eq!(ours.status(), theirs.status(), "{path}\n{}\n{}", ours.text(), theirs.text());
        for field in ["x-seen", "x-price", "location"] {
            assert_eq!(ours.header(field), theirs.header(field), "{path} {field}");
        }
    }
    eventually("all eight questions are there", || questions(&server).len() == 8);
    for pair in questions(&server).chunks(2) {
        let (ours, theirs) = (http(&pair[0]), http(&pair[1]));
        for key in ["method", "path", "host", "scheme", "protocol", "size", "body"] {
            assert_eq!(ours[key], theirs[key], "{key}\n{ours}\n{theirs}");
        }
        for (name, value) in theirs["headers"].as_object().expect("a map") {
            // What each proxy adds by itself.
            let own = ["x-forwarded-", "x-request-id", "x-envoy-external-", "content-length"];
            if !own.iter().any(|own| name.starts_with(own)) {
                assert_eq!(&ours["headers"][name], value, "{name}\n{ours}\n{theirs}");
            }
        }
        let (ours, theirs) = (&pair[0]["attributes"], &pair[1]["attributes"]);
        assert_eq!(ours["context_extensions"], theirs["context_extensions"]);
        let ip = |peer: &Value| peer["address"]["socket_address"]["address"].clone();
        assert_eq!(ip(&ours["source"]), ip(&theirs["source"]));
        assert_eq!(ip(&ours["destination"]), ip(&theirs["destination"]));
    }
    let heads = up.heads.lock().expect("no panic under the lock").clone();
    let line = |head: &String| head.lines().next().unwrap_or_default().to_owned();
    assert_eq!(line(&heads[0]), line(&heads[1]), "both rewrote the query alike");
    // `append_action` of a request's field is one that Envoy passes over: there `x-list` is replaced.
    assert!(heads.iter().all(|head| head.to_lowercase().contains("x-user: ann\r\n")), "{heads:?}");
}

fn envoy(port: u16, authz: SocketAddr, up: SocketAddr) -> String {
    let cluster = |name: &str, address: SocketAddr, h2: &str| {
        format!(
            "  - name: {name}\n    type: STATIC\n{h2}    load_assignment:\n      cluster_name: {name}\n      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }} }}] }}]\n",
            address.ip(),
            address.port()
        )
    };
    let h2 = "    typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        explicit_http_config: { http2_protocol_options: {} }\n";
    format!(
        r#"static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          use_remote_address: true
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: / }}
                route: {{ cluster: up }}
                typed_per_filter_config:
                  envoy.filters.http.ext_authz:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                    check_settings: {{ context_extensions: {{ shop: north }} }}
          http_filters:
          - name: envoy.filters.http.ext_authz
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
              transport_api_version: V3
              with_request_body: {{ max_request_bytes: 8, allow_partial_message: true }}
              grpc_service: {{ envoy_grpc: {{ cluster_name: authz }}, timeout: 10s }}
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
{}{}"#,
        cluster("up", up, ""),
        cluster("authz", authz, h2)
    )
}
