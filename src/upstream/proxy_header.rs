//! The PROXY protocol, versions 1 and 2, sender side, as written down in HAProxy's `doc/proxy-protocol.txt` (cited as
//! PP): the first bytes of a connection tell the endpoint whose it is. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::config::plan::SendProxy;

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The client. Unspecified: nobody, as for a call of our own or a unix socket.
    pub source: SocketAddr,
    /// The address it connected to.
    pub destination: SocketAddr,
}

impl Client {
    /// Both ends in one family, that of the wider one; `None` if there is nobody to name.
    fn ends(&self) -> Option<Ends> {
        let (source, destination) = (self.source.ip().to_canonical(), self.destination.ip().to_canonical());
        if source.is_unspecified() {
            return None;
        }
        Some(match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Ends::V4(source.octets(), destination.octets()),
            (source, destination) => {
                let wide = |ip| match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                    IpAddr::V6(ip) => ip.octets(),
                };
                Ends::V6(wide(source), wide(destination))
            }
        })
    }

    /// Tells connections of different clients apart.
    pub(super) fn key(&self) -> u64 {
        use onehop_filters::contract::mesh::stable_hash;
        let bytes = |at: &SocketAddr| match at.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        stable_hash(&[&bytes(&self.source), &bytes(&self.destination), &ports])
    }
}

enum Ends {
    V4([u8; 4], [u8; 4]),
    V6([u8; 16], [u8; 16]),
}

/// The header of a connection made for this client; without one it says that it is our own.
#[must_use]
pub fn header(version: SendProxy, client: Option<&Client>) -> Vec<u8> {
    let known = client.and_then(|client| Some((client.ends()?, client.source.port(), client.destination.port())));
    match version {
        SendProxy::V1 => v1(known),
        SendProxy::V2 => v2(known),
    }
}

/// PP 2.1: `PROXY TCP4 src dst sport dport CRLF`.
fn v1(known: Option<(Ends, u16, u16)>) -> Vec<u8> {
    let text = match known {
        // A connection of our own: a receiver must take it for what it is.
        None => "PROXY UNKNOWN\r\n".to_owned(),
        Some((Ends::V4(from, to), source, destination)) => {
            format!("PROXY TCP4 {} {} {source} {destination}\r\n", IpAddr::from(from), IpAddr::from(to))
        }
        Some((Ends::V6(from, to), source, destination)) => {
            format!("PROXY TCP6 {} {} {source} {destination}\r\n", IpAddr::from(from), IpAddr::from(to))
        }
    };
    text.into_bytes()
}

/// PP 2.2: signature, version and command, family and transport, length, addresses, ports.
fn v2(known: Option<(Ends, u16, u16)>) -> Vec<u8> {
    const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
    let mut out = Vec::with_capacity(52);
    out.extend_from_slice(SIGNATURE);
    let Some((ends, source, destination)) = known else {
        // LOCAL, UNSPEC, nothing behind it.
        out.extend_from_slice(&[0x20, 0x00, 0, 0]);
        return out;
    };
    match ends {
        Ends::V4(from, to) => {
            out.extend_from_slice(&[0x21, 0x11, 0, 12]);
            out.extend_from_slice(&from);
            out.extend_from_slice(&to);
        }
        Ends::V6(from, to) => {
            out.extend_from_slice(&[0x21, 0x21, 0, 36]);
            out.extend_from_slice(&from);
            out.extend_from_slice(&to);
        }
    }
    out.extend_from_slice(&source.to_be_bytes());
    out.extend_from_slice(&destination.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::edge::proxy_protocol::{Parsed, Proxied, parse};

    fn client(source: &str, destination: &str) -> Client {
        Client { source: source.parse().expect("an address"), destination: destination.parse().expect("an address") }
    }

    #[test]
    fn lines_are_those_of_the_specification() {
        let of = |c: &Client| String::from_utf8(header(SendProxy::V1, Some(c))).expect("text");
        assert_eq!(
            of(&client("192.0.2.1:56324", "198.51.100.7:443")),
            "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"
        );
        assert_eq!(of(&client("[2001:db8::1]:1", "[2001:db8::2]:2")), "PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n");
        assert_eq!(of(&client("0.0.0.0:0", "0.0.0.0:0")), "PROXY UNKNOWN\r\n");
        assert_eq!(header(SendProxy::V1, None), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn a_connection_of_our_own_is_local() {
        for version in [SendProxy::V1, SendProxy::V2] {
            let bytes = header(version, None);
            assert_eq!(parse(&bytes), Ok(Parsed::Header { consumed: bytes.len(), proxied: None }));
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_our_receiver_reads(
            source in any::<SocketAddr>(), destination in any::<SocketAddr>(), v2 in any::<bool>(),
        ) {
            prop_assume!(!source.ip().to_canonical().is_unspecified());
            let bytes = header(if v2 { SendProxy::V2 } else { SendProxy::V1 }, Some(&Client { source, destination }));
            let plain = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
            let proxied = Some(Proxied { source: plain(source), destination: plain(destination) });
            prop_assert_eq!(parse(&bytes), Ok(Parsed::Header { consumed: bytes.len(), proxied }));
        }
    }
}
