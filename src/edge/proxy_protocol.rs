//! The PROXY protocol, versions 1 and 2, receiver side, as written down in HAProxy's `doc/proxy-protocol.txt` (cited as
//! PP). Pure and incremental: bytes in, verdict out; clocks and sockets are the caller's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header that is read. Version 1 ends at 107 bytes; version 2 could announce 64 KiB, but what real senders add
/// (a VPC endpoint, TLS facts, a client certificate) fits in a quarter of this.
pub const LIMIT: usize = 16 * 1024;

/// PP 2.1: the longest line of version 1, CRLF included.
const V1_LIMIT: usize = 107;
const V1_START: &[u8] = b"PROXY ";
/// PP 2.2: never the start of HTTP/1.1, HTTP/2 or TLS.
const V2_START: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;

/// What the bytes so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The header is not complete: at least so many bytes more are needed.
    More(usize),
    /// These bytes do not start a header, whatever follows.
    Absent,
    /// A header, and how many bytes it took.
    Header {
        /// Its length.
        consumed: usize,
        /// Who connected to whom; `None` if the sender speaks for itself (`LOCAL`) or cannot say (`UNKNOWN`, `UNSPEC`,
        /// unix sockets): then the socket's own addresses hold.
        proxied: Option<Proxied>,
    },
}

/// The connection as the proxy in front saw it. IPv4-mapped addresses are given as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proxied {
    /// The client.
    pub source: SocketAddr,
    /// The address it connected to.
    pub destination: SocketAddr,
}

/// A header that breaks the protocol. The connection must be dropped (PP 2: no guessing).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// Version 1: no CRLF within 107 bytes, or one where a field should be.
    #[error("the PROXY line does not end as it must")]
    Line,
    /// Version 1: an unknown family, or not exactly its fields.
    #[error("the PROXY line is malformed")]
    Fields,
    /// An address or a port that is none.
    #[error("the PROXY header has an invalid address")]
    Address,
    /// Version 2: version, command or family that the protocol does not have.
    #[error("the PROXY header has an unknown version, command or family")]
    Unknown,
    /// Version 2: addresses or a TLV reach past the announced length.
    #[error("the PROXY header is shorter than what it holds")]
    Short,
    /// Version 2: longer than [`LIMIT`].
    #[error("the PROXY header is too long")]
    Long,
    /// A header is required and there is none.
    #[error("the PROXY header is missing")]
    Missing,
}

/// Reads a header from the start of a connection.
///
/// # Errors
/// The bytes start a header that no further byte can make valid.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ProxyError> {
    if starts(bytes, V2_START) {
        v2(bytes)
    } else if starts(bytes, V1_START) {
        v1(bytes)
    } else {
        Ok(Parsed::Absent)
    }
}

/// Whether the bytes agree with a signature as far as both go.
fn starts(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(a, b)| a == b)
}

/// PP 2.1: `PROXY TCP4 src dst sport dport CRLF`, single spaces, nothing else.
fn v1(bytes: &[u8]) -> Result<Parsed, ProxyError> {
    let window = &bytes[..bytes.len().min(V1_LIMIT)];
    let Some(end) = memchr::memchr(b'\n', window) else {
        if window.len() == V1_LIMIT {
            return Err(ProxyError::Line);
        }
        // `PROXY UNKNOWN` and CRLF is the shortest line there is.
        return Ok(Parsed::More(15usize.saturating_sub(bytes.len()).max(1)));
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(ProxyError::Line)?;
    let rest = line.strip_prefix(V1_START).ok_or(ProxyError::Fields)?;
    let consumed = end + 1;
    // PP 2.1: after UNKNOWN the receiver must ignore anything before the CRLF.
    if rest == b"UNKNOWN" || rest.starts_with(b"UNKNOWN ") {
        return Ok(Parsed::Header { consumed, proxied: None });
    }
    let text = std::str::from_utf8(rest).map_err(|_| ProxyError::Fields)?;
    let fields: [&str; 5] = {
        let mut parts = text.split(' ');
        let fields = std::array::from_fn(|_| parts.next().unwrap_or_default());
        if parts.next().is_some() {
            return Err(ProxyError::Fields);
        }
        fields
    };
    let [family, source, destination, source_port, destination_port] = fields;
    let address: fn(&str) -> Option<IpAddr> = match family {
        "TCP4" => |a| a.parse().ok().map(IpAddr::V4),
        "TCP6" => |a| a.parse().ok().map(IpAddr::V6),
        _ => return Err(ProxyError::Fields),
    };
    let socket = |ip, port| Some(socket(address(ip)?, decimal(port)?));
    let proxied = socket(source, source_port)
        .zip(socket(destination, destination_port))
        .map(|(source, destination)| Proxied { source, destination })
        .ok_or(ProxyError::Address)?;
    Ok(Parsed::Header { consumed, proxied: Some(proxied) })
}

/// A port in canonical form: `u16::from_str` alone would take `+80` and `0080`.
fn decimal(port: &str) -> Option<u16> {
    let canonical = port == "0" || (!port.starts_with('0') && port.bytes().all(|b| b.is_ascii_digit()));
    if canonical { port.parse().ok() } else { None }
}

fn socket(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}

/// PP 2.2: signature, version and command, family and transport, length; addresses; TLVs.
fn v2(bytes: &[u8]) -> Result<Parsed, ProxyError> {
    // Judged as soon as it is there: a wrong version is not worth waiting for a length.
    let command = match bytes.get(12) {
        None | Some(0x20 | 0x21) => bytes.get(12).map(|b| b & 0xf),
        Some(_) => return Err(ProxyError::Unknown),
    };
    let (Some(command), Some(&[family, high, low])) = (command, bytes.get(13..V2_FIXED).and_then(<[u8]>::first_chunk))
    else {
        return Ok(Parsed::More(V2_FIXED - bytes.len()));
    };
    let consumed = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    if consumed > LIMIT {
        return Err(ProxyError::Long);
    }
    let Some(payload) = bytes.get(V2_FIXED..consumed) else {
        return Ok(Parsed::More(consumed - bytes.len()));
    };
    // PP 2.2: with LOCAL the receiver must discard the whole block, the family too; with UNSPEC what follows may be
    // addresses it cannot know the size of.
    if command == 0 || family == 0 {
        return Ok(Parsed::Header { consumed, proxied: None });
    }
    let (addresses, proxied) = match family {
        0x11 | 0x12 => (12, v4(payload)?.into()),
        0x21 | 0x22 => (36, v6(payload)?.into()),
        0x31 | 0x32 => (216, None),
        _ => return Err(ProxyError::Unknown),
    };
    tlvs(payload.get(addresses..).ok_or(ProxyError::Short)?)?;
    // PP 2.2: a combination that is valid but not supported counts as unspecified; no datagram comes by a stream socket.
    let stream = family & 0xf == 1;
    Ok(Parsed::Header { consumed, proxied: proxied.filter(|_| stream) })
}

fn v4(payload: &[u8]) -> Result<Proxied, ProxyError> {
    let &[a, b, c, d, e, f, g, h, sp, sq, dp, dq] = payload.first_chunk().ok_or(ProxyError::Short)?;
    Ok(Proxied {
        source: socket(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([sp, sq])),
        destination: socket(Ipv4Addr::new(e, f, g, h).into(), u16::from_be_bytes([dp, dq])),
    })
}

fn v6(payload: &[u8]) -> Result<Proxied, ProxyError> {
    let (source, rest) = payload.split_first_chunk::<16>().ok_or(ProxyError::Short)?;
    let (destination, rest) = rest.split_first_chunk::<16>().ok_or(ProxyError::Short)?;
    let &[sp, sq, dp, dq] = rest.first_chunk().ok_or(ProxyError::Short)?;
    Ok(Proxied {
        source: socket(Ipv6Addr::from(*source).into(), u16::from_be_bytes([sp, sq])),
        destination: socket(Ipv6Addr::from(*destination).into(), u16::from_be_bytes([dp, dq])),
    })
}

/// PP 2.2: type, two bytes of length, value. None is used here, but all must fit: a header whose parts do not add up is
/// not to be trusted with an address either.
fn tlvs(mut rest: &[u8]) -> Result<(), ProxyError> {
    while !rest.is_empty() {
        let &[_, high, low] = rest.first_chunk().ok_or(ProxyError::Short)?;
        let length = 3 + usize::from(u16::from_be_bytes([high, low]));
        rest = rest.get(length..).ok_or(ProxyError::Short)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
