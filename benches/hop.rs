//! One hop over loopback, one request at a time: straight to the endpoint, then through onehop by HTTP/1.1, HTTP/1.1 with
//! TLS, and HTTP/2. Latency of an idle machine; for what a request costs under load use a load generator.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use onehop::config::Source;
use onehop::hop::Hop;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

type Answer<'a> = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send + 'a>>;

enum Sender {
    H1(http1::SendRequest<Empty<Bytes>>),
    H2(http2::SendRequest<Empty<Bytes>>),
}

impl Sender {
    async fn connect(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, version: Version) -> Self {
        let io = TokioIo::new(io);
        if version == Version::HTTP_2 {
            let (sender, conn) = http2::handshake(TokioExecutor::new(), io).await.expect("a connection");
            tokio::spawn(conn);
            Self::H2(sender)
        } else {
            let (sender, conn) = http1::handshake(io).await.expect("a connection");
            tokio::spawn(conn);
            Self::H1(sender)
        }
    }

    async fn ask(&mut self) {
        let answer: Answer<'_> = match self {
            Self::H1(s) => {
                s.ready().await.expect("open");
                let rq = Request::get("/items").header("host", "localhost").body(Empty::new());
                Box::pin(s.send_request(rq.expect("a good request")))
            }
            Self::H2(s) => {
                let rq = Request::get("http://localhost/items").body(Empty::new()).expect("a good request");
                Box::pin(s.send_request(rq))
            }
        };
        let answer = answer.await.expect("an answer");
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.expect("a body");
    }
}

/// Answers 200 with 1 KiB, on a thread of its own.
fn endpoint() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket option");
    let address = listener.local_addr().expect("a bound socket");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((io, _)) = listener.accept().await {
                io.set_nodelay(true).expect("a socket option");
                let answer = |_| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(vec![b'x'; 1024]))) };
                let service = hyper::service::service_fn(answer);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service));
            }
        });
    });
    address
}

fn hops(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let endpoint = endpoint();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(dir.path().join("cert.pem"), made.cert.pem()).expect("written");
    std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).expect("written");
    let text = format!(
        r#"
version: 1
admin: {{ bind: none }}
runtime: {{ workers: 1 }}
listeners:
  plain: {{ bind: "127.0.0.1:0" }}
  secure: {{ bind: "127.0.0.1:0", tls: {{ certificates: [{{ cert: cert.pem, key: key.pem }}] }} }}
routes: [{{ name: all, to: all }}]
services: {{ all: {{ discover: {{ static: ["{endpoint}"] }} }} }}
"#
    );
    let source = Source::Text { name: "bench.yaml".to_owned(), text, dir: dir.path().to_owned() };
    let hop = Hop::start(vec![source], onehop_filters::BUILTIN).unwrap_or_else(|e| panic!("a good config: {e}"));
    let (plain, secure) = (hop.addresses()["plain"], hop.addresses()["secure"]);

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let tls = TlsConnector::from(Arc::new(tls));

    let mut group = c.benchmark_group("hop");
    for (name, to, version, encrypted) in [
        ("direct", endpoint, Version::HTTP_11, false),
        ("h1", plain, Version::HTTP_11, false),
        ("h1-tls", secure, Version::HTTP_11, true),
        ("h2", plain, Version::HTTP_2, false),
    ] {
        let mut sender = runtime.block_on(async {
            let io = TcpStream::connect(to).await.expect("a connection");
            io.set_nodelay(true).expect("a socket option");
            if encrypted {
                let name = "localhost".try_into().expect("a name");
                Sender::connect(tls.connect(name, io).await.expect("a handshake"), version).await
            } else {
                Sender::connect(io, version).await
            }
        });
        group.bench_function(name, |b| b.iter(|| runtime.block_on(sender.ask())));
    }
    group.finish();
}

criterion_group!(benches, hops);
criterion_main!(benches);
