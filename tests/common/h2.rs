//! Raw HTTP/2 (RFC 9113): frames written as told, however wrong, and just enough of a reader to judge the answer.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::Wire;

/// The client's connection preface (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0x0;
pub const HEADERS: u8 = 0x1;
pub const RST_STREAM: u8 = 0x3;
pub const SETTINGS: u8 = 0x4;
pub const PING: u8 = 0x6;
pub const GOAWAY: u8 = 0x7;
pub const CONTINUATION: u8 = 0x9;

pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;

/// One frame as bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// A header block of literals without indexing (RFC 7541 section 6.2.2), names and values as given.
pub fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            integer(&mut out, text.len());
            out.extend_from_slice(text);
        }
    }
    out
}

/// RFC 7541 section 5.1 with a prefix of seven bits.
fn integer(out: &mut Vec<u8>, n: usize) {
    if n < 127 {
        out.push(u8::try_from(n).expect("seven bits"));
        return;
    }
    out.push(127);
    let mut rest = n - 127;
    while rest >= 128 {
        out.push(u8::try_from(rest % 128).expect("seven bits") | 128);
        rest /= 128;
    }
    out.push(u8::try_from(rest).expect("seven bits"));
}

/// The fields of a plain request, to be changed.
pub fn plain(method: &'static str, path: &'static str) -> Vec<(&'static [u8], &'static [u8])> {
    vec![
        (b":method", method.as_bytes()),
        (b":scheme", b"http"),
        (b":authority", b"a.example"),
        (b":path", path.as_bytes()),
    ]
}

/// What became of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A final status, and the body as text.
    Answered(u16, String),
    /// RST_STREAM with this code, before any answer.
    Reset(u32),
    /// GOAWAY with this code.
    Gone(u32),
    /// The connection closed without a word.
    Closed,
}

/// A connection that speaks frames.
pub struct Frames {
    wire: Box<dyn Wire>,
    buffer: Vec<u8>,
}

impl Frames {
    /// Connects and greets, with empty SETTINGS.
    pub fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket option");
        stream.set_nodelay(true).expect("a socket option");
        Self::over(stream)
    }

    /// Greets over what is connected already.
    pub fn over(wire: impl Wire + 'static) -> Self {
        let mut frames = Self { wire: Box::new(wire), buffer: Vec::new() };
        frames.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
        frames
    }

    /// Sends bytes. A peer that has gone is no failure here.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.wire.write_all(bytes).and_then(|()| self.wire.flush());
    }

    /// The next frame: kind, flags, stream, payload.
    pub fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let head = self.exactly(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, self.exactly(length)?))
    }

    fn exactly(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < n {
            let mut bytes = [0; 4096];
            match self.wire.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.buffer.extend_from_slice(&bytes[..read]),
            }
        }
        Some(self.buffer.drain(..n).collect())
    }

    /// Reads on until this stream, or the connection, has come to an end.
    pub fn fate(&mut self, stream: u32) -> Fate {
        let mut status = 0;
        let mut body = Vec::new();
        loop {
            let Some((kind, flags, id, payload)) = self.next() else { return Fate::Closed };
            match kind {
                SETTINGS if flags & 1 == 0 => self.send(&frame(SETTINGS, 1, 0, &[])),
                PING if flags & 1 == 0 => self.send(&frame(PING, 1, 0, &payload)),
                GOAWAY => {
                    let code = u32::from_be_bytes(payload[4..8].try_into().expect("four bytes"));
                    // NO_ERROR announces an orderly end, which does not concern this stream.
                    if code != 0 {
                        return Fate::Gone(code);
                    }
                }
                RST_STREAM if id == stream && status < 200 => {
                    return Fate::Reset(u32::from_be_bytes(payload[..4].try_into().expect("four bytes")));
                }
                // Interim answers come before the final one (RFC 9113 section 8.1).
                HEADERS if id == stream && status < 200 => status = self::status(&payload),
                DATA if id == stream => body.extend_from_slice(&payload),
                _ => {}
            }
            if id == stream && matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                return Fate::Answered(status, String::from_utf8_lossy(&body).into_owned());
            }
        }
    }

    /// Sends a header block that ends its stream, and says what became of it.
    pub fn ask(&mut self, stream: u32, fields: &[(&[u8], &[u8])]) -> Fate {
        self.send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(fields)));
        self.fate(stream)
    }
}

/// `:status`, the first field of a block: an index of the static table, or digits in Huffman's code.
fn status(mut block: &[u8]) -> u16 {
    // Changes of the table's size come first (RFC 7541 section 6.3).
    while let [first, rest @ ..] = block
        && first & 0xe0 == 0x20
    {
        block = rest;
    }
    match *block {
        [first @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(first - 0x88)],
        // The name by index 8, with or without a place in the table.
        [0x48 | 0x08 | 0x18, length, ref rest @ ..] if length & 0x80 != 0 => {
            huffman(&rest[..usize::from(length & 0x7f)])
        }
        [0x48 | 0x08 | 0x18, length, ref rest @ ..] => {
            std::str::from_utf8(&rest[..usize::from(length)]).ok().and_then(|d| d.parse().ok()).unwrap_or(0)
        }
        _ => 0,
    }
}

/// Three digits (RFC 7541 appendix B: 0 to 2 have five bits, 3 to 9 have six, from 011001 on).
fn huffman(bytes: &[u8]) -> u16 {
    let bits: Vec<u16> = bytes.iter().flat_map(|b| (0..8).rev().map(move |i| u16::from(b >> i & 1))).collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let read = |n: usize| bits[at..at + n].iter().fold(0, |sum, bit| sum << 1 | bit);
        let (digit, length) = match read(5) {
            digit @ 0..=2 => (digit, 5),
            _ => (read(6) - 0b01_1001 + 3, 6),
        };
        number = number * 10 + digit;
        at += length;
    }
    number
}
