//! Long-lived exchanges that say something every now and then and notice when they are cut.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::backend::background;

/// Between two messages.
const PAUSE: Duration = Duration::from_millis(10);
/// For an echo.
const PATIENCE: Duration = Duration::from_secs(10);

/// One of them.
pub struct LongStream {
    echoes: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    end: Arc<Mutex<Option<Result<(), String>>>>,
}

impl LongStream {
    /// A WebSocket, or what a proxy sees of one.
    pub fn websocket(to: SocketAddr, path: &'static str) -> Self {
        Self::start(move |echoes, stop| websocket(to, path, echoes, stop))
    }

    /// A bidirectional gRPC stream over HTTP/2 in the clear.
    pub fn grpc(to: SocketAddr, path: &'static str) -> Self {
        Self::start(move |echoes, stop| grpc(to, path, echoes, stop))
    }

    fn start<F>(run: impl FnOnce(Arc<AtomicUsize>, Arc<AtomicBool>) -> F) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (echoes, stop, end) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default(), Arc::default());
        let running = run(echoes.clone(), stop.clone());
        let told: Arc<Mutex<Option<Result<(), String>>>> = Arc::clone(&end);
        background().spawn(async move {
            let result = running.await;
            *told.lock().expect("no panic") = Some(result);
        });
        let stream = Self { echoes, stop, end };
        stream.still_echoes();
        stream
    }

    /// Waits for a few more echoes.
    #[track_caller]
    pub fn still_echoes(&self) {
        let goal = self.echoes.load(SeqCst) + 2;
        let until = tokio::time::Instant::now() + PATIENCE;
        while self.echoes.load(SeqCst) < goal {
            let end = self.end();
            assert!(end.is_none() && tokio::time::Instant::now() < until, "the stream ended: {end:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// How it ended, if it has.
    pub fn end(&self) -> Option<Result<(), String>> {
        self.end.lock().expect("no panic").clone()
    }

    /// Ends it from the client's side; true if the end was in good order.
    pub fn finish(self) -> Result<(), String> {
        self.stop.store(true, SeqCst);
        let until = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < until {
            if let Some(end) = self.end() {
                return end;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err("did not end".to_owned())
    }
}

async fn websocket(to: SocketAddr, path: &str, echoes: Arc<AtomicUsize>, stop: Arc<AtomicBool>) -> Result<(), String> {
    let mut io = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    let hello = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    io.write_all(hello.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.map_err(|e| format!("{e} after {}", String::from_utf8_lossy(&head)))?);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(String::from_utf8_lossy(&head).into_owned());
    }
    while !stop.load(SeqCst) {
        io.write_all(b"are you there?").await.map_err(|e| e.to_string())?;
        let mut back = [0; 14];
        let read = tokio::time::timeout(PATIENCE, io.read_exact(&mut back)).await;
        read.map_err(|_| "no echo in time")?.map_err(|e| e.to_string())?;
        echoes.fetch_add(1, SeqCst);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn grpc(to: SocketAddr, path: &str, echoes: Arc<AtomicUsize>, stop: Arc<AtomicBool>) -> Result<(), String> {
    let io = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    let (send, connection) = h2::client::handshake(io).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a request");
    let mut send = send.ready().await.map_err(|e| e.to_string())?;
    let (answer, mut out) = send.send_request(request, false).map_err(|e| e.to_string())?;
    let message = Bytes::from_static(b"\0\0\0\0\x05hello");
    out.send_data(message.clone(), false).map_err(|e| e.to_string())?;
    let answer = answer.await.map_err(|e| e.to_string())?;
    if answer.status() != 200 || answer.headers().contains_key("grpc-status") {
        return Err(format!("{answer:?}"));
    }
    let mut body = answer.into_body();
    loop {
        let mut got = 0;
        while got < message.len() {
            let data = tokio::time::timeout(PATIENCE, body.data()).await.map_err(|_| "no echo in time")?;
            let data = data.ok_or("the stream ended")?.map_err(|e| e.to_string())?;
            let _ = body.flow_control().release_capacity(data.len());
            got += data.len();
        }
        echoes.fetch_add(1, SeqCst);
        if stop.load(SeqCst) {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        out.send_data(message.clone(), false).map_err(|e| e.to_string())?;
    }
    out.send_data(Bytes::new(), true).map_err(|e| e.to_string())?;
    if body.data().await.is_some() {
        return Err("data after the end".to_owned());
    }
    let trailers = body.trailers().await.map_err(|e| e.to_string())?;
    match trailers.as_ref().and_then(|t| t.get("grpc-status")) {
        Some(status) if status == "0" => Ok(()),
        _ => Err(format!("trailers {trailers:?}")),
    }
}
