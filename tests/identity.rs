//! Who the user is, from outside: routes chosen by claims, and paths that belong to a login.

mod common;

use std::time::{SystemTime, UNIX_EPOCH};

use common::{Answer, Endpoint, Onehop, get_with};
use jsonwebtoken::{Algorithm, EncodingKey, Header};

const KEY: &[u8] = include_bytes!("data/example-issuer.key");
const SET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/jwks.json");

/// A token of the issuer that `corp` trusts.
fn bearer(claims: serde_json::Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let mut all =
        serde_json::json!({ "iss": "https://id.example.com/", "aud": "shop", "sub": "ann", "exp": now + 300 });
    for (name, value) in claims.as_object().expect("an object") {
        all[name] = value.clone();
    }
    let header = Header { kid: Some("example".to_owned()), ..Header::new(Algorithm::ES256) };
    let key = EncodingKey::from_ec_pem(KEY).expect("a key");
    format!("authorization: Bearer {}\r\n", jsonwebtoken::encode(&header, &all, &key).expect("a token"))
}

/// Says who it is, and what of the request it saw.
fn endpoint(name: &'static str) -> Endpoint {
    Endpoint::start(move |_, _| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len()).into_bytes())
}

struct Bench {
    gold: Endpoint,
    free: Endpoint,
    hop: Onehop,
}

fn bench() -> Bench {
    let (gold, free) = (endpoint("gold"), endpoint("free"));
    let hop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         identities:\n\
         \x20 corp: {{ jwt: {{ issuer: 'https://id.example.com/', audiences: [shop], algorithms: [ES256], jwks: {{ file: '{SET}' }}, claimsToHeaders: {{ plan: x-plan }} }} }}\n\
         \x20 later: {{ jwt: {{ issuer: 'https://other.example/', audiences: [shop], algorithms: [ES256], jwks: {{ url: 'http://127.0.0.1:9/' }} }} }}\n\
         routes:\n\
         - {{ name: gold, hosts: [a.example], matches: [{{ claims: {{ plan: gold }} }}], auth: {{ require: corp }}, cors: {{ allowOrigins: ['https://shop.example'] }}, to: gold }}\n\
         - {{ name: tenant, hosts: [a.example], matches: [{{ path: {{ prefix: /t }}, claims: {{ realm.tenant: {{ regex: 'a.*' }} }} }}], auth: {{ require: corp }}, to: gold, transform: {{ path: {{ replacePrefix: /tenant }} }} }}\n\
         - {{ name: free, hosts: [a.example], matches: [{{ path: {{ prefix: / }} }}], auth: {{ require: corp, optional: true }}, to: free }}\n\
         - {{ name: open, hosts: [a.example], matches: [{{ path: {{ prefix: /open }} }}], to: free }}\n\
         - {{ name: open-gold, hosts: [a.example], matches: [{{ path: {{ prefix: /open }}, claims: {{ plan: gold }} }}], auth: {{ require: corp }}, to: gold }}\n\
         - {{ name: only, hosts: [only.example], matches: [{{ claims: {{ plan: {{ present: true }} }} }}], auth: {{ require: corp }}, to: gold }}\n\
         - {{ name: down, hosts: [down.example], matches: [{{ claims: {{ plan: gold }} }}], auth: {{ require: later }}, to: gold }}\n\
         - {{ name: down-free, hosts: [down.example], to: free }}\n\
         services:\n\
         \x20 gold: {{ discover: {{ static: ['{}'] }} }}\n\
         \x20 free: {{ discover: {{ static: ['{}'] }} }}\n",
        gold.address, free.address
    ));
    Bench { gold, free, hop }
}

impl Bench {
    fn ask(&self, host: &str, path: &str, headers: &str) -> Answer {
        get_with(self.hop.at("web"), host, path, headers)
    }
}

#[test]
fn claims_choose_the_route_and_a_credential_is_judged_once() {
    let bench = bench();
    let (gold, free) = (bearer(serde_json::json!({"plan": "gold"})), bearer(serde_json::json!({"plan": "free"})));
    for (credential, says) in [(gold.as_str(), "gold"), (free.as_str(), "free"), ("", "free")] {
        let answer = bench.ask("a.example", "/x", credential);
        assert_eq!((answer.status(), answer.body().as_str()), (200, says), "{}", answer.text());
    }
    let seen = bench.gold.last().to_ascii_lowercase();
    assert!(seen.contains("x-plan: gold") && !seen.contains("authorization"), "{seen}");
    let metrics = bench.hop.admin_get("/metrics").body();
    let judged = |result: &str| {
        let name = format!("onehop_jwt_tokens_total{{identity=\"corp\",result=\"{result}\"}} ");
        metrics.lines().find_map(|l| l.strip_prefix(&name)?.parse::<u32>().ok()).unwrap_or(0)
    };
    assert_eq!(judged("verified") + judged("cached"), 2, "{metrics}");

    // Inside a claim, by regex; the prefix is still known to the transform.
    let acme = bearer(serde_json::json!({"realm": {"tenant": "acme"}}));
    assert_eq!(bench.ask("a.example", "/t/1", &acme).body(), "gold");
    assert!(bench.gold.last().starts_with("GET /tenant/1 "), "{}", bench.gold.last());
    let other = bearer(serde_json::json!({"realm": {"tenant": "b"}}));
    assert_eq!(bench.ask("a.example", "/t/1", &other).body(), "free");
}

#[test]
fn a_bad_credential_is_refused_by_the_route_it_gets() {
    let bench = bench();
    assert_eq!(bench.ask("a.example", "/x", "authorization: Bearer no.token.here\r\n").status(), 401);
    // This one has no rules of its own: nobody looks at what is sent, and it goes on as it came.
    let answer = bench.ask("a.example", "/open", "authorization: Bearer no.token.here\r\n");
    assert_eq!(answer.body(), "free", "{}", answer.text());
    assert!(bench.free.last().contains("Bearer no.token.here"), "{}", bench.free.last());
    // A good one of another plan too: what was looked at for the choice is put back.
    let free = bearer(serde_json::json!({"plan": "free"}));
    assert_eq!(bench.ask("a.example", "/open", &free).body(), "free");
    let seen = bench.free.last();
    assert!(seen.contains("Bearer ey") && !seen.contains("x-plan"), "{seen}");
    assert_eq!(bench.ask("a.example", "/open", &bearer(serde_json::json!({"plan": "gold"}))).body(), "gold");

    // Where every route wants claims: strangers are asked who they are, others find nothing.
    let stranger = bench.ask("only.example", "/", "");
    assert_eq!(stranger.status(), 401, "{}", stranger.text());
    assert!(stranger.header("www-authenticate").is_some());
    assert_eq!(bench.ask("only.example", "/", &bearer(serde_json::json!({}))).status(), 404);
    assert_eq!(bench.ask("only.example", "/", &free).body(), "gold");

    // What cannot be judged is not sent to those who need no judgement.
    let key = EncodingKey::from_ec_pem(KEY).expect("a key");
    let claims =
        serde_json::json!({"iss": "https://other.example/", "aud": "shop", "sub": "ann", "exp": 4_000_000_000u64});
    let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &key).expect("a token");
    let answer = bench.ask("down.example", "/", &format!("authorization: Bearer {token}\r\n"));
    assert_eq!(answer.status(), 503, "{}", answer.text());
    assert_eq!(bench.ask("down.example", "/", "").body(), "free");
}

#[test]
fn a_preflight_is_answered_for_the_route_that_may_follow() {
    let bench = bench();
    let head = "OPTIONS /x HTTP/1.1\r\nhost: a.example\r\norigin: https://shop.example\r\n\
                access-control-request-method: GET\r\nconnection: close\r\n\r\n";
    let answer = common::exchange(bench.hop.at("web"), head.as_bytes());
    assert_eq!(
        answer.header("access-control-allow-origin").as_deref(),
        Some("https://shop.example"),
        "{}",
        answer.text()
    );
}

#[test]
fn explain_says_what_claims_decided() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("claims.yaml");
    let text = format!(
        "version: 1\nlisteners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         identities: {{ corp: {{ jwt: {{ issuer: 'https://id.example.com/', audiences: [shop], jwks: {{ file: '{SET}' }} }} }} }}\n\
         routes:\n\
         - {{ name: gold, matches: [{{ claims: {{ plan: gold }} }}], auth: {{ require: corp }}, respond: {{}} }}\n\
         - {{ name: free, respond: {{}} }}\n"
    );
    std::fs::write(&path, text).expect("a file");
    let explain = |credential: &str| {
        let mut command = std::process::Command::new(common::binary());
        command.args(["explain", "-c"]).arg(&path).args(["GET", "http://a.example/"]);
        if !credential.is_empty() {
            command.args(["-H", credential.trim()]);
        }
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let gold = explain(&bearer(serde_json::json!({"plan": "gold"})));
    assert!(gold.contains("candidate gold (* prefix /): won") && gold.contains("route gold"), "{gold}");
    assert!(gold.contains("candidate free (* prefix /): asks for fewer claims"), "{gold}");
    let free = explain(&bearer(serde_json::json!({"plan": "free"})));
    assert!(free.contains("candidate gold (* prefix /): claim plan differs") && free.contains("route free"), "{free}");
    let nobody = explain("");
    assert!(nobody.contains("claim plan of nobody: not authenticated") && nobody.contains("route free"), "{nobody}");
}

#[test]
fn claims_without_somebody_to_vouch_for_them_are_an_error() {
    for (auth, says) in [
        ("", "asks nobody for them"),
        ("auth: { allow: 'true' }, ", "asks nobody for them"),
        ("auth: { require: corp, optional: true }, ", "lets strangers pass"),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("bad.yaml");
        let text = format!(
            "version: 1\nidentities:\n  corp: {{ jwt: {{ issuer: i, audiences: [a], jwks: {{ file: '{SET}' }} }} }}\nroutes:\n\
             - {{ name: gold, hosts: [a.example], matches: [{{ claims: {{ plan: gold }} }}], {auth}respond: {{}} }}\n"
        );
        std::fs::write(&path, text).expect("a file");
        let output = std::process::Command::new(common::binary()).args(["check", "-c"]).arg(&path).output();
        let output = output.expect("it runs");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && err.contains(says) && err.contains("bad.yaml:5:11"), "{auth}: {err}");
    }
}

#[test]
fn a_login_has_its_paths_wherever_it_is_asked_for() {
    let up = endpoint("up");
    let config = |secret: &str| {
        format!(
            "version: 1\n\
             admin: {{ bind: '127.0.0.1:0' }}\n\
             listeners: {{ web: {{ bind: '127.0.0.1:0' }}, other: {{ bind: '127.0.0.1:0' }} }}\n\
             identities:\n\
             \x20 login:\n\
             \x20   oidc:\n\
             \x20     issuer: http://127.0.0.1:9\n\
             \x20     clientId: shop\n\
             \x20     clientSecret: hush-hush-client\n\
             \x20     session: {{ cookie: sid, secure: false, secret: {secret} }}\n\
             routes:\n\
             - {{ name: app, listeners: [web], hosts: [localhost], matches: [{{ path: {{ prefix: /app }}, headers: {{ x-a: '1' }} }}], auth: {{ require: login }}, to: up }}\n\
             - {{ name: rest, to: up }}\n\
             services: {{ up: {{ discover: {{ static: ['{}'] }} }} }}\n",
            up.address
        )
    };
    let hop = Onehop::start(&config("hush-hush-session-of-more-than-32-bytes"));
    let ask = |listener: &str, host: &str, path: &str, headers: &str| get_with(hop.at(listener), host, path, headers);

    let callback = ask("web", "localhost", "/oauth2/callback?code=c&state=s", "");
    assert_eq!(callback.status(), 503, "the issuer is not there: {}", callback.text());
    assert_eq!(ask("web", "localhost", "/oauth2/logout", "sec-fetch-site: same-origin\r\n").status(), 303);
    // Elsewhere these are paths as any other.
    assert_eq!(ask("web", "b.example", "/oauth2/callback", "").body(), "up");
    assert_eq!(ask("other", "localhost", "/oauth2/callback", "").body(), "up");
    assert_eq!(ask("web", "localhost", "/oauth2/callback/x", "").body(), "up");

    let script = ask("web", "localhost", "/app", "x-a: 1\r\nsec-fetch-mode: cors\r\n");
    assert_eq!(script.status(), 401, "{}", script.text());
    assert_eq!(script.header("www-authenticate").as_deref(), Some("Cookie realm=\"login\""));
    assert!(script.body().contains("\"unauthenticated\""), "{}", script.text());
    let page = ask("web", "localhost", "/app", "x-a: 1\r\naccept: text/html\r\n");
    assert_eq!(page.status(), 503, "{}", page.text());
    assert!(page.body().contains("identity-unavailable") && page.header("retry-after").is_some(), "{}", page.text());

    // No cookie of ours goes upstream, on no route.
    ask("web", "b.example", "/", "cookie: a=1; sid=x; sid.0=y; sid.login.abc=z; side=2\r\n");
    assert!(up.last().contains("cookie: a=1; side=2\r\n"), "{}", up.last());

    let (status, text) = hop.reload(&config("hush-hush-session-another-more-than-32-bytes"));
    assert_eq!(status, 200, "{text}");
    for shown in [hop.admin_get("/config").text(), hop.log(), hop.admin_get("/metrics").text()] {
        assert!(!shown.contains("hush-hush"), "{shown}");
    }
}

/// `carry.identity`: what an application calls through the mesh is its user's, by the handle it was given or by the trace.
#[test]
fn calls_of_an_application_are_made_for_its_user() {
    let orders = endpoint("orders");
    let mesh = std::sync::Arc::new(std::sync::OnceLock::<std::net::SocketAddr>::new());
    let through = mesh.clone();
    // Passes on the field it is told to by the path, and nothing else of the call it serves.
    let app = Endpoint::start(move |head, _| {
        let wanted = head.split(' ').nth(1).expect("a path").trim_start_matches('/').to_owned();
        let field = head.lines().find(|l| l.starts_with(&wanted)).map(|l| format!("{l}\r\n")).unwrap_or_default();
        let at = *through.get().expect("known by now");
        let answer = get_with(at, "orders", "/7", &field);
        let status = answer.status();
        format!("HTTP/1.1 {status} As below\r\ncontent-length: 0\r\n\r\n").into_bytes()
    });
    let hop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners:\n\
         \x20 web: {{ bind: '127.0.0.1:0' }}\n\
         \x20 mesh: {{ bind: '127.0.0.1:0', exposure: mesh, unknownHosts: deny }}\n\
         identities:\n\
         \x20 corp: {{ jwt: {{ issuer: 'https://id.example.com/', audiences: [shop], algorithms: [ES256], jwks: {{ file: '{SET}' }}, forwardToken: true }} }}\n\
         routes:\n\
         - {{ name: in, listeners: [web], auth: {{ require: corp }}, to: app }}\n\
         - {{ name: out, listeners: [mesh], hosts: [orders], carry: {{ identity: true }}, auth: {{ allow: \"user.sub == 'ann'\" }}, transform: {{ request: {{ set: {{ x-user: '${{user.sub}}' }} }} }}, to: orders }}\n\
         services:\n\
         \x20 app: {{ discover: {{ static: ['{}'] }} }}\n\
         \x20 orders: {{ discover: {{ static: ['{}'] }} }}\n",
        app.address, orders.address
    ));
    mesh.set(hop.at("mesh")).expect("once");
    let call =
        |path: &str, who: &str| get_with(hop.at("web"), "a.example", path, &bearer(serde_json::json!({ "sub": who })));
    for by in ["/x-onehop-call", "/traceparent"] {
        assert_eq!(call(by, "ann").status(), 200, "{by}");
        let seen = orders.last();
        assert!(seen.contains("\r\nx-user: ann\r\n") && seen.contains("\r\nauthorization: Bearer "), "{seen}");
        assert!(!seen.contains("x-onehop-call"), "the handle stays between the application and us: {seen}");
        assert_eq!(call(by, "bob").status(), 403, "{by}: the rule is about the user");
    }
    // Nothing that ties the call to another; a handle and a trace that nobody has.
    assert_eq!(call("/accept-nothing", "ann").status(), 403);
    let stranger = "x-onehop-call: 0123456789abcdef0123456789abcdef\r\n\
                    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n";
    assert_eq!(get_with(hop.at("mesh"), "orders", "/7", stranger).status(), 403);
    // Over: its handle is worth nothing any more.
    let handle = app.last().lines().find(|l| l.starts_with("x-onehop-call: ")).expect("a handle").to_owned();
    assert_eq!(get_with(hop.at("mesh"), "orders", "/7", &format!("{handle}\r\n")).status(), 403);
    assert_eq!(orders.seen(), 2);
}
