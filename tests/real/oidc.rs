//! A login by a real browser (Chromium) at a real issuer (oidc-provider).

use std::path::Path;
use std::process::Command;

use super::common::{Endpoint, Onehop};
use super::kit::{Authority, Server, free_port, succeed, tool};

/// A script of `tests/real/node`.
pub fn node(script: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let provider = root.join("target/real-node/node_modules/oidc-provider");
    assert!(provider.is_dir(), "{} is missing: run tests/real/install.sh", provider.display());
    let mut command = tool("node");
    command.arg(root.join("tests/real/node").join(script));
    command
}

#[test]
fn a_person_with_a_browser_logs_in_stays_and_logs_out() {
    browse("clientSecret: hush-hush-client", &[]);
}

#[test]
fn a_key_proves_the_client_to_the_issuer() {
    let key = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/example-issuer.key");
    browse(&format!("clientKey: {{ key: {{ file: {key} }}, id: k-7 }}"), &[key]);
}

/// The whole life of a session. `client`: what proves the client; `known`: what the issuer is told of that.
fn browse(client: &str, known: &[&str]) {
    let authority = Authority::new();
    let (cert, key) = authority.issue(&["localhost", "127.0.0.1"]);
    // The issuer and its client must know each other's address before either starts.
    let port = free_port();
    let origin = format!("https://localhost:{port}");
    let (issuer, at) =
        Server::start_on_a_port(node("issuer.mjs").arg(&origin).args(known).env("NODE_EXTRA_CA_CERTS", authority.ca()));
    // Shows the page what arrived here.
    let app = Endpoint::start(|head, _| {
        let length = head.len();
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n{head}").into_bytes()
    });
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:{port}', tls: {{ certificates: [{{ cert: {cert}, key: {key} }}] }} }} }}\n\
         identities:\n\
         \x20 login:\n\
         \x20   oidc:\n\
         \x20     issuer: http://{at}\n\
         \x20     clientId: shop\n\
         \x20     {client}\n\
         \x20     backchannelLogoutPath: /oauth2/backchannel-logout\n\
         \x20     afterLogout: /bye\n\
         \x20     forwardToken: true\n\
         \x20     claimsToHeaders: {{ sub: x-user }}\n\
         \x20     session: {{ secret: hush-hush-session-of-32-bytes-or-more }}\n\
         routes:\n\
         - {{ name: app, hosts: [localhost], auth: {{ require: login }}, to: app }}\n\
         - {{ name: bye, hosts: [localhost], matches: [{{ path: {{ exact: /bye }} }}], respond: {{ headers: {{ content-type: text/html }}, body: bye }} }}\n\
         services: {{ app: {{ discover: {{ static: ['{}'] }} }} }}\n",
        app.address
    ));
    let chromium = tool("chromium");
    let out = succeed(node("login.mjs").arg(chromium.get_program()).arg(&origin).arg(format!("http://{at}")));
    assert!(out.ends_with("all\n"), "{out}\n{:?}", issuer.lines());

    let metrics = onehop.admin_get("/metrics").body();
    let count = |name: &str| -> u64 {
        let line = metrics.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {metrics}"));
        line.trim().parse().expect("a number")
    };
    assert_eq!(count("onehop_oidc_logins_total{identity=\"login\",result=\"completed\"}"), 2);
    assert_eq!(count("onehop_oidc_logins_total{identity=\"login\",result=\"failed\"}"), 0);
    assert!(count("onehop_oidc_refreshes_total{identity=\"login\",result=\"ok\"}") >= 2);
    assert_eq!(count("onehop_oidc_refreshes_total{identity=\"login\",result=\"refused\"}"), 0, "{:?}", issuer.lines());
    assert_eq!(count("onehop_oidc_logouts_total{identity=\"login\",by=\"user\"}"), 1);
    assert_eq!(count("onehop_oidc_logouts_total{identity=\"login\",by=\"issuer\"}"), 2, "{:?}", issuer.lines());

    // Nothing secret is shown anywhere.
    let tokens: Vec<&str> = out.lines().filter_map(|l| l.strip_prefix("token=")).collect();
    assert!(tokens.len() >= 3, "{out}");
    for shown in [onehop.log(), onehop.admin_get("/config").text(), metrics] {
        assert!(!shown.contains("hush-hush") && !tokens.iter().any(|t| shown.contains(t)), "{shown}");
    }
}
