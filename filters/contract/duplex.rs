//! A bidirectional gRPC stream to a server that a URL names: for what the control thread follows, such as xDS. It lasts
//! until one side ends it, on a connection of its own.
//!
//! gRPC over HTTP/2: each message has a flag and its length in front, `grpc-status` follows in the trailers, or stands in
//! the head of an answer that has nothing else. Messages are neither compressed nor accepted compressed.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{Ping, RecvStream, SendStream};
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use prost::Message;

use super::client::{Target, Wire};
use super::grpc::{Failure, GRPC, PREFIX, frame, status_of};

/// Largest message that is read.
const MAX_MESSAGE: usize = 16 << 20;
/// What the server may send before we have read it.
const WINDOW: u32 = 1 << 20;
/// Time between pings that find out whether the server still answers. Servers take pings more often than every five
/// minutes for an attack unless they are told otherwise (gRPC proposal A8).
const PING: Duration = Duration::from_secs(300);
/// How long an answer to a ping may take.
const PONG: Duration = Duration::from_secs(20);

/// An open stream.
pub struct Duplex {
    send: SendStream<Bytes>,
    receive: Receive,
    buffer: BytesMut,
}

/// Servers may send their head no sooner than their first message.
enum Receive {
    Head(ResponseFuture),
    Body(RecvStream),
}

impl Duplex {
    /// Connects and calls a method, such as `/package.Service/Method`, with this metadata. `patience`: for connect and
    /// handshakes. Whether the server knows the method shows with the first message.
    ///
    /// # Errors
    /// A sentence for the log.
    pub async fn open(target: &Target, path: &str, metadata: HeaderMap, patience: Duration) -> Result<Self, String> {
        match tokio::time::timeout(patience, begin(target, path, metadata)).await {
            Ok(opened) => opened,
            Err(_) => Err(format!("no connection within {patience:?}")),
        }
    }

    /// Sends a message. What the server's window has no room for waits in memory: meant for messages that are few and
    /// small.
    ///
    /// # Errors
    /// The stream is over.
    pub fn send(&mut self, message: &impl Message) -> Result<(), String> {
        self.send.send_data(frame(message), false).map_err(|e| format!("stream: {e}"))
    }

    /// The next message. May be dropped and asked again without loss.
    ///
    /// # Errors
    /// The stream is over, be it with status OK.
    pub async fn next(&mut self) -> Result<Bytes, String> {
        loop {
            if let Some(message) = self.whole()? {
                return Ok(message);
            }
            let body = match &mut self.receive {
                Receive::Body(body) => body,
                Receive::Head(head) => {
                    let response = head.await.map_err(|e| format!("stream: {e}"))?;
                    let (head, body) = response.into_parts();
                    if let Some(status) = status_of(&head.headers) {
                        return Err(ended(status));
                    }
                    if head.status != StatusCode::OK {
                        return Err(format!("status {}", head.status.as_u16()));
                    }
                    self.receive = Receive::Body(body);
                    continue;
                }
            };
            match body.data().await {
                Some(data) => {
                    let data = data.map_err(|e| format!("stream: {e}"))?;
                    let _ = body.flow_control().release_capacity(data.len());
                    self.buffer.extend_from_slice(&data);
                }
                None => {
                    let trailers = body.trailers().await.map_err(|e| format!("stream: {e}"))?;
                    return Err(match trailers.as_ref().and_then(status_of) {
                        Some(status) => ended(status),
                        None => "the stream ended without a status".to_owned(),
                    });
                }
            }
        }
    }

    /// A message that is there in full.
    fn whole(&mut self) -> Result<Option<Bytes>, String> {
        let Some([flag, length @ ..]) = self.buffer.first_chunk::<PREFIX>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if *flag != 0 {
            return Err("a message is compressed without having been asked to".to_owned());
        }
        if length > MAX_MESSAGE {
            return Err(format!("a message of {length} bytes is too long"));
        }
        if self.buffer.len() < PREFIX + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

async fn begin(target: &Target, path: &str, metadata: HeaderMap) -> Result<Duplex, String> {
    let io = target.connect().await?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
    let handshake = builder.handshake::<Box<dyn Wire>, Bytes>(io);
    let (requests, mut connection) = handshake.await.map_err(|e| format!("HTTP/2: {e}"))?;
    let ping = connection.ping_pong();
    // Ends by itself when the stream is dropped. A server that is silent to a ping ends it too.
    tokio::spawn(async move {
        let silent = async {
            let Some(mut ping) = ping else { return std::future::pending().await };
            loop {
                tokio::time::sleep(PING).await;
                match tokio::time::timeout(PONG, ping.ping(Ping::opaque())).await {
                    Ok(Ok(_)) => {}
                    _ => return,
                }
            }
        };
        tokio::select! {
            _ = connection => {}
            () = silent => {}
        }
    });
    let mut requests = requests.ready().await.map_err(|e| format!("HTTP/2: {e}"))?;
    let authority = target.uri().authority().map_or("", |a| a.as_str());
    let scheme = target.uri().scheme_str().unwrap_or("http");
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = uri.map_err(|e| format!("request: {e}"))?;
    *request.headers_mut() = metadata;
    let fields = request.headers_mut();
    fields.insert(CONTENT_TYPE, GRPC);
    fields.insert(TE, HeaderValue::from_static("trailers"));
    fields.entry(USER_AGENT).or_insert(HeaderValue::from_static("onehop"));
    let (head, send) = requests.send_request(request, false).map_err(|e| format!("HTTP/2: {e}"))?;
    Ok(Duplex { send, receive: Receive::Head(head), buffer: BytesMut::new() })
}

fn ended(status: Result<(), Failure>) -> String {
    match status {
        Ok(()) => "the server ended the stream".to_owned(),
        Err(why) => why.to_string(),
    }
}

/// A server for tests, on a port of its own: one call a connection, answered by hand.
#[cfg(test)]
pub mod stub {
    use h2::server::SendResponse;
    use http::{Response, request};

    use super::*;

    pub struct Calls {
        pub url: String,
        listener: tokio::net::TcpListener,
    }

    pub struct Call {
        pub head: request::Parts,
        body: RecvStream,
        buffer: BytesMut,
        respond: SendResponse<Bytes>,
        send: Option<SendStream<Bytes>>,
    }

    impl Calls {
        pub async fn start() -> Self {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            Self { url: format!("http://{}", listener.local_addr().expect("bound")), listener }
        }

        pub async fn next(&mut self) -> Call {
            let (io, _) = self.listener.accept().await.expect("a connection");
            let mut connection = h2::server::handshake(io).await.expect("HTTP/2");
            let (request, respond) = connection.accept().await.expect("a call").expect("a call");
            tokio::spawn(async move { while connection.accept().await.is_some() {} });
            let (head, body) = request.into_parts();
            Call { head, body, buffer: BytesMut::new(), respond, send: None }
        }
    }

    impl Call {
        pub async fn message(&mut self) -> Bytes {
            loop {
                if let Some([_, length @ ..]) = self.buffer.first_chunk::<PREFIX>() {
                    let length = u32::from_be_bytes(*length) as usize;
                    if self.buffer.len() >= PREFIX + length {
                        self.buffer.advance(PREFIX);
                        return self.buffer.split_to(length).freeze();
                    }
                }
                let data = self.body.data().await.expect("more").expect("good");
                self.buffer.extend_from_slice(&data);
            }
        }

        /// The head alone.
        pub fn respond(&mut self, status: u16, fields: &[(&'static str, &'static str)], end: bool) {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            for (name, value) in fields {
                response.headers_mut().insert(*name, HeaderValue::from_static(value));
            }
            self.send = Some(self.respond.send_response(response, end).expect("a head"));
        }

        pub fn bytes(&mut self, bytes: &[u8]) {
            if self.send.is_none() {
                self.respond(200, &[("content-type", "application/grpc")], false);
            }
            let send = self.send.as_mut().expect("the head went first");
            send.send_data(Bytes::copy_from_slice(bytes), false).expect("sent");
        }

        /// A message that was encoded already.
        pub fn send(&mut self, message: &[u8]) {
            let length = u32::try_from(message.len()).expect("short").to_be_bytes();
            self.bytes(&[&[0], &length[..], message].concat());
        }

        pub fn trailers(&mut self, fields: &[(&'static str, &'static str)]) {
            let pairs = fields.iter().map(|(n, v)| (http::HeaderName::from_static(n), HeaderValue::from_static(v)));
            self.send.as_mut().expect("the head went first").send_trailers(pairs.collect()).expect("sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::stub::{Call, Calls};
    use super::*;
    use crate::contract::client::Identity;

    #[derive(Clone, PartialEq, Message)]
    struct Word {
        #[prost(string, tag = "1")]
        text: String,
    }

    async fn open() -> (Duplex, Call) {
        let mut calls = Calls::start().await;
        let target = Target::new(&calls.url, Identity::default(), false, b"h2").expect("a URL");
        let mut metadata = HeaderMap::new();
        metadata.insert("x-who", HeaderValue::from_static("me"));
        let (opened, call) =
            tokio::join!(Duplex::open(&target, "/a.B/C", metadata, Duration::from_secs(9)), calls.next());
        (opened.expect("opened"), call)
    }

    #[tokio::test]
    async fn messages_go_both_ways_in_any_pieces() {
        let (mut duplex, mut call) = open().await;
        let word = |text: &str| Word { text: text.to_owned() };
        duplex.send(&word("one")).expect("open");
        duplex.send(&word("two")).expect("open");
        assert_eq!(call.message().await, word("one").encode_to_vec());
        assert_eq!(call.message().await, word("two").encode_to_vec());
        assert_eq!((call.head.method.as_str(), call.head.uri.path()), ("POST", "/a.B/C"));
        assert_eq!(call.head.headers["x-who"], "me");
        assert_eq!(call.head.headers["te"], "trailers");
        assert_eq!(call.head.headers["content-type"], "application/grpc");
        let all = [frame(&word("three")), frame(&word("")), frame(&word("four"))].concat();
        for piece in all.chunks(3) {
            call.bytes(piece);
            // A question that was dropped half-way loses nothing.
            let _ = tokio::time::timeout(Duration::from_micros(1), std::future::pending::<()>()).await;
        }
        for expected in ["three", "", "four"] {
            assert_eq!(duplex.next().await.expect("a message"), word(expected).encode_to_vec());
        }
        call.trailers(&[("grpc-status", "0")]);
        assert_eq!(duplex.next().await.expect_err("over"), "the server ended the stream");
    }

    #[tokio::test]
    async fn more_than_a_window_passes() {
        let (mut duplex, mut call) = open().await;
        let large = vec![7; 3 * WINDOW as usize];
        call.send(&large);
        assert_eq!(duplex.next().await.expect("a message"), large);
    }

    #[tokio::test]
    async fn ends_say_why() {
        type Act = fn(&mut Call);
        let cases: [(Act, &str); 7] = [
            (
                |c| c.respond(200, &[("grpc-status", "12"), ("grpc-message", "no such method")], true),
                "12: no such method",
            ),
            (|c| c.respond(503, &[], true), "status 503"),
            (|c| c.bytes(&[1, 0, 0, 0, 0]), "compressed"),
            (|c| c.bytes(&[0, 0xff, 0, 0, 0]), "too long"),
            (
                |c| {
                    c.bytes(&[0, 0]);
                    c.trailers(&[("x-y", "z")]);
                },
                "without a status",
            ),
            (
                |c| {
                    c.bytes(&[]);
                    c.trailers(&[("grpc-status", "7")]);
                },
                "grpc-status 7",
            ),
            (|c| c.respond(200, &[("grpc-status", "x")], true), "not a number"),
        ];
        for (act, expected) in cases {
            let (mut duplex, mut call) = open().await;
            act(&mut call);
            let why = duplex.next().await.expect_err("over");
            assert!(why.contains(expected), "{why}");
        }
    }
}
