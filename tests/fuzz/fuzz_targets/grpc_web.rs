//! A text body of gRPC-Web is a stranger's: wherever it is cut, the same bytes come out or the same refusal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onehop_filters::api::grpc_web::framing::{Decoder, Malformed};

fn decoded<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Vec<u8>, Malformed> {
    let mut decoder = Decoder::default();
    let mut out = Vec::new();
    for piece in pieces {
        decoder.push(piece, &mut out)?;
    }
    decoder.finish().map(|()| out)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, text) = input;
    let whole = decoded(std::iter::once(text));
    assert_eq!(decoded(text.chunks(usize::from(cut) % 9 + 1)), whole);
    assert!(whole.is_err() || whole.is_ok_and(|bytes| bytes.len() <= text.len()));
});
