//! The chunked transfer coding (RFC 9112 section 7.1), strictly: hexadecimal digits and CRLF only. Whatever another
//! parser might read differently is an error.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::{fields, trailers};

/// Bytes of chunk extensions a message may carry. They mean nothing to us.
const MAX_EXTENSIONS: usize = 16 * 1024;
/// Digits of a 64-bit size.
const MAX_DIGITS: u8 = 16;

/// What the coding breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// Not a size.
    #[error("a chunk size is malformed")]
    Size,
    /// Too many extension bytes.
    #[error("chunk extensions are too long")]
    Extensions,
    /// A lone CR or LF, or data of another length than announced.
    #[error("a chunk does not end in CRLF")]
    Line,
    /// Malformed trailer section.
    #[error("the trailer section is malformed")]
    Trailers,
    /// Trailer section over its limit.
    #[error("the trailer section is too large")]
    TrailersTooLarge,
}

/// What comes next in the message.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// More bytes are needed.
    Need,
    /// Payload.
    Data(Bytes),
    /// The end; see [`Decoder::trailers`].
    End,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Size { value: u64, digits: u8 },
    Extension,
    SizeLf { value: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailers { scanned: usize },
    End,
}

/// Decodes one message.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Of the chunk whose extension is being read.
    size: u64,
    extensions: usize,
    trailer_limit: usize,
    trailers: Option<HeaderMap>,
}

impl Decoder {
    /// For one message, whose trailer section may take this many bytes.
    #[must_use]
    pub const fn new(trailer_limit: usize) -> Self {
        Self { state: State::Size { value: 0, digits: 0 }, size: 0, extensions: 0, trailer_limit, trailers: None }
    }

    /// Whether the last byte of the message was taken.
    #[must_use]
    pub const fn ended(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// Payload left of the current chunk, as far as known.
    #[must_use]
    pub const fn expected(&self) -> u64 {
        if let State::Data { left } = self.state { left } else { 0 }
    }

    /// The trailer fields that may pass, once the message has ended.
    pub const fn trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    /// Takes the next event off the buffer. After [`Event::End`] nothing more is taken.
    ///
    /// # Errors
    /// The coding is broken; where the message ends is unknown from here on.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Event, Bad> {
        self.advance(buf)?;
        match &mut self.state {
            State::Data { left } if !buf.is_empty() => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
                *left -= take as u64;
                let data = buf.split_to(take).freeze();
                // Reading on over what is not payload finds the end as early as possible.
                self.advance(buf)?;
                Ok(Event::Data(data))
            }
            State::End => Ok(Event::End),
            _ => Ok(Event::Need),
        }
    }

    /// Reads everything that is not payload.
    fn advance(&mut self, buf: &mut BytesMut) -> Result<(), Bad> {
        loop {
            match self.state {
                State::Data { left: 0 } => self.state = State::DataCr,
                State::Data { .. } | State::End => return Ok(()),
                State::Trailers { scanned } => return self.trailer_section(buf, scanned),
                _ => {
                    let Some(&byte) = buf.first() else { return Ok(()) };
                    buf.advance(1);
                    self.state = self.step(byte)?;
                }
            }
        }
    }

    fn step(&mut self, byte: u8) -> Result<State, Bad> {
        match self.state {
            State::Size { value, digits } => match byte {
                b'\r' if digits > 0 => Ok(State::SizeLf { value }),
                b';' if digits > 0 => {
                    self.size = value;
                    self.extensions += 1;
                    Ok(State::Extension)
                }
                _ => {
                    let digit = char::from(byte).to_digit(16).ok_or(Bad::Size)?;
                    if digits == MAX_DIGITS {
                        return Err(Bad::Size);
                    }
                    Ok(State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 })
                }
            },
            State::Extension => match byte {
                b'\r' => Ok(State::SizeLf { value: self.size }),
                b'\t' | b' '..=b'~' | 0x80.. => {
                    self.extensions += 1;
                    if self.extensions > MAX_EXTENSIONS { Err(Bad::Extensions) } else { Ok(State::Extension) }
                }
                _ => Err(Bad::Line),
            },
            State::SizeLf { value } if byte == b'\n' => {
                Ok(if value == 0 { State::Trailers { scanned: 0 } } else { State::Data { left: value } })
            }
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(State::Size { value: 0, digits: 0 }),
            _ => Err(Bad::Line),
        }
    }

    /// Takes the trailer section once all of it is there.
    fn trailer_section(&mut self, buf: &mut BytesMut, scanned: usize) -> Result<(), Bad> {
        match fields::section_end(buf, scanned) {
            Err(fields::BareLf) => Err(Bad::Trailers),
            Ok(Some(end)) if end > self.trailer_limit => Err(Bad::TrailersTooLarge),
            Ok(Some(end)) => {
                let section = buf.split_to(end).freeze();
                self.state = State::End;
                if section.len() > 2 {
                    self.trailers = trailers::parse(&section)?;
                }
                Ok(())
            }
            Ok(None) if buf.len() > self.trailer_limit => Err(Bad::TrailersTooLarge),
            Ok(None) => {
                self.state = State::Trailers { scanned: fields::resume(buf) };
                Ok(())
            }
        }
    }
}
