use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;

use super::*;

struct Fake {
    registry: Arc<Registry>,
    log: Log,
    unready: AtomicBool,
    draining: AtomicBool,
    valid: AtomicBool,
    /// A reload waits for it.
    gate: Arc<Notify>,
    /// Told when a reload waits.
    arrived: Arc<Notify>,
}

impl Fake {
    fn new() -> Arc<Self> {
        let (log, _subscriber) = Log::new("info", io::sink, false).expect("parses");
        let flag = AtomicBool::default;
        let gate = Arc::new(Notify::new());
        gate.notify_one();
        let (registry, arrived) = (Arc::default(), Arc::default());
        Arc::new(Self { registry, log, unready: flag(), draining: flag(), valid: flag(), gate, arrived })
    }
}

impl Facts for Fake {
    fn ready(&self) -> Result<(), String> {
        if self.unready.load(SeqCst) { Err("no configuration yet".into()) } else { Ok(()) }
    }
    fn health(&self) -> Value {
        json!({ "generation": 3 })
    }
    fn config(&self) -> Value {
        json!({ "generation": 3, "config": { "version": 1 } })
    }
    fn endpoints(&self) -> Value {
        json!({ "stock": [] })
    }
    fn breakers(&self) -> Value {
        json!({ "stock": { "state": "closed", "switch": "auto" } })
    }
    fn switch(&self, service: &str, to: Switch) -> Option<Value> {
        (service == "stock").then(|| json!({ "switch": format!("{to:?}") }))
    }
    fn certs(&self) -> Value {
        json!([])
    }
    fn reload(&self) -> BoxFuture<'static, Result<Value, Value>> {
        let (valid, gate, arrived) = (self.valid.load(SeqCst), self.gate.clone(), self.arrived.clone());
        Box::pin(async move {
            arrived.notify_one();
            gate.notified().await;
            if valid { Ok(json!({ "generation": 4 })) } else { Err(json!({ "errors": ["line 3"] })) }
        })
    }
    fn drain(&self) {
        self.draining.store(true, SeqCst);
    }
    fn registry(&self) -> Arc<Registry> {
        self.registry.clone()
    }
    fn log(&self) -> Log {
        self.log.clone()
    }
}

fn start(facts: &Arc<Fake>) -> (Admin, SocketAddr) {
    let bind = Bind::Tcp("127.0.0.1:0".parse().expect("an address"));
    let admin = Admin::start(&bind, facts.clone()).expect("binds");
    let Bind::Tcp(address) = *admin.bound() else { panic!("bound to TCP") };
    (admin, address)
}

/// Sends raw bytes and reads until the end.
async fn raw<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    answer
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        Self { status, head: head.to_lowercase(), body: body.into() }
    }
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

async fn ask(address: SocketAddr, line: &str, extra: &str, body: &str) -> Answer {
    let stream = TcpStream::connect(address).await.expect("connects");
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n{extra}\r\n{body}"
    );
    Answer::parse(&raw(stream, &request).await)
}

async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, &format!("GET {path}"), "", "").await
}

#[tokio::test]
async fn health_tells_readiness() {
    let facts = Fake::new();
    let (_admin, address) = start(&facts);
    assert_eq!(get(address, "/livez").await.json(), json!({ "live": true }));
    assert_eq!(get(address, "/readyz").await.json(), json!({ "ready": true }));
    assert_eq!(get(address, "/healthz").await.json(), json!({ "generation": 3, "ready": true }));
    facts.unready.store(true, SeqCst);
    let answer = get(address, "/readyz?verbose").await;
    assert_eq!((answer.status, answer.json()), (503, json!({ "ready": false, "reason": "no configuration yet" })));
    assert_eq!(get(address, "/healthz").await.status, 503);
    assert_eq!(get(address, "/livez").await.status, 200);
}

#[tokio::test]
async fn what_is_known_is_shown() {
    let facts = Fake::new();
    let (_admin, address) = start(&facts);
    let config = get(address, "/config").await;
    assert!(config.head.contains("content-type: application/json") && config.head.contains("cache-control: no-store"));
    assert_eq!(config.json()["generation"], 3);
    assert_eq!(get(address, "/endpoints").await.json(), json!({ "stock": [] }));
    assert_eq!(get(address, "/certs").await.json(), json!([]));
    assert_eq!(get(address, "/").await.json()["pages"].as_array().expect("a list").len(), 13);
}

#[tokio::test]
async fn breakers_are_switched_by_name() {
    let facts = Fake::new();
    let (_admin, address) = start(&facts);
    let put = async |path: &str, body: &str| ask(address, &format!("PUT {path}"), "", body).await;
    assert_eq!(put("/breakers/stock", "open\n").await.json(), json!({ "switch": "Open" }));
    assert_eq!(put("/breakers/stock", r#"{"switch":"auto"}"#).await.json(), json!({ "switch": "Auto" }));
    for (path, body, status) in [
        ("/breakers/stock", "opened", 400),
        ("/breakers/stock", r#"{"state":"open"}"#, 400),
        ("/breakers/other", "open", 404),
        ("/breakers/", "open", 404),
        ("/breakers", "open", 405),
    ] {
        assert_eq!(put(path, body).await.status, status, "{path} {body}");
    }
    assert_eq!(get(address, "/breakers").await.json()["stock"]["state"], "closed");
    assert_eq!(get(address, "/breakers/stock").await.json()["state"], "closed");
    let page = ask(address, "PUT /breakers/stock", "origin: http://localhost\r\n", "open").await;
    assert_eq!(page.status, 403, "no web page opens a breaker");
}

#[tokio::test]
async fn metrics_in_both_formats() {
    let facts = Fake::new();
    facts.registry.counter("a_total", "A.", &[]).inc();
    let (_admin, address) = start(&facts);
    let text = get(address, "/metrics").await;
    assert!(text.head.contains("content-type: text/plain; version=0.0.4"), "{}", text.head);
    assert!(text.body.contains("\na_total 1\n") && text.body.contains("process_open_fds "));
    let open = ask(address, "GET /metrics", "accept: application/openmetrics-text; version=1.0.0\r\n", "").await;
    assert!(open.head.contains("content-type: application/openmetrics-text") && open.body.ends_with("# EOF\n"));
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let (_admin, address) = start(&Fake::new());
    let length = get(address, "/config").await.body.len();
    for (path, status) in [("/config", 200), ("/nothing", 404)] {
        let answer = ask(address, &format!("HEAD {path}"), "", "").await;
        assert_eq!((answer.status, answer.body.as_str()), (status, ""));
        assert!(status == 404 || answer.head.contains(&format!("content-length: {length}")), "{}", answer.head);
    }
}

#[tokio::test]
async fn reload_and_drain() {
    let facts = Fake::new();
    let (_admin, address) = start(&facts);
    let refused = ask(address, "POST /reload", "", "").await;
    assert_eq!((refused.status, refused.json()), (422, json!({ "errors": ["line 3"] })));
    facts.valid.store(true, SeqCst);
    facts.gate.notify_one();
    let applied = ask(address, "POST /reload", "", "").await;
    assert_eq!((applied.status, applied.json()), (200, json!({ "generation": 4 })));
    assert_eq!(ask(address, "POST /drain", "", "").await.status, 202);
    assert!(facts.draining.load(SeqCst));
}

#[tokio::test]
async fn refusals_are_problems() {
    let facts = Fake::new();
    let (_admin, address) = start(&facts);
    let unknown = get(address, "/quitquitquit").await;
    assert_eq!((unknown.status, &unknown.json()["reason"]), (404, &json!("no-route")));
    assert!(unknown.head.contains("content-type: application/problem+json"));
    for (line, allow) in [("GET /reload", "post"), ("POST /config", "get, head"), ("DELETE /logging", "get, head, put")]
    {
        let answer = ask(address, line, "", "").await;
        assert_eq!(answer.status, 405, "{line}");
        assert!(answer.head.contains(&format!("allow: {allow}\r\n")), "{}", answer.head);
    }
    let page = ask(address, "POST /drain", "origin: http://evil.example\r\n", "").await;
    assert_eq!((page.status, facts.draining.load(SeqCst)), (403, false));
    let stream = TcpStream::connect(address).await.expect("connects");
    let rebound = raw(stream, "GET /config HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n").await;
    assert_eq!(Answer::parse(&rebound).status, 421);
}

#[tokio::test]
async fn the_log_level_changes() {
    let facts = Fake::new();
    let (_admin, address) = start(&facts);
    let put = async |body: &str| ask(address, "PUT /logging", "", body).await;
    let set = put(r#"{"filter": "onehop=debug,info", "for": "10m"}"#).await;
    assert_eq!((set.status, &set.json()["filter"]), (200, &json!("onehop=debug,info")));
    let until: jiff::Timestamp = set.json()["until"].as_str().expect("a time").parse().expect("RFC 3339");
    assert!(until > jiff::Timestamp::now());
    let plain = put("warn").await.json();
    assert_eq!((&plain["filter"], &plain["until"]), (&json!("warn"), &Value::Null));
    for wrong in ["loud", r#"{"filter": "info", "for": "soon"}"#, r#"{"level": "info"}"#, "{", ""] {
        assert_eq!(put(wrong).await.status, 400, "{wrong}");
    }
    assert_eq!(put(&" ".repeat(70_000)).await.status, 413);
    assert_eq!(get(address, "/logging").await.json()["filter"], "warn");
    assert_eq!(put(r#"{"filter": null}"#).await.json()["filter"], "info");
}

#[tokio::test]
async fn a_unix_socket_is_its_owners() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("admin.sock");
    let bind = Bind::Unix(path.clone());
    // What a killed process leaves behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
    assert!(path.exists());
    let admin = Admin::start(&bind, Fake::new()).expect("binds");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    let stream = UnixStream::connect(&path).await.expect("connects");
    let answer = raw(stream, "GET /readyz HTTP/1.1\r\nhost: any.example\r\nconnection: close\r\n\r\n").await;
    assert_eq!(Answer::parse(&answer).status, 200);
    let taken = Admin::start(&bind, Fake::new()).expect_err("somebody listens");
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    admin.stop().await;
    assert!(!Path::new(&path).exists());
}

#[tokio::test]
async fn stop_lets_answers_finish_and_frees_the_port() {
    let facts = Fake::new();
    facts.gate.notified().await;
    facts.valid.store(true, SeqCst);
    let (admin, address) = start(&facts);
    let asking = tokio::spawn(async move { ask(address, "POST /reload", "", "").await });
    // The idle connection must not hold the stop up.
    let mut idle = TcpStream::connect(address).await.expect("connects");
    idle.write_all(format!("GET /livez HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes()).await.expect("writes");
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.expect("reads");
    assert_eq!(&first, b"HTTP/1.1 200");
    facts.arrived.notified().await;
    let stopping = tokio::spawn(admin.stop());
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    facts.gate.notify_one();
    stopping.await.expect("stops");
    let answer = asking.await.expect("answers");
    assert_eq!((answer.status, answer.json()), (200, json!({ "generation": 4 })));
    Admin::start(&Bind::Tcp(address), facts).expect("the port is free");
}

#[tokio::test]
async fn garbage_does_not_hurt() {
    let (_admin, address) = start(&Fake::new());
    for bytes in ["\0\0\0\0\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(bytes.as_bytes()).await.expect("writes");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 2"));
    }
    assert_eq!(get(address, "/livez").await.status, 200);
}
