//! Who the client is: `X-Forwarded-*`, `X-Real-IP` and `Forwarded` (RFC 7239), believed from trusted proxies only.
//!
//! Written upstream always: `x-forwarded-for`, `-proto`, `-host`. `x-real-ip`, `x-forwarded-port` and `forwarded` are
//! written only where a trusted proxy sent them (they would cost every request three more fields that nobody asked
//! for). From anybody else all of them are removed first, together with what is internal to the mesh.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use ipnet::IpNet;
use onehop_filters::contract::Conn;
use smallvec::SmallVec;

use super::hop::tokens;

/// The next hop's list of addresses.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Scheme the client used.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Authority the client asked for.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The client, after trusted proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// IPv4-mapped addresses as IPv4.
    pub ip: IpAddr,
    /// Whether the client's scheme is https.
    pub https: bool,
}

/// Fields told to the next hop besides the request's own.
pub type Fields = SmallVec<[(HeaderName, HeaderValue); 6]>;

/// Everything about one connection that its requests write again and again; made once.
#[derive(Debug)]
pub struct Stamp {
    /// The address at the other end, as PROXY protocol told it if it did.
    ip: IpAddr,
    https: bool,
    believed: bool,
    trusted: Arc<[IpNet]>,
    debug: Option<HeaderName>,
    address: HeaderValue,
}

impl Stamp {
    /// Reads the connection; `debug` is the field that asks for the decision trail, which strangers may not send.
    #[must_use]
    pub fn new(conn: &Conn, trusted: Arc<[IpNet]>, debug: Option<HeaderName>) -> Self {
        let ip = conn.client.ip().to_canonical();
        // Behind PROXY protocol it is the client it named that speaks HTTP, not the trusted balancer that named it.
        let believed = if conn.client == conn.peer { conn.trusted } else { is_trusted(&trusted, ip) };
        let text = ip.to_string();
        // An address is visible ASCII.
        let address = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { ip, https: conn.tls.is_some(), believed, trusted, debug, address }
    }

    /// Whether forwarded fields on this connection are believed.
    #[must_use]
    pub const fn believed(&self) -> bool {
        self.believed
    }

    /// Settles the forwarded fields of one request: says who the client is, and adds to `told` what the next hop is to be
    /// told besides what stays in `headers`. A field that is told takes the place of the client's.
    pub fn apply(&self, headers: &mut HeaderMap, authority: &Authority, told: &mut Fields) -> Client {
        if self.believed { self.extend(headers, authority, told) } else { self.replace(headers, authority, told) }
    }

    /// From a stranger: nothing it says counts.
    fn replace(&self, headers: &mut HeaderMap, authority: &Authority, told: &mut Fields) -> Client {
        let mut strange: SmallVec<[HeaderName; 4]> = SmallVec::new();
        for name in headers.keys() {
            if is_internal(name) || self.debug.as_ref() == Some(name) {
                strange.push(name.clone());
            }
        }
        for name in strange {
            headers.remove(name);
        }
        told.push((X_FORWARDED_FOR, self.address.clone()));
        told.push((X_FORWARDED_PROTO, scheme(self.https)));
        told.push((X_FORWARDED_HOST, host_value(authority)));
        Client { ip: self.ip, https: self.https }
    }

    /// From a trusted proxy: its word is kept and its own address added.
    fn extend(&self, headers: &mut HeaderMap, authority: &Authority, told: &mut Fields) -> Client {
        let ip = self.walk(headers);
        let list = match headers.get(X_FORWARDED_FOR) {
            None => self.address.clone(),
            Some(_) => {
                let mut list: Vec<u8> = Vec::with_capacity(64);
                for token in tokens(headers.get_all(X_FORWARDED_FOR)) {
                    list.extend_from_slice(token);
                    list.extend_from_slice(b", ");
                }
                list.extend_from_slice(self.address.as_bytes());
                // Parts of legal values, put together with legal bytes.
                HeaderValue::from_maybe_shared(Bytes::from(list)).unwrap_or_else(|_| self.address.clone())
            }
        };
        told.push((X_FORWARDED_FOR, list));
        let https = match claimed_scheme(headers) {
            Some(https) => https,
            None => {
                told.push((X_FORWARDED_PROTO, scheme(self.https)));
                self.https
            }
        };
        if !headers.contains_key(X_FORWARDED_HOST) {
            told.push((X_FORWARDED_HOST, host_value(authority)));
        }
        if headers.contains_key(X_REAL_IP)
            && let Ok(value) = HeaderValue::try_from(ip.to_string())
        {
            told.push((X_REAL_IP, value));
        }
        if headers.contains_key(FORWARDED) {
            self.extend_forwarded(headers, authority);
        }
        Client { ip, https }
    }

    /// The nearest address that is no trusted proxy. An entry that is no address ends the walk at the proxy that wrote
    /// it. `Forwarded` counts only where `X-Forwarded-For` is absent.
    fn walk(&self, headers: &HeaderMap) -> IpAddr {
        if headers.contains_key(X_FORWARDED_FOR) {
            let lines: SmallVec<[&HeaderValue; 2]> = headers.get_all(X_FORWARDED_FOR).iter().collect();
            self.nearest(lines.iter().rev().flat_map(|l| l.as_bytes().rsplit(|b| *b == b',')).map(parse_node))
        } else if headers.contains_key(FORWARDED) {
            let hops: Vec<Option<IpAddr>> = headers.get_all(FORWARDED).iter().flat_map(forwarded_for).collect();
            self.nearest(hops.into_iter().rev())
        } else {
            self.ip
        }
    }

    fn nearest(&self, hops: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
        let mut nearest = self.ip;
        for hop in hops {
            match hop {
                Some(hop) if is_trusted(&self.trusted, nearest) => nearest = hop,
                _ => break,
            }
        }
        nearest
    }

    fn extend_forwarded(&self, headers: &mut HeaderMap, authority: &Authority) {
        let mut list: Vec<u8> = Vec::with_capacity(96);
        for line in headers.get_all(FORWARDED) {
            list.extend_from_slice(line.as_bytes());
            list.extend_from_slice(b", ");
        }
        let mut own = String::new();
        // An IPv6 node needs brackets and therefore quotes (RFC 7239 section 6).
        let _ = match self.ip {
            IpAddr::V4(ip) => write!(own, "for={ip}"),
            IpAddr::V6(ip) => write!(own, "for=\"[{ip}]\""),
        };
        let _ = write!(own, ";host=\"{authority}\";proto={}", if self.https { "https" } else { "http" });
        list.extend_from_slice(own.as_bytes());
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(list)) {
            headers.insert(FORWARDED, value);
        }
    }
}

fn is_trusted(trusted: &[IpNet], ip: IpAddr) -> bool {
    trusted.iter().any(|net| net.contains(&ip))
}

fn scheme(https: bool) -> HeaderValue {
    HeaderValue::from_static(if https { "https" } else { "http" })
}

/// What only a trusted peer may send.
fn is_internal(name: &HeaderName) -> bool {
    let name = name.as_str();
    match name.as_bytes() {
        [b'x', b'-', b'f', ..] => name.starts_with("x-forwarded-"),
        [b'x', b'-', b'o', ..] => name.starts_with("x-onehop-"),
        [b'x', ..] => name == "x-real-ip",
        [b'f', ..] => name == "forwarded",
        // RFC 9440 section 2.4: whoever ends TLS removes what a client says about its certificate.
        [b'c', b'l', ..] => matches!(name, "client-cert" | "client-cert-chain"),
        _ => false,
    }
}

/// The scheme a trusted proxy claims: the first of its list, if all of them are http or https.
fn claimed_scheme(headers: &HeaderMap) -> Option<bool> {
    let mut first = None;
    for token in tokens(headers.get_all(X_FORWARDED_PROTO)) {
        let https = token.eq_ignore_ascii_case(b"https");
        if !https && !token.eq_ignore_ascii_case(b"http") {
            return None;
        }
        first = first.or(Some(https));
    }
    first
}

/// An address with or without port, brackets and quotes.
fn parse_node(raw: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(raw).ok()?.trim();
    let text = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
    let ip = match text.strip_prefix('[') {
        Some(rest) => {
            let (ip, port) = rest.split_once(']')?;
            if !port.is_empty() && port.strip_prefix(':')?.parse::<u16>().is_err() {
                return None;
            }
            IpAddr::V6(ip.parse().ok()?)
        }
        None => text.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|a| a.ip())).ok()?,
    };
    Some(ip.to_canonical())
}

/// The `for` of each element of a `Forwarded` line, in order; `None` where it is hidden, unknown or malformed.
fn forwarded_for(line: &HeaderValue) -> Vec<Option<IpAddr>> {
    split_unquoted(line.as_bytes(), b',')
        .filter(|element| !element.trim_ascii().is_empty())
        .map(|element| {
            split_unquoted(element, b';').find_map(|pair| {
                let at = pair.iter().position(|b| *b == b'=')?;
                let (name, value) = pair.split_at(at);
                name.trim_ascii().eq_ignore_ascii_case(b"for").then(|| parse_node(&value[1..]))
            })?
        })
        .collect()
}

fn split_unquoted(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |b| {
        let cut = *b == separator && !quoted;
        match *b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        cut
    })
}

thread_local! {
    /// Authorities this thread saw last, as field values: the same few come again and again. Bounded by its slots.
    static RECENT: RefCell<[Option<HeaderValue>; 16]> = const { RefCell::new([const { None }; 16]) };
}

/// An authority as a field value.
#[must_use]
pub fn host_value(authority: &Authority) -> HeaderValue {
    let raw = authority.as_str().as_bytes();
    let slot = (raw.len() ^ raw.iter().take(4).fold(0usize, |mix, b| mix.rotate_left(3) ^ usize::from(*b))) % 16;
    RECENT.with_borrow_mut(|recent| {
        if let Some(known) = &recent[slot]
            && known.as_bytes() == raw
        {
            return known.clone();
        }
        // Copied, so that no read buffer lives on in it. An authority is visible ASCII.
        let value = HeaderValue::from_bytes(raw).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        recent[slot] = Some(value.clone());
        value
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUSTED: &str = "10.0.0.0/8";

    fn stamp(client: &str, tls: bool) -> Stamp {
        let client: SocketAddr = client.parse().unwrap();
        let trusted: Arc<[IpNet]> = vec![TRUSTED.parse().unwrap(), "fd00::/8".parse().unwrap()].into();
        let conn = Conn {
            id: 1,
            listener: "l".into(),
            peer: client,
            local: "127.0.0.1:80".parse().unwrap(),
            client,
            trusted: is_trusted(&trusted, client.ip().to_canonical()),
            mesh: false,
            tls: tls.then_some(onehop_filters::contract::Tls { sni: None, version: "TLSv1.3", workload: None }),
        };
        Stamp::new(&conn, trusted, Some(HeaderName::from_static("x-debug")))
    }

    fn run(stamp: &Stamp, fields: &[(&'static str, &'static str)]) -> (Client, HeaderMap) {
        let mut headers: HeaderMap =
            fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
        let mut told = Fields::new();
        let client = stamp.apply(&mut headers, &Authority::from_static("shop.example"), &mut told);
        // As the next hop sees it.
        for (name, value) in told {
            headers.insert(name, value);
        }
        (client, headers)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_stranger_is_not_believed() {
        let (client, headers) = run(
            &stamp("203.0.113.9:4000", false),
            &[
                ("x-forwarded-for", "10.1.1.1"),
                ("x-forwarded-for", "127.0.0.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "admin.internal"),
                ("x-forwarded-port", "443"),
                ("x-forwarded-prefix", "/evil"),
                ("x-forwarded-client-cert", "By=spiffe://x"),
                ("client-cert", ":MIIBqDCC:"),
                ("client-cert-chain", ":MIIBqDCC:"),
                ("forwarded", "for=127.0.0.1"),
                ("x-real-ip", "127.0.0.1"),
                ("x-onehop-user", "root"),
                ("x-debug", "1"),
                ("accept", "*/*"),
            ],
        );
        assert_eq!(client, Client { ip: ip("203.0.113.9"), https: false });
        let mut left: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        left.sort();
        let expected = [
            "accept: */*",
            "x-forwarded-for: 203.0.113.9",
            "x-forwarded-host: shop.example",
            "x-forwarded-proto: http",
        ];
        assert_eq!(left, expected);
    }

    #[test]
    fn the_walk_stops_at_the_first_stranger() {
        let edge = stamp("10.0.0.1:1", false);
        for (list, expected) in [
            ("198.51.100.7", "198.51.100.7"),
            ("1.1.1.1, 198.51.100.7", "198.51.100.7"),
            ("1.1.1.1, 198.51.100.7, 10.0.0.2", "198.51.100.7"),
            ("1.1.1.1,198.51.100.7:99 , 10.0.0.2:80", "198.51.100.7"),
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("198.51.100.7, junk, 10.0.0.2", "10.0.0.2"),
            ("198.51.100.7,, 10.0.0.2", "10.0.0.2"),
            ("junk", "10.0.0.1"),
            ("", "10.0.0.1"),
            ("::ffff:198.51.100.7", "198.51.100.7"),
            ("[2001:db8::1]:443, fd00::1", "2001:db8::1"),
            ("198.51.100.7, ::ffff:10.0.0.9", "198.51.100.7"),
            ("\"198.51.100.7\"", "198.51.100.7"),
            ("[2001:db8::1]x", "10.0.0.1"),
        ] {
            assert_eq!(run(&edge, &[("x-forwarded-for", list)]).0.ip, ip(expected), "{list}");
        }
    }

    #[test]
    fn lines_are_one_list() {
        let fields = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "198.51.100.7, 10.0.0.2")];
        let (client, headers) = run(&stamp("10.0.0.1:1", false), &fields);
        assert_eq!(client.ip, ip("198.51.100.7"));
        assert_eq!(headers["x-forwarded-for"], "1.1.1.1, 198.51.100.7, 10.0.0.2, 10.0.0.1");
        assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
    }

    #[test]
    fn a_trusted_proxy_is_believed() {
        let edge = stamp("10.0.0.1:1", false);
        let (client, headers) = run(
            &edge,
            &[
                ("x-forwarded-for", "198.51.100.7"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "www.example"),
                ("x-forwarded-port", "443"),
                ("x-real-ip", "1.1.1.1"),
                ("x-onehop-hop", "1"),
                ("x-debug", "1"),
            ],
        );
        assert_eq!(client, Client { ip: ip("198.51.100.7"), https: true });
        assert_eq!(headers["x-forwarded-host"], "www.example");
        assert_eq!(headers["x-forwarded-port"], "443");
        assert_eq!(headers["x-real-ip"], "198.51.100.7");
        assert!(headers.contains_key("x-onehop-hop") && headers.contains_key("x-debug"));
        let (client, headers) = run(&edge, &[("x-forwarded-proto", "gopher")]);
        assert!(!client.https);
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-for"], "10.0.0.1");
        assert!(!headers.contains_key("x-real-ip"));
    }

    #[test]
    fn forwarded_is_read_and_extended() {
        let edge = stamp("[fd00::1]:1", true);
        let given = "for=1.1.1.1;proto=http, For=\"[2001:db8::7]:47011\";by=x, for=10.0.0.2";
        let (client, headers) = run(&edge, &[("forwarded", given)]);
        assert_eq!(client, Client { ip: ip("2001:db8::7"), https: true });
        let expected = format!("{given}, for=\"[fd00::1]\";host=\"shop.example\";proto=https");
        assert_eq!(headers["forwarded"], expected.as_str());
        for hidden in
            ["for=_secret, for=10.0.0.2", "for=unknown, for=10.0.0.2", "by=x, for=10.0.0.2", "for=\"a, for=10.0.0.2"]
        {
            let seen = run(&edge, &[("forwarded", hidden)]).0.ip;
            assert!(seen == ip("10.0.0.2") || seen == ip("fd00::1"), "{hidden}: {seen}");
        }
        // Where both are present, the list counts.
        let both = [("forwarded", "for=1.1.1.1"), ("x-forwarded-for", "198.51.100.7")];
        assert_eq!(run(&edge, &both).0.ip, ip("198.51.100.7"));
    }

    #[test]
    fn behind_proxy_protocol_the_named_client_counts() {
        let mut conn = Conn {
            id: 1,
            listener: "l".into(),
            peer: "10.0.0.1:1".parse().unwrap(),
            local: "127.0.0.1:80".parse().unwrap(),
            client: "[::ffff:203.0.113.9]:5".parse().unwrap(),
            trusted: true,
            mesh: false,
            tls: None,
        };
        let trusted: Arc<[IpNet]> = vec![TRUSTED.parse().unwrap()].into();
        let stamp = Stamp::new(&conn, trusted.clone(), None);
        assert!(!stamp.believed());
        assert_eq!(run(&stamp, &[("x-forwarded-for", "1.1.1.1")]).0.ip, ip("203.0.113.9"));
        conn.client = "10.0.0.7:5".parse().unwrap();
        assert_eq!(run(&Stamp::new(&conn, trusted, None), &[("x-forwarded-for", "1.1.1.1")]).0.ip, ip("1.1.1.1"));
    }
}
