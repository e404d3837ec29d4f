//! A ClientHello is read before anything is known of its sender: no bytes may make its reader panic, take more than its
//! limit, or come to another verdict because they came in other pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onehop::edge::hello::{Hello, LIMIT};

fuzz_target!(|bytes: &[u8]| {
    let once = Hello::default().feed(bytes);
    if bytes.len() > LIMIT {
        assert_ne!(once, Ok(None), "it asks for more than it reads");
    }
    let mut hello = Hello::default();
    let mut settled = Ok(None);
    for byte in bytes {
        settled = hello.feed(std::slice::from_ref(byte));
        if settled != Ok(None) {
            break;
        }
    }
    assert_eq!(settled, once);
});
