//! The example configurations, run as they lie there: each does what its comments say.

mod common;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Endpoint, Onehop, get, get_with};
use jsonwebtoken::{Algorithm, EncodingKey, Header};

const KEY: &[u8] = include_bytes!("data/example-issuer.key");

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// A token of the examples' issuer, good for `ttl` seconds (or dead since then, if negative).
fn token(audience: &str, subject: &str, scope: &str, ttl: i64) -> String {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    let header = Header { kid: Some("example".to_owned()), ..Header::new(Algorithm::ES256) };
    let claims = serde_json::json!({
        "iss": "https://id.example.com/", "aud": audience, "sub": subject, "scope": scope, "iat": now, "exp": now + ttl,
    });
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ec_pem(KEY).unwrap()).unwrap()
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

fn line(head: &str) -> &str {
    head.lines().next().unwrap_or_default()
}

#[test]
fn edge() {
    let orders =
        Endpoint::start(|_, _| b"HTTP/1.1 200 OK\r\nserver: secret/1.0\r\ncontent-length: 2\r\n\r\nhi".to_vec());
    let address = orders.address.to_string();
    let hop = Onehop::run_file(
        &file("edge.yaml"),
        &[("ADMIN", "127.0.0.1:0"), ("BIND", "127.0.0.1:0"), ("ORDERS", &address)],
    );
    let ask = |path: &str, headers: &str| get_with(hop.at("public"), "api.example.com", path, headers);

    // Who may call.
    let nobody = ask("/v1/orders/7", "");
    assert_eq!(nobody.status(), 401, "{}", nobody.text());
    assert!(nobody.header("www-authenticate").is_some());
    assert_eq!(ask("/v1/orders/7", "x-api-key: wrong\r\n").status(), 401);
    assert_eq!(ask("/v1/orders/7", &bearer(&token("shop-api", "ann", "orders", -120))).status(), 401);
    assert_eq!(ask("/v1/orders/7", &bearer(&token("another", "ann", "orders", 60))).status(), 401);
    assert_eq!(ask("/v1/orders/7", &bearer(&token("shop-api", "ann", "stock", 60))).status(), 403);
    let mut forged = token("shop-api", "ann", "orders", 60);
    let last = forged.pop().unwrap();
    forged.push(if last == 'A' { 'Q' } else { 'A' });
    assert_eq!(ask("/v1/orders/7", &bearer(&forged)).status(), 401);
    assert_eq!(orders.seen(), 0);

    // What is rewritten.
    for credential in ["x-api-key: acme-demo-key\r\n".to_owned(), bearer(&token("shop-api", "ann", "orders", 60))] {
        let answer = ask("/v1/orders/7?x=1", &credential);
        assert_eq!((answer.status(), answer.body().as_str()), (200, "hi"), "{}", answer.text());
        assert_eq!(answer.header("x-served-by").as_deref(), Some("onehop"));
        assert_eq!(answer.header("server"), None);
        let seen = orders.last().to_ascii_lowercase();
        assert_eq!(line(&seen), "get /orders/7?x=1 http/1.1");
        assert!(!seen.contains("acme-demo-key") && !seen.contains("authorization"), "{seen}");
    }
    // `curl` of the comment: the host is the address.
    let local = get_with(hop.at("public"), "127.0.0.1:8080", "/v1/orders/7", "x-api-key: acme-demo-key\r\n");
    assert_eq!(local.status(), 200, "{}", local.text());

    // Only what the route names.
    assert_eq!(get(hop.at("public"), "api.example.com", "/v1/orderss").status(), 404);
    assert_eq!(get_with(hop.at("public"), "example.org", "/v1/orders", "x-api-key: acme-demo-key\r\n").status(), 404);
    let preflight = common::exchange(
        hop.at("public"),
        b"OPTIONS /v1/orders HTTP/1.1\r\nhost: api.example.com\r\nconnection: close\r\norigin: https://shop.example.com\r\n\
          access-control-request-method: POST\r\n\r\n",
    );
    assert!([200, 204].contains(&preflight.status()), "{}", preflight.text());
    assert_eq!(preflight.header("access-control-allow-origin").as_deref(), Some("https://shop.example.com"));

    // The other routes.
    let old = ask("/old/orders/7", "");
    assert_eq!((old.status(), old.header("location").unwrap().as_str()), (301, "http://api.example.com/v1/orders/7"));
    let ping = ask("/ping", "");
    assert_eq!((ping.status(), ping.body().as_str()), (200, "pong\n"));

    let metrics = hop.admin_get("/metrics").body();
    assert!(metrics.contains("route=\"orders\""), "{metrics}");
    for secret in ["acme-demo-key", "Bearer"] {
        assert!(!hop.log().contains(secret) && !metrics.contains(secret), "{secret}");
    }
}

#[test]
fn edge_quota_and_fallback() {
    // Nobody listens at port 1.
    let hop = Onehop::run_file(
        &file("edge.yaml"),
        &[("ADMIN", "127.0.0.1:0"), ("BIND", "127.0.0.1:0"), ("ORDERS", "127.0.0.1:1")],
    );
    let key = "x-api-key: acme-demo-key\r\n";
    let rest = get_with(hop.at("public"), "localhost", "/v1/orders", key);
    assert_eq!((rest.status(), rest.body().as_str()), (503, "orders are resting\n"), "{}", rest.text());

    // 100 a second with 50 more at once: one burst of 200 on a connection cannot all pass.
    let mut client = common::Client::to(hop.at("public"));
    let one = format!("GET /v1/orders HTTP/1.1\r\nhost: localhost\r\n{key}\r\n");
    let mut limited = 0;
    for _ in 0..400 {
        client.send(one.as_bytes());
        let answer = client.answer();
        match answer.status() {
            503 => {}
            429 => {
                limited += 1;
                assert!(answer.header("retry-after").is_some(), "{}", answer.text());
            }
            _ => panic!("{}", answer.text()),
        }
        if limited > 0 {
            break;
        }
    }
    assert!(limited > 0, "400 requests at once all passed a quota of 100 a second");
}

#[test]
fn sidecar() {
    let app = Endpoint::start(|_, _| b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\napp".to_vec());
    let turn = std::sync::atomic::AtomicUsize::new(0);
    let stock = Endpoint::start(move |_, _| {
        if turn.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 {
            return b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec();
        }
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstock".to_vec()
    });
    let (app_at, stock_at) = (app.address.to_string(), format!("localhost:{}", stock.address.port()));
    let hop = Onehop::run_file(
        &file("sidecar.yaml"),
        &[
            ("ADMIN", "127.0.0.1:0"),
            ("INBOUND", "127.0.0.1:0"),
            ("OUTBOUND", "127.0.0.1:0"),
            ("APP", &app_at),
            ("STOCK", &stock_at),
        ],
    );
    let hello = get(hop.at("inbound"), "127.0.0.1:15006", "/hello");
    assert_eq!((hello.status(), hello.body().as_str()), (200, "app"), "{}", hello.text());
    assert_eq!(line(&app.last()), "GET /hello HTTP/1.1");

    // DNS answers in its own time after the start; the first answer, a 503, is retried.
    common::eventually("the endpoints of stock", || {
        hop.admin_get("/endpoints").body().contains(&stock.address.port().to_string())
    });
    let items = get(hop.at("outbound"), "stock.shop.svc", "/items");
    assert_eq!((items.status(), items.body().as_str()), (200, "stock"), "{}", items.text());
    assert_eq!(stock.seen(), 2);
    let left: u64 =
        stock.last().lines().find_map(|l| l.strip_prefix("x-onehop-timeout-ms: ")).unwrap().parse().unwrap();
    assert!(left <= 2000, "{left}");

    let unknown = get(hop.at("outbound"), "nobody.shop.svc", "/items");
    assert_eq!(unknown.status(), 502, "{}", unknown.text());
    assert!(unknown.body().contains("unknown-host"), "{}", unknown.text());
}

#[test]
fn bff() {
    let orders = Endpoint::ok();
    let bff = Endpoint::ok();
    let (bff_at, orders_at) = (bff.address.to_string(), orders.address.to_string());
    // Says of itself what an issuer must.
    let issuer = Endpoint::start(|head, _| {
        let host = head.lines().find_map(|l| l.strip_prefix("host: ")).unwrap_or_default();
        let url = format!("http://{host}");
        let body = serde_json::json!({
            "issuer": url, "authorization_endpoint": format!("{url}/login"), "token_endpoint": format!("{url}/token"),
            "jwks_uri": format!("{url}/keys"),
        })
        .to_string();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    });
    let issuer_at = format!("http://{}", issuer.address);
    let hop = Onehop::run_file(
        &file("bff.yaml"),
        &[
            ("ADMIN", "127.0.0.1:0"),
            ("WEB", "127.0.0.1:0"),
            ("MESH", "127.0.0.1:0"),
            ("BFF", &bff_at),
            ("ORDERS", &orders_at),
            ("ISSUER", &issuer_at),
        ],
    );
    let script = get(hop.at("web"), "shop.example.com", "/");
    assert_eq!(script.status(), 401, "{}", script.text());
    let page =
        get_with(hop.at("web"), "shop.example.com", "/cart", "accept: text/html\r\nx-forwarded-proto: https\r\n");
    assert_eq!(page.status(), 302, "{}", page.text());
    let to = page.header("location").unwrap();
    assert!(to.starts_with(&format!("{issuer_at}/login?response_type=code&client_id=shop-web&")), "{to}");
    assert!(to.contains("redirect_uri=https%3A%2F%2Fshop.example.com%2Foauth2%2Fcallback&"), "{to}");
    assert!(page.header("set-cookie").unwrap().starts_with("__Host-sid.login."), "{}", page.text());
    assert_eq!(bff.seen(), 0);
    let answer = get_with(hop.at("web"), "shop.example.com", "/", &bearer(&token("shop-web", "ann", "", 60)));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let timeout = |head: &str| -> u64 {
        head.lines()
            .find_map(|l| l.strip_prefix("x-onehop-timeout-ms: "))
            .unwrap_or_else(|| panic!("{head}"))
            .parse()
            .unwrap()
    };
    let left = timeout(&bff.last());
    assert!(left <= 4000 && left > 2000, "{left}");

    // The BFF calls on with what it has left, and that bounds the call below.
    let answer = get_with(hop.at("mesh"), "orders", "/7", "x-onehop-timeout-ms: 700\r\n");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let left = timeout(&orders.last());
    assert!(left <= 700, "{left}");
    assert_eq!(get(hop.at("mesh"), "elsewhere", "/").status(), 502);
}

/// `carry.deadline` without a word about time from the application: the trace context ties its calls to the call it serves.
#[test]
fn bff_calls_inherit_the_deadline_of_the_call_they_serve() {
    let orders = Endpoint::ok();
    let mesh = std::sync::Arc::new(std::sync::OnceLock::<std::net::SocketAddr>::new());
    let through = mesh.clone();
    // Passes on nothing but the trace context, a second into its own call.
    let bff = Endpoint::start(move |head, _| {
        let trace = head.lines().find(|l| l.starts_with("traceparent: ")).expect("a trace is begun for the tie");
        std::thread::sleep(std::time::Duration::from_millis(1000));
        let answer = get_with(*through.get().expect("known by now"), "orders", "/7", &format!("{trace}\r\n"));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec()
    });
    let (bff_at, orders_at) = (bff.address.to_string(), orders.address.to_string());
    let listen = "127.0.0.1:0";
    let hop = Onehop::run_file(
        &file("bff.yaml"),
        &[("ADMIN", listen), ("WEB", listen), ("MESH", listen), ("BFF", &bff_at), ("ORDERS", &orders_at)],
    );
    mesh.set(hop.at("mesh")).expect("once");
    let left = || -> u64 {
        let head = orders.last();
        head.lines().find_map(|l| l.strip_prefix("x-onehop-timeout-ms: ")).expect("a deadline").parse().expect("ms")
    };
    let authorised = bearer(&token("shop-web", "ann", "", 60));
    let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n";
    for more in ["", trace] {
        let answer = get_with(hop.at("web"), "shop.example.com", "/", &format!("{authorised}{more}"));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert!((1_000..=3_000).contains(&left()), "of 4 s, one is gone: {}", left());
    }
    // The call is over: what comes in its trace now is bound by its route alone.
    assert_eq!(get_with(hop.at("mesh"), "orders", "/7", trace).status(), 200);
    assert!(left() > 10_000, "{}", left());
}

const ORDERS: &str = "openapi: 3.1.0\ninfo: { title: orders, version: '1' }\npaths: { /orders: { get: { responses: { '200': { description: all } } } } }\n";

#[test]
fn every_filter_has_an_example_that_checks() {
    for entry in onehop_filters::BUILTIN {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("example.yaml");
        std::fs::write(&path, entry.example).unwrap();
        // What two of them read from beside them.
        common::descriptors(dir.path());
        std::fs::write(dir.path().join("orders.yaml"), ORDERS).unwrap();
        let output = Command::new(common::binary())
            .args(["check", "-c"])
            .arg(&path)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}:\n{}", entry.name, String::from_utf8_lossy(&output.stderr));
        assert!(entry.example.contains(entry.name), "{}'s example does not use it", entry.name);
    }
}
