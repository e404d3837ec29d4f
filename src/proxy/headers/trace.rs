//! Trace context: W3C `traceparent` read and written, `tracestate` and `baggage` passed on, B3 read for migration.

use http::{HeaderMap, HeaderName, HeaderValue};
use onehop_filters::contract::Trace;

use crate::observe::spans;

/// The field.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_MULTI: [HeaderName; 5] = [
    HeaderName::from_static("x-b3-traceid"),
    HeaderName::from_static("x-b3-spanid"),
    HeaderName::from_static("x-b3-sampled"),
    HeaderName::from_static("x-b3-parentspanid"),
    HeaderName::from_static("x-b3-flags"),
];

/// A caller's place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parent {
    trace_id: u128,
    span: u64,
    /// `None`: the caller leaves the decision to us.
    sampled: Option<bool>,
}

/// The trace of a request: the caller's, unless there is none or `restart` refuses it, else a new one of which `sample`
/// (0 to 1) are recorded. `draw` gives random numbers.
pub fn trace(headers: &HeaderMap, restart: bool, sample: f64, mut draw: impl FnMut() -> u64) -> Trace {
    let parent = if restart { None } else { w3c(headers).or_else(|| b3(headers)) };
    let mut nonzero = || {
        // Zero is not a valid id.
        let n = draw();
        if n == 0 { 1 } else { n }
    };
    let trace_id = parent.map_or_else(|| u128::from(nonzero()) << 64 | u128::from(nonzero()), |p| p.trace_id);
    let sampled = parent.and_then(|p| p.sampled).unwrap_or_else(|| spans::sample(trace_id, sample));
    Trace { trace_id, parent: parent.map_or(0, |p| p.span), span: nonzero(), sampled }
}

/// Writes the context for the next hop; `span` is the span of this try. For a trace that starts here, what the caller
/// sent of another one goes. A continued B3 trace keeps its fields, for upstreams that know only those.
pub fn write(headers: &mut HeaderMap, trace: &Trace, span: u64) {
    if trace.parent == 0 {
        for name in [&TRACESTATE, &B3].into_iter().chain(&B3_MULTI) {
            headers.remove(name);
        }
    }
    headers.insert(TRACEPARENT, format_parent(trace, span));
}

/// `traceparent` for the next hop.
#[must_use]
pub fn format_parent(trace: &Trace, span: u64) -> HeaderValue {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    put_hex(&mut text[3..35], trace.trace_id);
    put_hex(&mut text[36..52], u128::from(span));
    text[54] = if trace.sampled { b'1' } else { b'0' };
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn put_hex(into: &mut [u8], mut number: u128) {
    for digit in into.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

/// W3C Trace Context, section 3.2. Of a version from the future the part that we know counts.
fn w3c(headers: &HeaderMap) -> Option<Parent> {
    let value = sole(headers, &TRACEPARENT)?;
    let version = parse_hex(value.get(..2)?)?;
    let long_enough = match version {
        0 => value.len() == 55,
        0xff => false,
        _ => value.len() == 55 || value.get(55) == Some(&b'-'),
    };
    let dashes = [2, 35, 52].iter().all(|at| value.get(*at) == Some(&b'-'));
    // Upper-case digits are not allowed.
    if !long_enough || !dashes || value[..55].iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let flags = parse_hex(&value[53..55])?;
    parent(&value[3..35], &value[36..52], Some(flags & 1 == 1))
}

/// `b3: TRACE-SPAN[-SAMPLED[-PARENT]]`, or the `x-b3-*` fields.
fn b3(headers: &HeaderMap) -> Option<Parent> {
    if let Some(single) = sole(headers, &B3) {
        let mut parts = single.split(|b| *b == b'-');
        let (trace_id, span) = (parts.next()?, parts.next()?);
        return parent(trace_id, span, parts.next().and_then(b3_sampled));
    }
    let [trace_id, span, sampled, _, flags] = &B3_MULTI;
    let debug = sole(headers, flags).is_some_and(|f| f == b"1");
    let sampled = if debug { Some(true) } else { sole(headers, sampled).and_then(b3_sampled) };
    parent(sole(headers, trace_id)?, sole(headers, span)?, sampled)
}

fn b3_sampled(word: &[u8]) -> Option<bool> {
    match word {
        b"1" | b"d" | b"true" => Some(true),
        b"0" | b"false" => Some(false),
        _ => None,
    }
}

fn parent(trace_id: &[u8], span: &[u8], sampled: Option<bool>) -> Option<Parent> {
    if !matches!(trace_id.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    let (trace_id, span) = (parse_hex(trace_id)?, u64::try_from(parse_hex(span)?).ok()?);
    (trace_id != 0 && span != 0).then_some(Parent { trace_id, span, sampled })
}

fn parse_hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0u128, |number, digit| Some(number << 4 | u128::from(char::from(*digit).to_digit(16)?)))
}

/// The value of a field that stands once.
fn sole<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (Some(only), None) => Some(only.as_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0af7651916cd43dd8448eb211c80319c";
    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(n, v): &(&str, &str)| (n.parse::<HeaderName>().unwrap(), v.parse::<HeaderValue>().unwrap());
        fields.iter().map(field).collect()
    }

    fn counting() -> impl FnMut() -> u64 {
        let mut n = 0;
        move || {
            n += 1;
            n
        }
    }

    #[test]
    fn a_valid_trace_goes_on() {
        let mut headers = map(&[("traceparent", GOOD), ("tracestate", "a=b"), ("baggage", "k=v")]);
        let got = trace(&headers, false, 0.0, counting());
        assert_eq!(format!("{:032x}", got.trace_id), ID);
        assert_eq!((got.parent, got.span, got.sampled), (0xb7ad_6b71_6920_3331, 1, true));
        write(&mut headers, &got, 0x77);
        assert_eq!(headers["traceparent"], format!("00-{ID}-0000000000000077-01").as_str());
        assert_eq!(
            (&headers["tracestate"], &headers["baggage"]),
            (&HeaderValue::from_static("a=b"), &HeaderValue::from_static("k=v"))
        );
    }

    #[test]
    fn a_bad_trace_starts_anew() {
        let longer = format!("{GOOD}-x");
        let upper = GOOD.to_ascii_uppercase();
        let bad = [
            "",
            "00",
            &GOOD[..54],
            &longer,
            &upper,
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
            "+0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ];
        for value in bad {
            let mut headers = map(&[("traceparent", value), ("tracestate", "a=b")]);
            let got = trace(&headers, false, 1.0, counting());
            assert_eq!((got.trace_id, got.parent, got.span), (1 << 64 | 2, 0, 3), "{value}");
            write(&mut headers, &got, 4);
            assert!(!headers.contains_key("tracestate"), "{value}");
        }
        let twice = map(&[("traceparent", GOOD), ("traceparent", GOOD)]);
        assert_eq!(trace(&twice, false, 1.0, counting()).parent, 0);
    }

    #[test]
    fn the_future_is_read_as_far_as_known() {
        let future = map(&[("traceparent", "42-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more")]);
        let got = trace(&future, false, 1.0, counting());
        assert_eq!((format!("{:032x}", got.trace_id).as_str(), got.sampled), (ID, false));
    }

    #[test]
    fn a_restart_forgets_the_caller() {
        let mut headers = map(&[("traceparent", GOOD), ("tracestate", "a=b"), ("b3", "0"), ("x-b3-traceid", ID)]);
        let got = trace(&headers, true, 1.0, counting());
        assert_eq!((got.trace_id, got.parent), (1 << 64 | 2, 0));
        write(&mut headers, &got, got.span);
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn b3_is_read() {
        let single = format!("{ID}-b7ad6b7169203331-d");
        for (fields, sampled) in [
            (vec![("b3", single.as_str())], true),
            (vec![("x-b3-traceid", ID), ("x-b3-spanid", "b7ad6b7169203331"), ("x-b3-sampled", "0")], false),
            (vec![("x-b3-traceid", ID), ("x-b3-spanid", "b7ad6b7169203331"), ("x-b3-flags", "1")], true),
            // Deferred: ours to decide.
            (vec![("x-b3-traceid", ID), ("x-b3-spanid", "b7ad6b7169203331")], true),
        ] {
            let got = trace(&map(&fields), false, 1.0, counting());
            assert_eq!((format!("{:032x}", got.trace_id).as_str(), got.parent), (ID, 0xb7ad_6b71_6920_3331));
            assert_eq!(got.sampled, sampled, "{fields:?}");
        }
        let short = map(&[("b3", "8448eb211c80319c-b7ad6b7169203331-1")]);
        assert_eq!(trace(&short, false, 0.0, counting()).trace_id, 0x8448_eb21_1c80_319c);
        for bad in ["0", "", "-", "abc-def-1", "8448eb211c80319c"] {
            assert_eq!(trace(&map(&[("b3", bad)]), false, 0.0, counting()).parent, 0, "{bad}");
        }
    }
}
