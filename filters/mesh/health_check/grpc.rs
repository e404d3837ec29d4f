//! One call of `grpc.health.v1.Health/Check` over a connection of its own (the gRPC health checking protocol).

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};

use super::probe::{AGENT, Stream};

const CHECK: PathAndQuery = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
/// Flag and length in front of a message (gRPC over HTTP/2).
const PREFIX: usize = 5;
/// An answer is a few bytes.
const LONGEST: usize = 1 << 10;

/// Whether the server says that the service is serving; else why not. An empty name asks about the whole server.
pub async fn check(stream: Box<dyn Stream>, host: &Authority, service: &str, tls: bool) -> Result<(), String> {
    let wrong = |e: h2::Error| format!("http2: {e}");
    let (sender, connection) = h2::client::handshake(stream).await.map_err(wrong)?;
    let asking = async {
        let mut sender = sender.ready().await.map_err(wrong)?;
        let (answer, mut body) = sender.send_request(head(host, tls)?, false).map_err(wrong)?;
        body.send_data(message(service), true).map_err(wrong)?;
        let (head, mut body) = answer.await.map_err(wrong)?.into_parts();
        if head.status != StatusCode::OK {
            return Err(format!("status {}", head.status.as_u16()));
        }
        // A call that fails at once has its status in the head.
        verdict(&head.headers)?;
        let mut got = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(wrong)?;
            if got.len() + chunk.len() > LONGEST {
                return Err("an answer of this length is none".to_owned());
            }
            let _ = body.flow_control().release_capacity(chunk.len());
            got.extend_from_slice(&chunk);
        }
        if let Some(trailers) = body.trailers().await.map_err(wrong)? {
            verdict(&trailers)?;
        }
        match serving(&got) {
            Some(1) => Ok(()),
            Some(2) => Err("not serving".to_owned()),
            Some(3) => Err("the service is not known".to_owned()),
            Some(n) => Err(format!("serving status {n}")),
            None => Err("the answer is not a health check's".to_owned()),
        }
    };
    // Driven here, not spawned: nothing of a probe outlives it.
    tokio::select! {
        biased;
        done = asking => done,
        ended = connection => Err(ended.map_or_else(wrong, |()| "closed before it answered".to_owned())),
    }
}

fn head(host: &Authority, tls: bool) -> Result<Request<()>, String> {
    let scheme = if tls { Scheme::HTTPS } else { Scheme::HTTP };
    let uri = Uri::builder().scheme(scheme).authority(host.clone()).path_and_query(CHECK).build();
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.map_err(|e| e.to_string())?;
    let fields = [(CONTENT_TYPE, GRPC), (TE, TRAILERS), (USER_AGENT, AGENT)];
    request.headers_mut().extend(fields);
    Ok(request)
}

/// `HealthCheckRequest { string service = 1 }` behind its prefix.
fn message(service: &str) -> Bytes {
    let mut inner = BytesMut::new();
    if !service.is_empty() {
        inner.put_u8(0x0A);
        let mut length = service.len();
        while length >= 0x80 {
            inner.put_u8(0x80 | (length & 0x7F) as u8);
            length >>= 7;
        }
        inner.put_u8(length as u8);
        inner.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(PREFIX + inner.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(inner.len()).expect("names are short"));
    framed.put_slice(&inner);
    framed.freeze()
}

/// `enum ServingStatus status = 1` of a `HealthCheckResponse`; a field that is absent is 0, unknown.
fn serving(bytes: &[u8]) -> Option<u8> {
    let (prefix, message) = bytes.split_at_checked(PREFIX)?;
    let length = usize::try_from(u32::from_be_bytes(prefix[1..].try_into().ok()?)).ok()?;
    if prefix[0] != 0 || message.len() != length {
        return None;
    }
    match message {
        [] => Some(0),
        [0x08, status] if *status < 0x80 => Some(*status),
        _ => None,
    }
}

/// An error if the call failed.
fn verdict(fields: &HeaderMap) -> Result<(), String> {
    match fields.get("grpc-status").map(HeaderValue::as_bytes) {
        None | Some(b"0") => Ok(()),
        // gRPC's code for a server without the health service.
        Some(b"12") => Err("the server has no health service (grpc-status 12)".to_owned()),
        Some(b"5") => Err("the service is not known (grpc-status 5)".to_owned()),
        Some(code) => Err(format!("grpc-status {}", String::from_utf8_lossy(code))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_protobuf_writes_them() {
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("ab")[..], [0, 0, 0, 0, 4, 0x0A, 2, b'a', b'b']);
        let long = message(&"x".repeat(300));
        assert_eq!(&long[..8], [0, 0, 0, 1, 47, 0x0A, 0xAC, 2]);
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(serving(&[0, 0, 0, 0, 0]), Some(0));
        for wrong in [&[][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 3, 8, 1], &[0, 0, 0, 0, 2, 16, 1]] {
            assert_eq!(serving(wrong), None, "{wrong:?}");
        }
    }
}
