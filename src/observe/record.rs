//! One line of the access log: what a request was, what became of it, and why.
//!
//! Formatted by hand into a buffer that is there already: no allocation and no clock read. Nothing here ever holds
//! `authorization`, `cookie` or a key; secrets in the query are masked.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::Version;
use onehop_filters::contract::Reason;
use onehop_filters::contract::mesh::Address;

use super::{json, redact};

/// What is written of one request; borrowed from wherever it lives. Empty and `None` fields are left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record<'a> {
    /// `x-request-id`.
    pub request_id: &'a [u8],
    /// Method as sent.
    pub method: &'a str,
    /// Host and port as routed.
    pub host: &'a str,
    /// Path, and query unless that is apart. Bytes, since heads that were refused are logged too.
    pub path: &'a [u8],
    /// Query, where it does not stand in `path`.
    pub query: Option<&'a [u8]>,
    /// Version the client spoke; `None` if the head never told.
    pub protocol: Option<Version>,
    /// `tcp` or `tls` for a connection that was passed on; empty for a request.
    pub transport: &'static str,
    /// Server name the client of such a connection asked for.
    pub sni: &'a str,
    /// Status sent, 0 if none was.
    pub status: u16,
    /// Why it was not answered as asked.
    pub reason: Option<Reason>,
    /// The filter or room that decided so.
    pub filter: &'a str,
    /// Route name, empty if none matched.
    pub route: &'a str,
    /// Listener name.
    pub listener: &'a str,
    /// The client, after trusted proxies.
    pub client_ip: Option<IpAddr>,
    /// `sub` of the verified token.
    pub user: &'a str,
    /// Consumer name.
    pub consumer: &'a str,
    /// Identity of the calling program.
    pub workload: &'a str,
    /// Service name.
    pub service: &'a str,
    /// Endpoint of the last try.
    pub endpoint: Option<&'a Address>,
    /// Tries made.
    pub attempts: u32,
    /// Why each further try was made: stable words.
    pub retries: &'a [&'static str],
    /// Request body bytes.
    pub bytes_in: u64,
    /// Response body bytes.
    pub bytes_out: u64,
    /// Head complete to last byte sent.
    pub duration: Duration,
    /// Where the time went.
    pub phases: Phases,
    /// Generation of the configuration that served it.
    pub generation: u64,
    /// W3C trace id, zero if none.
    pub trace_id: u128,
    /// `user-agent`.
    pub user_agent: &'a [u8],
    /// The exchange was cut before its end, by whichever side.
    pub aborted: bool,
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// Filters on the way in.
    pub chain: Duration,
    /// Getting a connection, all tries.
    pub connect: Duration,
    /// From sending the head to the response head, all tries.
    pub upstream: Duration,
    /// From the response head to the last byte.
    pub body: Duration,
}

/// A member's name as it stands in a line that has a member already.
macro_rules! member {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}

impl Record<'_> {
    /// Whether the line is written whatever the sample says.
    #[must_use]
    pub const fn must_keep(&self) -> bool {
        let connection = !self.transport.is_empty();
        self.aborted || self.reason.is_some() || self.status >= 400 || (self.status < 100 && !connection)
    }

    /// Appends the record as one line of JSON. `stamp` is the time as RFC 3339.
    pub fn json(&self, out: &mut Vec<u8>, stamp: &[u8]) {
        out.extend_from_slice(br#"{"ts":""#);
        out.extend_from_slice(stamp);
        out.push(b'"');
        let mut line = Line { out };
        line.bytes(member!("request_id"), self.request_id);
        line.bytes(member!("method"), self.method.as_bytes());
        line.bytes(member!("host"), self.host.as_bytes());
        if !self.path.is_empty() {
            line.key(member!("path"));
            line.out.push(b'"');
            self.target(line.out, json::escape);
            line.out.push(b'"');
        }
        line.word(member!("protocol"), self.protocol.map_or(self.transport, protocol));
        line.bytes(member!("sni"), self.sni.as_bytes());
        if self.transport.is_empty() {
            line.number(member!("status"), u64::from(self.status));
        }
        line.word(member!("reason"), self.reason.map_or("", Reason::code));
        line.bytes(member!("filter"), self.filter.as_bytes());
        line.bytes(member!("route"), self.route.as_bytes());
        line.bytes(member!("listener"), self.listener.as_bytes());
        if let Some(ip) = self.client_ip {
            line.key(member!("client_ip"));
            line.out.push(b'"');
            address(line.out, ip);
            line.out.push(b'"');
        }
        line.bytes(member!("user"), self.user.as_bytes());
        line.bytes(member!("consumer"), self.consumer.as_bytes());
        line.bytes(member!("workload"), self.workload.as_bytes());
        line.bytes(member!("service"), self.service.as_bytes());
        match self.endpoint {
            Some(Address::Tcp(at)) => {
                line.key(member!("endpoint"));
                line.out.push(b'"');
                socket(line.out, *at);
                line.out.push(b'"');
            }
            Some(Address::Unix(path)) => line.bytes(member!("endpoint"), path.as_os_str().as_encoded_bytes()),
            None => {}
        }
        line.number(member!("attempts"), u64::from(self.attempts));
        if !self.retries.is_empty() {
            line.key(member!("retries"));
            for (n, word) in self.retries.iter().enumerate() {
                line.out.push(if n == 0 { b'[' } else { b',' });
                json::string(line.out, word.as_bytes());
            }
            line.out.push(b']');
        }
        line.number(member!("bytes_in"), self.bytes_in);
        line.number(member!("bytes_out"), self.bytes_out);
        line.number(member!("duration_us"), micros(self.duration));
        line.key(member!("phases"));
        line.key("{\"chain_us\":");
        digits(line.out, micros(self.phases.chain));
        line.number(member!("connect_us"), micros(self.phases.connect));
        line.number(member!("upstream_us"), micros(self.phases.upstream));
        line.number(member!("body_us"), micros(self.phases.body));
        line.out.push(b'}');
        line.number(member!("generation"), self.generation);
        if self.trace_id != 0 {
            line.key(member!("trace_id"));
            line.out.push(b'"');
            trace_id(line.out, self.trace_id);
            line.out.push(b'"');
        }
        line.bytes(member!("user_agent"), self.user_agent);
        if self.aborted {
            line.key(member!("aborted"));
            line.out.extend_from_slice(b"true");
        }
        out.extend_from_slice(b"}\n");
    }

    fn target(&self, out: &mut Vec<u8>, escape: fn(&mut Vec<u8>, &[u8])) {
        redact::target(out, self.path, escape);
        if let Some(query) = self.query {
            redact::query(out, query, escape);
        }
    }

    /// Appends the record as one line for people: the fixed part first, then `name=value` for what there is.
    pub fn text(&self, out: &mut Vec<u8>, stamp: &[u8]) {
        out.extend_from_slice(stamp);
        out.push(b' ');
        digits(out, u64::from(self.status));
        out.push(b' ');
        json::escape(out, if self.method.is_empty() { b"-" } else { self.method.as_bytes() });
        out.push(b' ');
        json::escape(out, self.host.as_bytes());
        self.target(out, bare);
        let took = self.duration.as_micros();
        let _ = write!(out, " {}.{:03}ms", took / 1000, took % 1000);
        let mut pairs = Pairs { out };
        pairs.bytes("reason", self.reason.map_or("", Reason::code).as_bytes());
        pairs.bytes("filter", self.filter.as_bytes());
        pairs.bytes("route", self.route.as_bytes());
        pairs.bytes("service", self.service.as_bytes());
        match self.endpoint {
            Some(Address::Tcp(address)) => pairs.shown("endpoint", address),
            Some(Address::Unix(path)) => pairs.bytes("endpoint", path.as_os_str().as_encoded_bytes()),
            None => {}
        }
        if self.attempts != 1 {
            pairs.shown("attempts", self.attempts);
        }
        for word in self.retries {
            pairs.bytes("retry", word.as_bytes());
        }
        pairs.shown("in", self.bytes_in);
        pairs.shown("out", self.bytes_out);
        for (name, took) in self.phases.named() {
            if !took.is_zero() {
                pairs.shown(name, micros(took));
            }
        }
        pairs.bytes("listener", self.listener.as_bytes());
        if let Some(ip) = self.client_ip {
            pairs.shown("client", ip);
        }
        pairs.bytes("user", self.user.as_bytes());
        pairs.bytes("consumer", self.consumer.as_bytes());
        pairs.bytes("workload", self.workload.as_bytes());
        pairs.bytes("protocol", self.protocol.map_or(self.transport, protocol).as_bytes());
        pairs.bytes("sni", self.sni.as_bytes());
        pairs.shown("generation", self.generation);
        pairs.bytes("id", self.request_id);
        if self.trace_id != 0 {
            pairs.key("trace");
            trace_id(pairs.out, self.trace_id);
        }
        pairs.bytes("agent", self.user_agent);
        if self.aborted {
            pairs.out.extend_from_slice(b" aborted");
        }
        out.push(b'\n');
    }
}

impl Phases {
    const fn named(&self) -> [(&'static str, Duration); 4] {
        [("chain_us", self.chain), ("connect_us", self.connect), ("upstream_us", self.upstream), ("body_us", self.body)]
    }
}

/// Members of a JSON object that has a member already.
struct Line<'a> {
    out: &'a mut Vec<u8>,
}

impl Line<'_> {
    /// `member` is written as it is, see [`member`].
    fn key(&mut self, member: &'static str) {
        self.out.extend_from_slice(member.as_bytes());
    }
    fn bytes(&mut self, member: &'static str, value: &[u8]) {
        if !value.is_empty() {
            self.key(member);
            json::string(self.out, value);
        }
    }
    /// `value` needs no escape.
    fn word(&mut self, member: &'static str, value: &'static str) {
        if !value.is_empty() {
            self.key(member);
            self.out.push(b'"');
            self.out.extend_from_slice(value.as_bytes());
            self.out.push(b'"');
        }
    }
    fn number(&mut self, member: &'static str, value: u64) {
        self.key(member);
        digits(self.out, value);
    }
}

/// ` name=value`, quoted where a reader could be misled.
struct Pairs<'a> {
    out: &'a mut Vec<u8>,
}

impl Pairs<'_> {
    fn key(&mut self, name: &'static str) {
        self.out.push(b' ');
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(b'=');
    }
    fn bytes(&mut self, name: &'static str, value: &[u8]) {
        if value.is_empty() {
            return;
        }
        self.key(name);
        if value.iter().any(|b| !b.is_ascii_graphic() || matches!(b, b'"' | b'=' | b'\\')) {
            json::string(self.out, value);
        } else {
            self.out.extend_from_slice(value);
        }
    }
    fn shown(&mut self, name: &'static str, value: impl std::fmt::Display) {
        self.key(name);
        let _ = write!(self.out, "{value}");
    }
}

/// [`json::escape`] for text between spaces.
fn bare(out: &mut Vec<u8>, bytes: &[u8]) {
    for (n, word) in bytes.split(|b| *b == b' ').enumerate() {
        if n > 0 {
            out.extend_from_slice(b"%20");
        }
        json::escape(out, word);
    }
}

/// An address as `Display` has it; of version 4, which is nearly every one, without its machinery.
fn address(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for (n, octet) in ip.octets().into_iter().enumerate() {
                if n > 0 {
                    out.push(b'.');
                }
                digits(out, u64::from(octet));
            }
        }
        IpAddr::V6(ip) => {
            // Writing to a Vec cannot fail.
            let _ = write!(out, "{ip}");
        }
    }
}

/// Address and port, see [`address`].
fn socket(out: &mut Vec<u8>, at: SocketAddr) {
    if at.is_ipv4() {
        address(out, at.ip());
        out.push(b':');
        digits(out, u64::from(at.port()));
    } else {
        let _ = write!(out, "{at}");
    }
}

fn digits(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

fn trace_id(out: &mut Vec<u8>, id: u128) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for byte in id.to_be_bytes() {
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

const fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/3",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn of(record: &Record<'_>) -> Value {
        let mut out = Vec::new();
        record.json(&mut out, b"2026-01-02T03:04:05.006Z");
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
        serde_json::from_slice(&out).expect("JSON")
    }

    #[test]
    fn a_full_record() {
        let endpoint = Address::Tcp("10.0.0.7:8080".parse().expect("an address"));
        let record = Record {
            request_id: b"r-1",
            method: "GET",
            transport: "",
            sni: "",
            host: "shop.example:8443",
            path: b"/orders",
            query: Some(b"token=abc&page=2"),
            protocol: Some(Version::HTTP_2),
            status: 502,
            reason: Some(Reason::Reset),
            filter: "attempt",
            route: "orders",
            listener: "public",
            client_ip: Some("2001:db8::1".parse().expect("an address")),
            user: "alice",
            consumer: "acme",
            workload: "spiffe://corp/ns/web/sa/web",
            service: "stock",
            endpoint: Some(&endpoint),
            attempts: 2,
            retries: &["connect-failed"],
            bytes_in: 1,
            bytes_out: 2,
            duration: Duration::from_micros(1500),
            phases: Phases { chain: Duration::from_nanos(1999), ..Phases::default() },
            generation: 7,
            trace_id: 0xabc,
            user_agent: b"curl/8 \"x\"",
            aborted: true,
        };
        let expected = json!({
            "ts": "2026-01-02T03:04:05.006Z", "request_id": "r-1", "method": "GET", "host": "shop.example:8443",
            "path": "/orders?token=REDACTED&page=2", "protocol": "HTTP/2", "status": 502, "reason": "reset",
            "filter": "attempt", "route": "orders", "listener": "public", "client_ip": "2001:db8::1", "user": "alice",
            "consumer": "acme", "workload": "spiffe://corp/ns/web/sa/web", "service": "stock",
            "endpoint": "10.0.0.7:8080", "attempts": 2, "retries": ["connect-failed"], "bytes_in": 1, "bytes_out": 2,
            "duration_us": 1500, "phases": {"chain_us": 1, "connect_us": 0, "upstream_us": 0, "body_us": 0},
            "generation": 7, "trace_id": "00000000000000000000000000000abc", "user_agent": "curl/8 \"x\"",
            "aborted": true,
        });
        assert_eq!(of(&record), expected);

        let mut text = Vec::new();
        record.text(&mut text, b"T");
        let text = String::from_utf8(text).expect("UTF-8");
        assert!(text.starts_with(
            "T 502 GET shop.example:8443/orders?token=REDACTED&page=2 1.500ms reason=reset filter=attempt"
        ));
        assert!(text.ends_with(" agent=\"curl/8 \\\"x\\\"\" aborted\n"), "{text}");
    }

    #[test]
    fn an_empty_record_is_a_line_too() {
        let line = of(&Record::default());
        assert_eq!(line["status"], 0);
        assert!(line.get("route").is_none() && line.get("endpoint").is_none() && line.get("aborted").is_none());
    }

    #[test]
    fn what_is_always_kept() {
        assert!(!Record { status: 200, ..Record::default() }.must_keep());
        assert!(Record { status: 404, ..Record::default() }.must_keep());
        assert!(Record { status: 200, aborted: true, ..Record::default() }.must_keep());
        assert!(Record { status: 200, reason: Some(Reason::ClientGone), ..Record::default() }.must_keep());
        assert!(Record::default().must_keep(), "no status was ever sent");
    }

    proptest! {
        #[test]
        fn any_bytes_make_one_line(path in any::<Vec<u8>>(), agent in any::<Vec<u8>>(), id in any::<Vec<u8>>()) {
            let record = Record { path: &path, user_agent: &agent, request_id: &id, status: 200, ..Record::default() };
            let line = of(&record);
            if !agent.is_empty() {
                prop_assert_eq!(line["user_agent"].as_str().expect("text"), String::from_utf8_lossy(&agent));
            }
            let mut text = Vec::new();
            record.text(&mut text, b"T");
            prop_assert_eq!(text.iter().filter(|b| b.is_ascii_control()).count(), 1, "the newline");
            prop_assert!(String::from_utf8(text).is_ok());
        }
    }
}
