//! A PROXY header comes before any authentication: no bytes may make its parser panic, ask for nothing, ask for ever, or
//! change its mind when more bytes follow.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onehop::edge::proxy_protocol::{LIMIT, Parsed, parse};

fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    for cut in 0..bytes.len() {
        match parse(&bytes[..cut]) {
            Ok(Parsed::More(n)) => assert!(n > 0 && cut + n <= LIMIT),
            settled => assert_eq!(settled, whole, "settled at {cut}, then something else"),
        }
    }
    if let Ok(Parsed::Header { consumed, .. }) = whole {
        assert!(consumed <= bytes.len() && consumed <= LIMIT);
    }
});
