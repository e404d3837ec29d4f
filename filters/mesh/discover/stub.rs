//! A registry for tests: answers as it is told, and remembers what it was asked.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::contract::mesh::{Discover, Found, Report};

type Reply = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

pub struct Stub {
    pub url: String,
    /// Method, path with query, and body of each request.
    pub asked: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    pub async fn start(reply: impl Fn(Request<Bytes>) -> Reply + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (reply, seen) = (Arc::new(reply), asked.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (reply, seen) = (reply.clone(), seen.clone());
                let service = service_fn(move |rq: Request<hyper::body::Incoming>| {
                    let (reply, seen) = (reply.clone(), seen.clone());
                    async move {
                        let (parts, body) = rq.into_parts();
                        let body = body.collect().await.expect("whole").to_bytes();
                        let text = String::from_utf8_lossy(&body);
                        seen.lock().push(format!("{} {} {text}", parts.method, parts.uri));
                        Ok::<_, Infallible>(reply(Request::from_parts(parts, body)).await)
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { url, asked }
    }
}

pub fn json(value: serde_json::Value) -> Response<Full<Bytes>> {
    Response::new(Full::new(value.to_string().into()))
}

pub fn status(code: u16) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = http::StatusCode::from_u16(code).expect("a status");
    response
}

/// Follows a source and gives what it reports.
pub fn followed(discover: &dyn Discover) -> mpsc::UnboundedReceiver<Result<Vec<Found>, String>> {
    let (tell, told) = mpsc::unbounded_channel();
    let report = Report(Arc::new(move |answer| drop(tell.send(answer))));
    tokio::spawn(discover.watch(report).expect("it watches"));
    told
}

/// Addresses and weights, for comparing.
pub fn shown(found: &[Found]) -> Vec<String> {
    found.iter().map(|f| format!("{} x{} {}", f.address, f.weight, f.zone)).collect()
}
