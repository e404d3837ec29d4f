use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;

use super::*;
use crate::contract::{Body, BodyError, Fault, Reason};

const ALL: [Coding; 4] = [Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd];

fn limits() -> Limits {
    Limits { size: 64 << 20, ratio: 1 << 30, over: Reason::BodyTooLarge, broken: Reason::BadBody, by: "test" }
}

fn chunks(chunks: Vec<Result<Frame<Bytes>, BodyError>>) -> Body {
    Body::stream(StreamBody::new(stream::iter(chunks)))
}

fn whole(body: Body) -> Result<Bytes, Reason> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(body.collect()).map(|all| all.to_bytes()).map_err(|fault| fault.reason)
}

#[test]
fn trailers_pass_every_codec() {
    for coding in ALL {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        let body = chunks(vec![Ok(Frame::data(Bytes::from_static(b"hello"))), Ok(Frame::trailers(trailers))]);
        let back = decode(encode(body, coding, 3), coding, limits());
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let all = runtime.block_on(back.collect()).expect("whole");
        assert_eq!(all.trailers().map(|t| t["x-sum"].as_bytes()), Some(&b"1"[..]), "{coding:?}");
        assert_eq!(all.to_bytes(), "hello");
    }
}

/// A source that pauses for ever after each chunk: what it gave must come out all the same.
#[test]
fn nothing_is_held_back_while_the_source_waits() {
    for coding in ALL {
        let first = stream::iter([Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"data: 1\n\n")))]);
        let body = Body::stream(StreamBody::new(first.chain(stream::pending())));
        let mut back = decode(encode(body, coding, 4), coding, limits());
        let mut cx = Context::from_waker(Waker::noop());
        let mut seen = Vec::new();
        while let Poll::Ready(frame) = std::pin::Pin::new(&mut back).poll_frame(&mut cx) {
            let frame = frame.expect("not over").expect("whole");
            seen.extend_from_slice(&frame.into_data().expect("data"));
        }
        assert_eq!(seen, b"data: 1\n\n", "{coding:?}");
    }
}

#[test]
fn a_bomb_is_stopped_by_size_and_by_ratio() {
    for coding in ALL {
        let bomb = || encode(Body::full(vec![0u8; 8 << 20]), coding, 6);
        assert_eq!(whole(decode(bomb(), coding, Limits { size: 1 << 20, ..limits() })), Err(Reason::BodyTooLarge));
        assert_eq!(whole(decode(bomb(), coding, Limits { ratio: 20, ..limits() })), Err(Reason::BodyTooLarge));
        assert_eq!(whole(decode(bomb(), coding, limits())).map(|b| b.len()), Ok(8 << 20), "{coding:?}");
    }
}

#[test]
fn what_is_no_such_coding_is_refused() {
    for coding in ALL {
        let coded = whole(encode(Body::full("hello, hello, hello"), coding, 3)).expect("encoded");
        let cut = Body::full(coded.slice(..coded.len() - 1));
        assert_eq!(whole(decode(cut, coding, limits())), Err(Reason::BadBody), "{coding:?} cut");
        let more = Body::full([&coded[..], b"more"].concat());
        assert_eq!(whole(decode(more, coding, limits())), Err(Reason::BadBody), "{coding:?} with more behind it");
        assert_eq!(whole(decode(Body::full("plain text"), coding, limits())), Err(Reason::BadBody), "{coding:?} plain");
    }
}

#[test]
fn members_follow_each_other() {
    for coding in [Coding::Gzip, Coding::Zstd] {
        let one = whole(encode(Body::full("one"), coding, 3)).expect("encoded");
        let two = whole(encode(Body::full("two"), coding, 3)).expect("encoded");
        assert_eq!(whole(decode(Body::full([one, two].concat()), coding, limits())), Ok("onetwo".into()), "{coding:?}");
    }
}

#[test]
fn a_body_that_breaks_off_says_why() {
    for coding in ALL {
        let broken =
            || chunks(vec![Ok(Frame::data(Bytes::from_static(b"x"))), Err(Box::new(Fault::new(Reason::Reset)))]);
        assert_eq!(whole(encode(broken(), coding, 3)), Err(Reason::Reset), "{coding:?}");
    }
}

#[test]
fn codings_are_read() {
    let read = |values: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
        }
        codings(&headers).map(|found| found.to_vec())
    };
    assert_eq!(read(&[]), Some(vec![]));
    assert_eq!(read(&["identity"]), Some(vec![]));
    assert_eq!(read(&["X-GZip, br"]), Some(vec![Coding::Gzip, Coding::Brotli]));
    assert_eq!(read(&["zstd", "deflate"]), Some(vec![Coding::Zstd, Coding::Deflate]));
    assert_eq!(read(&["compress"]), None);
    assert_eq!(read(&["gzip, gzip, gzip"]), None, "each is another decoder");
}

#[test]
fn json_is_told_by_its_type() {
    for yes in ["application/json", "Application/JSON", "application/problem+json", "application/x+JSON"] {
        assert!(is_json(yes), "{yes}");
    }
    for no in ["", "text/plain", "application/jsonx", "application/json-seq", "é+jso", "+jsé"] {
        assert!(!is_json(no), "{no}");
    }
}

#[test]
fn a_changed_content_keeps_no_claims() {
    let mut headers = HeaderMap::new();
    for (name, value) in
        [("etag", "\"a\""), ("content-digest", "sha-256=:x:"), ("content-md5", "x"), ("accept-ranges", "bytes")]
    {
        headers.insert(name, HeaderValue::from_static(value));
    }
    changed(&mut headers);
    assert_eq!(headers.len(), 1);
    assert_eq!(headers[ETAG], "W/\"a\"");
    changed(&mut headers);
    assert_eq!(headers[ETAG], "W/\"a\"", "weak stays weak");
    vary(&mut headers, "accept-encoding");
    vary(&mut headers, "Accept-Encoding");
    assert_eq!(headers.get_all("vary").iter().count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_is_encoded_decodes(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40_000), 0..4)) {
        for coding in ALL {
            let frames = parts.iter().map(|p| Ok(Frame::data(Bytes::copy_from_slice(p)))).collect();
            let back = whole(decode(encode(chunks(frames), coding, 1), coding, limits()));
            prop_assert_eq!(back, Ok(Bytes::from(parts.concat())));
        }
    }

    #[test]
    fn arbitrary_bytes_break_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        for coding in ALL {
            let _ = whole(decode(Body::full(bytes.clone()), coding, limits()));
        }
    }
}
