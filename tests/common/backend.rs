//! Endpoints that can be killed, revived and made ill, and that count their connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What an endpoint does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// 200.
    Well,
    /// 200 after this many milliseconds.
    Slow(u64),
    /// 200 after this many milliseconds of work, at which it does [`WORKERS`] at once; the others wait their turn.
    Narrow(u64),
    /// This status.
    Says(u16),
    /// 200, and closes the connection without having announced it.
    Closes,
    /// Never answers.
    Silent,
    /// Sends a head that promises a lot, then a piece every 10 ms.
    Endless,
}

/// See [`Mood::Narrow`].
pub const WORKERS: usize = 4;

/// An HTTP/1.1 endpoint. A request with `upgrade` gets 101 and its bytes back.
pub struct Backend {
    /// Where it listens, alive or not.
    pub address: SocketAddr,
    state: Arc<State>,
    runtime: tokio::runtime::Handle,
    alive: Mutex<Option<watch::Sender<()>>>,
}

struct State {
    mood: Mutex<Mood>,
    requests: AtomicUsize,
    connections: AtomicUsize,
    workers: tokio::sync::Semaphore,
}

impl Backend {
    /// On a thread of its own.
    pub fn start(mood: Mood) -> Self {
        let runtime = background();
        let listener = bind("127.0.0.1:0".parse().expect("an address"));
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(State {
            mood: Mutex::new(mood),
            requests: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            workers: tokio::sync::Semaphore::new(WORKERS),
        });
        let backend = Self { address, state, runtime, alive: Mutex::new(None) };
        backend.open(listener);
        backend
    }

    fn open(&self, listener: std::net::TcpListener) {
        let (alive, end) = watch::channel(());
        *self.alive.lock().expect("no panic") = Some(alive);
        let state = self.state.clone();
        self.runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a runtime");
            let mut closed = end.clone();
            loop {
                let stream = tokio::select! {
                    _ = closed.changed() => return,
                    stream = listener.accept() => stream,
                };
                let Ok((stream, _)) = stream else { continue };
                state.connections.fetch_add(1, SeqCst);
                let (state, mut killed) = (state.clone(), end.clone());
                tokio::spawn(async move {
                    // A kill is a reset, as from a machine that died.
                    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                    tokio::select! {
                        _ = killed.changed() => {}
                        () = serve(stream, &state) => {}
                    }
                });
            }
        });
    }

    /// Closes the port and resets every connection.
    pub fn kill(&self) {
        drop(self.alive.lock().expect("no panic").take());
        // Closed for sure once nobody answers there.
        while std::net::TcpStream::connect(self.address).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Listens again where it did.
    pub fn revive(&self) {
        self.open(bind(self.address));
    }

    /// Another mood for the requests to come.
    pub fn set(&self, mood: Mood) {
        *self.state.mood.lock().expect("no panic") = mood;
    }

    /// Requests seen.
    pub fn requests(&self) -> usize {
        self.state.requests.load(SeqCst)
    }

    /// Connections accepted.
    pub fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }
}

/// A runtime on a thread of its own, until the test ends.
pub fn background() -> tokio::runtime::Handle {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let handle = runtime.handle().clone();
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
}

fn bind(address: SocketAddr) -> std::net::TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP)).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.bind(&address.into()).expect("a free port");
    socket.listen(1024).expect("listens");
    socket.into()
}

async fn serve(stream: TcpStream, state: &State) {
    let _ = stream.set_nodelay(true);
    let mut io = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if io.read_line(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let lower = head.to_ascii_lowercase();
        if lower.contains("\r\nupgrade:") {
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            let _ = io.write_all(answer.as_bytes()).await;
            return echo(io).await;
        }
        let length = lower.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        if io.read_exact(&mut body).await.is_err() {
            return;
        }
        state.requests.fetch_add(1, SeqCst);
        let mood = *state.mood.lock().expect("no panic");
        let status = match mood {
            Mood::Says(status) => status,
            _ => 200,
        };
        match mood {
            Mood::Silent => std::future::pending().await,
            Mood::Slow(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Mood::Narrow(ms) => {
                let _worker = state.workers.acquire().await;
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
            Mood::Endless => return endless(io).await,
            _ => {}
        }
        let answer = format!("HTTP/1.1 {status} Whatever\r\ncontent-length: 3\r\n\r\nok\n");
        if io.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        if mood == Mood::Closes {
            let _ = SockRef::from(io.get_ref()).set_linger(None);
            let _ = io.shutdown().await;
            return;
        }
    }
}

async fn echo(mut io: BufReader<TcpStream>) {
    let mut buffer = [0; 4096];
    while let Ok(n) = io.read(&mut buffer).await {
        if n == 0 || io.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

async fn endless(mut io: BufReader<TcpStream>) {
    let _ = io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n").await;
    while io.write_all(&[b'x'; 1024]).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An HTTP/2 endpoint in the clear that sends every message back, and then trailers: a gRPC stream without the protobuf.
pub fn grpc_echo() -> SocketAddr {
    let listener = bind("127.0.0.1:0".parse().expect("an address"));
    let address = listener.local_addr().expect("bound");
    background().spawn(async move {
        let listener = TcpListener::from_std(listener).expect("a runtime");
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(echo_stream(request.into_body(), respond));
                }
            });
        }
    });
    address
}

async fn echo_stream(mut body: h2::RecvStream, mut respond: h2::server::SendResponse<bytes::Bytes>) {
    let head = http::Response::builder().header("content-type", "application/grpc").body(()).expect("a head");
    let Ok(mut out) = respond.send_response(head, false) else { return };
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        if out.send_data(data, false).is_err() {
            return;
        }
    }
    let trailers =
        http::HeaderMap::from_iter([("grpc-status".parse().expect("a name"), "0".parse().expect("a value"))]);
    let _ = out.send_trailers(trailers);
}
