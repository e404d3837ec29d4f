//! The pure part: base64 as it comes in pieces, and trailers as a frame (gRPC-Web, "Protocol differences vs gRPC over
//! HTTP2").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;

/// Length of a frame's own head: flags and a length.
const HEAD: usize = 5;
/// Flag of a frame that holds trailers.
const TRAILERS: u8 = 0x80;

/// Decodes base64 that is cut anywhere and may be padded in its middle: a client encodes each piece that it flushes.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Characters of a quantum that is not complete.
    held: [u8; 4],
    len: usize,
}

/// Not base64.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

impl Decoder {
    /// Decodes what is complete with this piece.
    ///
    /// # Errors
    /// A character that is none of the alphabet, or padding where none can stand.
    pub fn push(&mut self, mut piece: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        while self.len > 0 && !piece.is_empty() {
            self.held[self.len] = piece[0];
            self.len += 1;
            piece = &piece[1..];
            if self.len == 4 {
                self.len = 0;
                decode(&self.held, out)?;
            }
        }
        let (whole, rest) = piece.split_at(piece.len() / 4 * 4);
        // A run ends with the quantum that is padded.
        let mut run = whole;
        while let Some(at) = run.iter().position(|b| *b == b'=') {
            let (padded, after) = run.split_at((at / 4 + 1) * 4);
            decode(padded, out)?;
            run = after;
        }
        decode(run, out)?;
        self.held[..rest.len()].copy_from_slice(rest);
        // Not empty only if everything that was held before has been decoded.
        self.len += rest.len();
        Ok(())
    }

    /// The end of the text.
    ///
    /// # Errors
    /// It ended within a quantum.
    pub const fn finish(&self) -> Result<(), Malformed> {
        if self.len == 0 { Ok(()) } else { Err(Malformed) }
    }
}

fn decode(quanta: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    STANDARD.decode_vec(quanta, out).map_err(|_| Malformed)
}

/// A piece as base64 of its own, padded: whoever reads the stream gets all of it at once.
pub fn encode(piece: &[u8]) -> Vec<u8> {
    STANDARD.encode(piece).into_bytes()
}

/// Trailers as the last frame: an HTTP/1 header block, names in lower case.
pub fn trailers(fields: &HeaderMap) -> Vec<u8> {
    let mut out = vec![TRAILERS, 0, 0, 0, 0];
    for (name, value) in fields {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    let length = u32::try_from(out.len() - HEAD).unwrap_or(u32::MAX);
    out[1..HEAD].copy_from_slice(&length.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn decoded(pieces: &[&[u8]]) -> Result<Vec<u8>, Malformed> {
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        for piece in pieces {
            decoder.push(piece, &mut out)?;
        }
        decoder.finish().map(|()| out)
    }

    #[test]
    fn pieces_may_be_cut_and_padded_anywhere() {
        assert_eq!(decoded(&[b"AAEC"]), Ok(vec![0, 1, 2]));
        assert_eq!(decoded(&[b"A", b"A", b"", b"E", b"C"]), Ok(vec![0, 1, 2]));
        assert_eq!(decoded(&[b"AA==AQ=", b"=AgM="]), Ok(vec![0, 1, 2, 3]));
        for bad in [&b"AAE"[..], b"A===", b"====", b"AA=A", b"AAE!", b"AA\n==", b"AB=="] {
            assert_eq!(decoded(&[bad]), Err(Malformed), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn trailers_are_a_frame() {
        let mut fields = HeaderMap::new();
        fields.insert("grpc-status", HeaderValue::from_static("0"));
        fields.append("x-a", HeaderValue::from_static("1"));
        fields.append("x-a", HeaderValue::from_static("2"));
        let frame = trailers(&fields);
        assert_eq!(&frame[..5], [0x80, 0, 0, 0, 32]);
        assert_eq!(&frame[5..], b"grpc-status: 0\r\nx-a: 1\r\nx-a: 2\r\n");
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..6), cut in 1usize..7) {
            let text: Vec<u8> = pieces.iter().flat_map(|piece| encode(piece)).collect();
            let cuts: Vec<&[u8]> = text.chunks(cut).collect();
            prop_assert_eq!(decoded(&cuts), Ok(pieces.concat()));
        }
        #[test]
        fn where_it_is_cut_makes_no_difference(text in "[A-Za-z0-9+/=!]{0,24}", cut in 1usize..7) {
            let cuts: Vec<&[u8]> = text.as_bytes().chunks(cut).collect();
            prop_assert_eq!(decoded(&cuts).is_ok(), decoded(&[text.as_bytes()]).is_ok());
        }
    }
}
