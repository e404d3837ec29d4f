//! What the room as a whole does: pooling, repetition, and peers made of raw bytes for the tests of its parts.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use http_body_util::BodyExt;
use onehop_filters::contract::mesh::Address;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

pub(super) fn endpoint(address: Address) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(7, address, "".into(), 0, 1))
}

/// A peer that handles its connections one after the other; the handler is told which one it is.
pub(super) struct Peer {
    pub endpoint: Arc<Endpoint>,
    pub accepted: Arc<AtomicUsize>,
}

pub(super) async fn peer<F, R>(handle: F) -> Peer
where
    F: Fn(usize, TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(handle(count.fetch_add(1, Relaxed), socket));
        }
    });
    Peer { endpoint: endpoint(Address::Tcp(address)), accepted }
}

/// Reads up to the empty line and returns the head as text; `None` if the connection ended first.
pub(super) async fn read_head(socket: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// A peer that answers every request on every connection with the same bytes, and closes after each if told to.
pub(super) async fn answering(bytes: impl AsRef<[u8]> + Send + Sync + 'static, close: bool) -> Peer {
    let bytes = Arc::new(bytes);
    peer(move |_, mut socket| {
        let bytes = bytes.clone();
        async move {
            while read_head(&mut socket).await.is_some() {
                let _ = socket.write_all((*bytes).as_ref()).await;
                if close {
                    return;
                }
            }
        }
    })
    .await
}

/// The default limits, but for these.
pub(super) fn limits(change: impl FnOnce(&mut plan::Connections)) -> plan::Connections {
    let mut limits = plan::Connections::default();
    change(&mut limits);
    limits
}

/// A request to be sent.
pub(super) struct Ask {
    pub method: Method,
    pub target: PathAndQuery,
    pub headers: HeaderMap,
    pub extra: Vec<(HeaderName, HeaderValue)>,
    pub te: bool,
    pub expect: bool,
    pub upgrade: Option<HeaderValue>,
    pub grpc: bool,
}

impl Ask {
    pub fn new(method: Method) -> Self {
        Self {
            method,
            target: PathAndQuery::from_static("/a?b"),
            headers: HeaderMap::new(),
            extra: Vec::new(),
            te: false,
            expect: false,
            upgrade: None,
            grpc: false,
        }
    }
    pub fn get() -> Self {
        Self::new(Method::GET)
    }
    pub fn post() -> Self {
        Self::new(Method::POST)
    }
    pub fn upgrade(protocol: &'static str) -> Self {
        Self { upgrade: Some(HeaderValue::from_static(protocol)), ..Self::get() }
    }
    pub async fn told(
        &self,
        up: &Upstream,
        peer: &Peer,
        body: &mut Body,
        informational: Informational<'_>,
    ) -> Result<Reply, Fault> {
        let head = Head {
            method: &self.method,
            target: &self.target,
            https: false,
            host: b"example.com",
            headers: &self.headers,
            extra: &self.extra,
            te_trailers: self.te,
            expect_continue: self.expect,
            upgrade: self.upgrade.as_ref(),
            grpc: self.grpc,
            client: None,
        };
        up.send(&peer.endpoint, &head, body, informational).await
    }
    pub async fn with(&self, up: &Upstream, peer: &Peer, mut body: Body) -> Result<Reply, Fault> {
        self.told(up, peer, &mut body, None).await
    }
    pub async fn send(&self, up: &Upstream, peer: &Peer) -> Result<Reply, Fault> {
        self.with(up, peer, Body::Empty).await
    }
}

pub(super) fn upstream() -> Upstream {
    Upstream::new(settings())
}

pub(super) fn settings() -> Settings {
    Settings { connect_timeout: Duration::from_secs(20), ..Settings::new("test") }
}

pub(super) async fn text(reply: Reply) -> Result<String, BodyFault> {
    let bytes = reply.body.collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

pub(super) type BodyFault = onehop_filters::contract::BodyError;

/// A body fed by the test.
pub(super) fn channel() -> (tokio::sync::mpsc::Sender<http_body::Frame<Bytes>>, Body) {
    struct Fed(tokio::sync::mpsc::Receiver<http_body::Frame<Bytes>>);
    impl http_body::Body for Fed {
        type Data = Bytes;
        type Error = BodyFault;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BodyFault>>> {
            self.0.poll_recv(cx).map(|frame| frame.map(Ok))
        }
    }
    let (send, receive) = tokio::sync::mpsc::channel(16);
    (send, Body::stream(Fed(receive)))
}

/// A body of one frame and a failure.
pub(super) fn failing(reason: Reason) -> Body {
    struct Failing(Option<Reason>, bool);
    impl http_body::Body for Failing {
        type Data = Bytes;
        type Error = BodyFault;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BodyFault>>> {
            if !std::mem::replace(&mut self.1, true) {
                return std::task::Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(b"part")))));
            }
            std::task::Poll::Ready(self.0.take().map(|r| Err(Box::new(Fault::new(r)))))
        }
    }
    Body::stream(Failing(Some(reason), false))
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn a_connection_is_used_again() {
    let (up, peer) = (upstream(), answering(OK, false).await);
    for n in 0..3 {
        let reply = Ask::get().send(&up, &peer).await.unwrap();
        assert_eq!(reply.reused, n > 0);
        assert_eq!(text(reply).await.unwrap(), "ok");
    }
    assert_eq!(peer.accepted.load(Relaxed), 1);
    let expected = Connections { open: 1, idle: 1, h2: 0, streams: 0 };
    assert_eq!(up.connections()[&peer.endpoint.id], expected);
}

#[tokio::test]
async fn a_connection_carries_no_more_requests_than_allowed() {
    let peer = answering(OK, false).await;
    let up = Upstream::new(Settings { connections: limits(|l| l.max_requests = 2), ..settings() });
    for reused in [false, true, false, true] {
        assert_eq!(Ask::get().send(&up, &peer).await.unwrap().reused, reused);
    }
    assert_eq!(peer.accepted.load(Relaxed), 2);
}

#[tokio::test]
async fn a_connection_that_grew_old_is_replaced() {
    let peer = answering(OK, false).await;
    let age = Duration::from_millis(60);
    let up = Upstream::new(Settings { connections: limits(|l| l.max_age = Some(age)), ..settings() });
    assert!(!Ask::get().send(&up, &peer).await.unwrap().reused);
    tokio::time::sleep(age).await;
    assert!(!Ask::get().send(&up, &peer).await.unwrap().reused, "not after its time");
    assert_eq!(peer.accepted.load(Relaxed), 2);
}

#[tokio::test]
async fn idle_connections_are_bounded_and_age() {
    let peer = answering(OK, false).await;
    let up = Upstream::new(Settings { max_idle_per_endpoint: 1, ..settings() });
    let (one, two) = (Ask::get(), Ask::get());
    let both = tokio::join!(one.send(&up, &peer), two.send(&up, &peer));
    both.0.unwrap();
    both.1.unwrap();
    assert_eq!(up.connections()[&7].idle, 1);
    up.sweep(now());
    assert_eq!(up.connections()[&7].idle, 1);
    up.sweep(now() + Duration::from_secs(56));
    assert_eq!(up.connections()[&7], Connections::default());
}

#[tokio::test]
async fn settings_change_in_place() {
    let (up, peer) = (upstream(), answering(OK, false).await);
    Ask::get().send(&up, &peer).await.unwrap();
    up.adjust(Settings { pool_idle: Duration::ZERO, ..settings() });
    assert!(!Ask::get().send(&up, &peer).await.unwrap().reused);
}

#[tokio::test]
async fn a_forgotten_endpoint_keeps_nothing_idle() {
    let peer = answering(*b"HTTP/1.1 200 OK\r\ncontent-length: 20000\r\n\r\nhalf", false).await;
    let up = upstream();
    let reply = Ask::get().send(&up, &peer).await.unwrap();
    up.forget(7);
    assert!(up.connections().is_empty());
    drop(reply);
    let peer = answering(OK, false).await;
    Ask::get().send(&up, &peer).await.unwrap();
    up.forget(7);
    assert!(!Ask::get().send(&up, &peer).await.unwrap().reused);
}

#[tokio::test]
async fn a_refused_connection_proves_that_nothing_ran() {
    let peer = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Peer { endpoint: endpoint(Address::Tcp(address)), accepted: Arc::default() }
    };
    let (_feed, mut body) = channel();
    let fault = Ask::post().told(&upstream(), &peer, &mut body, None).await.err().unwrap();
    assert_eq!((fault.reason, fault.proof), (Reason::ConnectFailed, Proof::NeverRan));
    assert!(matches!(body, Body::Stream(_)), "the body is untouched");
    assert!(Ask::get().send(&upstream(), &peer).await.is_err());
}

#[tokio::test]
async fn unix_sockets_are_endpoints() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        while read_head(&mut socket).await.is_some() {
            socket.write_all(OK).await.unwrap();
        }
    });
    let peer = Peer { endpoint: endpoint(Address::Unix(path)), accepted: Arc::default() };
    let up = upstream();
    assert!(!Ask::get().send(&up, &peer).await.unwrap().reused);
    assert!(Ask::get().send(&up, &peer).await.unwrap().reused);
}

/// Answers the first request of the first connection; drops it on the second request, unanswered.
async fn forgetful() -> Peer {
    peer(|n, mut socket| async move {
        while read_head(&mut socket).await.is_some() {
            socket.write_all(OK).await.unwrap();
            if n == 0 {
                read_head(&mut socket).await;
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn the_race_with_a_closing_peer_is_repeated_once() {
    let (up, peer) = (upstream(), forgetful().await);
    Ask::get().send(&up, &peer).await.unwrap();
    let reply = Ask::get().send(&up, &peer).await.unwrap();
    assert!(!reply.reused);
    assert_eq!(peer.accepted.load(Relaxed), 2);
}

#[tokio::test]
async fn a_request_that_may_have_run_is_not_repeated() {
    let (up, peer) = (upstream(), forgetful().await);
    Ask::get().send(&up, &peer).await.unwrap();
    let fault = Ask::post().with(&up, &peer, Body::full("x")).await.err().unwrap();
    assert_eq!((fault.reason, fault.proof), (Reason::Reset, Proof::MayHaveRun));
    assert_eq!(peer.accepted.load(Relaxed), 1);
}

#[tokio::test]
async fn a_fresh_connection_that_closes_is_a_failure() {
    let peer = answering(b"", true).await;
    let fault = Ask::get().send(&upstream(), &peer).await.err().unwrap();
    assert_eq!((fault.reason, fault.proof), (Reason::Reset, Proof::MayHaveRun));
    assert_eq!(peer.accepted.load(Relaxed), 1);
}

#[tokio::test]
async fn a_closed_idle_connection_is_seen_before_it_is_used() {
    let (closed, wait) = tokio::sync::oneshot::channel();
    let closed = parking_lot::Mutex::new(Some(closed));
    let closed = Arc::new(closed);
    let peer = peer(move |n, mut socket| {
        let closed = closed.clone();
        async move {
            while read_head(&mut socket).await.is_some() {
                socket.write_all(OK).await.unwrap();
                if n == 0 {
                    drop(socket);
                    closed.lock().take().unwrap().send(()).unwrap();
                    return;
                }
            }
        }
    })
    .await;
    let up = upstream();
    Ask::get().send(&up, &peer).await.unwrap();
    wait.await.unwrap();
    // Events come in batches: with those of another exchange, this one's end has arrived as well.
    Ask::get().send(&upstream(), &answering(OK, true).await).await.unwrap();
    // A POST would not be repeated: it must not meet the dead connection at all.
    Ask::post().with(&up, &peer, Body::full("x")).await.unwrap();
    assert_eq!(peer.accepted.load(Relaxed), 2);
}

#[tokio::test]
async fn bytes_nobody_asked_for_spoil_a_connection() {
    let two = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    let (up, peer) = (upstream(), answering(two, false).await);
    for _ in 0..2 {
        let reply = Ask::get().send(&up, &peer).await.unwrap();
        assert!(!reply.reused);
        assert_eq!(text(reply).await.unwrap(), "ok");
    }
}

#[tokio::test]
async fn dropping_the_body_closes_the_connection() {
    let (gone, wait) = tokio::sync::oneshot::channel();
    let gone = Arc::new(parking_lot::Mutex::new(Some(gone)));
    let peer = peer(move |_, mut socket| {
        let gone = gone.clone();
        async move {
            read_head(&mut socket).await;
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await.unwrap();
            let end = socket.read(&mut [0; 1]).await;
            gone.lock().take().unwrap().send(end.is_err() || end.is_ok_and(|n| n == 0)).unwrap();
        }
    })
    .await;
    let up = upstream();
    drop(Ask::get().send(&up, &peer).await.unwrap());
    assert!(wait.await.unwrap());
    assert_eq!(up.connections()[&7].open, 0);
}

#[tokio::test]
async fn a_host_with_control_bytes_goes_nowhere() {
    let peer = answering(OK, false).await;
    let (method, target, headers) = (Method::GET, PathAndQuery::from_static("/"), HeaderMap::new());
    for host in [&b"a\r\nx: y"[..], b"a b", b"a\0", b"\xc3\xa9"] {
        let head = Head {
            method: &method,
            target: &target,
            https: false,
            host,
            headers: &headers,
            extra: &[],
            te_trailers: false,
            expect_continue: false,
            upgrade: None,
            grpc: false,
            client: None,
        };
        let fault = upstream().send(&peer.endpoint, &head, &mut Body::Empty, None).await.err().unwrap();
        assert_eq!(fault.reason, Reason::BadHost);
    }
    assert_eq!(peer.accepted.load(Relaxed), 0);
}
