//! One deadline per request: taken from the route and from callers who may set one, sent on to the endpoint.
//!
//! gRPC has `grpc-timeout` (gRPC over HTTP/2, "Timeout"); everything else gets `x-onehop-timeout-ms`, the whole
//! milliseconds that are left.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

static GRPC: HeaderName = HeaderName::from_static("grpc-timeout");
static OURS: HeaderName = HeaderName::from_static("x-onehop-timeout-ms");

/// What the caller says is left, if the field is there and well-formed. The field is removed: each hop writes its own.
pub fn take(headers: &mut HeaderMap, grpc: bool) -> Option<Duration> {
    let name = if grpc { &GRPC } else { &OURS };
    let value = headers.remove(name)?;
    let text = value.to_str().ok()?;
    if grpc { parse_grpc(text) } else { text.parse().ok().map(Duration::from_millis) }
}

/// At most eight digits and one unit.
fn parse_grpc(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// The field that tells the endpoint what is left.
pub fn field(grpc: bool, left: Duration) -> (HeaderName, HeaderValue) {
    let ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    if !grpc {
        return (OURS.clone(), HeaderValue::from(ms));
    }
    // Eight digits of milliseconds are a day; beyond it seconds are exact enough.
    let text = if ms < 100_000_000 { format!("{ms}m") } else { format!("{}S", (ms / 1000).min(99_999_999)) };
    (GRPC.clone(), HeaderValue::try_from(text).expect("digits and a letter are a field value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeout_units() {
        for (text, want) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("100m", Some(Duration::from_millis(100))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("123456789S", None),
            ("m", None),
            ("", None),
            ("1x", None),
            ("-1S", None),
            ("1é", None),
        ] {
            assert_eq!(parse_grpc(text), want, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for grpc in [false, true] {
            let (name, value) = field(grpc, Duration::from_millis(1234));
            let mut headers = HeaderMap::from_iter([(name, value)]);
            assert_eq!(take(&mut headers, grpc), Some(Duration::from_millis(1234)));
            assert!(headers.is_empty());
        }
    }
}
