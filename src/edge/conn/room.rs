//! What the tests of connections share: a tiny service, a listener around it, and raw clients.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt as _;
use onehop_filters::contract::{Body, BodyError, Conn, Fault, Reason};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::config::plan::Limits;
use crate::edge::body::{Inbound, Incoming};
use crate::edge::drain_signal::{DrainSignal, Phase};
use crate::edge::serve::{Alpn, Link, Serve, Settings, serve};
use crate::edge::stream::Stream;
use crate::edge::switch::Switch;

pub const PATIENCE: Duration = Duration::from_secs(10);

/// The service.
#[derive(Default)]
pub struct Rooms {
    pub calls: AtomicU64,
    /// Requests dropped before they were answered.
    pub cancelled: AtomicU64,
    pub rejected: Mutex<Vec<Reason>>,
    pub ends: Mutex<Vec<&'static str>>,
    pub links: Mutex<Vec<Arc<Link>>>,
    /// How the uploads to `/detached` ended.
    pub uploads: Mutex<Vec<Result<u64, Reason>>>,
    /// Lets `/hold` go on.
    pub go: Notify,
}

/// Counts what is dropped before its time.
struct Cancelled<'a>(Option<&'a AtomicU64>);

impl Drop for Cancelled<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.0 {
            count.fetch_add(1, SeqCst);
        }
    }
}

fn reply(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response
}

/// `left` chunks of 10,000 bytes, then the end or a failure.
pub struct Chunks {
    pub left: usize,
    pub cut: bool,
    pub rested: bool,
}

pub const CHUNK: usize = 10_000;

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.left == 0 && self.cut {
            // A turn later, so that what came before is flushed: hyper drops the head with the error otherwise.
            if !std::mem::replace(&mut self.rested, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            return Poll::Ready(Some(Err(Box::new(Fault::new(Reason::Truncated)))));
        }
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; CHUNK])))))
    }
}

impl Serve for Rooms {
    type Body = Body;
    type Future = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

    fn call(self: &Arc<Self>, request: Request<Incoming>, link: &Arc<Link>, stream: u32) -> Self::Future {
        let (rooms, link) = (self.clone(), link.clone());
        self.calls.fetch_add(1, SeqCst);
        if request.uri().path() == "/panic-at-once" {
            panic!("in the call");
        }
        Box::pin(async move { rooms.answer(request, &link, stream).await })
    }

    fn reject(self: &Arc<Self>, _: &Link, fault: &Fault) -> Bytes {
        self.rejected.lock().push(fault.reason);
        let status = fault.reason.status();
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno").into()
    }

    fn closed(self: &Arc<Self>, _: &Link, why: &'static str) {
        self.ends.lock().push(why);
    }
}

impl Rooms {
    async fn answer(self: &Arc<Self>, mut request: Request<Incoming>, link: &Arc<Link>, stream: u32) -> Response<Body> {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/echo" => {
                let body = Inbound::new(request.into_body(), Some(100_000), Duration::from_millis(200));
                match body.collect().await {
                    Ok(body) => reply(StatusCode::OK, body.to_bytes()),
                    Err(fault) => reply(fault.reason.status(), fault.reason.code()),
                }
            }
            "/detached" => {
                let rooms = self.clone();
                tokio::spawn(async move {
                    let body = Inbound::new(request.into_body(), None, PATIENCE);
                    let end = body.collect().await.map(|body| body.to_bytes().len() as u64);
                    rooms.uploads.lock().push(end.map_err(|fault| fault.reason));
                });
                std::future::pending().await
            }
            "/early" => reply(StatusCode::PAYLOAD_TOO_LARGE, "early"),
            "/hold" => {
                let mut cancelled = Cancelled(Some(&self.cancelled));
                self.go.notified().await;
                cancelled.0 = None;
                reply(StatusCode::OK, "held")
            }
            "/hints" => {
                let mut headers = HeaderMap::new();
                headers.insert("link", HeaderValue::from_static("</a.css>"));
                let sent = link.informational(stream, StatusCode::EARLY_HINTS, headers);
                tokio::task::yield_now().await;
                reply(StatusCode::OK, if sent { "hinted" } else { "plain" })
            }
            "/stream" => Response::new(Body::stream(Chunks { left: 100, cut: false, rested: false })),
            "/cut" => Response::new(Body::stream(Chunks { left: 3, cut: true, rested: false })),
            "/panic" => panic!("in the future"),
            "/early-1xx" => reply(StatusCode::EARLY_HINTS, ""),
            "/upgrade" => {
                let upgrade = Switch::of(&mut request).expect("asked for");
                let connect = request.method() == http::Method::CONNECT;
                tokio::spawn(async move {
                    let Some(upgraded) = upgrade.opened().await else { return };
                    let (mut from, mut to) = tokio::io::split(upgraded);
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                    let _ = to.shutdown().await;
                });
                if connect {
                    return Response::new(Body::Empty);
                }
                let mut response = reply(StatusCode::SWITCHING_PROTOCOLS, "");
                response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
                response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
                response
            }
            _ => reply(StatusCode::OK, path),
        }
    }
}

pub fn limits() -> Limits {
    Limits {
        head: 4096,
        uri: 256,
        fields: 20,
        body: None,
        streams: 100,
        connections: 100,
        per_client: None,
        head_timeout: Duration::from_millis(300),
        body_idle_timeout: Duration::from_millis(500),
        idle_timeout: PATIENCE,
        tls_timeout: PATIENCE,
        requests: None,
    }
}

pub fn settings() -> Settings {
    Settings {
        park_after: Duration::from_millis(50),
        grace: Duration::from_millis(100),
        half_close: Duration::from_millis(300),
        ..Settings::new(limits(), true, true)
    }
}

/// A listener with the service behind it.
pub struct Room {
    pub addr: SocketAddr,
    pub rooms: Arc<Rooms>,
    pub drain: watch::Sender<Phase>,
    /// Connections that have not ended.
    pub live: Arc<AtomicU64>,
}

impl Room {
    pub async fn open(settings: Settings) -> Self {
        Self::open_as(settings, Alpn::Unknown, |tcp| async { Some(Stream::from(tcp)) }).await
    }

    pub async fn open_as<F: Future<Output = Option<Stream>> + Send>(
        settings: Settings,
        alpn: Alpn,
        shake: impl Fn(TcpStream) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let rooms = Arc::<Rooms>::default();
        let (drain, signal) = DrainSignal::new();
        let live = Arc::<AtomicU64>::default();
        let (shake, settings) = (Arc::new(shake), Arc::new(settings));
        let (all, alive) = (rooms.clone(), live.clone());
        tokio::spawn(async move {
            while let Ok((tcp, peer)) = listener.accept().await {
                tcp.set_nodelay(true).expect("set");
                let conn = Conn {
                    id: 1,
                    listener: "test".into(),
                    peer,
                    local: addr,
                    client: peer,
                    trusted: false,
                    mesh: false,
                    tls: None,
                };
                let link = Link::new(Arc::new(conn));
                all.links.lock().push(link.clone());
                let (rooms, settings, signal) = (all.clone(), settings.clone(), signal.clone());
                let (shake, alive) = (shake.clone(), alive.clone());
                alive.fetch_add(1, SeqCst);
                tokio::spawn(async move {
                    if let Some(io) = shake(tcp).await {
                        serve(io, rooms, link, settings, alpn, signal).await;
                    }
                    alive.fetch_sub(1, SeqCst);
                });
            }
        });
        Self { addr, rooms, drain, live }
    }

    pub async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.expect("the room listens")
    }

    /// Sends bytes, keeps the sending side open, reads to the end.
    pub async fn talk(&self, bytes: &[u8]) -> String {
        let mut tcp = self.dial().await;
        tcp.write_all(bytes).await.expect("sent");
        rest(&mut tcp).await
    }

    /// The link of the newest connection.
    pub fn link(&self) -> Arc<Link> {
        self.rooms.links.lock().last().expect("somebody connected").clone()
    }

    /// Waits until something holds.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = timeout(PATIENCE, async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert!(waited.is_ok(), "never came about: {what}; ends: {:?}", self.rooms.ends.lock());
    }
}

/// Everything up to the end of the connection.
pub async fn rest(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    let mut scratch = [0; 4096];
    timeout(PATIENCE, async {
        // A reset ends it, too; what came before counts.
        while let Ok(n @ 1..) = io.read(&mut scratch).await {
            all.extend_from_slice(&scratch[..n]);
        }
    })
    .await
    .expect("the connection ends");
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads until `end` has come.
pub async fn until(io: &mut (impl tokio::io::AsyncRead + Unpin), end: &str) -> String {
    let mut all = Vec::new();
    timeout(PATIENCE, async {
        while !all.ends_with(end.as_bytes()) {
            match io.read_u8().await {
                Ok(byte) => all.push(byte),
                Err(e) => panic!("{e} after {}", all.escape_ascii()),
            }
        }
    })
    .await
    .unwrap_or_else(|_| panic!("no `{end}` in time after {}", all.escape_ascii()));
    String::from_utf8_lossy(&all).into_owned()
}

/// Whether the next thing is the end.
pub async fn closed(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    let mut byte = [0];
    matches!(timeout(PATIENCE, io.read(&mut byte)).await.expect("it ends"), Ok(0) | Err(_))
}

/// The status of each response in a stream of them (bodies must not contain the word).
pub fn statuses(text: &str) -> Vec<u16> {
    text.match_indices("HTTP/1.1 ").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect()
}
