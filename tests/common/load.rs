//! Clients that keep asking and count every outcome. They do what a good client does (keep connections, honour
//! `connection: close` and GOAWAY) and forgive nothing else: whatever is not the wanted answer is a failure.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to ask, and how.
#[derive(Clone)]
pub struct Plan {
    /// Where the listener is.
    pub to: SocketAddr,
    /// TLS, with a server called `localhost`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// HTTP/2 instead of HTTP/1.1.
    pub h2: bool,
    /// Connections kept.
    pub clients: usize,
    /// Pause of a client between two requests.
    pub pause: Duration,
    /// Requests of a connection before the client opens another; 0 = it never tires.
    pub per_connection: usize,
    /// Path asked for.
    pub path: &'static str,
    /// Statuses that are right.
    pub wanted: &'static [u16],
    /// Method to ask with; never with a body.
    pub method: &'static str,
}

impl Plan {
    /// GETs `path` over HTTP/1.1 in the clear and wants 200.
    pub fn get(to: SocketAddr, path: &'static str) -> Self {
        let pause = Duration::from_millis(10);
        Self { to, tls: None, h2: false, clients: 4, pause, per_connection: 0, path, wanted: &[200], method: "GET" }
    }
}

/// What came of it.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// Answers by status.
    pub statuses: BTreeMap<u16, usize>,
    /// What went wrong, in words.
    pub failures: Vec<String>,
    /// Connections opened.
    pub connections: usize,
    /// Requests that the server promised not to have looked at, and that were sent again.
    pub resent: usize,
    /// Of right answers.
    pub latencies: Vec<Duration>,
}

impl Tally {
    /// Right answers.
    pub fn right(&self) -> usize {
        self.latencies.len()
    }

    /// The share `q` of right answers came within this.
    pub fn quantile(&self, q: f64) -> Duration {
        let mut all = self.latencies.clone();
        all.sort_unstable();
        all.get(((all.len() as f64 * q) as usize).min(all.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    /// Nothing failed, and there was something to fail.
    #[track_caller]
    pub fn assert_clean(&self, what: &str, at_least: usize) {
        let first: Vec<_> = self.failures.iter().take(5).collect();
        assert!(
            self.failures.is_empty(),
            "{what}: {} of {} requests failed: {first:#?}; answers {:?}",
            self.failures.len(),
            self.failures.len() + self.right(),
            self.statuses
        );
        assert!(self.right() >= at_least, "{what}: only {} requests, {:?}", self.right(), self.statuses);
    }
}

struct Shared {
    plan: Plan,
    stop: AtomicBool,
    winding_down: AtomicBool,
    done: AtomicUsize,
    tally: Mutex<Tally>,
}

/// Clients on a thread of their own.
pub struct Load {
    shared: Arc<Shared>,
    thread: thread::JoinHandle<()>,
}

impl Load {
    /// Begins.
    pub fn start(plan: Plan) -> Self {
        let shared = Arc::new(Shared {
            plan,
            stop: AtomicBool::new(false),
            winding_down: AtomicBool::new(false),
            done: AtomicUsize::new(0),
            tally: Mutex::default(),
        });
        let clients = shared.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut all = tokio::task::JoinSet::new();
                for _ in 0..clients.plan.clients {
                    all.spawn(client(clients.clone()));
                }
                all.join_all().await;
            });
        });
        Self { shared, thread }
    }

    /// Right answers so far.
    pub fn done(&self) -> usize {
        self.shared.done.load(SeqCst)
    }

    /// What came of it so far.
    pub fn so_far(&self) -> Tally {
        self.shared.tally.lock().expect("no client panics").clone()
    }

    /// Waits until `n` more are done.
    pub fn wait_for(&self, n: usize) {
        let goal = self.done() + n;
        let until = Instant::now() + PATIENCE;
        while self.done() < goal && Instant::now() < until {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// From now on a refused connection means that the server is gone: a client ends there.
    pub fn wind_down(&self) {
        self.shared.winding_down.store(true, SeqCst);
    }

    /// Whether every client has ended.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends after the answers under way.
    pub fn stop(self) -> Tally {
        self.shared.stop.store(true, SeqCst);
        self.thread.join().expect("no client panics");
        self.shared.tally.lock().expect("no client panics").clone()
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// How an exchange went wrong.
enum Trouble {
    /// Not looked at: may be sent again.
    Unseen,
    Failed(String),
}

impl<E: std::fmt::Display> From<E> for Trouble {
    fn from(e: E) -> Self {
        Self::Failed(e.to_string())
    }
}

impl Shared {
    fn with(&self, note: impl FnOnce(&mut Tally)) {
        note(&mut self.tally.lock().expect("no client panics"));
    }
}

async fn client(shared: Arc<Shared>) {
    while !shared.stop.load(SeqCst) {
        let io = match connect(&shared.plan).await {
            Ok(io) => io,
            Err(_) if shared.winding_down.load(SeqCst) => return,
            Err(e) => {
                shared.with(|t| t.failures.push(format!("connect: {e}")));
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        shared.with(|t| t.connections += 1);
        if shared.plan.h2 {
            over_h2(&shared, io).await;
        } else {
            over_h1(&shared, io).await;
        }
    }
}

async fn connect(plan: &Plan) -> io::Result<Pin<Box<dyn Io>>> {
    let tcp = TcpStream::connect(plan.to).await?;
    tcp.set_nodelay(true)?;
    let Some(tls) = &plan.tls else { return Ok(Box::pin(tcp)) };
    let mut tls = (**tls).clone();
    tls.alpn_protocols = vec![if plan.h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    let name = ServerName::try_from("localhost").expect("a name");
    Ok(Box::pin(tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?))
}

/// One exchange after the other, noted down; false ends the connection.
async fn note<F: Future<Output = Result<(u16, bool, String), Trouble>>>(shared: &Shared, exchange: F) -> bool {
    let begun = Instant::now();
    let outcome = tokio::time::timeout(PATIENCE, exchange).await;
    match outcome {
        Ok(Ok((status, keep, text))) => {
            shared.with(|t| {
                *t.statuses.entry(status).or_default() += 1;
                if shared.plan.wanted.contains(&status) {
                    t.latencies.push(begun.elapsed());
                } else {
                    t.failures.push(text);
                }
            });
            shared.done.fetch_add(1, SeqCst);
            keep
        }
        Ok(Err(Trouble::Unseen)) => {
            shared.with(|t| t.resent += 1);
            false
        }
        Ok(Err(Trouble::Failed(why))) => {
            shared.with(|t| t.failures.push(why));
            false
        }
        Err(_) => {
            shared.with(|t| t.failures.push("no answer in time".to_owned()));
            false
        }
    }
}

async fn over_h1(shared: &Shared, io: Pin<Box<dyn Io>>) {
    let plan = &shared.plan;
    let mut io = BufReader::new(io);
    let mut left = plan.per_connection;
    while !shared.stop.load(SeqCst) {
        left = left.wrapping_sub(1);
        let last = left == 0;
        if !note(shared, ask_h1(plan, &mut io, last)).await || last {
            return;
        }
        tokio::time::sleep(plan.pause).await;
    }
}

async fn ask_h1(plan: &Plan, io: &mut BufReader<Pin<Box<dyn Io>>>, last: bool) -> Result<(u16, bool, String), Trouble> {
    let close = if last { "connection: close\r\n" } else { "" };
    let head = format!("{} {} HTTP/1.1\r\nhost: localhost\r\n{close}\r\n", plan.method, plan.path);
    io.write_all(head.as_bytes()).await.map_err(|e| format!("write: {e}")).map_err(Trouble::Failed)?;
    io.flush().await?;
    read_h1(io).await
}

/// One answer: its status, whether the connection goes on, and all of it as text.
async fn read_h1<R: AsyncRead + Unpin>(io: &mut BufReader<R>) -> Result<(u16, bool, String), Trouble> {
    use tokio::io::AsyncBufReadExt;
    let mut head = String::new();
    loop {
        let n = io.read_line(&mut head).await.map_err(|e| Trouble::Failed(format!("{e}, after {head:?}")))?;
        if n == 0 {
            return Err(Trouble::Failed(format!("closed after {head:?}")));
        }
        if head.ends_with("\r\n\r\n") {
            break;
        }
    }
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let Some(length) = length else { return Err(Trouble::Failed(format!("no length in {head:?}"))) };
    let mut body = vec![0; length];
    io.read_exact(&mut body).await.map_err(|e| Trouble::Failed(format!("cut after {head:?}: {e}")))?;
    Ok((status, !lower.contains("connection: close"), head + &String::from_utf8_lossy(&body)))
}

async fn over_h2(shared: &Shared, io: Pin<Box<dyn Io>>) {
    let plan = &shared.plan;
    let (send, connection) = match h2::client::handshake(io).await {
        Ok(both) => both,
        Err(e) => return shared.with(|t| t.failures.push(format!("h2 handshake: {e}"))),
    };
    let driver = tokio::spawn(connection);
    let mut left = plan.per_connection;
    while !shared.stop.load(SeqCst) {
        left = left.wrapping_sub(1);
        // A GOAWAY ends the session for new streams only.
        let Ok(ready) = send.clone().ready().await else { break };
        if !note(shared, ask_h2(plan, ready)).await || left == 0 {
            break;
        }
        tokio::time::sleep(plan.pause).await;
    }
    drop(send);
    // Only after the server has said farewell, or we did.
    let _ = tokio::time::timeout(Duration::from_secs(2), driver).await;
}

async fn ask_h2(plan: &Plan, mut send: h2::client::SendRequest<bytes::Bytes>) -> Result<(u16, bool, String), Trouble> {
    // RFC 9113 section 6.8: what GOAWAY excludes was not, and will not be, looked at.
    let unseen = |e: h2::Error| match e.reason() {
        Some(h2::Reason::REFUSED_STREAM) => Trouble::Unseen,
        Some(h2::Reason::NO_ERROR) if e.is_go_away() => Trouble::Unseen,
        _ => Trouble::Failed(format!("h2: {e:?}")),
    };
    let uri = format!("http://localhost{}", plan.path);
    let request = http::Request::builder().method(plan.method).uri(uri).body(()).expect("a request");
    let (answer, _) = send.send_request(request, true).map_err(unseen)?;
    let answer = answer.await.map_err(unseen)?;
    let status = answer.status().as_u16();
    let mut body = answer.into_body();
    let mut text = format!("{status} ");
    while let Some(data) = body.data().await {
        let data = data.map_err(|e| Trouble::Failed(format!("h2 body: {e}")))?;
        let _ = body.flow_control().release_capacity(data.len());
        text.push_str(&String::from_utf8_lossy(&data));
    }
    body.trailers().await.map_err(|e| Trouble::Failed(format!("h2 trailers: {e}")))?;
    Ok((status, true, text))
}
