//! A strict reader of the chunked coding (RFC 9112 section 7.1) that watches bytes on their way to hyper. It moves
//! nothing: it says how far the message goes, and where it breaks the grammar.

/// Hex digits of a chunk size: 16 are a whole `u64`, more are leading zeros.
const DIGITS: u8 = 16;
/// Bytes of chunk extensions and trailers a message may carry together.
const EXTRAS: u32 = 16 * 1024;

/// Where in a chunked message the next byte belongs.
#[derive(Clone, Copy, Debug)]
pub struct Chunks {
    state: State,
    size: u64,
    digits: u8,
    extras: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line (or of the final empty line).
    Trailer,
    TrailerLine,
    TrailerLf,
    EndLf,
    End,
}

/// What a run of bytes amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// All of it belongs to the message, which goes on.
    More,
    /// The message ends after this many bytes.
    End(usize),
    /// The grammar breaks at this byte.
    Broken(usize),
}

impl Default for Chunks {
    fn default() -> Self {
        Self { state: State::Size, size: 0, digits: 0, extras: 0 }
    }
}

impl Chunks {
    /// Watches the next bytes.
    pub fn watch(&mut self, bytes: &[u8]) -> Seen {
        let mut at = 0;
        while at < bytes.len() {
            if self.state == State::Data {
                let left = usize::try_from(self.size).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.size -= left as u64;
                at += left;
                if self.size == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            let Some(next) = self.step(bytes[at]) else { return Seen::Broken(at) };
            self.state = next;
            at += 1;
            if next == State::End {
                return Seen::End(at);
            }
        }
        Seen::More
    }

    fn step(&mut self, byte: u8) -> Option<State> {
        Some(match (self.state, byte) {
            (State::Size, digit) if digit.is_ascii_hexdigit() => {
                self.digits += 1;
                if self.digits > DIGITS {
                    return None;
                }
                let value = (digit as char).to_digit(16)?;
                self.size = (self.size << 4) | u64::from(value);
                State::Size
            }
            (State::Size, b';') if self.digits > 0 => State::Extension,
            (State::Size | State::Extension, b'\r') if self.digits > 0 => State::SizeLf,
            // Tab and visible bytes only: a CR or LF here is how two readers come to disagree.
            (State::Extension, byte) if byte == b'\t' || (byte >= b' ' && byte != 0x7f) => {
                self.extra(State::Extension)?
            }
            (State::SizeLf, b'\n') => {
                self.digits = 0;
                if self.size == 0 { State::Trailer } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            (State::Trailer, b'\r') => State::EndLf,
            // A trailer line starts with its name: no folding (RFC 9112 section 5.2).
            (State::Trailer, byte) if byte > b' ' && byte != 0x7f => self.extra(State::TrailerLine)?,
            (State::TrailerLine, b'\r') => State::TrailerLf,
            (State::TrailerLine, byte) if byte == b'\t' || (byte >= b' ' && byte != 0x7f) => {
                self.extra(State::TrailerLine)?
            }
            (State::TrailerLf, b'\n') => State::Trailer,
            (State::EndLf, b'\n') => State::End,
            _ => return None,
        })
    }

    fn extra(&mut self, next: State) -> Option<State> {
        self.extras += 1;
        (self.extras <= EXTRAS).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn watch(bytes: &[u8]) -> Seen {
        Chunks::default().watch(bytes)
    }

    #[test]
    fn well_formed_messages_end_where_they_end() {
        for body in [
            &b"0\r\n\r\n"[..],
            b"3\r\nabc\r\n0\r\n\r\n",
            b"3;a=b\r\nabc\r\n0;x\r\na: b\r\n\r\n",
            b"0000000000000003\r\nabc\r\n0\r\n\r\n",
            b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
        ] {
            assert_eq!(watch(body), Seen::End(body.len()), "{}", body.escape_ascii());
            assert_eq!(watch(&[body, b"GET"].concat()), Seen::End(body.len()));
            assert_eq!(watch(&body[..body.len() - 1]), Seen::More);
        }
    }

    #[test]
    fn the_grammar_is_strict() {
        for (body, at) in [
            (&b"\r\n"[..], 0),
            (b"3 \r\nabc\r\n", 1),
            (b"3\t\r\n", 1),
            (b"0x3\r\n", 1),
            (b"+3\r\n", 0),
            (b"-1\r\n", 0),
            (b"3\nabc", 1),
            (b"3\r\nabc\n", 6),
            (b"3\r\nabcd\r\n", 6),
            (b"3;a\nb\r\n", 3),
            (b"3;a\x00\r\n", 3),
            (b"3;a\rb", 4),
            (b"00000000000000003\r\n", 16),
            (b"0\r\n a: b\r\n\r\n", 3),
            (b"0\r\na: b\n\r\n", 7),
            (b"0\r\na\x00: b\r\n\r\n", 4),
        ] {
            assert_eq!(watch(body), Seen::Broken(at), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn extensions_are_bounded() {
        let body = format!("3;{}", "a".repeat(EXTRAS as usize + 1));
        assert_eq!(watch(body.as_bytes()), Seen::Broken(EXTRAS as usize + 2));
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(sizes in prop::collection::vec(1usize..40, 0..6), cut in 0usize..300, junk in any::<u8>(), at in 0usize..300) {
            let mut body = Vec::new();
            for size in sizes {
                body.extend_from_slice(format!("{size:x}\r\n{}\r\n", "d".repeat(size)).as_bytes());
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let at = at % body.len();
            body[at] = junk;
            let cut = cut % body.len();
            let mut chunks = Chunks::default();
            let pieces = match chunks.watch(&body[..cut]) {
                Seen::More => match chunks.watch(&body[cut..]) {
                    Seen::End(n) => Seen::End(cut + n),
                    Seen::Broken(n) => Seen::Broken(cut + n),
                    Seen::More => Seen::More,
                },
                seen => seen,
            };
            prop_assert_eq!(watch(&body), pieces);
        }
    }
}
