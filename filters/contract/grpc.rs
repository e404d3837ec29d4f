//! Unary gRPC calls to a service of the configuration, for filters that ask one (authorization, rate limits).
//!
//! gRPC over HTTP/2: one length-prefixed message each way, `grpc-status` in the trailers, or in the head of an answer
//! that has nothing else. Messages are neither compressed nor accepted compressed.

use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt;
use prost::Message;

use super::body::Body;
use super::call::{Call, ServiceId, Services};
use super::clock::{Moment, now};
use super::fault::Fault;
use super::request::Trace;

/// Largest answer that is read.
const MAX_MESSAGE: usize = 1 << 20;
/// Flag and length in front of each message.
pub(super) const PREFIX: usize = 5;
pub(super) const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Why a call has no answer.
#[derive(Debug)]
pub enum Failure {
    /// The service could not be called.
    Unreachable(Box<Fault>),
    /// The whole answer was not there in time.
    Late,
    /// It answered with this status, which is not OK (0).
    Status {
        /// `grpc-status`.
        code: u32,
        /// `grpc-message`, as it came.
        message: String,
    },
    /// What it answered is not gRPC.
    Malformed(&'static str),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(fault) => fault.fmt(f),
            Self::Late => f.write_str("no answer in time"),
            Self::Status { code, message } if message.is_empty() => write!(f, "grpc-status {code}"),
            Self::Status { code, message } => write!(f, "grpc-status {code}: {message}"),
            Self::Malformed(why) => f.write_str(why),
        }
    }
}

/// A unary method of a service.
pub struct Unary {
    /// The service that implements it.
    pub service: ServiceId,
    /// `/package.Service/Method`.
    pub path: PathAndQuery,
}

/// Calls it, until `deadline` at most, tries and queue included.
///
/// # Errors
/// Everything but a message with status OK.
pub async fn unary<A: Message + Default>(
    services: Arc<dyn Services>,
    method: &Unary,
    question: &impl Message,
    deadline: Moment,
    trace: Trace,
) -> Result<A, Failure> {
    let mut request = Request::new(Body::full(frame(question)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = method.path.clone().into();
    request.headers_mut().insert(CONTENT_TYPE, GRPC);
    let answer = async {
        let call = services.call(method.service, Call { request, deadline, trace });
        let (head, body) = call.await.map_err(Failure::Unreachable)?.into_parts();
        if head.status != StatusCode::OK {
            return Err(Failure::Malformed("its HTTP status is not 200"));
        }
        if !head.headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc")) {
            return Err(Failure::Malformed("its content type is not gRPC's"));
        }
        // Trailers-only: the status stands in the head and nothing follows.
        if let Some(status) = status_of(&head.headers) {
            return status.and(Err(Failure::Malformed("OK without a message")));
        }
        let (message, trailers) = read(body).await?;
        match trailers.as_ref().and_then(status_of) {
            Some(status) => status?,
            None => return Err(Failure::Malformed("it ended without a status")),
        }
        unframe(&message)
    };
    if deadline == Moment::MAX {
        return answer.await;
    }
    tokio::time::timeout(deadline.since(now()), answer).await.unwrap_or(Err(Failure::Late))
}

pub(super) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).expect("a question is far below 4 GiB"));
    message.encode(&mut out).expect("the buffer grows as needed");
    out.freeze()
}

async fn read(mut body: Body) -> Result<(BytesMut, Option<HeaderMap>), Failure> {
    let (mut message, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = body.frame().await {
        match frame.map_err(Failure::Unreachable)?.into_data() {
            Ok(data) if message.len() + data.len() > MAX_MESSAGE + PREFIX => {
                return Err(Failure::Malformed("its message is too long"));
            }
            Ok(data) => message.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((message, trailers))
}

/// Exactly one message.
fn unframe<A: Message + Default>(bytes: &[u8]) -> Result<A, Failure> {
    let (prefix, message) =
        bytes.split_first_chunk::<PREFIX>().ok_or(Failure::Malformed("its message is cut short"))?;
    let [flag, length @ ..] = *prefix;
    if flag != 0 {
        return Err(Failure::Malformed("its message is compressed without having been asked to"));
    }
    if u32::from_be_bytes(length) as usize != message.len() {
        return Err(Failure::Malformed("it is not one message"));
    }
    A::decode(message).map_err(|_| Failure::Malformed("its message cannot be decoded"))
}

/// `None`: no status here.
pub(super) fn status_of(fields: &HeaderMap) -> Option<Result<(), Failure>> {
    let status = fields.get(&GRPC_STATUS)?;
    let code = status.to_str().ok().and_then(|s| s.parse().ok());
    Some(match code {
        Some(0) => Ok(()),
        Some(code) => {
            let message = fields.get(&GRPC_MESSAGE).and_then(|m| m.to_str().ok()).unwrap_or_default();
            Err(Failure::Status { code, message: message.chars().take(200).collect() })
        }
        None => Err(Failure::Malformed("its status is not a number")),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::stream;
    use http::Response;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use parking_lot::Mutex;

    use super::*;
    use crate::contract::Reason;
    use crate::contract::call::Answering;

    #[derive(Clone, PartialEq, Message)]
    struct Word {
        #[prost(string, tag = "1")]
        text: String,
    }

    type Answer = Box<dyn FnOnce(Request<Body>) -> Answering + Send>;

    /// A service that answers once.
    struct Once(Mutex<Option<Answer>>);

    impl Services for Once {
        fn call(self: Arc<Self>, _: ServiceId, call: Call) -> Answering {
            (self.0.lock().take().expect("one call"))(call.request)
        }
    }

    async fn ask(answer: impl FnOnce(Request<Body>) -> Answering + Send + 'static) -> Result<String, Failure> {
        ask_within(Duration::from_secs(5), answer).await
    }

    async fn ask_within(
        limit: Duration,
        answer: impl FnOnce(Request<Body>) -> Answering + Send + 'static,
    ) -> Result<String, Failure> {
        let services = Arc::new(Once(Mutex::new(Some(Box::new(answer)))));
        let method = Unary { service: ServiceId(0), path: PathAndQuery::from_static("/a.B/C") };
        let question = Word { text: "hi".into() };
        unary::<Word>(services, &method, &question, now() + limit, Trace::default()).await.map(|w| w.text)
    }

    fn fields(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn says(data: Vec<u8>, head: &[(&'static str, &'static str)], end: &[(&'static str, &'static str)]) -> Answering {
        let mut frames = vec![Ok(Frame::data(Bytes::from(data)))];
        if !end.is_empty() {
            frames.push(Ok(Frame::trailers(fields(end))));
        }
        let mut response = Response::new(Body::stream(StreamBody::new(stream::iter(frames))));
        *response.headers_mut() = fields(head);
        Box::pin(async { Ok(response) })
    }

    const HEAD: &[(&str, &str)] = &[("content-type", "application/grpc+proto")];
    const OK: &[(&str, &str)] = &[("grpc-status", "0")];

    #[tokio::test]
    async fn a_word_there_and_back() {
        let found = ask(|request| {
            assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/a.B/C"));
            // `te: trailers` is added by whoever sends it.
            assert_eq!(request.headers()["content-type"], GRPC);
            Box::pin(async {
                let body = request.into_body().collect().await.expect("whole").to_bytes();
                assert_eq!(&body[..], b"\0\0\0\0\x04\x0a\x02hi");
                says(frame(&Word { text: "ho".into() }).to_vec(), HEAD, OK).await
            })
        });
        assert_eq!(found.await.expect("an answer"), "ho");
    }

    #[tokio::test]
    async fn whatever_is_not_one_ok_message_is_a_failure() {
        let word = || frame(&Word { text: "ho".into() }).to_vec();
        let status = |code| match code {
            Err(Failure::Status { code, message }) => (code, message),
            other => panic!("{other:?}"),
        };
        let failed: &[(&str, &str)] = &[("grpc-status", "7"), ("grpc-message", "no")];
        assert_eq!(status(ask(move |_| says(word(), HEAD, failed)).await), (7, "no".to_owned()));
        let trailers_only: &[(&str, &str)] = &[("content-type", "application/grpc"), ("grpc-status", "14")];
        assert_eq!(status(ask(|_| says(vec![], trailers_only, &[])).await).0, 14);

        let two = [word(), word()].concat();
        let compressed = [&[1], &word()[1..]].concat();
        let long = vec![0; MAX_MESSAGE + 6];
        for (why, data, head, end) in [
            ("no status", word(), HEAD, &[] as &[_]),
            ("status is no number", word(), HEAD, &[("grpc-status", "x")]),
            ("not gRPC", word(), &[("content-type", "text/html")] as &[_], OK),
            ("two messages", two, HEAD, OK),
            ("compressed", compressed, HEAD, OK),
            ("cut", word()[..6].to_vec(), HEAD, OK),
            ("no prefix", vec![0, 0], HEAD, OK),
            ("not protobuf", b"\0\0\0\0\x01\xff".to_vec(), HEAD, OK),
            ("too long", long, HEAD, OK),
            ("nothing", vec![], &[("content-type", "application/grpc"), ("grpc-status", "0")], &[]),
        ] {
            let found = ask(move |_| says(data, head, end)).await;
            assert!(matches!(found, Err(Failure::Malformed(_))), "{why}: {found:?}");
        }
        let fault = || Box::new(Fault::new(Reason::ConnectFailed));
        let found = ask(move |_| Box::pin(async move { Err(fault()) })).await;
        assert!(matches!(found, Err(Failure::Unreachable(f)) if f.reason == Reason::ConnectFailed));
    }

    #[tokio::test]
    async fn a_body_that_stands_still_is_late() {
        let found = ask_within(Duration::from_millis(10), |_| {
            let body = StreamBody::new(stream::pending::<Result<Frame<Bytes>, crate::contract::BodyError>>());
            let mut response = Response::new(Body::stream(body));
            *response.headers_mut() = fields(HEAD);
            Box::pin(async { Ok(response) })
        });
        assert!(matches!(found.await, Err(Failure::Late)));
    }
}
