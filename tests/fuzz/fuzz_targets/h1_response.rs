//! A response from a hostile endpoint means one thing only, however the network cuts it.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use onehop::upstream::h1::chunked::{Decoder, Event};
use onehop::upstream::h1::parse::{Framing, response};

const LIMIT: usize = 32 * 1024;

/// What a response says: status, fields, payload, bytes left over. `None`: refused. `Some(None)`: incomplete.
type Meaning = Option<Option<(u16, usize, Vec<u8>, usize)>>;

fn read(input: &[u8], step: usize, to_head: bool) -> Meaning {
    let mut pieces = input.chunks(step.max(1));
    let (mut buf, mut scanned) = (BytesMut::new(), 0);
    let head = loop {
        match response(&mut buf, &mut scanned, LIMIT, to_head) {
            Ok(Some(head)) => break head,
            Ok(None) => match pieces.next() {
                Some(piece) => buf.extend_from_slice(piece),
                None => return Some(None),
            },
            Err(_) => return None,
        }
    };
    let status = head.status.as_u16();
    assert!((100..600).contains(&status));
    assert!(!head.headers.contains_key("transfer-encoding") && !head.headers.contains_key("connection"));
    let mut payload = Vec::new();
    match head.framing {
        Framing::Chunked => {
            let mut decoder = Decoder::new(LIMIT);
            loop {
                match decoder.decode(&mut buf) {
                    Ok(Event::Data(data)) => payload.extend_from_slice(&data),
                    Ok(Event::End) => break,
                    Ok(Event::Need) => match pieces.next() {
                        Some(piece) => buf.extend_from_slice(piece),
                        None => return Some(None),
                    },
                    Err(_) => return None,
                }
            }
        }
        Framing::Length(_) | Framing::Close => {}
    }
    let left = buf.len() + pieces.map(<[u8]>::len).sum::<usize>();
    Some(Some((status, head.headers.len(), payload, left)))
}

fuzz_target!(|input: (bool, u8, &[u8])| {
    let (to_head, step, bytes) = input;
    if bytes.len() <= LIMIT {
        assert_eq!(read(bytes, bytes.len(), to_head), read(bytes, usize::from(step), to_head));
    }
});
