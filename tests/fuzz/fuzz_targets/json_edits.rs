//! Edits of a body that a stranger sent: it is refused, or what comes out is JSON where the pointer finds what was set.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onehop_filters::api::transform::json::{Pointer, Tree};
use serde_json::Value;

fuzz_target!(|input: (&str, &[u8])| {
    let (at, body) = input;
    let (Ok(pointer), Some(mut tree)) = (Pointer::read(at), Tree::read(body)) else { return };
    if tree.set(&pointer, Some(Tree::Made(Value::Bool(true)))).is_ok() {
        let mut out = Vec::new();
        tree.write(&mut out);
        // Deeper than the usual reader goes is still JSON.
        if let Ok(value) = serde_json::from_slice::<Value>(&out) {
            assert!(at.split('/').any(|token| token == "-") || value.pointer(at) == Some(&Value::Bool(true)));
        }
    }
});
