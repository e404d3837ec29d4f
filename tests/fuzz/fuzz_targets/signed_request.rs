//! Any `Signature`, `Signature-Input` and `Content-Digest`: judged without a panic, and never taken for a good one.
#![no_main]

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use onehop_filters::api::signature::probe;

fuzz_target!(|input: (Vec<u8>, Vec<u8>, Vec<u8>)| {
    let (input, signature, digest) = input;
    let mut headers = HeaderMap::new();
    for (name, value) in [("signature-input", input), ("signature", signature), ("content-digest", digest)] {
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            headers.insert(name, value);
        }
    }
    for base in probe(&headers, "/a", Some("b=1&c=%20"), b"body").into_iter().flatten() {
        let last = base.lines().last().unwrap_or_default();
        assert!(last.starts_with("\"@signature-params\": ("), "{base}");
    }
});
