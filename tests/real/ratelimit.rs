//! Envoy's own rate limit service behind a `rateLimitService` limit, with a real Redis behind it.

use std::net::SocketAddr;

use super::common::{Onehop, get, get_with};
use super::kit::{Server, eventually, free_port, reachable, tool};

const RULES: &str = "domain: shop\n\
    descriptors:\n\
    - key: tenant\n\
    \x20 rate_limit: { unit: hour, requests_per_unit: 3 }\n";

#[test]
fn envoys_service_counts_and_its_absence_is_as_configured() {
    let dir = tempfile::tempdir().expect("a folder");
    let rules = dir.path().join("ratelimit/config");
    std::fs::create_dir_all(&rules).expect("a folder");
    std::fs::write(rules.join("shop.yaml"), RULES).expect("a file");
    let redis_port = free_port();
    let mut redis = tool("redis-server");
    redis.args(["--port", &redis_port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(dir.path());
    let _redis = Server::start(&mut redis);
    reachable(SocketAddr::from(([127, 0, 0, 1], redis_port)));
    let port = free_port();
    let mut command = tool("service_cmd");
    let ports = [("GRPC_PORT", port), ("PORT", free_port()), ("DEBUG_PORT", free_port())];
    command.envs(ports.map(|(name, port)| (name, port.to_string())));
    command.envs([("HOST", "127.0.0.1"), ("GRPC_HOST", "127.0.0.1"), ("DEBUG_HOST", "127.0.0.1")]);
    command.envs([("USE_STATSD", "false"), ("LOG_LEVEL", "warn"), ("REDIS_SOCKET_TYPE", "tcp")]);
    command.envs([("RUNTIME_SUBDIRECTORY", "ratelimit"), ("RUNTIME_WATCH_ROOT", "false")]);
    command.envs([("LIMIT_RESPONSE_HEADERS_ENABLED", "true")]);
    command.env("REDIS_URL", format!("127.0.0.1:{redis_port}")).env("RUNTIME_ROOT", dir.path());
    let service = Server::start(&mut command);
    reachable(SocketAddr::from(([127, 0, 0, 1], port)));

    let limit = |path: &str, mode: &str| {
        format!(
            "- {{ name: {mode}, matches: [{{ path: {{ prefix: {path} }} }}], respond: {{ status: 200 }}, quota: [{{ by: ip, \
             rateLimitService: {{ service: rl, domain: shop, descriptors: {{ tenant: \"${{request.headers['x-tenant']}}\" }}, \
             timeout: 2s, failureMode: {mode} }} }}] }}\n"
        )
    };
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         routes:\n{}{}\
         services: {{ rl: {{ discover: {{ static: ['127.0.0.1:{port}'] }}, protocol: grpc }} }}\n",
        limit("/", "allow"),
        limit("/strict", "deny")
    ));
    let ask =
        |tenant: &str, path: &str| get_with(onehop.at("web"), "a.example", path, &format!("x-tenant: {tenant}\r\n"));
    // The service may still be reading its rules: they show by the first caller that is told a limit.
    let mut n = 0;
    eventually("the rules are in force", || {
        n += 1;
        ask(&format!("warm-{n}"), "/").header("ratelimit").is_some()
    });
    let first = ask("a", "/");
    assert!(first.header("ratelimit-limit").is_some(), "the service's own field: {}", first.text());
    assert!(first.header("ratelimit").is_some_and(|r| r.starts_with("\"ip-shop\";r=2;")), "{}", first.text());
    let statuses: Vec<u16> = (0..3).map(|_| ask("a", "/strict").status()).collect();
    assert_eq!(statuses, [200, 200, 429], "three an hour, on whatever route");
    assert_eq!(ask("b", "/").status(), 200);
    assert_eq!(get(onehop.at("web"), "a.example", "/").status(), 403, "nothing to count it by");
    drop(service);
    assert_eq!(ask("a", "/").status(), 200);
    let refused = ask("a", "/strict");
    assert_eq!((refused.status(), refused.header("retry-after").as_deref()), (503, Some("1")));
}
