//! The sample services of the demo: a quick one, a slow one, and one whose endpoints fail in different ways.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Where the samples listen.
pub struct Upstreams {
    /// Answers at once.
    pub orders: SocketAddr,
    /// Fails every second request with 503: retries hide it.
    pub flaky: SocketAddr,
    /// Answers after 120 ms.
    pub slow: SocketAddr,
    /// Always answers 500: outlier detection takes it out.
    pub broken: SocketAddr,
}

#[derive(Clone, Copy)]
enum Kind {
    Quick,
    Flaky,
    Slow,
    Broken,
}

/// Starts them on free loopback ports, on the calling runtime.
///
/// # Errors
/// When no port is to be had.
pub async fn start() -> std::io::Result<Upstreams> {
    Ok(Upstreams {
        orders: serve("orders", Kind::Quick).await?,
        flaky: serve("stock", Kind::Flaky).await?,
        slow: serve("reports", Kind::Slow).await?,
        broken: serve("stock", Kind::Broken).await?,
    })
}

async fn serve(name: &'static str, kind: Kind) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let count = Arc::new(AtomicU32::new(0));
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let service = service_fn(move |rq| answer(name, kind, count.clone(), rq));
                // A client that leaves is no event here.
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
            });
        }
    });
    Ok(address)
}

async fn answer(
    name: &'static str,
    kind: Kind,
    count: Arc<AtomicU32>,
    rq: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let n = count.fetch_add(1, Relaxed);
    let status = match kind {
        Kind::Quick => StatusCode::OK,
        Kind::Slow => {
            tokio::time::sleep(Duration::from_millis(120)).await;
            StatusCode::OK
        }
        Kind::Flaky if n.is_multiple_of(2) => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Flaky => StatusCode::OK,
        Kind::Broken => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let seen = |header: &str| rq.headers().get(header).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let body = serde_json::json!({
        "service": name, "path": rq.uri().path(), "user": seen("x-user"), "attempt": seen("x-onehop-attempt"),
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    Ok(response)
}
