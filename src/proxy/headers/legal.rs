//! Makes a response legal for the connection it goes out on, because a server library believes what it is given. Framing
//! fields are never copied from one side to the other; the body's own size speaks. The way to endpoints has its own
//! encoder, [`crate::upstream::h1`], which writes no field it was not asked for.

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TRAILER, UPGRADE};
use http::{Method, StatusCode, Version, response};
use http_body::SizeHint;
use onehop_filters::contract::{Fault, Reason, trailers};

use super::hop::{self, tokens};

/// The client that waits for a response.
#[derive(Clone, Copy, Debug)]
pub struct Recipient<'a> {
    /// Method of the request.
    pub method: &'a Method,
    /// Version it came in.
    pub version: Version,
    /// Whether it takes trailers.
    pub te_trailers: bool,
    /// The protocol that was asked for upstream, lower-case, if any.
    pub upgrade: Option<&'a HeaderValue>,
    /// The response comes from our own client side, which has dropped connection-specific and framing fields already.
    pub clean: bool,
    /// The request went to the endpoint as an extended CONNECT (RFC 8441), where any 2xx opens the tunnel.
    pub connected: bool,
}

/// What becomes of a response's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes out.
    Send,
    /// It must not: HEAD, 204, 205, 304 (RFC 9110 sections 6.4.1 and 15.3.6). Send an empty one.
    Omit,
    /// The connection becomes a tunnel (101; over HTTP/2 the 200 to an extended CONNECT). Send an empty one.
    Tunnel,
}

/// Makes a final response legal for its client.
///
/// # Errors
/// [`Reason::BadResponse`]: no final status, or an upgrade nobody asked for.
pub fn response(head: &mut response::Parts, size: &SizeHint, to: Recipient<'_>) -> Result<Fate, Fault> {
    // Any other version makes the server speak it: 1.0 turns chunking off, 0.9 and 3 are not known to it.
    head.version = Version::HTTP_11;
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return switch(head, to);
    }
    if !(200..=599).contains(&head.status.as_u16()) {
        return Err(bad("the status is not final"));
    }
    if *to.method == Method::CONNECT && head.status.is_success() {
        // To this client a 2xx means that the tunnel is open, so it must be.
        if !to.connected {
            return Err(bad("the endpoint did not switch protocols"));
        }
        hop::strip(&mut head.headers);
        head.headers.remove(CONTENT_LENGTH);
        return Ok(Fate::Tunnel);
    }
    let announced = announced_trailers(&head.headers, to);
    // What is said about a body that does not come may stay: it describes the one a GET would get.
    let described = match head.status {
        StatusCode::NOT_MODIFIED => sole_length(&head.headers),
        status if *to.method == Method::HEAD && !has_no_content(status) => sole_length(&head.headers),
        _ => None,
    };
    if !to.clean || described.is_some() {
        hop::strip(&mut head.headers);
        head.headers.remove(CONTENT_LENGTH);
    }
    if let Some(length) = described {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    if *to.method == Method::HEAD || has_no_content(head.status) || head.status == StatusCode::NOT_MODIFIED {
        return Ok(Fate::Omit);
    }
    // A body of known length has no trailers in HTTP/1.1.
    if let Some(names) = announced
        && size.exact().is_none()
    {
        head.headers.insert(TRAILER, names);
    }
    Ok(Fate::Send)
}

fn bad(detail: &'static str) -> Fault {
    Fault::new(Reason::BadResponse).detail(detail).by("head")
}

fn has_no_content(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT)
}

/// RFC 9110 section 7.8: only to a protocol that was asked for.
fn switch(head: &mut response::Parts, to: Recipient<'_>) -> Result<Fate, Fault> {
    let Some(asked) = to.upgrade else {
        return Err(bad("the endpoint switched protocols unasked"));
    };
    let is_asked = |chosen: &[u8]| chosen.eq_ignore_ascii_case(asked.as_bytes());
    if head.headers.get_all(UPGRADE).iter().count() != 1 || !is_asked(head.headers[UPGRADE].as_bytes().trim_ascii()) {
        return Err(bad("the endpoint switched to another protocol"));
    }
    hop::strip(&mut head.headers);
    head.headers.remove(CONTENT_LENGTH);
    if to.version == Version::HTTP_2 {
        // RFC 8441 section 5: over HTTP/2 a tunnel opens with 200.
        head.status = StatusCode::OK;
    } else {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, asked.clone());
    }
    Ok(Fate::Tunnel)
}

/// The `Trailer` field for a client that takes trailers. HTTP/1.1 servers send only announced ones; gRPC endpoints do
/// not announce theirs, so we do.
fn announced_trailers(headers: &HeaderMap, to: Recipient<'_>) -> Option<HeaderValue> {
    if !to.te_trailers || to.version == Version::HTTP_10 {
        return None;
    }
    if headers.contains_key(TRAILER) {
        let names: Vec<&[u8]> = tokens(headers.get_all(TRAILER))
            .filter(|t| HeaderName::from_bytes(t).is_ok_and(|name| trailers::permitted(&name)))
            .collect();
        return if names.is_empty() { None } else { HeaderValue::from_bytes(&names.join(&b", "[..])).ok() };
    }
    let is_grpc = headers.get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    is_grpc.then(|| HeaderValue::from_static("grpc-status, grpc-message, grpc-status-details-bin"))
}

fn sole_length(headers: &HeaderMap) -> Option<u64> {
    let mut lines = headers.get_all(CONTENT_LENGTH).iter();
    let (only, None) = (lines.next()?, lines.next()) else { return None };
    let digits = only.to_str().ok()?;
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    const GET: Recipient<'_> = Recipient {
        clean: false,
        method: &Method::GET,
        version: Version::HTTP_11,
        te_trailers: false,
        upgrade: None,
        connected: false,
    };

    fn run(
        status: u16,
        fields: &[(&'static str, &'static str)],
        size: SizeHint,
        to: Recipient<'_>,
    ) -> Result<(response::Parts, Fate), Reason> {
        let mut head = Response::builder().status(status).version(Version::HTTP_10).body(()).unwrap().into_parts().0;
        for (name, value) in fields {
            head.headers.append(*name, HeaderValue::from_static(value));
        }
        let fate = response(&mut head, &size, to).map_err(|f| f.reason)?;
        assert_eq!(head.version, Version::HTTP_11);
        Ok((head, fate))
    }

    #[test]
    fn framing_is_never_copied() {
        let fields = [
            ("content-length", "7"),
            ("content-length", "7"),
            ("transfer-encoding", "chunked"),
            ("connection", "x-secret"),
            ("x-secret", "1"),
            ("trailer", "x-sum"),
            ("server", "s"),
        ];
        let (head, fate) = run(200, &fields, SizeHint::with_exact(3), GET).unwrap();
        assert_eq!((fate, head.headers.len()), (Fate::Send, 1));
        assert_eq!(head.headers["server"], "s");
    }

    #[test]
    fn some_responses_have_no_body() {
        let head_rq = Recipient { method: &Method::HEAD, ..GET };
        for (status, to, length) in [
            (204, GET, None),
            (205, GET, None),
            (304, GET, Some("7")),
            (200, head_rq, Some("7")),
            (404, head_rq, Some("7")),
            (204, head_rq, None),
            (304, head_rq, Some("7")),
        ] {
            let (head, fate) = run(status, &[("content-length", "7")], SizeHint::default(), to).unwrap();
            assert_eq!(fate, Fate::Omit, "{status}");
            assert_eq!(head.headers.get("content-length").map(|v| v.to_str().unwrap()), length, "{status}");
        }
        for fields in [[("content-length", "7"), ("content-length", "7")], [("content-length", "+7"), ("x", "y")]] {
            let (head, _) = run(200, &fields, SizeHint::default(), head_rq).unwrap();
            assert!(!head.headers.contains_key("content-length"));
        }
    }

    #[test]
    fn only_final_statuses_pass() {
        for status in [100, 102, 103, 199, 600, 999] {
            assert_eq!(run(status, &[], SizeHint::default(), GET).unwrap_err(), Reason::BadResponse, "{status}");
        }
        assert!(run(299, &[], SizeHint::default(), GET).is_ok() && run(599, &[], SizeHint::default(), GET).is_ok());
    }

    #[test]
    fn only_the_asked_protocol_is_switched_to() {
        let websocket = HeaderValue::from_static("websocket");
        let asked = Recipient { upgrade: Some(&websocket), ..GET };
        let answer = [("upgrade", "WebSocket"), ("connection", "Upgrade"), ("sec-websocket-accept", "x")];
        let (head, fate) = run(101, &answer, SizeHint::default(), asked).unwrap();
        assert_eq!((fate, head.status.as_u16()), (Fate::Tunnel, 101));
        assert_eq!(
            (&head.headers["upgrade"], &head.headers["connection"]),
            (&websocket, &HeaderValue::from_static("upgrade"))
        );
        assert!(head.headers.contains_key("sec-websocket-accept"));
        let h2 = Recipient { version: Version::HTTP_2, ..asked };
        let (head, _) = run(101, &answer, SizeHint::default(), h2).unwrap();
        assert_eq!((head.status.as_u16(), head.headers.len()), (200, 1));

        assert!(run(101, &answer, SizeHint::default(), GET).is_err());
        assert!(run(101, &[("upgrade", "h2c")], SizeHint::default(), asked).is_err());
        assert!(run(101, &[("upgrade", "websocket, h2c")], SizeHint::default(), asked).is_err());
        assert!(run(101, &[], SizeHint::default(), asked).is_err());
    }

    #[test]
    fn a_connect_opens_a_tunnel_or_fails() {
        let connect = Recipient { method: &Method::CONNECT, version: Version::HTTP_2, ..GET };
        assert_eq!(run(200, &[], SizeHint::default(), connect).unwrap_err(), Reason::BadResponse);
        let connected = Recipient { connected: true, ..connect };
        assert_eq!(run(200, &[], SizeHint::default(), connected).unwrap().1, Fate::Tunnel);
        assert_eq!(run(403, &[], SizeHint::default(), connect).unwrap().1, Fate::Send);
    }

    #[test]
    fn trailers_are_announced_to_who_takes_them() {
        let takes = Recipient { te_trailers: true, ..GET };
        let grpc = [("content-type", "application/grpc+proto")];
        let (head, _) = run(200, &grpc, SizeHint::default(), takes).unwrap();
        assert_eq!(head.headers["trailer"], "grpc-status, grpc-message, grpc-status-details-bin");
        let mixed = [("trailer", "X-Sum, content-length, set-cookie")];
        let (head, _) = run(200, &mixed, SizeHint::default(), takes).unwrap();
        assert_eq!(head.headers["trailer"], "X-Sum");
        for (fields, size, to) in [
            (&grpc[..], SizeHint::default(), GET),
            (&grpc, SizeHint::with_exact(5), takes),
            (&[("trailer", "content-length")], SizeHint::default(), takes),
            (&[], SizeHint::default(), takes),
            (&grpc, SizeHint::default(), Recipient { version: Version::HTTP_10, ..takes }),
        ] {
            assert!(!run(200, fields, size, to).unwrap().0.headers.contains_key("trailer"));
        }
    }
}
